"""Replicates: who belongs together, intervals against SciPy, and verdicts that follow from them."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from mini_undivided.report import replicates


def run(name, fingerprint="x", **options):
    return SimpleNamespace(name=name, fingerprint=fingerprint, options=options)


def test_runs_that_differ_in_nothing_but_their_seed_are_one_group():
    """Whatever order they come in; another option or text makes another group.

    What has no record, as a Hugging Face BERT, is a group of its own.
    """
    runs = [run("full", seed=0, out="a", lr=1), run("noffn-seed1", seed=1, ffn_layers=[], lr=1),
            run("full-seed2", seed=2, out="b", lr=1), run("bert"), run("other"),
            run("noffn", seed=0, ffn_layers=[], lr=1), run("slow", seed=0, lr=2),
            run("novels", "y", seed=0, lr=1)]
    groups = [[each.name for each in group] for group in replicates.group_runs(runs)]
    assert groups == [["full", "full-seed2"], ["noffn-seed1", "noffn"], ["bert"], ["other"],
                      ["slow"], ["novels"]]
    names = map(replicates.group_name, replicates.group_runs(runs))
    assert list(names) == ["full", "noffn", "bert", "other", "slow", "novels"]


@pytest.mark.parametrize("freedom", [1.0, 1.7, 2.0, 3.3, 4.0, 7.9, 30.0, 400.0])
def test_quantiles_are_those_of_scipy(freedom):
    """The quantile of Student's t, for whole and broken degrees of freedom."""
    assert replicates.t_quantile(0.975, freedom) == pytest.approx(
        scipy.stats.t.ppf(0.975, freedom), rel=1e-4)


@pytest.mark.parametrize("sizes", [(3, 5), (2, 2), (5, 3)])
def test_intervals_are_those_of_scipy(sizes):
    """Difference and 95 % interval are those of SciPy's t-test with unequal variances."""
    rng = np.random.default_rng(sum(sizes))
    a, b = rng.normal(4, 0.1, sizes[0]), rng.normal(4.2, 0.4, sizes[1])
    gap, half = replicates.difference(a, b)
    wanted = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (gap - half, gap + half) == pytest.approx(tuple(wanted), rel=1e-4)


def test_verdicts_follow_from_the_interval():
    """Apart from 0 the interval names a side; around 0 it says what would go unseen."""
    clear = replicates.verdict("full", "noffn", [4.0, 4.01, 3.99], [4.5, 4.52, 4.48])
    assert clear.startswith("noffn is higher than full by 0.500: +0.500 [+0.4")
    lower = replicates.verdict("full", "noffn", [4.5, 4.52, 4.48], [4.0, 4.01, 3.99])
    assert lower.startswith("noffn is lower than full by 0.500: -0.500 [-0.5")
    blurred = replicates.verdict("full", "noffn", [4.0, 4.5, 4.2], [4.1, 4.4, 4.3])
    _, half = replicates.difference([4.1, 4.4, 4.3], [4.0, 4.5, 4.2])
    assert "cannot be told apart with 3 and 3 seeds" in blurred
    assert f"a difference under {half:.3f} would go unseen" in blurred
    assert "does not tell" in replicates.verdict("full", "noffn", [4.0], [4.1, 4.2])


def test_a_group_is_its_pretrained_models_not_their_fine_tunings():
    """A run's score on a task is the mean of its fine-tunings; missing numbers are left out."""
    result = {"name": "RTE", "from_scratch": False,
              "scores": {"accuracy": {"mean": 0.6, "std": 0.1, "values": [0.5, 0.7]}}}
    facts = {"validation_loss": 4.0, "glue": [result, {**result, "from_scratch": True}]}
    probes = {"tags": {"trained": {"mean": [0.1, 0.9, 0.3], "valid": [0.0, 0.1, 0.2]}}}
    assert replicates.measures(facts, probes) == {
        "validation loss": 4.0, "RTE accuracy": 0.6, "RTE accuracy, from scratch": 0.6,
        "probe: tags": 0.3}


def test_single_runs_make_no_table():
    """Without a group of two there is nothing to say; with one there is a row a measure."""
    one = [{"validation loss": [4.0]}, {"validation loss": [4.1]}]
    assert replicates.compare_groups(["full", "noffn"], one) == ""
    many = [{"validation loss": [4.0, 4.1], "RTE accuracy": [0.5, 0.6]},
            {"validation loss": [4.3, 4.5]}]
    text = replicates.compare_groups(["full", "noffn"], many)
    assert "full, 2 seeds" in text and "4.050 ± 0.071" in text and "4.400 ± 0.141" in text
    assert text.count("- validation loss: ") == 1 and "- RTE" not in text
