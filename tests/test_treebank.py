"""Treebanks: what is left out, and what is refused."""

import pytest
from helpers import tag_of, treebank_row, write_treebank

from mini_undivided.support import probe_tasks
from mini_undivided.support.errors import UserError
from mini_undivided.support.treebank import read_conllu


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
    path.write_bytes(b"1\tr\xe9d")
    with pytest.raises(UserError, match="is not UTF-8"):
        list(read_conllu(path))
    with pytest.raises(UserError, match=r"should hold one file \*train\*\.conllu, but it holds 0"):
        probe_tasks.treebank_task(tmp_path / "nothing", 100)
