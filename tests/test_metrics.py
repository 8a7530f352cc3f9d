"""Metrics against scikit-learn and SciPy, and what stands beside a score."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from mini_undivided import metrics
from mini_undivided.support.tasks import Split, find_task


@pytest.mark.parametrize("seed", range(7))
def test_metrics_equal_the_libraries(seed):
    """Accuracy, F1 and Matthews are scikit-learn's, Pearson and Spearman SciPy's, ties included."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 57))
    a, b = rng.integers(0, 2, count), rng.integers(0, 2, count)
    assert metrics.accuracy(a, b) == pytest.approx(sklearn.metrics.accuracy_score(b, a))
    assert metrics.f1(a, b) == pytest.approx(sklearn.metrics.f1_score(b, a, zero_division=0))
    assert metrics.matthews(a, b) == pytest.approx(sklearn.metrics.matthews_corrcoef(b, a))
    x, y = rng.normal(size=count), rng.integers(0, 6, count) / 5  # y has ties
    assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert metrics.ranks(y) == pytest.approx(scipy.stats.rankdata(y))


@pytest.mark.parametrize("answer", [0, 1])
def test_metrics_of_one_answer_for_all(answer):
    """One answer for all gives what the libraries give, else 0; of NaN the correlation is NaN."""
    labels, same = np.array([1, 0, 1, 1, 0]), np.full(5, answer)
    theirs = sklearn.metrics.f1_score(labels, same, zero_division=0)
    assert metrics.f1(same, labels) == pytest.approx(theirs)
    assert metrics.matthews(same, labels) == sklearn.metrics.matthews_corrcoef(labels, same) == 0
    assert metrics.pearson(same * 0.1, labels) == metrics.spearman(same * 0.1, labels) == 0
    assert metrics.f1(np.zeros(3, int), np.zeros(3, int)) == 0
    assert np.isnan(metrics.pearson(same * np.nan, labels))


def test_scores_are_those_of_the_dev_splits():
    """Every metric of a task on every dev split, named by its variant; nothing of other splits."""
    labels = {"train": [0, 1, 2], "dev_matched": [0, 1, 2], "dev_mismatched": [2, 2, 1]}
    splits = {name: Split("abc", np.array(values)) for name, values in labels.items()}
    predictions = {name: np.array([0, 1, 1]) for name in splits}
    scores = metrics.score(find_task("mnli"), splits, predictions)
    assert scores == pytest.approx({"accuracy matched": 2 / 3, "accuracy mismatched": 1 / 3})
    assert metrics.in_words(scores) == "accuracy matched 66.7, accuracy mismatched 33.3"


def test_the_majority_is_the_best_of_all_single_answers():
    """Of the labels on dev, whichever training prefers; for F1 the positive class.

    No answer correlates with anything.
    """
    splits = {"train": Split("abc", np.array([0, 0, 0])), "dev": Split("abc", np.array([1, 1, 0]))}
    best = metrics.majority(find_task("mrpc"), splits)
    assert best == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(0.8)}
    splits["dev"].labels = np.array([0.5, 2.5, 3.0])
    assert metrics.majority(find_task("stsb"), splits) == {"pearson": 0.0, "spearman": 0.0}


def test_mean_and_deviation_over_seeds():
    """Of numbers or arrays, with n - 1; of a single value there is no deviation."""
    assert metrics.mean_and_std([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": pytest.approx(7**0.5)}
    arrays = metrics.mean_and_std([np.array([1.0, 5.0]), np.array([3.0, 5.0])])
    assert arrays == {"mean": [2.0, 5.0], "std": [pytest.approx(2**0.5), 0.0]}
    assert metrics.mean_and_std([np.array([1.0, 5.0])]) == {"mean": [1.0, 5.0], "std": None}
