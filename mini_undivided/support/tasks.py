"""The tasks of GLUE and the one made from the docs corpus: names, columns, labels, metrics."""

import difflib
from dataclasses import dataclass

import numpy as np

from mini_undivided.support.errors import UserError


@dataclass(frozen=True)
class Task:
    """A task: name, columns of the texts, column and values of the label, metrics.

    labels: none for a number. hub: the texts' columns in the hub's copy. variants: endings of the
    names of its dev and test files. plain: the columns of train and dev if these files have no
    header. broken: ragged rows that the official files are known to hold.
    """

    name: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: int = 3
    hub: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    plain: tuple[str, ...] = ()
    broken: int = 0


YES_NO = ("0", "1")
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "cola": Task("CoLA", ("sentence",), "label", YES_NO, ("matthews",), 5,
                 plain=("source", "label", "star", "sentence")),
    "sst2": Task("SST-2", ("sentence",), "label", YES_NO, ("accuracy",)),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", YES_NO, ("accuracy", "f1"), 5,
                 hub=PAIR),
    "stsb": Task("STS-B", PAIR, "score", (), ("pearson", "spearman"), 5),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", YES_NO, ("accuracy", "f1"),
                broken=3),
    "mnli": Task("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"),
                 ("accuracy",), hub=("premise", "hypothesis"), variants=("matched", "mismatched")),
    "qnli": Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("accuracy",)),
    "rte": Task("RTE", PAIR, "label", ENTAILMENT, ("accuracy",), 5),
    "wnli": Task("WNLI", PAIR, "label", YES_NO, ("accuracy",), 5)}
LIBRARIES = ("python", "numpy", "torch")
BUILT_IN = {
    "docs-library": Task("docs-library", ("sentence",), "library", LIBRARIES, ("accuracy",), 5)}
TASKS = {**GLUE, **BUILT_IN}


@dataclass
class Split:
    """Examples: texts, tuples of one or two strings, and labels, an array (None if not given)."""

    texts: list
    labels: np.ndarray | None

    def __len__(self):
        return len(self.texts)

    def first(self, count):
        """The first `count` examples; all for None."""
        return self if count is None else Split(self.texts[:count], self.labels[:count])


def find_task(name):
    """The task of a name. Raises UserError, with the nearest name, if there is none."""
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.4)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UserError(f'there is no task "{name[:40]}"{hint} (tasks: {", ".join(TASKS)})')
    return TASKS[name]
