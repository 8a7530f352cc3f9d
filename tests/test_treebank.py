"""Treebanks: what is left out, and what is refused."""

import numpy as np
import pytest

from mini_undivided import probe
from mini_undivided.support.errors import UserError
from mini_undivided.support.treebank import read_conllu

WORDS = "ant bee cat dog eel fox gnu hen ibis jay kiwi lynx mole newt owl pig".split()


def sentences(count, seed=0, least=4, most=17):
    """Different sentences of random words."""
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.integers(least, most))) for i in range(count)]


def row(number, word, tag):
    return "\t".join([number, word, word, tag, *"______"])


def write_treebank(folder, sentences=41):
    """Write three small files with a multi-word token, an empty node and comments.

    The tag depends on the word.
    """
    rng = np.random.default_rng(0)
    for part in ("train", "dev", "test"):
        lines = []
        for i in range(sentences):
            words = rng.choice(WORDS, 5)
            lines += [
                f"# sent_id = {part}-{i}",
                row("1", words[0], tag(words[0])),
                row("2-3", "dont", "_"),
            ]
            lines += [row(str(n), word, tag(word)) for n, word in enumerate(words[1:], 2)]
            lines += [row("5.1", "ghost", "VERB"), ""]
        (folder / f"xx-ud-{part}.conllu").write_text("\n".join(lines))


def tag(word):
    return "NOUN" if word in WORDS[:5] else "VERB" if word in WORDS[5:8] else "ADJ"


def test_treebanks_lose_multiword_tokens_and_empty_nodes_only(tmp_path):
    """Only multi-word tokens (2-3) and empty nodes (5.1) are left out.

    The words behind them stay in order, and the last sentence needs no blank line after it. A row
    with too few columns, text that is not UTF-8 and a missing folder are errors.
    """
    write_treebank(tmp_path, 3)
    read = list(read_conllu(tmp_path / "xx-ud-dev.conllu"))
    assert [len(sentence) for sentence in read] == [5, 5, 5]
    assert all(tag(word) == pos for sentence in read for word, pos in sentence)
    path = tmp_path / "one.conllu"
    path.write_text("\ufeff# c\n" + row("1", "fox", "NOUN"), encoding="utf-8")
    assert list(read_conllu(path)) == [[("fox", "NOUN")]]
    path.write_text(row("1", "fox", "NOUN") + "\n2\tgnu\n")
    with pytest.raises(UserError, match=r"one\.conllu, line 2: 2 columns, but CoNLL-U has 10"):
        list(read_conllu(path))
    path.write_bytes(b"1\tr\xe9d")
    with pytest.raises(UserError, match="is not UTF-8"):
        list(read_conllu(path))
    with pytest.raises(UserError, match=r"should hold one file \*train\*\.conllu, but it holds 0"):
        probe.treebank_task(tmp_path / "nothing", 100)
