"""Linear probes: right on planted problems, equal to scikit-learn's, and with valid controls."""

import numpy as np
import pytest
import sklearn.linear_model
import torch
from helpers import WORDS, sentences, write_treebank

from mini_undivided import metrics, probe, probe_tasks
from mini_undivided.model import BertConfig, Encoder
from mini_undivided.support.machine import Machine
from mini_undivided.tokenizer import train_tokenizer

CPU = Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer that knows the words of these tests, whole or in pieces."""
    return train_tokenizer([" ".join(WORDS)] * 5, 75)


@pytest.fixture
def encoder(tokenizer):
    """Two layers without FFNs, with weights so large that the layers differ."""
    return make_encoder(tokenizer, 0)


def make_encoder(tokenizer, seed):
    torch.manual_seed(seed)
    model = Encoder(BertConfig(tokenizer.get_vocab_size(), 24, 2, 3, 41, 64, ffn_layers=[])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return model


def planted(seed=0, counts=(211, 83, 97), classes=3, width=13):
    """Features of three layers with planted labels.

    The first layer knows the label linearly, the second is noise, the third knows it badly.
    """
    rng = np.random.default_rng(seed)
    directions = 5 * rng.normal(size=(classes, width))
    features, labels = {}, {}
    for split, count in zip(probe.SPLITS, counts, strict=True):
        labels[split] = rng.choice(classes, count, p=[0.5, 0.3, 0.2])
        noise = rng.normal(size=(3, count, width))
        noise[0] += directions[labels[split]]
        noise[2] += 0.1 * directions[labels[split]]
        features[split] = torch.tensor(noise, dtype=torch.float32)
    return features, labels


# The classifier.


def test_planted_labels_are_found_and_noise_is_not():
    """Features that hold the label give 100 %, random ones about the majority, weak ones between.
    """
    features, labels = planted()
    majority = np.mean(labels["test"] == 0)
    knows, noise, weak = probe.probe(features, labels, 3)["test"]
    assert abs(noise - majority) < 0.12 and noise < weak < knows == 1.0


def test_the_fit_equals_scikit_learn():
    """All layers are fitted at once, each as scikit-learn does, with no penalty on the bias.

    So they are at each strength, though each fit starts from the one before.
    """
    features, labels = planted()
    x, y = features["train"], labels["train"]
    fits = probe.fit(x, torch.from_numpy(y), 3)
    for strength, (W, b) in zip(probe.L2_PENALTIES, fits, strict=True):
        for layer in range(3):
            theirs = sklearn.linear_model.LogisticRegression(
                C=1 / (strength * len(y)), tol=1e-8, max_iter=10000).fit(x[layer].numpy(), y)
            p = (x[layer] @ W[layer] + b[layer]).softmax(-1).detach().numpy()
            assert np.abs(p - theirs.predict_proba(x[layer].numpy())).max() < 5e-3


def test_a_regression_equals_ridge():
    """With float labels the probe is ridge regression."""
    features, _ = planted()
    x = features["train"]
    y = (x[0, :, 0] * 2 - x[0, :, 1]).double()
    ((W, b),) = probe.fit(x, y.float(), 0, strengths=[0.1], steps=1000)
    theirs = sklearn.linear_model.Ridge(alpha=0.1 * len(y)).fit(x[1].numpy(), y.numpy())
    assert np.allclose(W[1, :, 0], theirs.coef_, atol=1e-3)
    assert b[1].item() == pytest.approx(theirs.intercept_, abs=1e-3)
    labels = {split: (2 * z[0, :, 0] - z[0, :, 1] + 7).double().numpy()
              for split, z in features.items()}
    scores = probe.probe(features, labels, 0, "pearson")["test"]
    assert scores[0] > 0.999 and abs(scores[1]) < 0.4


def test_the_penalty_is_chosen_by_validation_for_each_layer():
    """A layer's score on the test split is that of the λ that is best for it on the validation one.

    What the test split says plays no part: flipping its labels turns a score of s into 1 - s.
    """
    features, labels = planted(counts=(31, 83, 97))
    labels = {split: np.minimum(y, 1) for split, y in labels.items()}
    train = features["train"]
    x = {split: (x - train.mean(1, keepdim=True)) / train.std(1, keepdim=True, correction=0)
         for split, x in features.items()}
    fits = probe.fit(x["train"], torch.from_numpy(labels["train"]), 2)
    tables = {split: [((x[split] @ W + b).argmax(-1).numpy() == labels[split]).mean(1)
                      for W, b in fits] for split in ("valid", "test")}
    chosen = np.argmax(tables["valid"], axis=0)
    assert len(set(chosen.tolist())) > 1
    scores = probe.probe(features, labels, 2)
    for split, table in tables.items():
        assert scores[split] == pytest.approx([table[i][k] for k, i in enumerate(chosen)])
    flipped = probe.probe(features, {**labels, "test": 1 - labels["test"]}, 2)["test"]
    assert scores["test"] == pytest.approx([1 - score for score in flipped])


def test_features_are_standardised():
    """The scale and the mean of a layer change no score; one training example gives no NaN."""
    features, labels = planted()
    moved = {split: 1000 * x + 77 for split, x in features.items()}
    scores = [probe.probe(each, labels, 3)["test"] for each in (features, moved)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)
    features["train"], labels["train"] = features["train"][:, :1], labels["train"][:1]
    always = np.mean(labels["test"] == labels["train"])
    assert probe.probe(features, labels, 3)["test"] == pytest.approx([always] * 3)


def test_a_probe_standardises_by_the_training_split():
    """The training split's mean and deviation standardise every split.

    So a validation or test split with one class alone is not moved to the middle between two, and a
    feature that varies more in them than in training is not made as small as there.
    """
    rng, counts = np.random.default_rng(0), {"train": 211, "valid": 83, "test": 97}
    labels = {split: np.ones(count, dtype=int) for split, count in counts.items()}
    labels["train"] = rng.integers(0, 2, 211)
    features, scaled, values = {}, {}, {}
    for split, count in counts.items():
        noise = 0.1 * rng.normal(size=(2, count, 5))
        noise[:, :, 1] += 3 * labels[split] - 1
        features[split] = torch.tensor(noise, dtype=torch.float32)
        x = rng.normal(size=(count, 3)) * ([1, 1, 1] if split == "train" else [7, 1, 1])
        values[split] = x[:, 0] - 2 * x[:, 1]
        scaled[split] = torch.tensor(x[None], dtype=torch.float32)
    scores = probe.probe(features, labels, 2)
    assert scores["valid"] == scores["test"] == [1.0, 1.0]
    scores = probe.probe(scaled, values, 0, "pearson")
    assert min(scores["valid"] + scores["test"]) > 0.999


def test_a_seed_draws_its_training_examples():
    """A seed draws four fifths of the training split, another seed others; labels stay with them.
    """
    features, labels = planted()
    features["train"][0, :, 0] = torch.from_numpy(labels["train"]).float()
    drawn = [probe.draw(features, labels, seed) for seed in (0, 1, 0)]
    for x, y in drawn:
        assert len(y["train"]) == x["train"].size(1) == round(0.8 * 211)
        assert np.array_equal(x["train"][0, :, 0].numpy(), y["train"])
        assert x["test"] is features["test"]
    one, other, again = (x["train"] for x, _ in drawn)
    assert torch.equal(one, again) and not torch.equal(one, other)


# Features.


def test_text_features_are_means_over_real_tokens(encoder, tokenizer):
    """In the given order, each layer's mean over a text's own tokens, without padding."""
    texts = [(s,) for s in sentences(37)]
    features = probe.text_features(encoder, texts, tokenizer, CPU, 64)
    assert features.shape == (3, 37, 24)
    for i in (0, 5, 36):
        ids = torch.tensor([tokenizer.encode(texts[i][0]).ids])
        _, layers = encoder(ids, output_hidden_states=True)
        wanted = torch.stack([x[0].mean(0) for x in layers])
        assert torch.allclose(features[:, i], wanted, atol=1e-4)


def test_word_features_are_first_sub_words(encoder, tokenizer):
    """In every layer a word's vector is that of its first sub-word, and its label goes with it.

    A word that the tokenizer drops or cuts off has none, and no other word moves.
    """
    texts = [["fox", "gnugnu", "\u200b", "owl"], ["newt"] * 5, ["mole"] * 61] + [["hen"]] * 40
    labels = np.arange(4 + 5 + 61 + 40) * 7
    features, kept = probe.word_features(encoder, texts, labels, tokenizer, CPU, 33)
    assert len(tokenizer.encode("gnugnu", add_special_tokens=False).ids) > 1  # cut into pieces
    assert features.shape == (3, len(kept), 24)
    assert kept[:8].tolist() == [0, 7, 21, 28, 35, 42, 49, 56]
    assert (kept[-40:] == labels[-40:]).all() and len(kept) < 8 + 32 + 40
    encoding = tokenizer.encode(texts[0], is_pretokenized=True)
    _, layers = encoder(torch.tensor([encoding.ids]), output_hidden_states=True)
    first = [encoding.word_ids.index(word) for word in (0, 1, 3)]
    assert torch.allclose(features[:, :3], torch.stack(layers)[:, 0, first], atol=1e-4)


def test_each_text_is_read_once(encoder, tokenizer, monkeypatch):
    """Tasks that share sentences share their features; all layers come from one forward pass."""
    seen, forward = [], Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, ids, *a, **k:
                        seen.append(len(ids)) or forward(self, ids, *a, **k))
    texts = sentences(120)
    makers = (probe_tasks.length_task, probe_tasks.length_task, probe_tasks.shift_task)
    tasks = [make(texts) for make in makers]
    (_, first, _), (_, second, _), _ = probe.task_features(encoder, tasks, tokenizer, CPU, 64)
    every = [text for task in tasks for texts in task.texts.values() for text in texts]
    assert sum(seen) == len(set(every)) < len(every)
    assert torch.equal(first["valid"], second["valid"])


# All of it.


def test_probing_an_encoder(encoder, tokenizer, tmp_path):
    """All layers are scored over seeds, beside the untrained counterpart and the majority.

    For tags there is the control task, too. A tag that the word decides can be read off the
    embeddings, and so can any control task with so few words. The scores are the same each time.
    """
    write_treebank(tmp_path, 100)
    tasks = [probe_tasks.length_task(sentences(150)), probe_tasks.treebank_task(tmp_path, 250)]
    seen = []
    fresh = lambda seed: seen.append(seed) or make_encoder(tokenizer, 100 + seed)  # noqa: E731
    scores = probe.run_probes(encoder, fresh, tasks, tokenizer, CPU, 64, seeds=2)
    assert seen == [0, 1] and list(scores) == ["sentence length", "part of speech"]
    tags = scores["part of speech"]
    assert tags["trained"]["mean"][0] > 0.95 and tags["control"]["mean"][0] > 0.95
    labels = tasks[1].labels
    most_common = np.bincount(labels["train"]).argmax()
    assert tags["majority"] == pytest.approx(np.mean(labels["test"] == most_common))
    length = scores["sentence length"]
    assert "control" not in length
    assert len(length["trained"]["mean"]) == len(length["untrained"]["std"]) == 3
    assert length["trained"]["mean"] != length["untrained"]["mean"]
    assert probe.run_probes(encoder, fresh, tasks, tokenizer, CPU, 64, seeds=2) == scores
    once, = probe.run_probes(encoder, fresh, tasks[:1], tokenizer, CPU, 64, 1).values()
    assert once["trained"]["mean"] != length["trained"]["mean"] and once["trained"]["std"] is None


def test_summary_of_a_regression():
    """The baseline of a regression is its mean, which correlates with nothing."""
    labels = {split: np.array([0.5, 2.0, 3.5]) for split in probe.SPLITS}
    task = probe.ProbeTask("x", {}, labels, "pearson")
    assert task.classes == 0
    seeds = [{"test": [0.1, 0.3], "valid": [0.2, 0.1]}, {"test": [0.3, 0.5], "valid": [0.4, 0.1]}]
    fresh = [{"test": [0.0, 0.0], "valid": [0.0, 0.0]}]
    scores = {"trained": seeds, "untrained": fresh, "control": []}
    summary = probe.summary(task, scores)
    assert summary["trained"]["valid"] == pytest.approx([0.3, 0.1])
    assert summary["majority"] == 0 and summary["trained"]["mean"] == pytest.approx([0.2, 0.4])
    assert summary["trained"]["std"] == pytest.approx([np.std([0.1, 0.3], ddof=1)] * 2)
    assert metrics.METRICS[task.metric] is metrics.pearson
