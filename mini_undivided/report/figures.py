"""The figures: loss curves, CKA, attention, probes by layer, rank collapse. Written as PNG.

Colours have one meaning: blue is with FFNs, orange without; further kinds have further colours. A
dotted line is an untrained model, a dashed one what a kind is held against.
"""

import functools
import textwrap
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mini_undivided.data import MLM_PROBABILITY
from mini_undivided.report.results import (
    CONTROL,
    OUTPUTS,
    PAIRS,
    TWO_SEEDS,
    UNTRAINED,
    equal_depth,
    kinds_of,
    summarise,
)
from mini_undivided.report.tables import rows_compared
from mini_undivided.support.files import atomic, read_json
from mini_undivided.support.run_directory import read_log

WITH_FFNS, WITHOUT_FFNS = "tab:blue", "tab:orange"
FURTHER = ("tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
LINES = {"": "o-", UNTRAINED: "x:", TWO_SEEDS: "--", CONTROL: "s--"}


# What all figures share.

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
def figure(path, rows, columns, size, title=None, **kwargs):
    """Context: yields a figure and an array of its panels, and writes it by its suffix.

    Text is shown as it is: a $ in the name of a run begins no formula.
    """
    from matplotlib import pyplot, rc_context

    kwargs |= {"figsize": size, "layout": "constrained", "squeeze": False}
    with rc_context({"text.parse_math": False}):
        drawn, panels = pyplot.subplots(rows, columns, **kwargs)
        if title:
            drawn.suptitle(textwrap.fill(title, int(11 * size[0])))
        yield drawn, panels.ravel()
        with atomic(path) as temporary:
            drawn.savefig(temporary, dpi=120, format=Path(path).suffix[1:])
        pyplot.close(drawn)


def legend_below(axes, columns=4):
    """The legend of a panel, below all panels, where it covers no line."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def by_layer(axes, **labels):
    """Label the axis of layers, in whole numbers, and whatever else is given."""
    axes.set(**{"xlabel": "layer (0: embeddings)", **labels})
    axes.xaxis.get_major_locator().set_params(integer=True)


def styles(kinds):
    """{kind, and each variant of it: colour and line}; kinds: {kind: how many FFNs}."""
    first, further, chosen = {True: WITH_FFNS, False: WITHOUT_FFNS}, iter(FURTHER * len(kinds)), {}
    for kind, ffns in kinds.items():
        colour = first.pop(ffns > 0, None) or next(further)
        chosen |= {kind + variant: (colour, line) for variant, line in LINES.items()}
    return chosen


def curves(axes, results, style):
    """Draw each kind of a measure's rows by layer, the runs' standard deviation as a band."""
    for kind, curve in summarise(results, "layer").groupby("kind", sort=False):
        layers, (color, line) = curve.index.get_level_values("layer").tolist(), style[kind]
        axes.plot(layers, curve["mean"], line, color=color, label=literal(kind), markersize=5)
        if line == LINES[""]:
            axes.fill_between(layers, curve["mean"] - curve["std"], curve["mean"] + curve["std"],
                              color=color, alpha=0.2, linewidth=0)


def literal(name):
    """A name as a label; matplotlib would leave out one that begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


# Training.

@needs_matplotlib
def plot_losses(record, usual=None):
    """Draw a run's log.jsonl as loss.png, with the loss of the best model without context.

    record: what train.json holds. usual: the validation losses of default runs, {"seeds", "tokens",
    "mean", "std"}.
    """
    options, baseline = record["options"], record.get("baseline")
    out, rows = Path(options["out"]), read_log(options["out"])
    train = [(row["tokens"] / 1e6, row["loss"]) for row in rows if "loss" in row]
    if not train:
        return  # interrupted before the first step
    valid = [(row["tokens"] / 1e6, row["validation_loss"]) for row in rows
             if "validation_loss" in row]
    size = max(1, len(train) // 100)  # means over a hundredth of the run each
    groups = [train[i : i + size] for i in range(0, len(train) - size + 1, size)]
    has_ffns = read_json(out / "config.json", {"ffn_layers": list})["ffn_layers"]
    color = WITH_FFNS if has_ffns else WITHOUT_FFNS
    title = f"{out}: how well masked tokens are predicted"
    with figure(out / "loss.png", 1, 1, (7, 5), title) as (_, (axes,)):
        label = f"training, {options['mlm_probability']:.0%} of the tokens masked"
        if options.get("next_sentence"):
            label += ", loss of pairs added"
        axes.plot(*np.mean(groups, axis=1).T, label=label, color=color, alpha=0.45)
        if valid:
            label = f"validation, {MLM_PROBABILITY:.0%} masked"
            axes.plot(*zip(*valid, strict=True), "o-", label=label, color=color)
        if usual:
            edges = (np.array(usual["mean"]) + side * np.array(usual["std"]) for side in (-2, 2))
            label = f"validation of {usual['seeds']} default runs, ± 2 standard deviations"
            axes.fill_between(np.array(usual["tokens"]) / 1e6, *edges, color="gray", alpha=0.35,
                              label=label)
        if baseline:
            label = "validation of the best model without context"
            axes.axhline(baseline["loss"], linestyle="--", color="gray", label=label)
        axes.set(xlabel="million tokens", ylabel="loss per masked token (nats)")
        legend_below(axes, 1)


# Analysis.

def plot_results(results, out):
    """Draw what was measured: cka-KIND.png, collapse.png, attention.png, probes.png."""
    style = styles(kinds_of(results))
    plots = {"CKA: ": plot_cka, "rank collapse: ": plot_collapse, "attention: ": plot_attention,
             "probe: ": plot_probes}
    for prefix, plot in plots.items():
        rows = results[results.measure.str.startswith(prefix)]
        if not rows.empty:
            plot(rows, style, out)


def cka_file(kind):
    """The name of the figure of a kind's CKA with the first one."""
    return f"cka-{kind.replace('/', '-')}.png"


@needs_matplotlib
def plot_cka(results, style, out):
    """For each kind but the first: heat maps of attention and block outputs, and equal depth."""
    first, *others = (kind for kind in results.kind.unique() if kind + UNTRAINED in style)
    for kind in others:
        title = (f"How similar is {kind} to {first}? Debiased linear CKA of "
                 f"{rows_compared(results)}; framed, and below: at equal depth")
        with figure(out / cka_file(kind), 2, 2, (10, 9), title) as (drawn, panels):
            for axes, below, (output, measure) in zip(
                    panels[:2], panels[2:], OUTPUTS.items(), strict=True):
                rows = results[(results.measure == measure + PAIRS) & (results.kind == kind)]
                matrix = rows.pivot_table("value", "layer", "other_layer", dropna=False).to_numpy()
                image = heat_map(axes, matrix, output)
                axes.set(xlabel=f"layer of {kind}", ylabel=f"layer of {first}",
                         title=measure.removeprefix("CKA: "))
                shown = [kind, *(name for name in style if name.endswith(TWO_SEEDS)),
                         kind + UNTRAINED]
                curves(below, results[(results.measure == measure) & results.kind.isin(shown)],
                       style)
                by_layer(below, xlabel=f"layer of {first}", ylabel="CKA", ylim=(-0.05, 1.05))
            drawn.colorbar(image, ax=panels[:2], label="CKA")
            legend_below(below)


def heat_map(axes, matrix, output):
    """Draw a CKA matrix of an output ("attention", "block"), cells of equal depth framed."""
    from matplotlib.patches import Rectangle

    first = int(output == "attention")
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", origin="lower")
    axes.set_xticks(range(matrix.shape[1]), range(first, first + matrix.shape[1]))
    axes.set_yticks(range(matrix.shape[0]), range(first, first + matrix.shape[0]))
    if max(matrix.shape) <= 16:  # beyond that the numbers would not be readable
        size = 10 if max(matrix.shape) <= 8 else 5
        for (i, j), value in np.ndenumerate(matrix):
            style = {"color": "white" if value < 0.65 else "black", "fontsize": size}
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", **style)
    for i, j in enumerate(equal_depth(matrix.shape, first)):
        frame = {"fill": False, "edgecolor": "tab:cyan", "linewidth": 2}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **frame))
    return image


