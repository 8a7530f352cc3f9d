"""The figures: loss curves, CKA, attention, probes by layer, rank collapse. Written as PNG.

Colours have one meaning: blue is with FFNs, orange without; further kinds have further colours. A
dotted line is an untrained model, a dashed one what a kind is held against.
"""

import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_undivided.data import MLM_PROBABILITY
from mini_undivided.report.replicates import verdicts
from mini_undivided.report.results import (
    CONTROL,
    OUTPUTS,
    PAIRS,
    TWO_SEEDS,
    UNTRAINED,
    compared,
    equal_depth,
    kinds_of,
    rows_of,
    summarise,
)
from mini_undivided.report.tables import beside, cka_sentence, tokens_compared
from mini_undivided.support.files import atomic, read_json
from mini_undivided.support.run_directory import read_log

WITH_FFNS, WITHOUT_FFNS = "tab:blue", "tab:orange"
FURTHER = ("tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
LINES = {"": "o-", UNTRAINED: "x:", TWO_SEEDS: "--", CONTROL: "s--"}


class Panels(NamedTuple):
    """A figure of measures by layer, a panel each.

    over: what a band is over. top: of the y axes; None: of those of attention weights the same, of
    others what fits. where: what of the layers the verdicts compare.
    """

    file: str
    title: str
    ylabel: str
    over: str
    top: float | None
    where: str | None


MEASURES = {  # by what they begin with
    "rank collapse: ": Panels(
        "collapse.png", "Do the tokens of a sentence become alike? All alike: distance 0, cosine 1",
        "mean over sentences", "runs", 1.02, None),
    "attention: ": Panels(
        "attention.png", "What heads attend to in held-out sentences",
        "mean over tokens (dots and crosses: single heads)", "runs", None,
        "on average"),
    "probe: ": Panels(
        "probes.png", "What a linear probe reads off each layer", "score on the test part",
        "runs (of one run: over draws of its training examples)", 1.02, "at the best layer")}


# What all figures share.

@contextmanager
def figure(path, rows, columns, size, title, **kwargs):
    """Context: yields a figure and an array of its panels, and writes it by its suffix.

    Text is shown as it is: a $ in the name of a run begins no formula. Of the same data comes the
    same file.
    """
    from matplotlib import rc_context  # late: slow
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False, "svg.hashsalt": "figure"}):
        drawn = Figure(size, layout="constrained")
        drawn.suptitle(textwrap.fill(title, int(11 * size[0])))
        yield drawn, drawn.subplots(rows, columns, squeeze=False, **kwargs).ravel()
        with atomic(path) as temporary:
            drawn.savefig(temporary, dpi=120, format=Path(path).suffix[1:],
                          metadata={"Date": None})


