"""Tables and sentences, in Markdown that is also readable in a terminal."""

import shutil
import textwrap
from itertools import product

import numpy as np

from mini_undivided.report.replicates import verdicts
from mini_undivided.report.results import (
    CONTROL,
    OUTPUTS,
    TOKENS_COMPARED,
    TWO_SEEDS,
    UNTRAINED,
    best_layers,
    compared,
    kinds_of,
    rows_of,
    summarise,
)
from mini_undivided.support.tasks import GLUE

RUN_COLUMNS = {  # measure: its form in the table of runs
    "layers": ".0f", "FFNs": ".0f", "parameters": ",.0f", "MFLOPs per token": ".2f",
    "tokens seen": ",.0f", "tokens/s": ",.0f", "validation loss": ".3f", "masked accuracy": ".1%"}


# Numbers, text and tables.

def table(header, rows):
    """Rows of strings as an aligned Markdown table; all columns but the first to the right."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in [header, *rows])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *rest in [header, rule, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(lines)


def plus_minus(mean, std=None, digits=2):
    """A mean (NaN: –) with its standard deviation, if there is one (None or NaN: none)."""
    if mean != mean:
        return "–"
    deviation = "" if std is None or std != std else f" ± {std:.{digits}f}"
    return f"{mean:.{digits}f}{deviation}"


def spread(mean, std=None):
    """A mean with its standard deviation, × 100."""
    return plus_minus(100 * mean, None if std is None else 100 * std, 1)


def count(number, noun, plural=None):
    """A number of things: "1 epoch", "2,500 steps"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def wrap(text, indent=0):
    """Text broken between words to the terminal's width, its lines but the first indented."""
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)


def finetuning_table(results):
    """What finetune.py prints: dev scores × 100, and GLUE's average if all its tasks are there."""
    lines = [f"{'task':14} {'metric':20} {'dev score':>14}  {'majority':>8}"]
    means = {}
    for result in results:
        for metric, score in result["scores"].items():
            value, guess = spread(score["mean"], score["std"]), spread(result["majority"][metric])
            lines.append(f"{result['name']:14} {metric:20} {value:>14}  {guess:>8}")
        means[result["task"]] = np.mean([score["mean"] for score in result["scores"].values()])
    if set(means) == set(GLUE):
        mean = spread(np.mean([value for key, value in means.items() if key != "wnli"]))
        lines.append(f"average of the 8 tasks without WNLI, each the mean of its metrics: {mean}")
    return "\n".join(lines)


# What a report holds. `results`: the table of report/results.py; its names are shown as they are.

def escape(name):
    """A name of a run as Markdown that shows it literally."""
    special = set("\\`*<>[]$~#&") | ({"_"} if name.strip("_") != name or "__" in name else set())
    return "".join(f"\\{letter}" if letter in special else letter
                   for letter in " ".join(name.split()))


def pivot(texts, columns, corner=""):
    """A Series of texts by row and column as a table; what is missing is a dash."""
    frame = texts.unstack().reindex(texts.index.unique(0))
    frame = frame.reindex(columns=columns).astype(object).fillna("–")
    return table([corner, *map(str, columns)], frame.reset_index().to_numpy().tolist())


def texts_of(summary, form):
    """Means and standard deviations (results.summarise) as texts; form: plus_minus or spread."""
    return summary[["mean", "std"]].agg(lambda row: form(*row), axis=1)


def runs_table(results):
    """Size, cost and pretraining result of each run."""
    rows = results[results.measure.isin(RUN_COLUMNS) & results.run.notna()]
    texts = [format(row.value, RUN_COLUMNS[row.measure]) for row in rows.itertuples()]
    return pivot(rows.assign(text=texts).set_index(["run", "measure"]).text, RUN_COLUMNS, "run")


def replicates_text(values, kinds):
    """Means over the seeds of each kind, and verdicts, or an empty string; values: `compared`."""
    found = verdicts(values)
    if not found:
        return ""
    head = ("Replicates: mean ± standard deviation over pretraining seeds, their number in "
            "parentheses. In brackets the 95 % confidence interval of the difference, by Welch's "
            "t: of twenty such intervals one misses by chance.\n\n")
    texts = values.groupby(["measure", "kind"], sort=False).agg(
        lambda runs: f"{plus_minus(runs.mean(), runs.std(), 3)} ({len(runs)})")
    lines = "\n".join(f"- {measure}: {sentence}" for (measure, _), (sentence, _) in found.items())
    return f"{head}{pivot(texts, kinds)}\n\n{lines}"


