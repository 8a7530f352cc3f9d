"""GLUE's files with their traps, its copy on the hub, and the names of its tasks."""

import pytest
from helpers import write_lines

from mini_undivided import glue
from mini_undivided.support import glue_files
from mini_undivided.support.errors import UserError
from mini_undivided.support.tasks import GLUE


def test_cola_has_no_header_in_train_and_dev_but_in_test(tmp_path):
    """The first line of CoLA's train.tsv is an example, that of test.tsv is not.

    Labels are in the second column.
    """
    for part in ("train", "dev"):
        rows = "gj04\t1\t\tThe fox is.", "gj04\t0\t*\tIs fox the."
        write_lines(tmp_path, f"CoLA/{part}.tsv", *rows)
    write_lines(tmp_path, "CoLA/test.tsv", "index\tsentence", "0\tThe fox.")
    splits = glue_files.read_folder(GLUE["cola"], tmp_path, ("train", "dev", "test"))
    assert splits["train"].texts == [("The fox is.",), ("Is fox the.",)]
    assert splits["dev"].labels.tolist() == [1, 0]
    assert splits["test"].texts == [("The fox.",)] and splits["test"].labels is None


def test_mrpc_with_mark_quotes_and_no_last_newline(tmp_path):
    """MRPC is read correctly in spite of its traps.

    A byte-order mark is no part of the header; quotation marks stay, and join no lines; the last
    row counts, though it has no line end.
    """
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ['1\t12\t13\t" The fox said .\tHe said " so', '0\t14\t15\tHe said\t" No']
    for part in ("train", "dev"):
        write_lines(tmp_path, f"MRPC/{part}.tsv", header, *rows, head="\ufeff", end="")
    train = glue_files.read_folder(GLUE["mrpc"], tmp_path, ("train", "dev"))["train"]
    assert train.texts == [('" The fox said .', 'He said " so'), ("He said", '" No')]
    assert train.labels.tolist() == [1, 0]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("task", GLUE.values(), ids=lambda task: task.name)
def test_every_task_is_read_by_its_columns(task, end, tmp_path):
    """All nine tasks have their texts from the right columns, in the right order.

    Labels go by name, with Windows line ends or not; MNLI's two dev files stay apart.
    """
    names = task.plain or ("index", *task.texts[::-1], task.label)
    label = task.labels[-1] if task.labels else "3.25"
    values = {column: f"text of {column}" for column in task.texts} | {
        task.label: label, "index": "0"}
    row = "\t".join(values.get(name, "-") for name in names)
    parts = "train", *(f"dev_{variant}".rstrip("_") for variant in task.variants)
    counts = {part: count for count, part in enumerate(parts, 1)}
    for part, count in counts.items():
        lines = [row] * count if task.plain else ["\t".join(names), *[row] * count]
        write_lines(tmp_path, f"{task.name}/{part}.tsv", end.join(lines), end=end)
    splits = glue_files.read_folder(task, tmp_path, ("train", "dev"))
    assert splits.keys() == counts.keys()
    for part, split in splits.items():
        assert split.texts == [tuple(f"text of {column}" for column in task.texts)] * counts[part]
        number = len(task.labels) - 1 if task.labels else 3.25
        assert split.labels.tolist() == [number] * counts[part]


TEXT, PAIR = "sentence\tlabel", "sentence1\tsentence2\tscore"


@pytest.mark.parametrize(("key", "lines", "sentence"), [
    ("sst2", [TEXT, "red\t1", "blue"], ", line 3: 1 columns, but there should be 2"),
    ("sst2", [TEXT, "red\t2"], ', line 2: the label "2" is not one of 0, 1'),
    ("sst2", ["phrase\tlabel", "red\t1"],
     ' has no column "sentence"; its columns are phrase, label'),
    ("sst2", [TEXT], " holds no examples"),
    ("sst2", [TEXT, "red\t1", "r\udce9d\t1"], " is not UTF-8 in line 3"),
    ("stsb", [PAIR, "a\tb\thigh"], ', line 2: the label "high" is not a number'),
    ("stsb", [PAIR, "a\tb\tnan"], ', line 2: the label "nan" is not a number')])
def test_broken_files_are_named_with_their_line(key, lines, sentence, tmp_path):
    """A broken file is an error in one sentence, with the file and the line.

    A ragged row, an unknown label, a missing column, an empty file, other bytes, no score.
    """
    path = tmp_path / "dev.tsv"
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        glue_files.read_split(path, GLUE[key], True)
    assert f"{path}{sentence}" in str(caught.value)


def test_the_broken_rows_of_qqp_are_left_out_and_said(tmp_path, capsys):
    """The few ragged rows of the official QQP are left out, with a message.

    They are left out when labels are read, and an error when predictions are due.
    """
    path = write_lines(
        tmp_path, "train.tsv", "question1\tquestion2\tis_duplicate", "a\tb\t1", "broken", "c\td\t0"
    )
    assert len(glue_files.read_split(path, GLUE["qqp"], True)) == 2
    assert "1 broken rows left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="line 3"):
        glue_files.read_split(path, GLUE["qqp"], False)


def test_the_hub_gives_the_same_as_the_files(monkeypatch):
    """read_hub asks for the right configuration and parts.

    It takes the hub's own names of the columns.
    """
    datasets = pytest.importorskip("datasets")

    asked = []

    def load(path, key, split):
        asked.append((path, key, split))
        return {"premise": ["a", "c"], "hypothesis": ["b", "d"], "label": [2, 0]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = glue_files.read_hub("mnli", ("train", "dev", "test"))
    assert [split for *_, split in asked] == [
        "train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    assert {(path, key) for path, key, _ in asked} == {("nyu-mll/glue", "mnli")}
    assert splits["train"].texts == [("a", "b"), ("c", "d")]
    assert splits["train"].labels.tolist() == [2, 0]
    assert list(splits) == [
        "train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    assert splits["test_matched"].labels is None


def test_no_network_is_said_with_a_way_out(monkeypatch):
    """If the hub does not answer, the error names --data-dir and the built-in tasks."""
    datasets = pytest.importorskip("datasets")

    def load(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="ConnectionError.*--data-dir.*built-in task: docs-library"):
        glue.read_task("cola", None, predict=False)
