"""The tasks of probes: what their labels say, and which examples are in which split."""

import numpy as np
import pytest
from helpers import sentences, write_lines, write_treebank

from mini_undivided import probe, probe_tasks
from mini_undivided.support.errors import UserError


def examples(task):
    """(text, label) of all splits."""
    return [(text, label) for split, texts in task.texts.items()
            for (text,), label in zip(texts, task.labels[split].tolist(), strict=True)]


def sizes(task):
    return {split: len(labels) for split, labels in task.labels.items()}


def test_sentence_length_has_equal_bins():
    """A bin holds only the sentences of certain lengths, and about as many as any other."""
    task = probe_tasks.length_task(sentences(600, most=40))
    pairs = sorted((len(text.split()), label) for text, label in examples(task))
    labels = [label for _, label in pairs]
    assert len(np.bincount(labels)) == probe_tasks.BINS and np.bincount(labels).min() > 60
    assert labels == sorted(labels)
    assert sizes(task) == {"train": 360, "valid": 120, "test": 120}


def test_word_content_predicts_the_only_word():
    """Each sentence holds exactly one of ten words, and the label says which; none is common."""
    rng, common = np.random.default_rng(0), [f"x{a}{b}" for a in "abcde" for b in "abcdefghij"]
    rare = [f"yyy{letter}" for letter in "abcdefghij"]
    texts = [" ".join([*common, rng.choice(rare), *rng.choice(rare, rng.integers(0, 2))])
             for _ in range(400)]
    chosen = {}
    for text, label in examples(probe_tasks.content_task(texts)):
        inside = set(text.split()) & set(rare)
        assert len(inside) == 1 and chosen.setdefault(label, inside) == inside
    assert len(chosen) == probe_tasks.CONTENT_WORDS


def test_bigram_shift_swaps_two_inner_neighbours():
    """Half of the sentences differ from the original by one swap of inner neighbours, as labelled.
    """
    texts = sentences(300)
    originals = {tuple(sorted(text.split())): text.split() for text in texts}
    pairs = examples(probe_tasks.shift_task(texts))
    for text, label in pairs:
        words = text.split()
        original = originals[tuple(sorted(words))]
        changed = [i for i, (a, b) in enumerate(zip(words, original, strict=True)) if a != b]
        assert len(changed) == 2 * label
        assert not label or 0 < changed[0] == changed[1] - 1 < len(words) - 2
    assert 0.4 < np.mean([label for _, label in pairs]) < 0.6


def test_too_little_text_for_a_probe():
    """Fewer than 100 different sentences are refused; of many, `examples` are taken."""
    with pytest.raises(UserError, match="100 different sentences at least, but the text has 63"):
        probe_tasks.text_tasks(sentences(63), 5000)
    assert sum(sizes(probe_tasks.text_tasks(sentences(300), 150)[0]).values()) == 150


def test_the_treebank_task_and_its_control(tmp_path):
    """Tags keep to the files' splits; the control gives each word one tag, others for a seed."""
    write_treebank(tmp_path)
    task = probe_tasks.treebank_task(tmp_path, 100)
    assert sizes(task) == {"train": 100, "valid": 25, "test": 100} and task.classes == 3
    control, again, other = task.control(3), task.control(3), task.control(4)
    tags = {}
    for split, texts in task.texts.items():
        words = [word for text in texts for word in text]
        for word, label in zip(words, control[split], strict=True):
            assert tags.setdefault(word, label) == label
    assert any((control[split] != other[split]).any() for split in control)
    assert all((control[split] == again[split]).all() for split in control)


def test_control_tags_are_as_frequent_as_in_training():
    """The control task draws a word's tag with the training split's frequencies.

    What is tagged in the validation or test split plays no part in it.
    """
    counts, words = {"train": 2003, "valid": 301, "test": 401}, iter(range(10**6))
    texts = {split: [[f"w{next(words)}" for _ in range(n)]] for split, n in counts.items()}
    labels = {split: np.full(n, 3) for split, n in counts.items()}
    labels["train"] = np.random.default_rng(0).choice(4, 2003, p=[0.62, 0.27, 0.11, 0.0])
    task = probe.ProbeTask("tags", texts, labels, per_word=True)
    for seed in (0, 1):
        tags = task.control(seed)
        assert {split: len(drawn) for split, drawn in tags.items()} == counts
        drawn, wanted = (np.bincount(each, minlength=4) / len(each)
                         for each in (np.concatenate([*tags.values()]), labels["train"]))
        assert abs(drawn - wanted).max() < 0.04 and drawn[3] == 0


def test_glue_on_frozen_features(tmp_path):
    """GLUE's dev split is the test; a tenth of training, not trained on, chooses the L2 penalty."""
    for split in ("train", "dev"):
        rows = (f"{s}\t{i % 2}" for i, s in enumerate(sentences(70, seed=len(split))))
        write_lines(tmp_path, f"SST-2/{split}.tsv", "sentence\tlabel", *rows)
    task = probe_tasks.glue_task("sst2", str(tmp_path), 50)
    assert sizes(task) == {"train": 45, "valid": 5, "test": 70} and task.metric == "accuracy"
    assert not set(task.texts["train"]) & set(task.texts["valid"])