def baseline_text(results):
    """What the losses of the table of runs are to be held against, or an empty string."""
    rows = results[results.kind == "no context"]
    if rows.empty:
        return ""
    loss, accuracy = rows.value
    return ("On the first run's validation text the best model without context, which knows how "
            "common words are and uses the masked position alone, has a loss of "
            f"{loss:.3f} and an accuracy of {accuracy:.1%}.")


def glue_table(results):
    """The dev scores that finetune.py left in the runs, or an empty string."""
    scores = rows_of(results, "fine-tuned")
    if scores.empty:
        return ""
    head = ("Dev scores × 100; ± is over pretraining seeds, or of a single run over fine-tuning "
            "seeds:\n\n")
    kinds = [*kinds_of(results).index, "majority"]
    return head + pivot(texts_of(summarise(scores), spread), kinds)


def layers_table(results):
    """A row for each measure and kind, a column for each layer."""
    rows = results.measure.str.split(": ").str[-1] + ", " + results.kind
    names = results.layer.map(lambda layer: f"layer {layer}" if layer else "embeddings")
    layers = results.assign(name=names).sort_values("layer").name.unique()
    summary = summarise(results.assign(measure=rows, name=names), "name").droplevel("kind")
    return pivot(texts_of(summary, plus_minus), layers)


def tokens_compared(results):
    """What CKA was computed from, as text: "1,280 tokens"."""
    return f"{rows_of(results, TOKENS_COMPARED).value.iloc[0]:,.0f} tokens"


def cka_text(results, first, one_kind):
    """What stands above the table of CKA."""
    ceiling = "without a ceiling, which two seeds of one kind would give"
    if results.kind.str.endswith(TWO_SEEDS).any():
        ceiling = "with two seeds of one kind as its ceiling"
    if one_kind:
        ceiling = "which is the ceiling for other kinds, as these runs differ in their seed alone"
    constant = " (a layer with the same vector in all rows has none)"
    constant = constant if results.value.isna().any() else ""
    return (f"Debiased linear CKA with {first} at equal depth, n = {tokens_compared(results)}, "
            f"{ceiling}, and an untrained model as its floor; with several seeds, mean ± standard "
            f"deviation over pairs of runs{constant}:")


def probe_text(seeds):
    """What stands above the table of probes."""
    return ("Linear probes on frozen features, test scores × 100 of the best layer (0: "
            "embeddings), which the validation part chose. Of several runs: mean ± standard "
            "deviation over them. Of a single run, and of untrained encoders: over "
            f"{count(seeds, 'seed')}, which draw four fifths of one training part; how much other "
            "sentences in the test part would change a score is not in it. Majority: the best that "
            "one answer for all scores.")


def probe_table(results):
    """For each task and kind its best layer, beside embeddings, untrained encoder and controls."""
    header = ["task", "kind", "layer", "score", "embeddings", "untrained", "majority", "control",
              "selectivity"]
    best, rows = best_layers(results), []
    probes = rows_of(results, "probe: ")
    summary = summarise(probes.fillna({"layer": 0}), "layer")  # of the majority, no layer
    texts, means = texts_of(summary, spread), summary["mean"]
    for task, kind in product(probes.measure.unique(), kinds_of(results).index):
        layer, control = best[task, kind], kind + CONTROL
        cells = [(kind, layer), (kind, 0), (kind + UNTRAINED, best[task, kind + UNTRAINED]),
                 ("majority", 0), (control, layer)]
        selectivity = "–"
        if (task, control, layer) in means:
            selectivity = spread(means[task, kind, layer] - means[task, control, layer])
        rows.append([task.removeprefix("probe: "), kind, str(layer),
                     *(texts.get((task, *cell), "–") for cell in cells), selectivity])
    return table(header, rows)


# What it says.

def beside(loss, other):
    """How far a loss is from another one, as text: "0.21 nats under"."""
    return f"{abs(loss - other):.2f} nats {'over' if loss > other else 'under'}"


