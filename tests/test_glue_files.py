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


def test_mnli_has_named_labels_and_two_dev_files(glue_dir):
    """The 16 columns of MNLI's dev files are found by name.

    Matched and mismatched stay apart.
    """
    splits = glue_files.read_folder(GLUE["mnli"], glue_dir, ("train", "dev", "test"))
    assert {part: len(split) for part, split in splits.items()} == {
        "train": 41, "dev_matched": 7, "dev_mismatched": 5, "test_matched": 7, "test_mismatched": 5}
    assert set(splits["train"].labels.tolist()) == {0, 2}


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("task", GLUE.values(), ids=lambda task: task.name)
def test_every_task_is_read_by_its_columns(task, end, tmp_path):
    """All nine tasks have their texts from the right columns, in the right order.

    Labels go by name, with Windows line ends or not.
    """
    names = task.plain or ("index", *task.texts[::-1], task.label)
    label = task.labels[-1] if task.labels else "3.25"
    values = {column: f"text of {column}" for column in task.texts} | {
        task.label: label, "index": "0"}
    row = "\t".join(values.get(name, "-") for name in names)
    for part in ("train", *(f"dev_{variant}".rstrip("_") for variant in task.variants)):
        lines = [row] if task.plain else ["\t".join(names), row]
        write_lines(tmp_path, f"{task.name}/{part}.tsv", end.join(lines), end=end)
    for split in glue_files.read_folder(task, tmp_path, ("train", "dev")).values():
        assert split.texts == [tuple(f"text of {column}" for column in task.texts)]
        assert split.labels.tolist() == [len(task.labels) - 1 if task.labels else 3.25]


@pytest.mark.parametrize(("lines", "sentence"), [
    (["sentence\tlabel", "red\t1", "blue"], "dev.tsv, line 3: 1 columns, but there should be 2"),
    (["sentence\tlabel", "red\t2"], 'dev.tsv, line 2: the label "2" is not one of 0, 1'),
    (["phrase\tlabel", "red\t1"], 'has no column "sentence"; its columns are phrase, label'),
    (["sentence\tlabel"], "dev.tsv holds no examples")])
def test_broken_files_are_named_with_their_line(lines, sentence, tmp_path):
    """A broken file is an error in one sentence, with the file and the line.

    A ragged row, an unknown label, a missing column and an empty file.
    """
    write_lines(tmp_path, "SST-2/train.tsv", "sentence\tlabel", "red\t1")
    write_lines(tmp_path, "SST-2/dev.tsv", *lines)
    with pytest.raises(UserError, match="dev.tsv") as caught:
        glue_files.read_folder(GLUE["sst2"], tmp_path, ("train", "dev"))
    assert sentence in str(caught.value)


def test_other_broken_files(tmp_path):
    """A score that is no number and bytes that are not UTF-8 are errors, too."""
    for score in ("high", "nan"):
        path = write_lines(tmp_path, "s.tsv", "sentence1\tsentence2\tscore", f"a\tb\t{score}")
        with pytest.raises(UserError, match=f's.tsv, line 2: the label "{score}" is not a number'):
            glue_files.read_split(path, GLUE["stsb"], True)
    path.write_bytes(b"sentence\tlabel\nred\t1\nr\xe9d\t1\n")
    with pytest.raises(UserError, match=r"s\.tsv is not UTF-8 in line 3"):
        glue_files.read_split(path, GLUE["sst2"], True)


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
