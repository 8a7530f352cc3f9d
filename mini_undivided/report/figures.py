"""The figures: loss curves, CKA, attention, probes by layer, rank collapse. Written as PNG."""

import functools
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mini_undivided.attention import STATISTICS
from mini_undivided.report.tables import FIRST, OUTPUTS, depth_curve, equal_depth
from mini_undivided.support.files import atomic
from mini_undivided.support.run_directory import read_log


def needs_matplotlib(function):
    """Decorator: without matplotlib the function only prints a line that says so."""

    @functools.wraps(function)
    def wrapper(*args):
        try:
            import matplotlib  # late: slow, and a machine without it can train
        except ImportError:
            print("matplotlib is not installed: no figure was drawn")
            return
        matplotlib.use("Agg")  # into files
        function(*args)

    return wrapper


@contextmanager
def figure(path, rows, columns, size, **kwargs):
    """Context: yields a figure and an array of its panels, and writes it by its suffix."""
    from matplotlib import pyplot

    kwargs |= {"figsize": size, "layout": "constrained", "squeeze": False}
    drawn, panels = pyplot.subplots(rows, columns, **kwargs)
    yield drawn, panels.ravel()
    with atomic(path) as temporary:
        drawn.savefig(temporary, dpi=120, format=Path(path).suffix[1:])
    pyplot.close(drawn)


def legend_below(axes):
    """The legend of a panel, in rows of four below all panels, where it covers no line."""
    handles = axes.get_legend_handles_labels()
    axes.figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8)


def by_layer(axes, **labels):
    """Label the axis of layers, in whole numbers, and whatever else is given."""
    axes.set(**{"xlabel": "layer (0: embeddings)", **labels})
    axes.xaxis.get_major_locator().set_params(integer=True)


