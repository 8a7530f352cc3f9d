"""GLUE's files, its copy on the hub, the task made from the docs corpus, the GLUE server's zip."""

import math
import zipfile
from pathlib import Path

import numpy as np

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, write_text
from mini_undivided.support.tasks import BUILT_IN, GLUE, TASKS, Split
from mini_undivided.support.text_files import check_utf8, open_text

# The GLUE server's names of what is predicted: (task, split) → file.
SUBMISSION = {(key, "test"): task.name for key, task in GLUE.items() if key != "mnli"} | {
    ("mnli", "test_matched"): "MNLI-m", ("mnli", "test_mismatched"): "MNLI-mm",
    ("mnli", "ax"): "AX"}


def read_glue(key, data_dir, predict=False):
    """The examples of a task, {split: Split}: train, dev or dev_matched …; if `predict`, test, ax.

    data_dir: the folder of the official files; None: the hub.
    """
    splits = ("train", "dev", "test") if predict else ("train", "dev")
    found = read_folder(GLUE[key], data_dir, splits) if data_dir else read_hub(key, splits)
    if predict and key == "mnli" and (ax := read_ax(data_dir)):
        found["ax"] = ax
    return found


# Official files.

def read_tsv(path, columns=None, broken=0):
    """Yield (line number, row as a dictionary) of a GLUE file. Quotation marks quote nothing.

    columns: names for a file without header. broken: ragged rows to leave out. UserError has file
    and line.
    """
    skipped = 0
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            check_utf8(path, number, line)
            cells = line.rstrip("\r\n").split("\t")
            if columns is None:
                columns = cells
            elif len(cells) == len(columns):
                yield number, dict(zip(columns, cells, strict=True))
            elif skipped < broken:
                skipped += 1
            else:
                raise UserError(f"{path}, line {number}: {len(cells)} columns, "
                                f"but there should be {len(columns)}")
    if skipped:
        print(f"{path}: {skipped} broken rows left out")


def read_split(path, task, labelled):
    """Read a file of a task, with labels or without → Split."""
    texts, labels = [], []
    needed = (*task.texts, task.label) if labelled else task.texts
    columns = task.plain or None if labelled else None  # a test file always has a header
    broken = task.broken if labelled else 0  # a prediction must keep its row
    for number, row in read_tsv(path, columns, broken):
        for column in needed:
            if column not in row:
                raise UserError(f'{path} has no column "{column}"; '
                                f"its columns are {', '.join(row)}")
        texts.append(tuple(row[column] for column in task.texts))
        if labelled:
            labels.append(parse_label(row[task.label], task, f"{path}, line {number}"))
    if not texts:
        raise UserError(f"{path} holds no examples")
    return Split(texts, np.array(labels) if labelled else None)


def parse_label(text, task, where):
    """A label's number, or for a regression its value."""
    try:
        if task.labels:
            return task.labels.index(text)
        if math.isfinite(value := float(text)):
            return value
        raise ValueError
    except ValueError:
        wanted = f"one of {', '.join(task.labels)}" if task.labels else "a number"
        raise UserError(f'{where}: the label "{text}" is not {wanted}') from None


def split_names(task, splits):
    """The names of a task's files: "train", and with its variants "dev_matched" and so on."""
    return ["_".join(filter(None, (split, variant))) for split in splits
            for variant in (("",) if split == "train" else task.variants)]


def read_folder(task, data_dir, splits):
    """Read "train", "dev", "test" of a task's official files → {split[_variant]: Split}."""
    files = {name: Path(data_dir) / task.name / f"{name}.tsv" for name in split_names(task, splits)}
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        raise UserError(f"{task.name} is not in {data_dir}: looked for {', '.join(missing)}")
    return {name: read_split(path, task, labelled=not name.startswith("test"))
            for name, path in files.items()}


def tasks_in(data_dir):
    """The keys of the GLUE tasks in a folder. Says which it lacks; UserError if there is none."""
    folder = Path(data_dir)
    keys = [key for key, task in GLUE.items() if (folder / task.name / "train.tsv").exists()]
    if not keys:
        raise UserError(f"none of the nine tasks is in {data_dir}: "
                        "looked for CoLA/train.tsv and so on")
    missing = [task.name for key, task in GLUE.items() if key not in keys]
    if missing:
        print(f"not in {data_dir}, so left out: {', '.join(missing)}")
    return keys


def download(key, split):
    """The rows of a split of the hub's copy of GLUE."""
    import datasets  # late: slow to import

    try:
        return datasets.load_dataset("nyu-mll/glue", key, split=split)
    except Exception as error:  # the hub raises many kinds
        kind = type(error).__name__
        raise UserError(
            f"{key} could not be downloaded from the hub ({kind}); give the folder of the GLUE "
            f"files with --data-dir, or take a built-in task: {', '.join(BUILT_IN)}") from None


def read_hub(key, splits):
    """Read splits of a task from the Hugging Face hub → as read_folder."""
    task, found = GLUE[key], {}
    for name in split_names(task, splits):
        rows = download(key, name.replace("dev", "validation"))
        texts = list(zip(*(rows[column] for column in task.hub or task.texts), strict=True))
        found[name] = Split(texts, None if "test" in name else np.array(rows["label"]))
    return found


# The task made from the docs corpus.

def make_docs_task(key, documents):
    """Make a built-in task from documents, (library, sentences) pairs, one in five for dev."""
    splits = {}
    for part in ("train", "dev"):
        own = [document for i, document in enumerate(documents) if (i % 5 == 4) == (part == "dev")]
        pairs = [(library, sentence) for library, group in own for sentence in group]
        labels = np.array([TASKS[key].labels.index(library) for library, _ in pairs])
        splits[part] = Split([(sentence,) for _, sentence in pairs], labels)
    return splits


# Predictions.

def read_ax(data_dir):
    """The diagnostic examples for MNLI's model; None, and a line that says so, if absent."""
    try:
        if data_dir:
            path = Path(data_dir) / "AX" / "diagnostic.tsv"
            return read_split(path, GLUE["mnli"], labelled=False)
        rows = download("ax", "test")
        return Split(list(zip(rows["premise"], rows["hypothesis"], strict=True)), None)
    except (UserError, FileNotFoundError) as error:
        print(f"AX is left out of the predictions: {error}")
        return None


def write_predictions(out, key, predictions):
    """Write a task's predictions, {split: array}, as the GLUE server takes them, and zip all."""
    folder, labels = out / "predictions", TASKS[key].labels
    folder.mkdir(parents=True, exist_ok=True)
    for split, answers in predictions.items():
        lines = [labels[answer] if labels else f"{min(5.0, max(0.0, answer)):.3f}"
                 for answer in answers]
        body = "".join(f"{i}\t{line}\n" for i, line in enumerate(lines))
        write_text(folder / f"{SUBMISSION[key, split]}.tsv", "index\tprediction\n" + body)
    with atomic(out / "submission.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in sorted(folder.glob("*.tsv")):
            archive.write(path, path.name)