def legend_below(axes, columns=4):
    """The legend of a panel, below all panels, in even rows of at most `columns`."""
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // columns)
    axes.figure.legend(handles, labels, loc="outside lower center", fontsize=9,
                       ncols=-(-len(labels) // rows))


def styles(kinds):
    """{kind, and each variant of it: colour and line}; kinds: how many FFNs, by kind."""
    first, further, chosen = {True: WITH_FFNS, False: WITHOUT_FFNS}, iter(FURTHER * len(kinds)), {}
    for kind, ffns in kinds.items():
        colour = first.pop(ffns > 0, None) or next(further)
        chosen |= {kind + variant: (colour, line) for variant, line in LINES.items()}
    return chosen


def curves(axes, results, style, over, names=None):
    """Draw each kind of a measure's rows by layer, the standard deviation as a band.

    over: what the deviation is over; names: {kind: its label}, if that is not the kind.
    """
    has_band = False
    for kind, curve in summarise(results, "layer").groupby("kind", sort=False):
        layers, (color, line) = curve.index.get_level_values("layer").tolist(), style[kind]
        label = names[kind] if names else kind
        if label.startswith("_"):
            label = " " + label  # else matplotlib leaves it out of the legend
        axes.plot(layers, curve["mean"], line, color=color, label=label, markersize=5)
        if line == LINES[""] and curve["std"].notna().any():
            has_band = True
            axes.fill_between(layers, curve["mean"] - curve["std"], curve["mean"] + curve["std"],
                              color=color, alpha=0.2, linewidth=0)
    if has_band:
        axes.fill_between([], [], color="gray", alpha=0.3, linewidth=0,
                          label=f"± standard deviation over {over}")
    axes.xaxis.get_major_locator().set_params(integer=True)


# Training.

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
    title = f"{out}: loss on masked tokens (lower is better)"
    if valid and baseline:
        last = valid[-1][1]
        title = (f"{out}: validation loss {last:.3f} nats, {beside(last, baseline['loss'])} the "
                 "best model without context")
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

def plot_results(results, out, one_kind):
    """Draw what was measured: cka-KIND.png, collapse.png, attention.png, probes.png.

    one_kind: whether the runs differ in their seed alone.
    """
    style, found = styles(kinds_of(results)), verdicts(compared(results))
    if not (cka := rows_of(results, "CKA: ")).empty:
        plot_cka(cka, style, out, one_kind)
    for prefix, about in MEASURES.items():
        if not (rows := rows_of(results, prefix)).empty:
            plot_measures(rows, style, found, out, about)


def cka_file(kind):
    """The name of the figure of a kind's CKA with the first one."""
    return f"cka-{kind.replace('/', '-')}.png"


def plot_cka(results, style, out, one_kind):
    """For each kind but the first: heat maps of attention and block outputs, and equal depth."""
    first, *others = (kind for kind in results.kind.unique() if kind + UNTRAINED in style)
    for kind in others:
        title = cka_sentence(results, first, kind, one_kind)
        names = {kind: f"{kind} with {first}"}
        names |= {name: f"{name} (ceiling)" for name in style if name.endswith(TWO_SEEDS)}
        names |= {kind + UNTRAINED: f"{kind + UNTRAINED}, with {first} (floor)"}
        with figure(out / cka_file(kind), 2, 2, (10, 9), title) as (drawn, panels):
            for axes, below, (output, measure) in zip(
                    panels[:2], panels[2:], OUTPUTS.items(), strict=True):
                rows = results[(results.measure == measure + PAIRS) & (results.kind == kind)]
                matrix = rows.pivot_table("value", "layer", "other_layer", dropna=False).to_numpy()
                image = heat_map(axes, matrix, output)
                axes.set(xlabel=f"layer of {kind}", ylabel=f"layer of {first}",
                         title=measure.removeprefix("CKA: ") + " (framed: at equal depth)")
                rows = results[(results.measure == measure) & results.kind.isin(names)]
                curves(below, rows, style, "pairs of runs", names)
                below.set(xlabel=f"layer of {first}", ylabel="CKA at equal depth",
                          ylim=(-0.05, 1.05))
            label = f"debiased linear CKA, {tokens_compared(results)}"
            drawn.colorbar(image, ax=panels[:2], label=label)
            legend_below(below, 3)


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
        frame = {"fill": False, "edgecolor": "tab:cyan", "linewidth": 2, "clip_on": False,
                 "zorder": 3}
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **frame))
    return image


def plot_measures(results, style, found, out, about):
    """A panel for each measure, by layer: kinds as curves, heads as dots, the majority as a line.

    found: the verdicts, of which each panel's title has those on its measure, without intervals;
    if there are none, it has the values at the last layer. about: the `Panels`.
    """
    measures = results.measure.unique()
    columns, rows = min(3, len(measures)), -(-len(measures) // 3)
    size = (4.2 * columns + 1, 3.6 * rows + 1.2)
    highest = results[results.measure.str.contains("weight on")].value.max()
    with figure(out / about.file, rows, columns, size, about.title) as (drawn, panels):
        for axes in panels[len(measures) :]:
            axes.axis("off")
        for axes, measure in zip(panels, measures, strict=False):
            shown = results[results.measure == measure]
            by_layer, majority = shown[shown.layer.notna()], shown[shown.kind == "majority"]
            curves(axes, by_layer, style, about.over)
            for kind, heads in by_layer[by_layer["head"].notna()].groupby("kind", sort=False):
                color, line = style[kind]
                axes.plot(heads.layer.tolist(), heads.value, line[0], color=color, alpha=0.3,
                          markersize=4)
            for score in majority.value[:1]:  # of each run the same
                axes.axhline(score, color="gray", linewidth=1, label="majority")
            high = highest if "weight on" in measure else shown.value.max()
            said = [f"{about.where}, {sentence.split(': ')[0]}" for (name, _), (sentence, _)
                     in found.items() if name == measure and ": " in sentence]
            lines = [measure.split(": ")[1], *(said or [last_layers(by_layer, style)])]
            axes.set_title("\n".join(textwrap.fill(line, 52) for line in lines), fontsize=10)
            axes.set(ylim=(1.05 * min(0, shown.value.min()), about.top or 1.05 * high),
                     xlabel="layer" if by_layer.layer.min() else "layer (0: embeddings)")
        drawn.supylabel(about.ylabel)
        legend_below(max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[1])))


def last_layers(results, style):
    """Where the curves of trained models end, as text."""
    means = summarise(results, "layer")["mean"].groupby("kind", sort=False).last()
    ends = (f"{kind} {mean:.2f}" for kind, mean in means.items() if style[kind][1] == LINES[""])
    return f"last layer: {', '.join(ends)}"


def plot_heads(weights, tokens, title, path):
    """The attention of one sentence: weights (L, H, T, T), a row per query; layers by heads."""
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
        drawn.supylabel("the token that attends (query)")
        drawn.supxlabel("the token attended to (key)")
