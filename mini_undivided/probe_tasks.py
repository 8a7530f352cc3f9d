"""The tasks that probes are tried on: three made from sentences, parts of speech, and GLUE's.

Examples come in three splits, "train", "valid" and "test".
"""

from collections import Counter

import numpy as np

from mini_undivided.glue import read_task
from mini_undivided.probe import SPLITS, ProbeTask
from mini_undivided.support.errors import UserError
from mini_undivided.support.tasks import find_task
from mini_undivided.support.treebank import read_treebank

BINS = 6  # of sentence length, as in Conneau et al. 2018 (1805.01070)
CONTENT_WORDS = 10  # to predict


def split_examples(texts, labels):
    """Shuffle and cut: 60 % for training, 20 % each for validation and test → texts, labels."""
    order, labels = np.random.default_rng(0).permutation(len(texts)), np.asarray(labels)
    cuts = np.split(order, [len(order) * 3 // 5, len(order) * 4 // 5])
    splits = dict(zip(SPLITS, cuts, strict=True))
    texts = {split: [texts[i] for i in cut] for split, cut in splits.items()}
    return texts, {split: labels[cut] for split, cut in splits.items()}


def text_tasks(sentences, examples):
    """Three tasks after Conneau et al. 2018 (1805.01070). UserError if the sentences are few."""
    rng = np.random.default_rng(0)
    sentences = [sentences[i] for i in rng.permutation(len(sentences))[:examples]]
    if len(sentences) < 100:
        raise UserError("the probes need 100 different sentences at least, "
                        f"but the text has {len(sentences)}")
    return [make(sentences) for make in (length_task, content_task, shift_task)]


def length_task(sentences):
    """How many words has the sentence? Bins that hold equally many sentences."""
    lengths = np.array([len(sentence.split()) for sentence in sentences])
    edges = np.unique(np.quantile(lengths, np.arange(1, BINS) / BINS))
    bins = np.searchsorted(edges, lengths)
    return ProbeTask("sentence length", *split_examples([(s,) for s in sentences], bins))


def content_task(sentences):
    """Which of ten words of middling frequency is in the sentence? Exactly one of them is."""
    bags = [{w.strip(".,;:!?()\"'").lower() for w in sentence.split()} for sentence in sentences]
    counts = Counter(w for words in bags for w in sorted(words) if w.isalpha() and len(w) > 2)
    common = counts.most_common(50 + CONTENT_WORDS)
    chosen = [word for word, _ in common[-CONTENT_WORDS:]]  # beyond "the" and "and"
    rows = [(s, words & set(chosen)) for s, words in zip(sentences, bags, strict=True)]
    rows = [((s,), chosen.index(*words)) for s, words in rows if len(words) == 1]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    return ProbeTask("word content", *split_examples(texts, labels))


def shift_task(sentences):
    """Have two neighbouring words been swapped? In half of them, and never the first or last."""
    rng, texts, labels = np.random.default_rng(0), [], []
    for sentence in sentences:
        words = sentence.split()
        inner = range(1, len(words) - 2)
        positions = [i for i in inner if words[i].lower() != words[i + 1].lower()]
        if not positions:
            continue
        labels.append(int(rng.random() < 0.5))
        if labels[-1]:
            i = rng.choice(positions)
            words[i], words[i + 1] = words[i + 1], words[i]
        texts.append((" ".join(words),))
    return ProbeTask("bigram shift", *split_examples(texts, labels))


def treebank_task(folder, examples):
    """Universal part-of-speech tags from a folder of CoNLL-U files.

    Whole sentences are drawn until they hold `examples` words for training, a quarter for
    validation, as many for the test.
    """
    rng, tags, texts, labels = np.random.default_rng(0), {}, {}, {}
    limits = {"train": examples, "valid": examples // 4, "test": examples}
    for split, sentences in read_treebank(folder).items():
        texts[split], labels[split] = [], []
        for i in rng.permutation(len(sentences)):
            if len(labels[split]) >= limits[split]:
                break
            texts[split].append([word for word, _ in sentences[i]])
            labels[split] += [tags.setdefault(tag, len(tags)) for _, tag in sentences[i]]
    labels = {split: np.array(numbers) for split, numbers in labels.items()}
    return ProbeTask("part of speech", texts, labels, per_word=True)


def glue_task(key, data_dir, examples):
    """A task of GLUE: its dev split is the test, a tenth of its training split the validation."""
    task, splits = find_task(key), read_task(key, data_dir)
    train, test = splits["train"], next(s for name, s in splits.items() if name.startswith("dev"))
    order = np.random.default_rng(0).permutation(len(train))[:examples]
    cuts = {"train": order[len(order) // 10 :], "valid": order[: len(order) // 10]}
    texts = {split: [train.texts[i] for i in cut] for split, cut in cuts.items()}
    labels = {split: train.labels[cut] for split, cut in cuts.items()}
    texts, labels = {**texts, "test": test.texts}, {**labels, "test": test.labels}
    return ProbeTask(task.name, texts, labels, task.metrics[0])