def findings(results, one_kind):
    """Yield what the numbers of the first kind say, and two or three sentences for each other."""
    first, *others = kinds_of(results).index
    probes = 100 * compared(results).groupby(["kind", "measure"], sort=False).mean()
    probes = probes[probes.index.get_level_values("measure").str.startswith("probe: ")]
    probes = probes.rename(lambda measure: measure.removeprefix("probe: "), level="measure")
    if not probes.empty:
        best = ", ".join(f"{task} {score:.1f}" for task, score in probes[first].items())
        yield f"Best-layer probe scores × 100 of {first}: {best}."
    for other in others:
        yield cost_sentence(results, first, other)
        if results.measure.eq(OUTPUTS["attention"]).any():
            yield cka_sentence(results, first, other, one_kind)
        if not probes.empty:
            gaps = probes[other] - probes[first]
            gaps = ", ".join(f"{task} {gaps[task]:+.1f}" for task in probes[first].index)
            yield f"Best-layer probe scores of {other} less those of {first}, in points: {gaps}."
    runs = results[results.measure == "FFNs"].value_counts("kind")
    if one_kind:
        yield "These runs differ in nothing but their seed: this is how far apart two seeds are."
    elif others and min(runs) < 2:
        yield ("A kind with one seed: differences as small as those between seeds say nothing of "
               "FFNs. Several seeds of each kind, given together, are compared as groups.")


def cost_sentence(results, first, other):
    """Size, compute and validation loss of a kind beside the first one's."""
    mean = summarise(results[results.layer.isna()])["mean"]
    ours, theirs = mean.xs(first, level="kind"), mean.xs(other, level="kind")
    text = f"{other} has {theirs['parameters'] / ours['parameters']:.0%} of {first}'s parameters"
    both = {*ours.index} & {*theirs.index}
    if "MFLOPs per token" in both:
        share = theirs["MFLOPs per token"] / ours["MFLOPs per token"]
        text += f" and {share:.0%} of its FLOPs per token"
    if "validation loss" in both:
        gap = theirs["validation loss"] - ours["validation loss"]
        tokens = (f"{kind['tokens seen']:,.0f}" for kind in (theirs, ours))
        sign = "higher" if gap > 0 else "lower"
        text += (f"; after {' and '.join(dict.fromkeys(tokens))} tokens its validation loss is "
                 f"{abs(gap):.3f} nats {sign}")
    return text + "."


def cka_sentence(results, first, other, one_kind):
    """The mean CKA of attention outputs at equal depth, on the scale from floor to ceiling."""
    rows = results[results.measure == OUTPUTS["attention"]]
    if rows[rows.kind == other].value.isna().any():
        return (f"CKA of {other}'s attention outputs with {first}'s has no mean: a layer is "
                "constant.")
    mean = summarise(rows)["mean"].droplevel("measure")
    ceilings, floor = mean[mean.index.str.endswith(TWO_SEEDS)], mean[other + UNTRAINED]
    text = (f"At equal depth, CKA of {other}'s attention outputs with {first}'s is "
            f"{mean[other]:.2f} on average")
    if one_kind:
        return f"{text} (floor {floor:.2f})."
    if ceilings.empty:
        limit = "without two seeds of one kind one cannot say whether that is much"
        return f"{text} (floor {floor:.2f}); {limit}."
    pairs = ", ".join(f"of {kind} {value:.2f}" for kind, value in ceilings.items())
    text += f"; that {pairs}, and of an untrained model {floor:.2f}"
    ceiling = ceilings.mean()
    if ceiling - floor < 0.05:
        return f"{text}: too close together to tell similarity from none."
    share = (mean[other] - floor) / (ceiling - floor)
    return f"{text}, so it goes {share:.0%} of the way from floor to ceiling."


def summary_text(results, one_kind):
    """What analyze.py prints: findings and significant differences, wrapped for a terminal."""
    found = verdicts(compared(results))
    lines = [f"{measure}: {sentence}" for (measure, _), (sentence, significant) in found.items()
             if significant or measure == "validation loss"]
    if len(lines) < len(found):
        others = count(len(found) - len(lines), "other measure")
        lines.append(f"{others}: no significant difference")
    lines = [*findings(results, one_kind), *(f"- {line}" for line in lines)]
    return "\n".join(wrap(line, 2) for line in lines)