@needs_matplotlib
def plot_collapse(results, style, out):
    """Rank collapse: distance of tokens from their mean, and their mean cosine, by layer."""
    title = "Do the tokens of a sentence become alike? All alike: distance 0, cosine 1"
    with figure(out / "collapse.png", 1, 2, (10, 4.8), title, sharey=True) as (_, panels):
        for axes, (measure, rows) in zip(panels, results.groupby("measure", sort=False),
                                         strict=True):
            curves(axes, rows, style)
            by_layer(axes, title=measure.removeprefix("rank collapse: "))
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)
        legend_below(axes)


@needs_matplotlib
def plot_attention(results, style, out):
    """What heads attend to: a panel a statistic, means as lines, heads as dots."""
    title = ("What heads attend to in held-out sentences: a dot is a head of a run, a line the mean of "
             "all, its band the standard deviation over runs")
    with figure(out / "attention.png", 2, 3, (13, 8), title) as (_, panels):
        weights = []
        for axes, (measure, rows) in zip(panels, results.groupby("measure", sort=False),
                                         strict=False):
            curves(axes, rows, style)
            for kind, heads in rows.groupby("kind", sort=False):
                dots = {"color": style[kind][0], "alpha": 0.25}
                axes.plot(heads.layer.tolist(), heads.value, ".", **dots)
            measure = measure.removeprefix("attention: ")
            by_layer(axes, xlabel="layer", title=measure, ylim=(0, 1.05 * rows.value.max()))
            weights += [axes] * measure.startswith("weight")
        top = max(axes.get_ylim()[1] for axes in weights)
        for axes in weights:  # these are compared
            axes.set_ylim(0, top)
        panels[-1].axis("off")
        panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center")


