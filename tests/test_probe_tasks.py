"""The tasks of probes: what their labels say, and which examples are in which part."""

import numpy as np
import pytest
from helpers import sentences, write_treebank

from mini_undivided import probe_tasks
from mini_undivided.support.errors import UserError


def test_sentence_length_has_equal_bins():
    """A bin holds only the sentences of certain lengths, and about as many as any other."""
    task = probe_tasks.length_task(sentences(600, most=40))
    lengths, labels = (
        [len(text.split()) for part in task.texts.values() for (text,) in part],
        np.concatenate(list(task.labels.values())),
    )
    assert np.bincount(labels).min() > 60 and len(np.bincount(labels)) == probe_tasks.BINS
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(labels[order]) >= 0).all()
    assert {part: len(x) for part, x in task.texts.items()} == {
        "train": 360,
        "valid": 120,
        "test": 120,
    }


def test_word_content_names_the_only_word():
    """Each sentence holds exactly one of the ten words, and the label says which.

    The commonest words are not among them.
    """
    rng, common = (
        np.random.default_rng(0),
        [f"x{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(50)],
    )
    rare = [f"yyy{chr(97 + i)}" for i in range(10)]
    texts = [
        " ".join([*common, rare[rng.integers(10)], *rng.choice(rare, rng.integers(0, 2))])
        for _ in range(400)
    ]
    task = probe_tasks.content_task(texts)
    chosen = {}
    for part, examples in task.texts.items():
        for (text,), label in zip(examples, task.labels[part], strict=True):
            inside = set(text.split()) & set(rare)
            assert len(inside) == 1
            assert chosen.setdefault(int(label), inside) == inside
    assert len(chosen) == probe_tasks.CONTENT_WORDS


def test_bigram_shift_swaps_two_inner_neighbours():
    """Half of the sentences differ from the original by one swap of inner neighbours.

    The labels say which.
    """
    texts = sentences(300)
    originals = {tuple(sorted(text.split())): text.split() for text in texts}
    task = probe_tasks.shift_task(texts)
    shifted = []
    for part, examples in task.texts.items():
        for (text,), label in zip(examples, task.labels[part], strict=True):
            words = text.split()
            original = originals[tuple(sorted(words))]
            changed = [i for i, (a, b) in enumerate(zip(words, original, strict=True)) if a != b]
            assert len(changed) == 2 * label
            if label:
                assert changed[1] == changed[0] + 1
                assert changed[0] > 0
                assert changed[1] < len(words) - 1
            shifted.append(label)
    assert 0.4 < np.mean(shifted) < 0.6


def test_too_little_text_for_a_probe():
    """Fewer than 100 different sentences are refused."""
    with pytest.raises(UserError, match="100 different sentences at least, but the text has 63"):
        probe_tasks.text_tasks(sentences(63), 5000)
    assert sum(map(len, probe_tasks.text_tasks(sentences(300), 150)[0].texts.values())) == 150


def test_the_treebank_task_and_its_control(tmp_path):
    """The tags keep to the files' own parts, and the control gives each word one tag.

    It is the same tag everywhere, and another one for another seed.
    """
    write_treebank(tmp_path)
    task = probe_tasks.treebank_task(tmp_path, 100)
    assert {part: len(x) for part, x in task.labels.items()} == {
        "train": 100,
        "valid": 25,
        "test": 100,
    }
    assert task.classes == 3
    control, other = task.control(3), task.control(4)
    tags = {}
    for part, texts in task.texts.items():
        for word, label in zip(
            (word for text in texts for word in text), control[part], strict=True
        ):
            assert tags.setdefault(word, label) == label
    assert any((control[part] != other[part]).any() for part in control)
    assert all((control[part] == task.control(3)[part]).all() for part in control)


def test_glue_on_frozen_features(tmp_path, monkeypatch):
    """GLUE's dev part is the test, and a tenth of the training part chooses the strength.

    That tenth is not trained on.
    """
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        rows = "\n".join(f"{s}\t{i % 2}" for i, s in enumerate(sentences(70, seed=len(part))))
        (tmp_path / "SST-2" / f"{part}.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    task = probe_tasks.glue_task("sst2", str(tmp_path), 50)
    assert {part: len(x) for part, x in task.labels.items()} == {
        "train": 45,
        "valid": 5,
        "test": 70,
    }
    assert set(task.texts["train"]) & set(task.texts["valid"]) == set()
    assert task.metric == "accuracy"
