"""Linear probes: right on planted problems, equal to scikit-learn's, and with valid controls."""

import numpy as np
import pytest
import sklearn.linear_model
import torch
from helpers import WORDS, sentences, write_treebank

from mini_undivided import glue, probe
from mini_undivided.model import BertConfig, Encoder
from mini_undivided import probe_tasks
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
    for part, count in zip(probe.PARTS, counts, strict=True):
        labels[part] = rng.choice(classes, count, p=[0.5, 0.3, 0.2])
        noise = rng.normal(size=(3, count, width))
        noise[0] += directions[labels[part]]
        noise[2] += 0.1 * directions[labels[part]]
        features[part] = torch.tensor(noise, dtype=torch.float32)
    return features, labels


# The classifier.


def test_planted_labels_are_found_and_noise_is_not():
    """Features that hold the label give 100 %, and random ones about the majority.

    Weak ones give something in between.
    """
    features, labels = planted()
    majority = np.mean(labels["test"] == 0)
    knows, noise, weak = probe.probe(features, labels, 3)["test"]
    assert knows == 1.0
    assert abs(noise - majority) < 0.12
    assert noise < weak < knows


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_fit_equals_scikit_learn(strength):
    """All layers are fitted at once, and each fit equals scikit-learn's own.

    The penalty is the same, and not on the bias.
    """
    features, labels = planted()
    x, y = features["train"], labels["train"]
    ((W, b),) = probe.fit(x, torch.from_numpy(y), 3, strengths=[strength], steps=1000)
    for layer in range(3):
        theirs = sklearn.linear_model.LogisticRegression(
            C=1 / (strength * len(y)), tol=1e-8, max_iter=10000
        )
        theirs.fit(x[layer].numpy(), y)
        p = (x[layer] @ W[layer] + b[layer]).softmax(-1).numpy()
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
    labels = {
        part: (2 * z[0, :, 0] - z[0, :, 1] + 7).numpy().astype(float)
        for part, z in features.items()
    }
    scores = probe.probe(features, labels, 0, "pearson")["test"]
    assert scores[0] > 0.999 and abs(scores[1]) < 0.4


def test_fits_have_converged():
    """The gradient is almost 0 at each strength, though each fit starts from the one before."""
    features, labels = planted()
    x, y = features["train"], torch.from_numpy(labels["train"])
    for strength, (W, b) in zip(probe.STRENGTHS, probe.fit(x, y, 3), strict=True):
        W, b = W.requires_grad_(), b.requires_grad_()
        loss = probe.losses(torch.baddbmm(b, x, W), y, 3).sum() + strength / 2 * W.square().sum()
        gradients = torch.autograd.grad(loss, (W, b))
        assert max(g.abs().max() for g in gradients) < 1e-2 * max(1, strength)


def test_the_strength_is_chosen_on_the_validation_part():
    """What the test part says plays no part in the choice of the strength.

    Flipping its labels turns a score of s into 1 - s.
    """
    features, labels = planted(counts=(31, 83, 97))
    labels = {part: np.minimum(y, 1) for part, y in labels.items()}
    scores = probe.probe(features, labels, 2)["test"]
    flipped = probe.probe(features, {**labels, "test": 1 - labels["test"]}, 2)["test"]
    assert scores == pytest.approx([1 - score for score in flipped])
    valid = probe.probe(features, {**labels, "valid": 1 - labels["valid"]}, 2)["test"]
    assert valid != scores


def test_features_are_standardised():
    """The scale and the mean of a layer change no score."""
    features, labels = planted()
    moved = {part: 1000 * x + 77 for part, x in features.items()}
    assert probe.probe(moved, labels, 3)["test"] == pytest.approx(
        probe.probe(features, labels, 3)["test"], abs=0.03
    )


def test_a_seed_draws_its_training_examples():
    """A seed draws four fifths of the training part, and another seed draws others.

    Labels stay with their features.
    """
    features, labels = planted()
    features["train"][0, :, 0] = torch.from_numpy(labels["train"]).float()
    drawn = [probe.draw(features, labels, seed) for seed in (0, 1, 0)]
    for x, y in drawn:
        assert len(y["train"]) == x["train"].size(1) == round(0.8 * 211)
        assert np.array_equal(x["train"][0, :, 0].numpy(), y["train"])
        assert x["test"] is features["test"]
    assert torch.equal(drawn[0][0]["train"], drawn[2][0]["train"])
    assert not torch.equal(drawn[0][0]["train"], drawn[1][0]["train"])


# Features.