@needs_matplotlib
def plot_heads(weights, tokens, title, path):
    """Who looks at whom in one sentence: weights (L, H, T, T), rows looking; layers by heads."""
    L, H, T, _ = weights.shape
    side, size = 0.9 + 0.16 * T, 7
    if L * H > 36:  # many panels are small ones
        side, size = 2.5, min(7, 110 / T)
    layout = {"sharex": True, "sharey": True}
    with figure(path, L, H, (side * H + 1.5, side * L + 1), title, **layout) as (drawn, panels):
        for i, axes in enumerate(panels):
            layer, head = divmod(i, H)
            image = axes.imshow(weights[layer, head], vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
            axes.set_xticks(range(T), tokens, rotation=90, fontsize=size)
            axes.set_yticks(range(T), tokens, fontsize=size)
        drawn.colorbar(image, ax=panels, label="weight")
        drawn.supylabel("the token that looks")
        drawn.supxlabel("the token looked at")


@needs_matplotlib
def plot_probes(results, style, out):
    """Probe scores by layer, a panel a task."""
    tasks, title = results.measure.unique(), "What a linear probe reads off each layer, test scores"
    columns, rows = min(3, len(tasks)), -(-len(tasks) // 3)
    size = (4.2 * columns + 1, 3.6 * rows + 1.2)
    with figure(out / "probes.png", rows, columns, size, title, sharey=True) as (_, panels):
        for axes in panels[len(tasks) :]:
            axes.axis("off")
        for axes, task in zip(panels, tasks, strict=False):
            of_task, name = results[results.measure == task], task.removeprefix("probe: ")
            is_majority = of_task.kind == "majority"
            curves(axes, of_task[~is_majority], style)
            majority = of_task[is_majority].value.iloc[0]
            axes.axhline(majority, color="gray", linewidth=1, label="majority")
            by_layer(axes, title=name)
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)
        legend_below(max(panels[: len(tasks)], key=lambda axes: len(axes.lines)))
