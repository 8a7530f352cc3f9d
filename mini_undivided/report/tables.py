"""Tables and sentences of a report, in Markdown that is also readable in a terminal."""

from itertools import zip_longest

import numpy as np

from mini_undivided.attention import STATISTICS
from mini_undivided.support.tasks import GLUE

OUTPUTS = {"attention": "attention outputs", "block": "block outputs"}
FIRST = {"attention": 1, "block": 0}  # the number of a matrix's first layer; 0: the embeddings


def table(header, rows):
    """Rows of strings as an aligned Markdown table; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *rest in [header, rule, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(lines)


def plus_minus(mean, deviation=None, digits=2):
    """A mean with its standard deviation, if there is one."""
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"


def spread(mean, deviation=None):
    """A mean with its standard deviation, × 100."""
    return plus_minus(100 * mean, None if deviation is None else 100 * deviation, 1)


def runs_table(facts):
    """Size, cost and pretraining result of each run."""
    columns = {
        "MFLOPs a token": lambda run: f"{run['flops_per_token'] / 1e6:.2f}",
        "tokens seen": lambda run: f"{run['tokens']:,}",
        "tokens/s": lambda run: f"{run['tokens_per_second']:,.0f}",
        "validation loss": lambda run: f"{run['validation_loss']:.3f}",
        "masked accuracy": lambda run: f"{run['validation_accuracy']:.1%}"}

    def cell(show, run):
        try:
            return show(run)
        except (KeyError, TypeError):  # a Hugging Face checkpoint has no record
            return "–"

    rows = [[run["name"], f"{run['ffns']} of {run['layers']}", f"{run['parameters']:,}",
             *(cell(show, run) for show in columns.values())] for run in facts]
    return table(["run", "FFNs", "parameters", *columns], rows)


def baseline_text(baseline):
    """What the losses of the table of runs are to be held against, or an empty string."""
    if not baseline:
        return ""
    return ("On the first run's validation text the best model without context, which knows how "
            "common words are and looks at the masked place alone, has a loss of "
            f"{baseline['loss']:.3f} and an accuracy of {baseline['accuracy']:.1%}.")


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


def glue_table(facts):
    """The dev scores that finetune.py left in the runs, or an empty string."""
    scores, guesses = {}, {}
    for run in facts:
        for result in run["glue"]:
            column = run["name"] + ", from scratch" * result["from_scratch"]
            for metric, score in result["scores"].items():
                row = f"{result['name']} {metric}"
                scores.setdefault(row, {})[column] = spread(score["mean"], score["std"])
                guesses.setdefault(row, spread(result["majority"][metric]))
    columns = sorted({column for row in scores.values() for column in row})
    rows = [[row, *(scores[row].get(c, "–") for c in columns), guesses[row]] for row in scores]
    head = "Fine-tuned, dev scores × 100:\n\n"
    return head + table(["task", *columns, "majority"], rows) if rows else ""


def cka_text(alike):
    """What stands above the table of CKA."""
    ceiling = "without a ceiling, which two seeds of one kind would give"
    if alike["ceilings"]:
        ceiling = "with two seeds of one kind as its ceiling"
    if alike["one_kind"]:
        ceiling = "which is the ceiling for other kinds, as these runs differ in their seed alone"
    size = f"n = {alike['rows']:,} {alike['rows_are']}"
    return (f"Debiased linear CKA with {alike['first']} at equal depth, {size}, {ceiling}, and an "
            "untrained model as its floor; with several seeds, mean ± standard deviation over "
            "pairs of runs:")


def equal_depth(matrix, output="block"):
    """The values of a CKA matrix at equal relative depth: (row, column, value) for each row.

    Depth is a layer's number, with the embeddings as 0, divided by the number of layers.
    """
    first = FIRST[output]
    most, others = len(matrix) - 1 + first, len(matrix[0]) - 1 + first  # layers of the two models
    values = []
    for i, row in enumerate(matrix):
        j = max(first, round((i + first) * others / max(1, most))) - first
        values.append((i, j, row[j]))
    return values


def depth_curve(alike, name, output, kind="mean"):
    """The values of a comparison at equal depth (row, column, value), or None if it has none."""
    matrix = alike["values"][name][output][kind]
    return matrix and equal_depth(matrix, output)


def cka_table(alike):
    """CKA at equal depth: a row a layer, two columns for each comparison, ceiling and floor."""
    columns = [(name, output) for output in OUTPUTS for name in alike["values"]]
    curves = []
    for name, output in columns:
        mean, std = (depth_curve(alike, name, output, kind) for kind in ("mean", "std"))
        curve = [plus_minus(x, std and std[i][2]) for i, (*_, x) in enumerate(mean)]
        curves.append(curve if output == "block" else ["–", *curve])  # embeddings: no attention
    rows = zip_longest(layer_names(max(map(len, curves))), *curves, fillvalue="–")
    return table(["", *(f"{name}, {output}" for name, output in columns)], list(rows))


def layer_names(count):
    """The names of the embeddings and the layers after them."""
    return ["embeddings", *(f"layer {layer}" for layer in range(1, count))]


def attention_table(looks):
    """What the heads of each layer look at, on average: a row for each statistic and group."""
    rows = []
    for kind, groups in looks.items():
        for name, values in groups.items():
            std = values["std"] or [None] * len(values["mean"])
            layers = [plus_minus(*each) for each in zip(values["mean"], std, strict=True)]
            rows.append([f"{STATISTICS[kind]}, {name}", *layers])
    longest = max(map(len, rows))
    rows = [[*row, *["–"] * (longest - len(row))] for row in rows]
    head = "Who looks at whom, on average over tokens and heads; ± is over runs:\n\n"
    return head + table(["", *layer_names(longest)[1:]], rows)


def probe_text(seeds):
    """What stands above the table of probes."""
    return ("Linear probes on frozen features, test scores × 100 of the best layer (0: "
            "embeddings), which the validation part chose. Of several runs: mean ± standard "
            "deviation over them. Of a single run, and of untrained encoders: over "
            f"{seeds} seeds, which draw four fifths of one training part; how much other sentences "
            "in the test part would change a score is not in it. Majority: the best that one "
            "answer for all scores.")


def probe_table(probes):
    """For each task and run its best layer, beside embeddings, untrained encoder and controls."""
    header = ["task", "run", "layer", "score", "embeddings", "untrained", "majority", "control",
              "selectivity"]
    tasks = next(iter(probes.values()))
    return table(header, [[t, run, *probe_cells(p[t])] for t in tasks for run, p in probes.items()])


def probe_cells(scores):
    """The cells of one task and run, from the best layer to selectivity, as in `probe_table`."""

    def best(kind):
        return best_layer(scores[kind])

    def at(kind, layer):
        mean, deviation = scores[kind]["mean"], scores[kind]["std"]
        return spread(mean[layer], deviation and deviation[layer])

    layer = best("trained")
    cells = [str(layer), at("trained", layer), at("trained", 0), at("untrained", best("untrained"))]
    control = ["–", "–"]
    if "control" in scores:
        gap = scores["trained"]["mean"][layer] - scores["control"]["mean"][layer]
        control = [at("control", layer), spread(gap)]
    return [*cells, spread(scores["majority"]), *control]


def best_layer(scores):
    """The layer that the validation part chooses: nothing is chosen on what it is scored on."""
    return int(np.argmax(scores["valid"]))


def collapse_table(alike):
    """The last layers' rank collapse, and the embeddings'."""
    rows = []
    for kind, groups in alike["collapse"].items():
        for name, curve in groups.items():
            mean, last = curve["mean"], curve["std"] and curve["std"][-1]
            values = (mean[0], min(mean), max(mean))
            rows.append([f"{kind}, {name}", *map(plus_minus, values), plus_minus(mean[-1], last)])
    head = ("Rank collapse: distance of a sentence's token vectors from their mean, relative to "
            "their norm (0: all alike), and mean cosine of two of its tokens (1: all alike):\n\n")
    return head + table(["", "embeddings", "least", "most", "last layer"], rows)


def findings(groups, alike, probes):
    """Two or three sentences a pair of groups: what the numbers say, and how far they go."""
    first = groups[0]
    best = {name: {task: each["trained"]["mean"][best_layer(each["trained"])]
                   for task, each in tasks.items()} for name, tasks in probes.items()}
    for other in groups[1:]:
        yield cost_sentence(first, other)
        yield alike_sentence(alike, other["name"])
        ours, theirs = best[first["name"]], best[other["name"]]
        gaps = ", ".join(f"{task} {100 * (theirs[task] - ours[task]):+.1f}" for task in ours)
        pair = f"{other['name']} less those of {first['name']}"
        yield f"Best-layer probe scores of {pair}, in points: {gaps}."
    if alike["one_kind"]:
        yield "These runs differ in nothing but their seed: this is how far apart two seeds are."
    elif min(group["seeds"] for group in groups) < 2:
        yield ("A kind with one seed: differences as small as those between seeds say nothing of "
               "FFNs. Several seeds of each kind, given together, are compared as groups.")


def cost_sentence(first, other):
    """Size, compute and validation loss of a run beside the first one's."""
    share = other["parameters"] / first["parameters"]
    text = f"{other['name']} has {share:.0%} of {first['name']}'s parameters"
    if first["flops_per_token"] and other["flops_per_token"]:
        share = other["flops_per_token"] / first["flops_per_token"]
        text += f" and {share:.0%} of its FLOPs a token"
    if "validation_loss" in first and "validation_loss" in other:
        gap = other["validation_loss"] - first["validation_loss"]
        seen = " and ".join(dict.fromkeys(f"{run['tokens']:,}" for run in (other, first)))
        sign = "higher" if gap > 0 else "lower"
        text += f"; after {seen} tokens its validation loss is {abs(gap):.3f} nats {sign}"
    return text + "."


def alike_sentence(alike, name):
    """The mean CKA of attention outputs at equal depth, on the scale from floor to ceiling."""
    mean = {}
    for key in alike["values"]:
        mean[key] = float(np.mean([value for *_, value in depth_curve(alike, key, "attention")]))
    floor, first = mean[alike["floors"][name]], alike["first"]
    likeness = f"{mean[name]:.2f} on average"
    text = f"At equal depth, CKA of {name}'s attention outputs with {first}'s is {likeness}"
    if alike["one_kind"]:
        return f"{text} (floor {floor:.2f})."
    if not alike["ceilings"]:
        limit = "without two seeds of one kind one cannot say whether that is much"
        return f"{text} (floor {floor:.2f}); {limit}."
    pairs = ", ".join(f"of {key} {mean[key]:.2f}" for key in alike["ceilings"])
    ceiling = np.mean([mean[key] for key in alike["ceilings"]])
    text += f"; that {pairs}, and of an untrained model {floor:.2f}"
    if ceiling - floor < 0.05:
        return f"{text}: too close together to tell likeness from none."
    share = (mean[name] - floor) / (ceiling - floor)
    return f"{text}, so it goes {share:.0%} of the way from floor to ceiling."
