"""Tables and sentences of a report, in Markdown that is also readable in a terminal."""

import numpy as np

from mini_undivided.cka import PLACES, equal_depth
from mini_undivided.support.tasks import GLUE


def table(header, rows):
    """Rows of strings as an aligned Markdown table; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
             for row in [header, rule, *rows]]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def spread(mean, deviation, scale=100):
    """A mean with its standard deviation, × 100 unless `scale` says otherwise."""
    return f"{scale * mean:.1f}" + ("" if deviation is None else f" ± {scale * deviation:.1f}")


def runs_table(facts):
    """Size, cost and pretraining result of each run."""

    def show(fact, name, form):
        return "–" if fact.get(name) is None else form.format(fact[name])

    header = [
        "run",
        "FFNs",
        "parameters",
        "MFLOPs a token",
        "tokens seen",
        "tokens/s",
        "validation loss",
        "masked accuracy",
    ]
    names = (
        "flops_per_token",
        "tokens",
        "tokens_per_second",
        "validation_loss",
        "validation_accuracy",
    )
    forms = ("{:.2f}", "{:,}", "{:,.0f}", "{:.3f}", "{:.1%}")
    rows = []
    for fact in facts:
        scaled = {
            **fact,
            "flops_per_token": fact["flops_per_token"] and fact["flops_per_token"] / 1e6,
        }
        cells = [show(scaled, name, form) for name, form in zip(names, forms, strict=True)]
        rows.append(
            [fact["name"], f"{fact['ffns']} of {fact['layers']}", f"{fact['parameters']:,}", *cells]
        )
    return table(header, rows)


def finetuning_table(results):
    """What finetune.py prints: dev scores × 100, and GLUE's average if all its tasks but WNLI are there."""
    lines = [f"{'task':14} {'metric':20} {'dev score':>14}  {'majority':>8}"]
    for result in results:
        for metric, score in result["scores"].items():
            value, guess = (
                spread(score["mean"], score["std"]),
                spread(result["majority"][metric], None),
            )
            lines.append(f"{result['name']:14} {metric:20} {value:>14}  {guess:>8}")
    tasks = {
        r["task"]: np.mean([s["mean"] for s in r["scores"].values()])
        for r in results
        if not r["built_in"]
    }
    if set(tasks) == set(GLUE):
        mean = np.mean([value for key, value in tasks.items() if key != "wnli"])
        lines.append(
            f"average of the 8 tasks without WNLI, each the mean of its metrics: {spread(mean, None)}"
        )
    return "\n".join(lines)


def glue_table(facts):
    """The dev scores that finetune.py left in the runs, or an empty string."""
    rows = {}
    for fact in facts:
        for result in fact["glue"]:
            column = fact["name"] + ", from scratch" * result["from_scratch"]
            for metric, score in result["scores"].items():
                row = rows.setdefault(
                    (result["name"], metric), {"majority": result["majority"][metric]}
                )
                row[column] = spread(score["mean"], score["std"])
    columns = sorted({column for row in rows.values() for column in row if column != "majority"})
    body = [[f"{name} {metric}", *(row.get(column, "–") for column in columns), f"{100 * row['majority']:.1f}"]
            for (name, metric), row in rows.items()]  # fmt: skip
    return (
        "Fine-tuned, dev scores × 100:\n\n" + table(["task", *columns, "majority"], body)
        if rows
        else ""
    )


def cka_text(alike):
    """What stands above the table of CKA."""
    ceiling = (
        f", its ceiling {alike['ceiling']}"
        if alike["ceiling"]
        else ", no ceiling (--ceiling RUN, another seed)"
    )
    return (
        f"Debiased linear CKA with {alike['first']} at equal depth, n = {alike['rows']:,} {alike['rows_are']}{ceiling}, "
        "its floor an untrained model of the last run's architecture:"
    )


def cka_table(alike):
    """CKA at equal depth: a row a layer, a column for each other run, ceiling and floor, at both places."""
    names = list(alike["values"])
    columns = [(name, place) for place in PLACES for name in names]
    curves = {
        (n, p): [value for *_, value in equal_depth(alike["values"][n][p])] for n, p in columns
    }
    depth = len(curves[names[0], "block"])
    rows = [
        ["embeddings", *(f"{curves[n, p][0]:.3f}" if p == "block" else "–" for n, p in columns)]
    ]
    for layer in range(1, depth):
        cells = [curves[n, p][layer if p == "block" else layer - 1] for n, p in columns]
        rows.append([f"layer {layer}", *(f"{value:.3f}" for value in cells)])
    return table(["", *(f"{name}, {place}" for name, place in columns)], rows)


