"""Linear probes: what can be read off a layer by a linear classifier trained on frozen features?

Letters: L layers, the embeddings' output included, N examples, C hidden size, K classes, B texts,
T tokens.

A probe minimises  mean loss(W x + b, label) + λ/2 |W|²,  with the encoder left as it is. Its score
alone says little, so beside it stand controls: the majority class; the same probe on the untrained
encoder; the embeddings' layer; and, for tags of words, a control task with random tags (Hewitt &
Liang 2019, 1909.03368), which only a probe that learns words by heart can solve.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mini_undivided.cka import text_means
from mini_undivided.glue import METRICS, collate, mean_and_std
from mini_undivided.tokenizer import encode

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # λ, strongest first: each fit starts from the one before
PARTS = ("train", "valid", "test")
SHARE = 0.8  # of the training examples that a seed draws
BATCH = 32  # texts in a forward pass


# The probe.

def fit(features, labels, classes, strengths=STRENGTHS, steps=200):
    """Fit linear probes on all layers at once → for each λ (W (L, C, K), b (L, 1, K)).

    features (L, N, C); labels (N,): numbers of classes, or, with classes = 0 for a regression,
    floats. The loss is the mean cross entropy, or half the mean squared error; L-BFGS minimises it
    until no part of the gradient is above 1e-4, the loss stands still, or `steps` are over.
    """
    L, _, C = features.shape
    W = torch.zeros(L, C, max(1, classes), device=features.device, requires_grad=True)
    b = torch.zeros(L, 1, max(1, classes), device=features.device, requires_grad=True)
    fits = []
    settings = {"max_iter": steps, "tolerance_grad": 1e-4, "tolerance_change": 1e-9}
    for strength in strengths:
        optimizer = torch.optim.LBFGS([W, b], line_search_fn="strong_wolfe", **settings)

        def closure(strength=strength, optimizer=optimizer):
            optimizer.zero_grad()
            loss = losses(torch.baddbmm(b, features, W), labels, classes).sum()
            loss = loss + strength / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        fits.append((W.detach().clone(), b.detach().clone()))
    return fits


def losses(logits, labels, classes):
    """The mean loss of each layer: logits (L, N, K) → (L,)."""
    if classes:
        return torch.stack([F.cross_entropy(layer, labels) for layer in logits])
    return (logits[..., 0] - labels).square().mean(1) / 2


def probe(features, labels, classes, metric="accuracy"):
    """Train on "train", choose λ on "valid", score on "test", each layer by itself.

    features {part: (L, N, C)}, standardised by their statistics on "train"; labels {part: array}.
    → {"valid": L scores, "test": L scores}.
    """
    train = features["train"]
    mean, several = train.mean(1, keepdim=True), train.size(1) > 1  # of one it is 0, not NaN
    deviation = train.std(1, keepdim=True, correction=int(several))
    scaled = {part: (x - mean) / deviation.clamp(min=1e-6) for part, x in features.items()}
    targets, offset = torch.as_tensor(labels["train"]), 0.0
    if not classes:  # a regression starts from the mean
        offset = targets.mean().item()
        targets = (targets - offset).float()
    fits = fit(scaled["train"], targets.to(mean.device), classes)
    scores = {part: [] for part in ("valid", "test")}  # by strength, then by layer
    for W, b in fits:
        for part in scores:
            logits = torch.baddbmm(b, scaled[part], W)  # (L, N, K)
            predictions = (logits.argmax(-1) if classes else logits[..., 0] + offset).cpu().numpy()
            scores[part].append([METRICS[metric](layer, labels[part]) for layer in predictions])
    best = np.argmax(scores["valid"], axis=0)  # (L,): of equally good strengths the strongest
    chosen = list(enumerate(best))
    return {part: [table[i][layer] for layer, i in chosen] for part, table in scores.items()}


# What is probed for.

@dataclass
class ProbeTask:
    """What a probe has to predict.

    texts: {part: list of tuples of one or two strings}; labels: {part: array}.
    per_word: a text is a list of words, and there is a label for each word of the texts in turn.
    Integer labels are classes; with float labels the task is a regression.
    """

    name: str
    texts: dict
    labels: dict
    metric: str = "accuracy"
    per_word: bool = False

    @property
    def classes(self):
        """The number of classes; 0 for a regression."""
        parts = self.labels.values()
        if any(labels.dtype.kind == "f" for labels in parts):
            return 0
        return 1 + max(int(labels.max()) for labels in parts)

    def control(self, seed):
        """Labels of the control task: every occurrence of a word gets the same random tag.

        Tags are drawn for the words in sorted order, as frequent as the real ones in training. A
        probe can solve this task only by learning words by heart, so that the score on the real
        tags minus that on these, the selectivity, says what the layer itself makes easy.
        """
        rng = np.random.default_rng(seed)
        texts = self.texts.items()
        kinds = sorted({word for _, part in texts for text in part for word in text})
        tags = dict(zip(kinds, rng.choice(self.labels["train"], len(kinds)), strict=True))
        return {name: np.array([tags[w] for text in part for w in text]) for name, part in texts}


# Features.

@torch.inference_mode()
def text_features(encoder, texts, tokenizer, machine, length, cls=False, bar=None):
    """Features of texts: a text's mean over its tokens, or with `cls` its [CLS] → (L, N, C)."""
    rows = encode(texts, tokenizer, length)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))  # longest first: the rest fits
    L, C = encoder.config.num_hidden_layers + 1, encoder.config.hidden_size
    features = torch.empty(L, len(rows), C)
    for i in range(0, len(order), BATCH):
        chosen = order[i : i + BATCH]
        ids, mask, segments = collate([rows[j] for j in chosen], machine)
        _, layers = encoder(ids, mask, segments, output_hidden_states=True)
        x = torch.stack(layers)  # (L, B, T, C)
        x = x[:, :, 0] if cls else text_means(x, torch.ones_like(ids) if mask is None else mask)
        features[:, chosen] = x.cpu()
        if bar:
            bar.update(len(chosen))
    return features


