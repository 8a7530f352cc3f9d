"""Checks of 7: F1, Matthews, Pearson, ranks and Spearman, against scikit-learn and SciPy."""

import numpy as np
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn import metrics as sklearn

from mini_undivided.course.assignments import check, compare, require
from mini_undivided.course.student import pure


def binary(rng):
    """Labels, and predictions that are often right, and more often 1 than the labels are.

    For none of these counts do two of the usual mistakes give the same number.
    """
    labels, place, order = np.repeat([0, 1], [43, 20]), np.arange(63), rng.permutation(63)
    wrong = (place < rng.integers(10, 13)) | (place >= rng.integers(56, 62))
    return labels[order], (labels ^ wrong)[order]


def require_zero(metric, *arrays):
    """Raise Wrong unless a metric of arrays for which it is not defined is 0."""
    with np.errstate(all="ignore"):
        value = metric(*arrays)
    require(value == 0, f"{metric.__name__} is {value} where it is not defined (no true positive, "
            "or one side constant), but should be 0: is there a division by 0?")


@check(7, points=3)
def f1_score(metrics, rng):
    """f1 is scikit-learn's f1_score of label 1."""
    labels, predicted = binary(rng)
    hits, negatives = np.sum(predicted & labels), np.sum(predicted + labels == 0)
    precision, recall = hits / predicted.sum(), hits / labels.sum()
    jaccard = sklearn.jaccard_score(labels, predicted)
    compare("f1", pure("metrics", "f1", predicted, labels), sklearn.f1_score(labels, predicted), {
        "for label 0, not 1": sklearn.f1_score(labels, predicted, pos_label=0),
        "for both labels (macro)": sklearn.f1_score(labels, predicted, average="macro"),
        "for accuracy": sklearn.accuracy_score(labels, predicted),
        "for precision alone": precision, "for recall alone": recall,
        "for their arithmetic mean, not the harmonic one": (precision + recall) / 2,
        "for their geometric mean, not the harmonic one": (precision * recall) ** 0.5,
        "without the factor 2": precision * recall / (precision + recall),
        "for TP / (TP + FP + FN), Jaccard's index": jaccard,
        "with 2 TP above, but TP below": 2 * jaccard,
        "with true negatives, not false ones": 2 * hits / (hits + predicted.sum() + negatives)})
    for zeros in ((0, 0), (0, 1), (1, 0)):
        require_zero(metrics.f1, *(np.full(5, value) for value in zeros))


@check(7, points=3)
def matthews_and_pearson(metrics, rng):
    """matthews is scikit-learn's matthews_corrcoef, pearson SciPy's pearsonr."""
    x, (labels, predicted) = rng.normal(size=40) + 2, binary(rng)
    y = x + rng.normal(size=40) + 3
    for sign in (1, -1):
        right, cov = stats.pearsonr(x, sign * y)[0], np.cov(x, sign * y, bias=True)[0, 1]
        compare("pearson", pure("metrics", "pearson", x, sign * y), right, {
            **signs(right), "when means are not subtracted": 1 - cosine(x, sign * y),
            "when one side's mean is not": 40**0.5 * cov / (x.std() * np.linalg.norm(y)),
            "for the covariance": cov, "for the slope of a line": cov / x.var(),
            "when the covariance is divided by n - 1, the deviations by n": right * 40 / 39})
        predicted = predicted if sign == 1 else 1 - predicted
        right, accuracy = sklearn.matthews_corrcoef(labels, predicted), np.mean(labels == predicted)
        compare("matthews", pure("metrics", "matthews", predicted, labels), right, {
            **signs(right),
            "without the square root": right / (63**2 * labels.std() * predicted.std()),
            "for accuracy": accuracy, "for 2 · accuracy - 1": 2 * accuracy - 1,
            "for Cohen's κ": sklearn.cohen_kappa_score(labels, predicted)})
    for metric in (metrics.pearson, metrics.matthews):
        require_zero(metric, np.ones(5, int), np.array([1, 0, 1, 1, 0]))
        require_zero(metric, np.array([1, 0, 1, 1, 0]), np.zeros(5, int))


def signs(right):
    """Typical mistakes in a correlation."""
    return {"without its sign, or with the opposite one": abs(right),
            "with the opposite sign": -right,
            "for its square": right**2}


@check(7, points=4)
def ranks_and_spearman(metrics, rng):
    """ranks is SciPy's rankdata, ties sharing their mean; spearman its spearmanr."""
    x, y = rng.integers(-3, 4, size=(2, 30)) / 2.0
    x = x + np.where(rng.random(30) < 0.3, y, 0)
    right = stats.rankdata(x)
    compare("ranks", pure("metrics", "ranks", x), right, {
        "when ties are broken, not given their mean rank": stats.rankdata(x, "ordinal"),
        "from argsort(argsort), not with ties' mean rank": 1 + x.argsort().argsort(),
        "when ties get the least of their ranks, not the mean": stats.rankdata(x, "min"),
        "when ties get the greatest of their ranks, not the mean": stats.rankdata(x, "max"),
        "when different values are numbered": stats.rankdata(x, "dense"),
        "when ranks begin at 0": right - 1, "when the greatest comes first": 31 - right,
        "when the means of ranks are cut off to whole numbers": np.floor(right),
        "from argsort once: it says where to find the values, not their ranks": 1 + x.argsort()})
    for y in (y, y - x):
        d = np.sum((stats.rankdata(x) - stats.rankdata(y)) ** 2)
        right = stats.spearmanr(x, y)[0]
        compare("spearman", pure("metrics", "spearman", x, y), right, {
            **signs(right), "from the values: take their ranks first": stats.pearsonr(x, y)[0],
            "when only one side is ranked": stats.pearsonr(stats.rankdata(x), y)[0],
            "from the formula that holds without ties": 1 - 6 * d / (30 * (30**2 - 1))})
    require_zero(metrics.spearman, np.ones(5), np.arange(5.0))
