"""The figures: loss curves, CKA heat maps, probes by layer, rank collapse. Written as PNG."""

from pathlib import Path

import numpy as np

from mini_undivided.cka import PLACES, equal_depth
from mini_undivided.support.files import atomic
from mini_undivided.support.run_directory import read_log


def pyplot():
    """matplotlib's drawing module, set to draw into files; or None, and a line that says so, if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no figure was drawn")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save_figure(figure, path):
    """Write a figure as PNG, whole or not at all, and free its memory."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    figure.clear()


def plot_losses(out, entropy):
    """Draw log.jsonl as loss.png: training and validation loss, and the unigram entropy that a model must get under."""
    plt = pyplot()
    if plt is None:
        return
    rows = read_log(out)
    train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    valid = [(row["tokens"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    size = max(1, len(train) // 100)  # means over a hundredth of the run each
    groups = [train[i : i + size] for i in range(0, len(train) - size + 1, size)]
    means = [[sum(column) / size for column in zip(*group, strict=True)] for group in groups]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(*zip(*means, strict=True), label="training", color="tab:blue")
    if valid:
        axes.plot(*zip(*valid, strict=True), "o-", label="validation", color="tab:orange")
    axes.axhline(
        entropy, linestyle="--", color="gray", label="unigram entropy of the validation tokens"
    )
    axes.set(xlabel="tokens", ylabel="loss (nats a masked token)", title=str(out))
    axes.legend()
    save_figure(figure, Path(out) / "loss.png")
    plt.close(figure)


def cka_files(alike):
    """The names of the CKA figures, one for each other run."""
    return [f"cka-{name.replace('/', '-')}.png" for name in alike["others"]]


def plot_cka(alike, out):
    """For each other run: heat maps of attention and block outputs, and CKA at equal depth with ceiling and floor."""
    plt = pyplot()
    if plt is None:
        return
    for name, file in zip(alike["others"], cka_files(alike), strict=True):
        figure, panels = plt.subplots(
            1, 3, figsize=(16, 4.8), layout="constrained", width_ratios=(1, 1.15, 1.2)
        )
        for axes, (place, title) in zip(panels, PLACES.items(), strict=False):
            matrix = np.array(alike["values"][name][place])
            image = heat_map(plt, axes, matrix, first=0 if place == "block" else 1)
            axes.set(xlabel=f"layer of {name}", ylabel=f"layer of {alike['first']}", title=title)
        figure.colorbar(image, ax=panels[1], label="CKA")
        depth_curves(panels[2], alike, name)
        figure.suptitle(
            f"{alike['first']} and {name}: debiased linear CKA, n = {alike['rows']:,} {alike['rows_are']}"
        )
        save_figure(figure, out / file)
        plt.close(figure)


def heat_map(plt, axes, matrix, first):
    """Draw a CKA matrix on a scale from 0 to 1, the cells of equal depth framed; `first` is the first layer's number."""
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    axes.set_xticks(range(matrix.shape[1]), range(first, first + matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]), range(first, first + matrix.shape[0]))
    if max(matrix.shape) <= 16:  # beyond that the numbers would not be readable
        size = 10 if max(matrix.shape) <= 8 else 5
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if value < 0.65 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=size)
    for i, j, _ in equal_depth(matrix):
        axes.add_patch(
            plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="tab:cyan", linewidth=2)
        )
    return image


def depth_curves(axes, alike, name):
    """CKA with the first run at equal depth: the other run's as thick lines, ceiling and floor as thin ones."""
    lines = {
        name: ("tab:blue", 2),
        alike["ceiling"]: ("tab:green", 1),
        alike["floor"]: ("tab:gray", 1),
    }
    for key, (colour, width) in lines.items():
        for place, style in zip(PLACES, ("-", "--"), strict=True):
            if key in alike["values"]:
                points = equal_depth(alike["values"][key][place])
                layers = [i + (place == "attention") for i, *_ in points]
                label = f"{key}, {PLACES[place]}"
                axes.plot(
                    layers,
                    [v for *_, v in points],
                    style,
                    marker="o",
                    color=colour,
                    linewidth=width,
                    label=label,
                )
    axes.set(
        xlabel=f"layer of {alike['first']} (0: embeddings)",
        ylabel="CKA at equal depth",
        ylim=(-0.05, 1.05),
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)


def plot_collapse(curves, out):
    """Rank collapse, a line a run: {run: {"distance": by layer, "cosine": by layer}} as collapse.png."""
    plt = pyplot()
    if plt is None:
        return
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    titles = ("distance from the mean, relative to the norm", "mean cosine of two tokens")
    for axes, kind, title in zip(panels, ("distance", "cosine"), titles, strict=True):
        for name, kinds in curves.items():
            axes.plot(kinds[kind], "o-" if name != "untrained" else "o:", label=name)
        axes.set(
            xlabel="layer (0: embeddings)", title=title, ylim=(min(0, axes.get_ylim()[0]), 1.02)
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend()
    figure.suptitle(
        "Token vectors of a sentence: collapsed where the distance is 0 and the cosine 1"
    )
    save_figure(figure, out / "collapse.png")
    plt.close(figure)


def plot_probes(probes, out):
    """Probe scores by layer, a panel a task and a line a run, the controls as thin lines, as probes.png."""
    plt = pyplot()
    if plt is None:
        return
    tasks = list(next(iter(probes.values())))
    columns = min(3, len(tasks))
    shape = (-(-len(tasks) // columns), columns)
    figure, panels = plt.subplots(
        *shape, figsize=(5 * columns, 4 * shape[0]), layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(tasks) :]:
        axes.axis("off")
    for axes, task in zip(panels.flat, tasks, strict=False):
        for i, (name, scores) in enumerate(probes.items()):
            for kind, style, width in (
                ("trained", "o-", 2),
                ("untrained", ":", 1),
                ("control", "--", 1),
            ):
                if kind in scores[task]:
                    mean, deviation = (
                        np.array(scores[task][kind]["mean"]),
                        scores[task][kind]["std"],
                    )
                    label = name if kind == "trained" else f"{name}, {kind}"
                    axes.plot(mean, style, color=f"C{i}", linewidth=width, label=label)
                    if deviation is not None:
                        axes.fill_between(
                            range(len(mean)),
                            mean - deviation,
                            mean + deviation,
                            color=f"C{i}",
                            alpha=0.2,
                        )
        axes.axhline(scores[task]["majority"], color="gray", linewidth=1, label="majority")
        axes.set(title=task, xlabel="layer (0: embeddings)", ylabel=scores[task]["metric"])
        axes.xaxis.get_major_locator().set_params(integer=True)
    with_control = max(panels.flat[: len(tasks)], key=lambda axes: len(axes.lines))
    with_control.legend(fontsize=8)
    save_figure(figure, out / "probes.png")
    plt.close(figure)