@torch.inference_mode()
def word_features(encoder, texts, tokenizer, machine, length, bar=None):
    """Features of the words of texts: each word's first sub-word → (L, N, C), numbers of the words.

    texts: lists of words. A word is dropped if it lies beyond `length` tokens, or holds nothing
    that the tokenizer keeps.
    """
    encodings = tokenizer.encode_batch(texts, is_pretokenized=True)
    starts = np.cumsum([0, *map(len, texts)])
    features, kept = [], []
    for i in range(0, len(texts), BATCH):
        batch = encodings[i : i + BATCH]
        cut = [(encoding.ids[:length], encoding.type_ids[:length]) for encoding in batch]
        ids, mask, segments = collate(cut, machine)
        rows, columns = [], []
        for row, encoding in enumerate(batch):
            first = {}
            for column, word in enumerate(encoding.word_ids[:length]):
                if word is not None:
                    first.setdefault(word, column)
            rows += [row] * len(first)
            columns += first.values()
            kept += [starts[i + row] + word for word in first]
        _, layers = encoder(ids, mask, segments, output_hidden_states=True)
        features.append(torch.stack([layer[rows, columns] for layer in layers]).cpu())
        if bar:
            bar.update(len(batch))
    return torch.cat(features, dim=1), np.array(kept)


def task_features(encoder, tasks, tokenizer, machine, length, cls=False):
    """Features of all tasks, each different text seen once → a list of ({part: (L, N, C)}, kept).

    `kept`: {part: numbers of the examples that have features}, for words perhaps not all.
    """
    words = sum(len(part) for task in tasks if task.per_word for part in task.texts.values())
    parts = (part for task in tasks if not task.per_word for part in task.texts.values())
    place = {text: i for i, text in enumerate(dict.fromkeys(chain.from_iterable(parts)))}
    results, total = [], len(place) + words
    with tqdm(total=total, desc="features", unit=" texts", leave=False, disable=None) as bar:
        if place:
            every = text_features(encoder, list(place), tokenizer, machine, length, cls, bar)
        for task in tasks:
            features, kept = {}, {}
            for part, texts in task.texts.items():
                if task.per_word:
                    features[part], kept[part] = word_features(
                        encoder, texts, tokenizer, machine, length, bar)
                else:
                    features[part] = every[:, [place[text] for text in texts]]
                    kept[part] = np.arange(len(texts))
            results.append((features, kept))
    return results


# All of it.

def draw(features, labels, seed):
    """The share of the training examples that a seed trains on; the other parts are kept whole."""
    count = features["train"].size(1)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(count)[: max(1, round(SHARE * count))]
    drawn = {**features, "train": features["train"][:, torch.from_numpy(chosen)]}
    return drawn, {**labels, "train": labels["train"][chosen]}


def run_probes(encoder, untrained, tasks, tokenizer, machine, length, seeds=3, cls=False):
    """Probe an encoder and its untrained twins on tasks.

    untrained: a function, seed → Encoder with fresh weights. A seed draws the training examples,
    the untrained weights, and the tags of the control task. → {task: {"metric", "majority",
    "examples", "trained", "untrained", for tags "control": {"mean": [L], "std": [L]} over seeds}}.
    """
    trained = task_features(encoder, tasks, tokenizer, machine, length, cls)
    scores = [{"trained": [], "untrained": [], "control": []} for _ in tasks]
    total = seeds * sum(3 if task.per_word else 2 for task in tasks)
    with tqdm(total=total, desc="probes", leave=False, disable=None) as bar:
        for seed in range(seeds):
            fresh = task_features(untrained(seed), tasks, tokenizer, machine, length, cls)
            for i, task in enumerate(tasks):
                jobs = {"trained": (trained[i], task.labels), "untrained": (fresh[i], task.labels)}
                if task.per_word:
                    jobs["control"] = (trained[i], task.control(seed))
                for name, ((features, kept), labels) in jobs.items():
                    labels = {part: each[kept[part]] for part, each in labels.items()}
                    drawn, labels = draw(features, labels, seed)
                    drawn = {part: x.to(machine.device) for part, x in drawn.items()}
                    scores[i][name].append(probe(drawn, labels, task.classes, task.metric))
                    bar.update()
    return {task.name: summary(task, each) for task, each in zip(tasks, scores, strict=True)}


def summary(task, scores):
    """What is kept of a task's scores, lists over seeds of {"valid", "test": list over layers}.

    "majority" is the best that one answer for all scores on the test part.
    """
    test = task.labels["test"]
    answers = range(task.classes) if task.classes else [0.0]
    constant = max(METRICS[task.metric](np.full(len(test), answer), test) for answer in answers)
    result = {"metric": task.metric, "majority": constant,
              "examples": {part: len(labels) for part, labels in task.labels.items()}}
    for name, seeds in scores.items():
        if seeds:
            values, valid = ([seed[part] for seed in seeds] for part in ("test", "valid"))
            result[name] = {**mean_and_std(values), "valid": np.mean(valid, axis=0).tolist()}
    return result
