"""The docs corpus: prose without code."""

import json
import re

import numpy as np
import pytest

from mini_undivided.corpus import held_out_docs, is_held_out
from mini_undivided.support import docs, overlap
from mini_undivided.support.docs import clean


def test_cleaning_keeps_prose_and_drops_code():
    """Cleaning keeps paragraphs, without their markup.

    Examples, signatures, tables and lists of parameters go.
    """
    text = """func(a, b=None, *, c=3) -> int

    Return the sum of ``a`` and *b* as it is
    computed by :func:`operator.add`, and nothing else.

    >>> func(1, 2) if True else func(3, 4)
    3

    ====  ====
    a     b
    ====  ====

    x = 1; y = 2; z = x + y; print(z)
    """
    assert (
        clean(text)
        == "Return the sum of a and b as it is computed by operator.add, and nothing else."
    )

# What is held out


def runs_of(text, length=13):
    """Each so many words of a text in a row, by the rule of BERT's first split."""
    words = re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_held_out_text_is_not_in_training_text():
    """A sentence that stands in both parts, or 13 words in a row, leaves the held-out part.

    What stands twice within a part stays once; order and paragraphs are kept.
    """
    shared = "The quick brown fox jumps over the lazy dog while seven old owls watch from above."
    texts = [
        f"First of all. {shared} Then it ends.\n\nA second paragraph. First of all.",
        f"Held out alone. {shared} Then it ends. And one more.",
        f"Alone again. Now: {shared[:-1]}, and more."]
    kept = docs.separate(texts, lambda number: number > 0)
    assert kept[0] == f"First of all. {shared} Then it ends.\n\nA second paragraph."
    assert kept[1] == "Held out alone. And one more."
    assert kept[2] == "Alone again."
    assert not any(runs_of(kept[0]) & runs_of(text) for text in kept[1:])


def test_a_run_that_a_gap_brings_together_goes_too():
    """Where a sentence is taken out, its neighbours may make a run that training has."""
    run = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi."
    start, end = "one two three four five six", "even eight nine ten eleven twelve"
    texts = [f"Once {start}. S{end} then. A{run[1:]}", f"Now {start}. Well {run} S{end} end. Last."]
    kept = docs.separate(texts, lambda number: number > 0)
    assert kept == [texts[0], "Last."]  # "Well" goes first, then what stood on both sides of it


@pytest.fixture(scope="module")
def documents():
    """The docs corpus of this machine: rows with text, library and held_out."""
    with open(docs.docs_file(is_held_out), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_docs_corpus_of_this_machine_is_clean(documents):
    """Of all its held-out sentences and runs of 13 words, none stands in its training text."""
    training = [row["text"] for row in documents if not row["held_out"]]
    held_out = [row["text"] for row in documents if row["held_out"]]
    assert 0.02 < len(held_out) / len(documents) < 0.06 and len(training) > 1000
    seen = {tuple(docs.split_words(s)) for text in training for s in docs.split_sentences(text)}
    mine = [tuple(docs.split_words(s)) for text in held_out for s in docs.split_sentences(text)]
    assert len(mine) > 500 and not seen & set(mine)
    runs = set().union(*map(runs_of, held_out))
    assert not any(runs & runs_of(text) for text in training)


def test_a_damaged_cache_is_gathered_again(tmp_path, monkeypatch):
    """With any byte of it changed, the cached corpus is written anew, and read as it was."""
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path))
    texts = [f"The {i}th of all the texts says something of {i} things, and of nothing else at all."
             for i in range(41)]
    monkeypatch.setattr(docs, "gather_docs", lambda: [("python", text) for text in texts])
    path = docs.docs_file(is_held_out)
    whole, expected = path.read_bytes(), list(held_out_docs())
    assert expected == [("python", texts[10]), ("python", texts[30])]
    for at in (0, 7, len(whole) // 2, -1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert list(held_out_docs()) == expected and path.read_bytes() == whole


# Overlap


@pytest.mark.parametrize("chunk", [1 << 22, 77])
@pytest.mark.parametrize("run", [13, 3, 1])
def test_shared_words_are_those_of_a_plain_search(monkeypatch, chunk, run):
    """Words in runs that both sides have, however the text is cut; no run crosses a [SEP]."""
    monkeypatch.setattr(overlap, "CHUNK", chunk)
    rng, sep = np.random.default_rng(0), 49
    opens = np.ones(50, dtype=bool)
    opens[30:49] = False
    train, valid = rng.integers(0, 50, 3000), rng.integers(0, 50, 400)
    valid[100:160], valid[200:260] = train[1000:1060], train[5:65]

    def words(tokens):
        groups = []
        for number, token in enumerate(tokens.tolist()):
            if opens[token]:
                groups.append([token] if token != sep else [token, id(tokens), number])
            elif groups:
                groups[-1].append(token)
        return list(map(tuple, groups))

    a, b = words(train), words(valid)
    known = {tuple(a[i : i + run]) for i in range(len(a) - run + 1)}
    expected = np.zeros(len(b), dtype=bool)
    for i in range(len(b) - run + 1):
        if tuple(b[i : i + run]) in known:
            expected[i : i + run] = True
    assert expected.any() and not expected.all()
    assert (overlap.shared_words(train, valid, opens, sep, run) == expected).all()
