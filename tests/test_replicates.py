"""Replicates: who belongs together, intervals against SciPy, and verdicts that follow from them."""

from math import isnan, sqrt

import numpy as np
import pytest
import scipy.stats
from helpers import series

from mini_undivided.report import replicates
from mini_undivided.support.errors import UserError
from mini_undivided.support.options import PretrainOptions


class Run:
    """What of a run decides whose replicate it is."""

    def __init__(self, name, fingerprint="x", precision=None, **options):
        self.name, self.options = name, options
        share = replicates.what_replicates_share
        self.replicates = share(options, fingerprint, precision) if options else name


def groups_of(*runs):
    return {kind: [run.name for run in group] for kind, group in
            replicates.group_runs(runs).items()}


def test_runs_that_differ_in_nothing_but_their_seed_are_one_kind():
    """Whatever order they come in; another option, text or precision makes another kind.

    What has no record, as a Hugging Face BERT, is a kind of its own; an option that an old record
    lacks has its default's value.
    """
    default = PretrainOptions()
    assert groups_of(
        Run("full", seed=0, out="a", lr=1), Run("noffn-seed1", seed=1, ffn_layers=[], lr=1),
        Run("full-seed2", seed=2, out="b", lr=1, next_sentence=default.next_sentence), Run("bert"),
        Run("other"), Run("noffn", seed=0, ffn_layers=[], lr=1), Run("slow", seed=0, lr=2),
        Run("novels", "y", seed=3, lr=1), Run("half", "x", "bfloat16", seed=4, lr=1),
        Run("typed", seed=5, lr=1, dtype="float32")) == {
            "full": ["full", "full-seed2"], "noffn": ["noffn-seed1", "noffn"], "bert": ["bert"],
            "other": ["other"], "slow": ["slow"], "novels": ["novels"], "half": ["half"],
            "typed": ["typed"]}


def test_replicates_alone_are_compared_with_one_another():
    """Runs that are all of one kind are kinds of one; equal names of kinds become the runs'."""
    assert list(groups_of(Run("full", seed=0), Run("full-seed1", seed=1))) == ["full", "full-seed1"]
    runs = [Run(f"{folder}/x{end}", lr=lr, seed=len(end))
            for folder, lr in (("a", 1), ("b", 2)) for end in ("", "-seed1")]
    assert list(groups_of(*runs)) == ["a/x", "b/x"]
    runs = [Run("x-seed1", lr=1, seed=1), Run("x-seed2", lr=1, seed=2), Run("x", lr=2, seed=0)]
    assert list(groups_of(*runs)) == ["x-seed1", "x"]


def test_copies_are_no_replicates():
    """Two runs of one seed are refused."""
    with pytest.raises(UserError, match="a and c have the same seed: a copy of a run is not a"):
        groups_of(Run("a", seed=0), Run("b", seed=1), Run("c", seed=0))


@pytest.mark.parametrize("sizes", [(3, 5), (2, 2), (5, 3)])
def test_intervals_are_welchs(sizes):
    """Difference and half width are t √(s_a²/n_a + s_b²/n_b), with Welch's degrees of freedom."""
    rng = np.random.default_rng(sum(sizes))
    a, b = rng.normal(4, 0.1, sizes[0]), rng.normal(4.2, 0.4, sizes[1])
    errors = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / (len(a) - 1) + errors[1] ** 2 / (len(b) - 1))
    half = scipy.stats.t.ppf(0.975, freedom) * sqrt(sum(errors))
    assert replicates.difference(a, b) == pytest.approx((a.mean() - b.mean(), half))


def test_verdicts_follow_from_the_interval():
    """Apart from 0 the interval names a side; around 0 it says what would go unseen."""
    low, high = [4.0, 4.01, 3.99], [4.5, 4.52, 4.48]
    sentence, significant = replicates.verdict("full", "noffn", low, high)
    assert sentence.startswith("noffn is higher than full by 0.5: +0.500 [+0.4") and significant
    sentence, significant = replicates.verdict("full", "noffn", high, low)
    assert sentence.startswith("noffn is lower than full by 0.5: -0.500 [-0.5") and significant
    sentence, significant = replicates.verdict("full", "noffn", [4.0, 4.5, 4.2], [4.1, 4.4, 4.3])
    _, half = replicates.difference([4.1, 4.4, 4.3], [4.0, 4.5, 4.2])
    assert "no significant difference between noffn and full with 3 and 3 seeds" in sentence
    assert f"a difference under {half:.2g} would go unseen" in sentence and not significant
    sentence, significant = replicates.verdict("full", "noffn", [4.0], [4.1, 4.2])
    assert "does not tell" in sentence and not significant


def test_seeds_that_do_not_differ_give_no_interval():
    """Equal scores of all seeds, up to rounding, say nothing of chance: no side is named."""
    for a, b in (([0.6, 0.6], [0.5, 0.5]), ([0.3, 0.1 + 0.2, 0.3], [0.2, 0.2, 0.2]),
                 ([0.5, 0.5], [0.5, 0.5]), ([0.0, 0.0], [0.0, 0.0])):
        gap, half = replicates.difference(a, b)
        assert gap == pytest.approx(np.mean(a) - np.mean(b)) and isnan(half)
        sentence, significant = replicates.verdict("full", "noffn", a, b)
        assert "there is no interval" in sentence and not significant
    assert not isnan(replicates.difference([0.5, 0.5], [0.4, 0.6])[1])  # one side is enough


def test_single_runs_have_no_verdicts():
    """Without a kind of two runs there is nothing to say; with one, each pair with the first."""
    assert replicates.verdicts(series({"loss": {"full": [4.0], "noffn": [4.1]}})) == {}
    found = replicates.verdicts(series({
        "loss": {"full": [4.0, 4.1], "noffn": [4.3, 4.5], "last": [4.6]}, "RTE": {"full": [0.5]},
        "CoLA": {"noffn": [0.1], "full": [0.2]}}))
    assert list(found) == [("loss", "noffn"), ("loss", "last"), ("CoLA", "noffn")]
