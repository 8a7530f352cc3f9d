"""Replicates: runs that differ in nothing but their seed, and what two groups of them can tell.

Of one run, a number says nothing about chance. Of several pretrained with different seeds, the mean
has an interval, and so has the difference between two groups: Welch's, which lets the groups differ
in spread (Welch 1947). Several fine-tunings of one pretrained model are not replicates: they count
as one number, their mean.
"""

import json
import re
from dataclasses import asdict
from math import exp, lgamma, pi, sqrt

import numpy as np

from mini_undivided.attention import STATISTICS
from mini_undivided.metrics import mean_and_std
from mini_undivided.report.tables import plus_minus, table
from mini_undivided.support.errors import UserError
from mini_undivided.support.options import PretrainOptions

OWN = ("seed", "out", "micro_batch", "compile", "device")  # replicates may differ in these


def group_runs(runs):
    """{name: runs that are replicates of one another}, in the order of their first ones.

    If all are replicates of one another, each is a group of its own. Raises UserError if two of a
    group have the same seed.
    """
    groups = {}
    for run in runs:
        groups.setdefault(kind_of(run), []).append(run)
    for group in groups.values():
        seeds = [run.options.get("seed") for run in group]
        if len(set(seeds)) < len(seeds):
            names = " and ".join(run.name for run in group if seeds.count(run.options["seed"]) > 1)
            raise UserError(f"{names} have the same seed: a copy of a run is not a replicate")
    groups = groups.values() if len(groups) > 1 else [[run] for run in runs]
    names = [group[0].name if len(group) == 1 else re.sub(r"-seed\d+$", "", group[0].name)
             for group in groups]
    if len(set(names)) < len(names):
        names = [group[0].name for group in groups]
    return dict(zip(names, groups, strict=True))


def kind_of(run):
    """What replicates share, as text: their text, and all options that are not OWN."""
    if not run.options:
        return run.name
    options = {**asdict(PretrainOptions()), **run.options}
    options = {name: value for name, value in options.items() if name not in OWN}
    return json.dumps([options, run.fingerprint], sort_keys=True)


def are_alike(runs):
    """Whether all runs are replicates of one another."""
    return len({kind_of(run) for run in runs}) == 1


def average_probes(runs):
    """The scores of run_probes of several runs → the same with mean and deviation over runs.

    But those of the untrained encoder are the first run's: all have the same ones.
    """
    if len(runs) == 1:
        return runs[0]
    averaged = {}
    for task, first in runs[0].items():
        averaged[task] = dict(first)
        for kind in ("trained", "control"):
            if kind in first:
                scores = [run[task][kind] for run in runs]
                averaged[task][kind] = {
                    **mean_and_std([each["mean"] for each in scores]),
                    "valid": np.mean([each["valid"] for each in scores], axis=0).tolist()}
    return averaged


def group_facts(runs):
    """The facts of a group's first run, with the mean of what training gave."""
    means = {name: type(runs[0][name])(np.mean([run[name] for run in runs]))
             for name in ("validation_loss", "tokens") if all(name in run for run in runs)}
    return {**runs[0], **means, "seeds": len(runs)}


def measures(facts, looks, probes, layers):
    """{what was measured: value} of one run, from its facts, its attention and its probes.

    looks: {statistic: (L, H)}; all heads count alike. layers: {task: the layer whose probe counts},
    one for all runs of a group.
    """
    values = {"validation loss": facts.get("validation_loss"),
              "masked accuracy": facts.get("validation_accuracy")}
    for result in facts["glue"]:
        for metric, score in result["scores"].items():
            scratch = ", from scratch" * result["from_scratch"]
            values[f"{result['name']} {metric}{scratch}"] = score["mean"]
    for kind, heads in looks.items():
        values[f"attention: {STATISTICS[kind]}"] = float(np.mean(heads))
    for task, scores in probes.items():
        values[f"probe: {task}"] = scores["trained"]["mean"][layers[task]]
    return {name: value for name, value in values.items() if value is not None}


def collect(runs):
    """The measures of several runs → {measure: list of its values}."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: [run[name] for run in runs if name in run] for name in names}


def compare_groups(groups):
    """Table and verdicts of the first group against each other one, as Markdown.

    groups: {name: {measure: list over its runs}}. Empty where no group has two runs.
    """
    if all(len(each) < 2 for group in groups.values() for each in group.values()):
        return ""
    (first, ours), *others = groups.items()
    rows, verdicts = [], []
    for measure in dict.fromkeys(name for group in groups.values() for name in group):
        rows.append([measure, *(summary(group.get(measure, [])) for group in groups.values())])
        for name, group in others:
            if measure in group and measure in ours:
                said = verdict(first, name, ours[measure], group[measure])
                verdicts.append(f"- {measure}: {said}")
    head = ("Replicates: mean ± standard deviation over pretraining seeds, their number in "
            "parentheses. In brackets the 95 % confidence interval of the difference, by Welch's "
            "t: of twenty such intervals one misses by chance.\n\n")
    return head + table(["", *groups], rows) + "\n\n" + "\n".join(verdicts)


def summary(values):
    """Mean, standard deviation and number of values, as text."""
    if not values:
        return "–"
    return f"{plus_minus(*mean_and_std(values).values(), 3)} ({len(values)})"


def verdict(first, other, a, b):
    """What the values of two groups, a and b, say of their difference, as a sentence."""
    if min(len(a), len(b)) < 2:
        return "one run of a kind does not tell a difference from chance."
    gap, half = difference(b, a)
    interval = in_brackets(gap, half)
    if abs(gap) > half:
        side = "higher" if gap > 0 else "lower"
        return f"{other} is {side} than {first} by {abs(gap):.3g}: {interval}."
    seeds = f"{len(a)} and {len(b)} seeds"
    if half == 0:
        return f"{other} and {first} are equal in all of {seeds}."
    return (f"{other} and {first} cannot be told apart with {seeds}: {interval}; a difference "
            f"under {half:.2g} would go unseen.")


def in_brackets(gap, half, digits=3):
    """A difference and its interval, as text."""
    low, high = gap - half, gap + half
    return f"{gap:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def difference(a, b, confidence=0.95):
    """mean(a) - mean(b), and half the width of its confidence interval (Welch 1947)."""
    errors = [np.var(each, ddof=1) / len(each) for each in (a, b)]
    total = sum(errors)
    gap = float(np.mean(a) - np.mean(b))
    if total == 0:
        return gap, 0.0
    freedom = total**2 / sum(e**2 / (len(x) - 1) for e, x in zip(errors, (a, b), strict=True))
    return gap, t_quantile((1 + confidence) / 2, freedom) * sqrt(total)


def t_quantile(p, freedom):
    """The p-quantile, p > 0.5, of Student's t: where the integral of its density reaches p.

    With t = √freedom tan θ the integral is that of cos^(freedom - 1) θ, over a bounded range.
    """
    scale = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi)
    theta = np.linspace(0, pi / 2, 200_001)
    density = scale * np.cos(theta) ** (freedom - 1)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * theta[1]
    return sqrt(freedom) * np.tan(np.interp(p - 0.5, area, theta))
