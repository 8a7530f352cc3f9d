"""GLUE's metrics (Wang et al. 2018, 1804.07461, section 3), written out.

Predictions and labels are arrays of the same length: class indices, or values in a regression.
"""

import numpy as np


def accuracy(predicted, labels):
    """The fraction of predictions that are correct."""
    return float(np.mean(predicted == labels))


def f1(predicted, labels):
    """The harmonic mean of precision and recall of label 1; 0 if there is no true positive.

    2 TP / (2 TP + FP + FN): true positives, false positives and false negatives.
    """
    true = np.sum((predicted == 1) & (labels == 1))
    wrong = np.sum(predicted != labels)
    return float(2 * true / (2 * true + wrong)) if true else 0.0


def matthews(predicted, labels):
    """Matthews' correlation: Pearson's, of two binary arrays; 0 if one is constant."""
    return pearson(predicted, labels)


def pearson(predicted, labels):
    """The linear correlation Σ xy / √(Σ x² Σ y²), means subtracted; 0 if one side is constant."""
    x, y = np.float64(predicted), np.float64(labels)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def spearman(predicted, labels):
    """The correlation of the ranks; 0 if one side is constant."""
    return pearson(ranks(predicted), ranks(labels))


def ranks(values):
    """The ranks of values from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS = {metric.__name__: metric for metric in (accuracy, f1, matthews, pearson, spearman)}


# Not needed at first reading: a task's scores, what needs no model, means over seeds.


def dev_metrics(task, splits):
    """(name, metric, dev split) of all scores of a task; a variant's name follows its metric's."""
    return [(metric + split.removeprefix("dev").replace("_", " "), metric, split)
            for split in splits if split.startswith("dev") for metric in task.metrics]


def score(task, splits, predictions):
    """{metric: value} on the dev splits; predictions: {split: array}."""
    return {name: METRICS[metric](predictions[split], splits[split].labels)
            for name, metric, split in dev_metrics(task, splits)}


def majority(task, splits):
    """{metric: what the best single answer scores} on the dev splits."""
    return {name: best_constant(metric, splits[split].labels, len(task.labels))
            for name, metric, split in dev_metrics(task, splits)}


def best_constant(metric, labels, num_classes):
    """The best that one answer for all examples scores; num_classes: 0 for a regression."""
    answers = range(num_classes) if num_classes else [0.0]
    return max(METRICS[metric](np.full(len(labels), answer), labels) for answer in answers)


def mean_and_std(values):
    """Mean and standard deviation (n - 1) of numbers or arrays over seeds, the latter as lists.

    Of one value there is no deviation, but None.
    """
    values = np.stack(values)
    deviation = values.std(axis=0, ddof=1).tolist() if len(values) > 1 else None
    return {"mean": values.mean(axis=0).tolist(), "std": deviation}


def in_words(scores):
    """{metric: value} × 100, as a line of text."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