@needs_matplotlib
def plot_losses(out, baseline=None, usual=None, pairs=False):
    """Draw log.jsonl as loss.png, with the loss of the best model without context.

    usual: the validation losses of default runs, {"seeds", "tokens", "mean", "std"}. pairs: what is
    trained is the loss of pairs, too.
    """
    rows = read_log(out)
    train = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    if not train:
        return  # interrupted before the first step
    valid = [(row["tokens"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    size = max(1, len(train) // 100)  # means over a hundredth of the run each
    groups = [train[i : i + size] for i in range(0, len(train) - size + 1, size)]
    label = "training (words and pairs together)" if pairs else "training"
    with figure(Path(out) / "loss.png", 1, 1, (7, 4.5)) as (_, (axes,)):
        axes.plot(*np.mean(groups, axis=1).T, label=label, color="tab:blue")
        if valid:
            axes.plot(*zip(*valid, strict=True), "o-", label="validation", color="tab:orange")
        if usual:
            edges = (np.array(usual["mean"]) + side * np.array(usual["std"]) for side in (-2, 2))
            label = f"validation of {usual['seeds']} default runs, ± 2 standard deviations"
            axes.fill_between(usual["tokens"], *edges, color="tab:orange", alpha=0.25, label=label)
        if baseline:
            label = "best model without context (word frequencies, its own place)"
            axes.axhline(baseline["loss"], linestyle="--", color="gray", label=label)
        axes.set(xlabel="tokens", ylabel="loss (nats a masked token)", title=str(out))
        axes.legend()


def cka_files(alike):
    """The names of the CKA figures, one for each other run."""
    return [f"cka-{name.replace('/', '-')}.png" for name in alike["others"]]


@needs_matplotlib
def plot_cka(alike, out):
    """For each other run: heat maps of attention and block outputs, and curves at equal depth."""
    first, size = alike["first"], f"n = {alike['rows']:,} {alike['rows_are']}"
    for name, file in zip(alike["others"], cka_files(alike), strict=True):
        with figure(out / file, 1, 3, (16, 4.8), width_ratios=(1, 1.15, 1.2)) as (drawn, panels):
            for axes, (output, title) in zip(panels, OUTPUTS.items(), strict=False):
                matrix = np.array(alike["values"][name][output]["mean"])
                image = heat_map(axes, matrix, output)
                axes.set(xlabel=f"layer of {name}", ylabel=f"layer of {first}", title=title)
            drawn.colorbar(image, ax=panels[1], label="CKA")
            depth_curves(panels[2], alike, name)
            legend_below(panels[2])
            drawn.suptitle(f"{first} and {name}: debiased linear CKA, {size}")


def heat_map(axes, matrix, output):
    """Draw a CKA matrix of an output ("attention", "block"), cells of equal depth framed."""
    from matplotlib.patches import Rectangle

    first = FIRST[output]
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    axes.set_xticks(range(matrix.shape[1]), range(first, first + matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]), range(first, first + matrix.shape[0]))
    if max(matrix.shape) <= 16:  # beyond that the numbers would not be readable
        size = 10 if max(matrix.shape) <= 8 else 5
        for (i, j), value in np.ndenumerate(matrix):
            style = {"color": "white" if value < 0.65 else "black", "fontsize": size}
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", **style)
    for i, j, _ in equal_depth(matrix, output):
        frame = {"fill": False, "edgecolor": "tab:cyan", "linewidth": 2}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **frame))
    return image


def band(axes, curve, x=None, label=None, line="o-", **style):
    """Draw a curve {"mean", "std" or None}, its standard deviation as a band."""
    mean = np.array(curve["mean"])
    x = range(len(mean)) if x is None else x
    axes.plot(x, mean, line, label=label, **style)
    if curve["std"] is not None:
        edges = mean - curve["std"], mean + curve["std"]
        axes.fill_between(x, *edges, color=axes.lines[-1].get_color(), alpha=0.2, linewidth=0)


def depth_curves(axes, alike, name):
    """CKA with the first group at equal depth: the other group's in bold, ceilings and floor."""
    groups = [alike["first"], *alike["others"]]
    colours = {name: f"C{groups.index(name)}", alike["floors"][name]: "gray"}
    colours |= {key: f"C{i + len(groups)}" for i, key in enumerate(alike["ceilings"])}
    for key, colour in colours.items():
        for output, line in zip(OUTPUTS, ("o-", "o--"), strict=True):
            curves = {kind: depth_curve(alike, key, output, kind) for kind in ("mean", "std")}
            layers = [row + FIRST[output] for row, *_ in curves["mean"]]
            curve = {kind: each and [value for *_, value in each] for kind, each in curves.items()}
            label, width = f"{key}, {OUTPUTS[output]}", 2 if key == name else 1
            band(axes, curve, layers, label, line, color=colour, linewidth=width)
    layer = f"layer of {alike['first']} (0: embeddings)"
    by_layer(axes, xlabel=layer, ylabel="CKA at equal depth", ylim=(-0.05, 1.05))


@needs_matplotlib
def plot_collapse(collapse, out):
    """Rank collapse as collapse.png: {"distance" or "cosine": {group: curve by layer}}."""
    titles = {"distance": "distance from the mean, relative to the norm",
              "cosine": "mean cosine of two tokens"}
    with figure(out / "collapse.png", 1, 2, (11, 4.2)) as (drawn, panels):
        for axes, (kind, title) in zip(panels, titles.items(), strict=True):
            for name, curve in collapse[kind].items():
                band(axes, curve, label=name, **group_style(name, [*collapse[kind]]))
            by_layer(axes, title=title, ylim=(min(0, axes.get_ylim()[0]), 1.02))
        legend_below(panels[0])
        meaning = "collapsed where the distance is 0 and the cosine 1"
        drawn.suptitle(f"Token vectors of a sentence: {meaning}")


def group_style(name, names):
    """Colour and line of a group among `names`, whose second half are the untrained models."""
    half = len(names) // 2
    i = names.index(name)
    return {"color": f"C{i % half}", "line": "o-" if i < half else "x:"}


@needs_matplotlib
def plot_attention(looks, out):
    """What heads look at as attention.png: a panel a statistic, means as lines, heads as dots.

    looks: {statistic: {group: {"mean", "std" or None: by layer, "heads": (runs, L, H)}}}.
    """
    with figure(out / "attention.png", 2, 3, (15, 8)) as (drawn, panels):
        for axes, (kind, groups) in zip(panels, looks.items(), strict=False):
            for name, values in groups.items():
                layers, style = range(1, len(values["mean"]) + 1), group_style(name, [*groups])
                for heads in values["heads"]:
                    axes.plot(layers, heads, ".", color=style["color"], alpha=0.25)
                band(axes, values, layers, name, **style)
            top = 1.05 * axes.get_ylim()[1]
            by_layer(axes, xlabel="layer", title=STATISTICS[kind], ylim=(0, top))
        panels[-1].axis("off")
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center")
        drawn.suptitle("Who looks at whom on held-out sentences: a dot is a head of a run, a line "
                       "the mean of all, with the standard deviation of the runs' means")


@needs_matplotlib
def plot_heads(weights, tokens, title, path):
    """Who looks at whom in one sentence: weights (L, H, T, T), rows looking; layers by heads."""
    L, H, T, _ = weights.shape
    side, size = 0.9 + 0.16 * T, 7
    if L * H > 36:  # many panels are small ones
        side, size = 2.5, min(7, 110 / T)
    layout = {"sharex": True, "sharey": True}
    with figure(path, L, H, (side * H + 1.5, side * L + 1), **layout) as (drawn, panels):
        for i, axes in enumerate(panels):
            layer, head = divmod(i, H)
            image = axes.imshow(weights[layer, head], vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            axes.set_xticks(range(T), tokens, rotation=90, fontsize=size)
            axes.set_yticks(range(T), tokens, fontsize=size)
        drawn.colorbar(image, ax=panels, label="weight")
        drawn.suptitle(title)
        drawn.supylabel("the token that looks")
        drawn.supxlabel("the token looked at")


@needs_matplotlib
def plot_probes(probes, out):
    """Probe scores by layer, a panel a task, a line a run, its controls thin, as probes.png."""
    tasks = list(next(iter(probes.values())))
    columns, rows = min(3, len(tasks)), -(-len(tasks) // 3)
    lines = {"trained": ("o-", 2), "untrained": (":", 1), "control": ("--", 1)}
    with figure(out / "probes.png", rows, columns, (5 * columns, 4 * rows)) as (_, panels):
        for axes in panels[len(tasks) :]:
            axes.axis("off")
        for axes, task in zip(panels, tasks, strict=False):
            for i, (name, scores) in enumerate(probes.items()):
                for kind in (kind for kind in lines if kind in scores[task]):
                    line, width = lines[kind]
                    label = name if kind == "trained" else f"{name}, {kind}"
                    style = {"color": f"C{i}", "linewidth": width}
                    band(axes, scores[task][kind], None, label, line, **style)
            axes.axhline(scores[task]["majority"], color="gray", linewidth=1, label="majority")
            by_layer(axes, title=task, ylabel=scores[task]["metric"])
        legend_below(max(panels[: len(tasks)], key=lambda axes: len(axes.lines)))