def probe_text(seeds):
    """What stands above the table of probes."""
    return (
        f"Linear probes on frozen features, test scores × 100 of each run's best layer (0: embeddings), mean ± deviation "
        f"over {seeds} seeds:"
    )


def probe_table(probes):
    """For each task and run its best layer, beside embeddings, untrained encoder, majority and control."""
    header = [
        "task",
        "run",
        "layer",
        "score",
        "embeddings",
        "untrained",
        "majority",
        "control",
        "selectivity",
    ]
    rows = []
    for task in next(iter(probes.values())):
        rows += [[task, name, *probe_cells(scores[task])] for name, scores in probes.items()]
    return table(header, rows)


def probe_cells(scores):
    """The cells of one task and run: layer, score, embeddings, untrained, majority, control, selectivity."""

    def at(kind, layer):
        return spread(
            scores[kind]["mean"][layer], scores[kind]["std"] and scores[kind]["std"][layer]
        )

    best = int(np.argmax(scores["trained"]["mean"]))
    cells = [
        str(best),
        at("trained", best),
        at("trained", 0),
        at("untrained", int(np.argmax(scores["untrained"]["mean"]))),
    ]
    control = ["–", "–"]
    if "control" in scores:
        gap = scores["trained"]["mean"][best] - scores["control"]["mean"][best]
        control = [at("control", best), f"{100 * gap:.1f}"]
    return [*cells, f"{100 * scores['majority']:.1f}", *control]


def collapse_table(alike):
    """The last layers' rank collapse, and the embeddings'."""
    rows = []
    for name, curves in alike["collapse"].items():
        for kind, curve in curves.items():
            values = (curve[0], min(curve), max(curve), curve[-1])
            rows.append([f"{name}, {kind}", *(f"{value:.3f}" for value in values)])
    head = (
        "Rank collapse: distance of a sentence's token vectors from their mean, relative to their norm (0: all alike), and "
        "mean cosine of two of its tokens (1: all alike):\n\n"
    )
    return head + table(["", "embeddings", "least", "most", "last layer"], rows)


def findings(facts, alike, probes):
    """Two or three sentences a pair of runs: what the numbers say, and how far they go."""
    first = facts[0]
    for other in facts[1:]:
        yield cost_sentence(first, other)
        yield alike_sentence(alike, other["name"])
        a, b = (
            {t: max(s["trained"]["mean"]) for t, s in probes[run["name"]].items()}
            for run in (first, other)
        )
        gaps = {task: b[task] - a[task] for task in a}
        listed = ", ".join(f"{task} {100 * gap:+.1f}" for task, gap in gaps.items())
        yield f"Best-layer probe scores of {other['name']} less those of {first['name']}, in points: {listed}."
    yield "Each run is one seed of pretraining: differences as small as those between seeds say nothing of FFNs."


def cost_sentence(first, other):
    """Size, compute and validation loss of a run beside the first one's."""
    text = f"{other['name']} has {other['parameters'] / first['parameters']:.0%} of {first['name']}'s parameters"
    if first["flops_per_token"] and other["flops_per_token"]:
        text += (
            f" and {other['flops_per_token'] / first['flops_per_token']:.0%} of its FLOPs a token"
        )
    if "validation_loss" in first and "validation_loss" in other:
        gap = other["validation_loss"] - first["validation_loss"]
        seen = " and ".join(dict.fromkeys(f"{run['tokens']:,}" for run in (other, first)))
        text += f"; after {seen} tokens its validation loss is {abs(gap):.3f} nats "
        text += "higher" if gap > 0 else "lower"
    return text + "."


def alike_sentence(alike, name):
    """The mean CKA of attention outputs at equal depth, on the scale from floor to ceiling."""
    mean = {
        key: float(np.mean([value for *_, value in equal_depth(places["attention"])]))
        for key, places in alike["values"].items()
    }
    floor, ceiling = mean[alike["floor"]], mean.get(alike["ceiling"])
    text = f"At equal depth, CKA of its attention outputs with {alike['first']}'s is {mean[name]:.2f} on average"
    if ceiling is None:
        return (
            text + f" (floor {floor:.2f}); without a ceiling one cannot say whether that is much."
        )
    text += f"; another seed of {alike['first']} has {ceiling:.2f}, an untrained model {floor:.2f}"
    if ceiling - floor < 0.05:
        return text + ": too close together to tell likeness from none."
    return (
        text
        + f", so it goes {(mean[name] - floor) / (ceiling - floor):.0%} of the way from floor to ceiling."
    )