def test_text_features_are_means_over_real_tokens(encoder, tokenizer):
    """A text's features are each layer's mean over its own tokens, or its [CLS].

    That holds whatever it was padded with, and the order is the given one.
    """
    texts = [(s,) for s in sentences(37)]
    for cls in (False, True):
        features = probe.text_features(encoder, texts, tokenizer, CPU, 64, cls)
        assert features.shape == (3, 37, 24)
        for i in (0, 5, 36):
            ids = torch.tensor([tokenizer.encode(texts[i][0]).ids])
            _, layers = encoder(ids, output_hidden_states=True)
            wanted = torch.stack([x[0, 0] if cls else x[0].mean(0) for x in layers])
            assert torch.allclose(features[:, i], wanted, atol=1e-4)


def test_word_features_are_first_sub_words(encoder, tokenizer):
    """A word's vector is that of its first sub-word.

    A word that the tokenizer drops or cuts off has none, and no other word moves.
    """
    texts = [["fox", "gnugnu", "\u200b", "owl"], ["newt"] * 5, ["mole"] * 61]
    features, kept = probe.word_features(encoder, texts, tokenizer, CPU, 33)
    # it is cut into pieces
    assert len(tokenizer.encode("gnugnu", add_special_tokens=False).ids) > 1
    assert features.size(1) == len(kept)
    assert kept[:8].tolist() == [0, 1, 3, 4, 5, 6, 7, 8] and kept[-1] < 4 + 5 + 61 - 1
    encoding = tokenizer.encode(texts[0], is_pretokenized=True)
    _, layers = encoder(torch.tensor([encoding.ids]), output_hidden_states=True)
    for row, word in enumerate((0, 1, 3)):
        assert torch.allclose(
            features[2, row], layers[2][0, encoding.word_ids.index(word)], atol=1e-4
        )


def test_each_text_is_read_once(encoder, tokenizer, monkeypatch):
    """Tasks that share sentences share their features.

    All layers come from one forward pass.
    """
    seen, forward = [], Encoder.forward
    monkeypatch.setattr(
        Encoder,
        "forward",
        lambda self, ids, *a, **k: seen.append(len(ids)) or forward(self, ids, *a, **k),
    )
    texts = sentences(120)
    makers = (probe_tasks.length_task, probe_tasks.length_task, probe_tasks.shift_task)
    tasks = [make(texts) for make in makers]
    features = probe.task_features(encoder, tasks, tokenizer, CPU, 64)
    different = {text for task in tasks for part in task.texts.values() for text in part}
    assert sum(seen) == len(different) < sum(len(p) for task in tasks for p in task.texts.values())
    assert torch.equal(features[0][0]["valid"], features[1][0]["valid"])


# All of it.


def test_probing_an_encoder(encoder, tokenizer, tmp_path):
    """All layers are scored over seeds, beside the untrained twin and the majority.

    For tags there is the control task, too. A tag that the word decides can be read off the
    embeddings, and so can any control task with so few words. The scores are the same each time;
    with [CLS] they are others.
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
    assert tags["majority"] == pytest.approx(
        np.mean(labels["test"] == np.bincount(labels["train"]).argmax())
    )
    length = scores["sentence length"]
    assert "control" not in length
    assert len(length["trained"]["mean"]) == len(length["untrained"]["std"]) == 3
    assert length["trained"]["mean"] != length["untrained"]["mean"]
    assert probe.run_probes(encoder, fresh, tasks, tokenizer, CPU, 64, seeds=2) == scores
    cls = probe.run_probes(encoder, fresh, tasks[:1], tokenizer, CPU, 64, seeds=1, cls=True)[
        "sentence length"
    ]
    assert cls["trained"]["mean"] != length["trained"]["mean"] and cls["trained"]["std"] is None


def test_summary_of_a_regression():
    """The baseline of a regression is its mean, which correlates with nothing."""
    task = probe.ProbeTask(
        "x", {}, {part: np.array([0.5, 2.0, 3.5]) for part in probe.PARTS}, "pearson"
    )
    assert task.classes == 0
    seeds = [{"test": [0.1, 0.3], "valid": [0.2, 0.1]}, {"test": [0.3, 0.5], "valid": [0.4, 0.1]}]
    fresh = [{"test": [0.0, 0.0], "valid": [0.0, 0.0]}]
    scores = {"trained": seeds, "untrained": fresh, "control": []}
    summary = probe.summary(task, scores)
    assert summary["trained"]["valid"] == pytest.approx([0.3, 0.1])
    assert summary["majority"] == 0 and summary["trained"]["mean"] == pytest.approx([0.2, 0.4])
    assert summary["trained"]["std"] == pytest.approx([np.std([0.1, 0.3], ddof=1)] * 2)
    assert glue.METRICS[task.metric] is glue.pearson
