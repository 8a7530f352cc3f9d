"""Replicates: runs that differ in nothing but their seed, and what two groups of them can tell.

Of one run, a number says nothing about chance. Of several pretrained with different seeds, the mean
has an interval, and so has the difference between two groups: Welch's, which lets the groups differ
in spread (Welch 1947). Several fine-tunings of one pretrained model are not replicates.
"""

import json
import re
import warnings
from dataclasses import asdict
from math import isnan, nan

import numpy as np

from mini_undivided.support.errors import UserError
from mini_undivided.support.options import PretrainOptions

OWN = ("seed", "out", "micro_batch", "compile", "device")  # replicates may differ in these


def group_runs(runs):
    """{kind: runs that are replicates of one another}, in the order of their first ones.

    If all are replicates of one another, each is a kind of its own. Raises UserError if two of a
    kind have the same seed.
    """
    groups = {}
    for run in runs:
        groups.setdefault(run.replicates, []).append(run)
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


def what_replicates_share(options, fingerprint, precision=None):
    """Text (its fingerprint), precision and all options that are not OWN, as one string."""
    options = {**asdict(PretrainOptions()), **options}
    options = {name: value for name, value in options.items() if name not in OWN}
    return json.dumps([options, fingerprint, precision], sort_keys=True)


def verdicts(values):
    """How each other kind differs from the first → {(measure, other): its verdict}.

    values: those of results.compared. Empty where no kind has two runs.
    """
    groups = values.groupby(["measure", "kind"], sort=False).agg(list)
    if not (groups.map(len) > 1).any():
        return {}
    first, *others = values.index.unique("kind")
    return {(measure, other): verdict(first, other, groups[measure, first], groups[measure, other])
            for measure in values.index.unique("measure") for other in others
            if {(measure, first), (measure, other)} <= {*groups.index}}


def verdict(first, other, a, b):
    """How the values of two kinds, a and b, differ → a sentence, and whether significantly."""
    if min(len(a), len(b)) < 2:
        return "one run of a kind does not tell a difference from chance.", False
    gap, half = difference(b, a)
    seeds, interval = f"{len(a)} and {len(b)} seeds", in_brackets(gap, half)
    if isnan(half):
        reason = f"the seeds of a kind do not differ, with {seeds}"
        return f"{reason}, so that there is no interval: {interval}.", False
    if abs(gap) > half:
        side = "higher" if gap > 0 else "lower"
        return f"{other} is {side} than {first} by {abs(gap):.3g}: {interval}.", True
    return (f"no significant difference between {other} and {first} with {seeds}: {interval}; a "
            f"difference under {half:.2g} would go unseen."), False


def in_brackets(gap, half, digits=3):
    """A difference and its interval, as text."""
    if isnan(half):
        return f"{gap:+.{digits}f} [no interval]"
    low, high = gap - half, gap + half
    return f"{gap:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def difference(a, b, confidence=0.95):
    """mean(a) - mean(b), and half the width of its confidence interval (Welch 1947).

    NaN instead of the width where all of a are equal and all of b, up to rounding: without a spread
    there is no interval.
    """
    from scipy.stats import ttest_ind  # late: it takes a second

    gap = float(np.mean(a) - np.mean(b))
    if all(np.ptp(values) <= 1e-9 * np.abs(values).max() for values in (a, b)):
        return gap, nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may be constant
        interval = ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    return gap, float(interval.high - interval.low) / 2
