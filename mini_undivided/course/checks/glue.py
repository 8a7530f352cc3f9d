"""Checks of 7: F1, Matthews, Pearson, ranks and Spearman, against scikit-learn and SciPy."""

import numpy as np
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn import metrics

from mini_undivided.course.assignments import check, compare, require


def binary(rng):
    """Labels, and predictions that are often right."""
    labels = (rng.random(60) < 0.35).astype(int)
    return labels, np.where(rng.random(60) < 0.3, 1 - labels, labels)


def require_zero(metric, *arrays):
    """Raise Wrong unless a metric of arrays for which it is not defined is 0."""
    with np.errstate(all="ignore"):
        try:
            value = metric(*arrays)
        except ZeroDivisionError:
            value = np.nan
    require(value == 0, f"{metric.__name__} is {value} where it is not defined (no true positive, "
            "or one side constant), but should be 0: is there a division by 0?")


@check(7, points=3)
def f1_score(glue, rng):
    """f1 is scikit-learn's f1_score of label 1."""
    labels, predicted = binary(rng)
    precision, recall = (each(labels, predicted) for each in (
        metrics.precision_score, metrics.recall_score))
    hits, negatives = np.sum(predicted & labels), np.sum(predicted + labels == 0)
    compare("f1", glue.f1(predicted, labels), metrics.f1_score(labels, predicted), {
        "for label 0: label 1 is the positive one":
            metrics.f1_score(labels, predicted, pos_label=0),
        "for the mean over both labels (macro)":
            metrics.f1_score(labels, predicted, average="macro"),
        "for accuracy": metrics.accuracy_score(labels, predicted),
        "for precision alone": precision, "for recall alone": recall,
        "for the arithmetic mean of precision and recall: it is the harmonic one":
            (precision + recall) / 2,
        "for TP / (TP + FP + FN), which is Jaccard's index":
            metrics.jaccard_score(labels, predicted),
        "with true negatives (TN) in place of false negatives (FN)":
            2 * hits / (hits + predicted.sum() + negatives)})
    require_zero(glue.f1, np.zeros(5, int), np.zeros(5, int))


@check(7, points=3)
def matthews_and_pearson(glue, rng):
    """matthews is scikit-learn's matthews_corrcoef, pearson SciPy's pearsonr."""
    x = rng.normal(size=40) + 2
    y = x + rng.normal(size=40) + 3
    right = stats.pearsonr(x, y)[0]
    compare("pearson", glue.pearson(x, y), right, {
        "when means are not subtracted": 1 - cosine(x, y), "for its square": right**2,
        "for the covariance": np.cov(x, y, bias=True)[0, 1],
        "when one of covariance and deviations is divided by n - 1, the other by n":
            right * (40 / 39 if glue.pearson(x, y) > right else 39 / 40)})
    labels, predicted = binary(rng)
    right = metrics.matthews_corrcoef(labels, predicted)
    compare("matthews", glue.matthews(predicted, labels), right, {
        "for accuracy": metrics.accuracy_score(labels, predicted), "for its square": right**2,
        "for 2 · accuracy - 1": 2 * metrics.accuracy_score(labels, predicted) - 1})
    for metric in (glue.pearson, glue.matthews):
        require_zero(metric, np.ones(5, int), np.array([1, 0, 1, 1, 0]))


@check(7, points=4)
def ranks_and_spearman(glue, rng):
    """ranks is SciPy's rankdata, ties sharing their mean; spearman its spearmanr."""
    x, y = rng.integers(6, size=(2, 30)) / 2.0
    x = x + np.where(rng.random(30) < 0.3, y, 0)
    right, squares = stats.rankdata(x), np.sum((stats.rankdata(x) - stats.rankdata(y)) ** 2)
    compare("ranks", glue.ranks(x), right, {
        "when ties are broken by their order: equal values share the mean of their ranks":
            stats.rankdata(x, "ordinal"),
        "from argsort(argsort), which breaks ties: equal values share the mean of their ranks":
            1 + x.argsort().argsort(),
        "when ties get the least of their ranks: it is the mean": stats.rankdata(x, "min"),
        "when ties get the greatest of their ranks: it is the mean": stats.rankdata(x, "max"),
        "when different values are numbered: ties take up several ranks":
            stats.rankdata(x, "dense"),
        "when ranks begin at 0": right - 1, "when the greatest comes first": 31 - right,
        "from argsort once: it says where to find the values, not their ranks": 1 + x.argsort()})
    compare("spearman", glue.spearman(x, y), stats.spearmanr(x, y)[0], {
        "from the values: take their ranks first": stats.pearsonr(x, y)[0],
        "from 1 - 6 Σ d² / (n (n² - 1)), which holds without ties only":
            1 - 6 * squares / (30 * (30**2 - 1))})
