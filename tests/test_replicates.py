"""Replicates: who belongs together, intervals against SciPy, and verdicts that follow from them."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from mini_undivided.report import replicates
from mini_undivided.support.errors import UserError
from mini_undivided.support.options import PretrainOptions


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
    groups = replicates.group_runs(runs)
    assert {name: [run.name for run in group] for name, group in groups.items()} == {
        "full": ["full", "full-seed2"], "noffn": ["noffn-seed1", "noffn"], "bert": ["bert"],
        "other": ["other"], "slow": ["slow"], "novels": ["novels"]}


def test_replicates_alone_are_compared_with_one_another():
    """Runs that are all of one kind are groups of one; equal names of groups become the runs'."""
    runs = [run("full", seed=0), run("full-seed1", seed=1)]
    assert list(replicates.group_runs(runs)) == ["full", "full-seed1"]
    assert replicates.are_alike(runs) and not replicates.are_alike([*runs, run("x", lr=1, seed=2)])
    runs = [run(f"{folder}/x{end}", "text", lr=lr, seed=len(end))
            for folder, lr in (("a", 1), ("b", 2)) for end in ("", "-seed1")]
    assert list(replicates.group_runs(runs)) == ["a/x", "b/x"]
    runs = [run("x-seed1", lr=1, seed=1), run("x-seed2", lr=1, seed=2), run("x", lr=2, seed=0)]
    assert list(replicates.group_runs(runs)) == ["x-seed1", "x"]


def test_copies_are_no_replicates_and_old_records_lack_options():
    """Two runs of one seed are refused; an option that a record lacks has its default's value."""
    with pytest.raises(UserError, match="a and c have the same seed: a copy of a run is not a"):
        replicates.group_runs([run("a", seed=0), run("b", seed=1), run("c", seed=0)])
    default = PretrainOptions()
    runs = [run("x", seed=0),
            run("x-seed1", seed=1, next_sentence=default.next_sentence, lr=default.lr),
            run("y", seed=0, next_sentence=True)]
    assert list(replicates.group_runs(runs)) == ["x", "y"]


def test_means_and_deviations_over_runs():
    """Curves, probes and facts of a group are means over its runs, deviations with n - 1."""
    both = replicates.mean_and_std([[1.0, 2.0], [3.0, 2.0]])
    assert both["mean"] == [2.0, 2.0] and both["std"] == pytest.approx([2**0.5, 0])
    assert replicates.mean_and_std([[1.0]]) == {"mean": [1.0], "std": None}
    probes = [{"tags": {
        "metric": "accuracy", "majority": 0.3, "untrained": {"mean": [x], "std": [9], "valid": [0]},
        "trained": {"mean": [x, 0.5], "std": [9, 9], "valid": [x / 2, 0.1]}}} for x in (0.2, 0.6)]
    assert replicates.average_probes(probes[:1]) is probes[0]
    trained = replicates.average_probes(probes)["tags"]["trained"]
    assert trained["mean"] == pytest.approx([0.4, 0.5]) and trained["valid"] == [0.2, 0.1]
    assert trained["std"] == pytest.approx([0.4 / 2**0.5, 0])
    first = replicates.average_probes(probes)["tags"]["untrained"]
    assert first is probes[0]["tags"]["untrained"]  # all runs have the same
    facts = [{"parameters": 7, "validation_loss": x, "tokens": 10} for x in (4.0, 5.0)]
    assert replicates.group_facts(facts) == {
        "parameters": 7, "validation_loss": 4.5, "tokens": 10, "seeds": 2}


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
    assert clear.startswith("noffn is higher than full by 0.5: +0.500 [+0.4")
    lower = replicates.verdict("full", "noffn", [4.5, 4.52, 4.48], [4.0, 4.01, 3.99])
    assert lower.startswith("noffn is lower than full by 0.5: -0.500 [-0.5")
    blurred = replicates.verdict("full", "noffn", [4.0, 4.5, 4.2], [4.1, 4.4, 4.3])
    _, half = replicates.difference([4.1, 4.4, 4.3], [4.0, 4.5, 4.2])
    assert "cannot be told apart with 3 and 3 seeds" in blurred
    assert f"a difference under {half:.2g} would go unseen" in blurred
    assert "does not tell" in replicates.verdict("full", "noffn", [4.0], [4.1, 4.2])
    assert "are equal in all" in replicates.verdict("full", "noffn", [4.0, 4.0], [4.0, 4.0])


def test_a_group_is_its_pretrained_models_not_their_fine_tunings():
    """A run's score on a task is the mean of its fine-tunings; missing numbers are left out."""
    result = {"name": "RTE", "from_scratch": False,
              "scores": {"accuracy": {"mean": 0.6, "std": 0.1, "values": [0.5, 0.7]}}}
    facts = {"validation_loss": 4.0, "glue": [result, {**result, "from_scratch": True}]}
    probes = {"tags": {"trained": {"mean": [0.1, 0.9, 0.3], "valid": [0.0, 0.1, 0.2]}}}
    looks = {"[CLS]": [[0.1, 0.3], [0.5, 0.7]]}
    assert replicates.measures(facts, looks, probes, {"tags": 2}) == {
        "validation loss": 4.0, "RTE accuracy": 0.6, "RTE accuracy, from scratch": 0.6,
        "attention: weight on [CLS]": pytest.approx(0.4), "probe: tags": 0.3}


def test_single_runs_make_no_table():
    """Without a group of two there is nothing to say; with one there is a row a measure."""
    one = {"full": {"validation loss": [4.0]}, "noffn": {"validation loss": [4.1]}}
    assert replicates.compare_groups(one) == ""
    runs = [{"validation loss": 4.0, "RTE accuracy": 0.5}, {"validation loss": 4.1}]
    many = {"full": replicates.collect(runs), "noffn": {"validation loss": [4.3, 4.5]},
            "last": {"validation loss": [4.6]}}
    text = replicates.compare_groups(many)
    assert "4.050 ± 0.071 (2)" in text and "4.400 ± 0.141 (2)" in text and "4.600 (1)" in text
    assert "0.500 (1)" in text
    assert text.count("- validation loss: ") == 2 and "- RTE" not in text
