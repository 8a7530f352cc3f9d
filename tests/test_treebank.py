"""Treebanks: what is left out, and what is refused."""

import numpy as np
import pytest
import torch
from helpers import tag_of, treebank_row, write_treebank

from mini_undivided import probe
from mini_undivided import probe_tasks
from mini_undivided.support.errors import UserError
from mini_undivided.support.treebank import read_conllu, read_treebank


def test_treebanks_lose_multiword_tokens_and_empty_nodes_only(tmp_path):
    """Only multi-word tokens (2-3) and empty nodes (5.1) are left out.

    The words behind them stay in order, and the last sentence needs no blank line after it. A row
    with too few columns, text that is not UTF-8 and a missing folder are errors.
    """
    write_treebank(tmp_path, 3)
    read = list(read_conllu(tmp_path / "xx-ud-dev.conllu"))
    assert [len(sentence) for sentence in read] == [5, 5, 5]
    assert all(tag_of(word) == pos for sentence in read for word, pos in sentence)
    path = tmp_path / "one.conllu"
    path.write_text("\ufeff# c\n" + treebank_row("1", "fox", "NOUN"), encoding="utf-8")
    assert list(read_conllu(path)) == [[("fox", "NOUN")]]
    path.write_text(treebank_row("1", "fox", "NOUN") + "\n2\tgnu\n")
    with pytest.raises(UserError, match=r"one\.conllu, line 2: 2 columns, but CoNLL-U has 10"):
        list(read_conllu(path))
    path.write_bytes(b"# c\n# d\n1\tr\xe9d")
    with pytest.raises(UserError, match=r"one\.conllu is not UTF-8 in line 3"):
        list(read_conllu(path))
    with pytest.raises(UserError, match=r"holds no file \*train\*\.conllu with a tagged sentence"):
        probe_tasks.treebank_task(tmp_path / "nothing", 100)


def test_the_last_name_of_a_part_decides(tmp_path):
    """Several files for training are one part; "latest-ud-train" is no file for a test."""
    files = {"test-ud-train-a": "ant", "test-ud-train-b": "bee", "latest-ud-dev": "cat",
             "train-ud-test": "dog", "notes": "eel"}
    for name, word in files.items():
        (tmp_path / f"{name}.conllu").write_text(treebank_row("1", word, "NOUN") + "\n")
    words = {part: [word for sentence in sentences for word, _ in sentence]
             for part, sentences in read_treebank(tmp_path).items()}
    assert words == {"train": ["ant", "bee"], "valid": ["cat"], "test": ["dog"]}
    features = {part: torch.ones(2, len(words[part]), 5) for part in words}
    labels = {part: np.zeros(len(words[part]), dtype=int) for part in words}
    features["train"], labels["train"] = features["train"][:, :1], labels["train"][:1]
    assert probe.probe(features, labels, 2)["test"] == [1.0, 1.0]  # one word: its deviation is none


@pytest.mark.parametrize("number", ["\ufeff2", " 2", "2,3", "\u2028" + "2", "x", ""])
def test_a_word_whose_number_cannot_be_read_is_not_left_out(tmp_path, number):
    """Only 3-4 and 3.1 are left out; another ID is an error that names file and line."""
    write_treebank(tmp_path, 3)
    with open(tmp_path / "xx-ud-dev.conllu", "a", encoding="utf-8") as file:
        file.write("\n" + treebank_row(number, "ant", "NOUN") + "\n")
    with pytest.raises(UserError, match="dev.conllu, line .* numbers no word"):
        read_treebank(tmp_path)


@pytest.mark.parametrize(("word", "tag"), [("ant", ""), ("ant", " "), ("", "NOUN")])
def test_an_empty_field_is_an_error(tmp_path, word, tag):
    """An empty word or tag is an error that names file and line. "_" may be a word."""
    path = tmp_path / "one.conllu"
    rows = [treebank_row("1-2", "an_ant", "_"), treebank_row("1", "_", "PUNCT")]
    path.write_text("\n".join([*rows, treebank_row("2", word, tag)]), encoding="utf-8")
    with pytest.raises(UserError, match="one.conllu, line 3: the word or its tag is missing"):
        list(read_conllu(path))
    path.write_text("\n".join(rows), encoding="utf-8")
    assert list(read_conllu(path)) == [[("_", "PUNCT")]]


def test_sentences_with_a_word_without_a_tag_are_left_out(tmp_path, capsys):
    """Where "_" stands for a word's tag, its sentence is left out, and how many are is said.

    A treebank without tags is refused.
    """
    write_treebank(tmp_path, 4)
    whole, path = read_treebank(tmp_path), tmp_path / "xx-ud-train.conllu"
    assert capsys.readouterr().out == ""
    rows = [treebank_row("1", "an", "DET"), treebank_row("2", "gnu", "_"), "\n"]
    path.write_text("\n".join([*rows, path.read_text()]))
    assert read_treebank(tmp_path) == whole
    assert f"{path}: 1 of 5 sentences left out" in capsys.readouterr().out
    path.write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"no file \*train\*.conllu with a tagged sentence"):
        read_treebank(tmp_path)
