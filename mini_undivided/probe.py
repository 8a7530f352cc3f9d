"""Linear probes: what can be read off a layer by a linear classifier trained on frozen features?

Shapes: L layers, the embeddings being one, N examples, C hidden size, K classes, B texts, T tokens.

A probe minimises  mean loss(x W + b, label) + λ/2 |W|²,  with the encoder left as it is. Its score
alone says little, so beside it stand controls: the majority class; the same probe on the untrained
encoder; the embeddings' layer; and, for tags of words, a control task with random tags (Hewitt &
Liang 2019, 1909.03368), which only a probe that memorises words can solve.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from mini_undivided.glue import collate
from mini_undivided.metrics import METRICS, best_constant, mean_and_std
from mini_undivided.support.terminal import progress
from mini_undivided.tokenizer import encode

L2_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # λ; a fit starts from the solution of the one before
SPLITS = ("train", "valid", "test")
DRAWN = 0.8  # of the training examples, by each seed
BATCH = 32  # texts in a forward pass


# The probe, on given features.

def fit(features, labels, classes, strengths=L2_PENALTIES, steps=200):
    """Fit linear probes on all layers at once → [(W (L, C, K), b (L, 1, K)) for λ in strengths].

    features (L, N, C); labels (N,): class indices, or, with classes = 0 for a regression, floats.
    The loss is the mean cross entropy, or half the mean squared error; L-BFGS minimises it until no
    part of the gradient is above 1e-4, the loss stands still, or `steps` are over.
    """
    L, _, C = features.shape
    W = torch.zeros(L, C, max(1, classes), device=features.device, requires_grad=True)
    b = torch.zeros(L, 1, max(1, classes), device=features.device, requires_grad=True)
    fits = []
    for strength in strengths:  # λ
        optimizer = torch.optim.LBFGS(
            [W, b], max_iter=steps, tolerance_grad=1e-4, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            # Each layer has its own W and b: minimising the sum minimises each loss.
            loss = losses(torch.baddbmm(b, features, W), labels, classes).sum()
            loss = loss + strength / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # all iterations
        fits.append((W.detach().clone(), b.detach().clone()))
    return fits


def losses(logits, labels, classes):
    """The mean loss of each layer: logits (L, N, K) → (L,)."""
    if classes:
        return torch.stack([F.cross_entropy(layer, labels) for layer in logits])
    return (logits[..., 0] - labels).square().mean(1) / 2


def probe(features, labels, classes, metric="accuracy"):
    """Train on "train", choose λ on "valid", score on "test", each layer by itself.

    features {split: (L, N, C)}, standardised here by those of "train"; labels {split: array}.
    → {"valid": L scores, "test": L scores}.
    """
    train = features["train"]
    mean, deviation = train.mean(1, keepdim=True), train.std(1, keepdim=True, correction=0)
    scaled = {split: (x - mean) / deviation.clamp(min=1e-6) for split, x in features.items()}
    targets = torch.as_tensor(labels["train"], dtype=torch.int64 if classes else torch.float32)
    scores = {"valid": [], "test": []}  # by λ, then by layer
    for W, b in fit(scaled["train"], targets.to(mean.device), classes):
        for split in scores:
            logits = torch.baddbmm(b, scaled[split], W)  # (L, N, K)
            predictions = (logits.argmax(-1) if classes else logits[..., 0]).cpu().numpy()
            scores[split].append([METRICS[metric](layer, labels[split]) for layer in predictions])
    best = np.argmax(scores["valid"], axis=0)  # (L,) indices of λ: of equally good the strongest
    return {split: [table[i][layer] for layer, i in enumerate(best)]
            for split, table in scores.items()}


@dataclass
class ProbeTask:
    """What a probe has to predict.

    texts: {split: list of tuples of one or two strings}; labels: {split: array}.
    per_word: a text is a list of words, and there is a label for each word of the texts in turn.
    Integer labels are class indices; with float labels the task is a regression.
    """

    name: str
    texts: dict
    labels: dict
    metric: str = "accuracy"
    per_word: bool = False

    @property
    def classes(self):
        """The number of classes; 0 for a regression."""
        labels = np.concatenate([*self.labels.values()])
        return 0 if labels.dtype.kind == "f" else 1 + int(labels.max())

    def control(self, seed):
        """Labels of the control task: every occurrence of a word gets the same random tag.

        Tags are drawn for the words in sorted order, as frequent as the real ones in training. A
        probe can solve this task only by memorising words, so that the score on the real tags minus
        that on these, the selectivity, says what the layer itself makes easy.
        """
        rng, texts = np.random.default_rng(seed), self.texts.items()
        word_types = sorted({word for _, split in texts for text in split for word in text})
        tags = dict(zip(word_types, rng.choice(self.labels["train"], len(word_types)), strict=True))
        return {name: np.array([tags[w] for text in split for w in text]) for name, split in texts}


def run_probes(encoder, untrained, tasks, tokenizer, machine, length, seeds=3):
    """Probe an encoder and its untrained counterparts on tasks.

    untrained: a function, seed → Encoder with fresh weights. A seed draws the training examples,
    the untrained weights, and the tags of the control task. → {task: {"metric", "majority",
    "examples", "trained", "untrained", for tags "control": {"mean": [L], "std": [L]} over seeds}}.
    """
    settings = tokenizer, machine, length
    scores = {task.name: {"trained": [], "untrained": [], "control": []} for task in tasks}
    classes = {task.name: task.classes for task in tasks}  # a control may lack a rare tag
    trained = task_features(encoder, tasks, *settings)
    for seed in range(seeds):
        controls = [replace(task, labels=task.control(seed)) for task in tasks if task.per_word]
        fresh = untrained(seed).to(machine.device)
        examples = {"trained": trained, "control": task_features(encoder, controls, *settings),
                    "untrained": task_features(fresh, tasks, *settings)}
        for name, of_tasks in examples.items():
            for task, features, labels in progress(of_tasks, desc=f"seed {seed}, {name}"):
                features, labels = draw(features, labels, seed)
                features = {split: x.to(machine.device) for split, x in features.items()}
                scores[task.name][name].append(
                    probe(features, labels, classes[task.name], task.metric))
    return {task.name: summary(task, scores[task.name]) for task in tasks}


# Features and their labels.

@torch.inference_mode()
def text_features(encoder, texts, tokenizer, machine, length):
    """Features of texts: the mean over a text's tokens, padding left out → (L, N, C)."""
    examples = encode(texts, tokenizer, length)
    order = sorted(range(len(texts)), key=lambda i: -len(examples[i][0]))  # the longest must fit
    L, C = encoder.config.num_hidden_layers + 1, encoder.config.hidden_size
    features = torch.empty(L, len(texts), C)
    for i, layers, mask in layers_of(encoder, [examples[j] for j in order], machine):
        weights = mask / mask.sum(1, keepdim=True)  # (B, T)
        means = torch.einsum("lbtc,bt->lbc", torch.stack(layers), weights)
        features[:, order[i : i + BATCH]] = means.cpu()
    return features


@torch.inference_mode()
def word_features(encoder, texts, labels, tokenizer, machine, length):
    """Features of words: each one's first sub-word → (L, N, C), and these words' labels (N,).

    texts: lists of words; labels: an array, for each word of the texts in turn. A word is left out
    if it lies beyond `length` tokens, or holds nothing that the tokenizer keeps.
    """
    encodings, features = tokenizer.encode_batch(texts, is_pretokenized=True), []
    spans = [(row, encoding.word_to_tokens(word)) for row, encoding in enumerate(encodings)
             for word in range(len(texts[row]))]  # a word's tokens: None, or from and to
    kept = [i for i, (_, span) in enumerate(spans) if span and span[0] < length]
    rows, columns = np.array([(spans[i][0], spans[i][1][0]) for i in kept]).T
    examples = [(encoding.ids[:length], encoding.type_ids[:length]) for encoding in encodings]
    for i, layers, _ in layers_of(encoder, examples, machine):
        in_batch = (i <= rows) & (rows < i + BATCH)
        first = rows[in_batch] - i, columns[in_batch]  # of each word's tokens
        features.append(torch.stack([layer[first] for layer in layers]).cpu())
    return torch.cat(features, dim=1), labels[kept]


# Not needed at first reading: features read once, examples drawn, scores summed up.

def layers_of(encoder, examples, machine):
    """Yield for each batch of encoded examples its start, layers (B, T, C), and mask (B, T)."""
    for i in progress(range(0, len(examples), BATCH), desc="features", unit=" batches"):
        input_ids, mask, token_type_ids = collate(examples[i : i + BATCH], machine)
        _, layers = encoder(input_ids, mask, token_type_ids, output_hidden_states=True)
        yield i, layers, torch.ones_like(input_ids) if mask is None else mask


def task_features(encoder, tasks, tokenizer, machine, length):
    """Features of tasks, each different text read once → a list of (task, features, labels).

    features {split: (L, N, C)}; labels {split: array}, without those of words without features.
    """
    different = dict.fromkeys(text for task in tasks if not task.per_word
                              for split in task.texts.values() for text in split)
    index = {text: i for i, text in enumerate(different)}
    all_features = text_features(encoder, list(index), tokenizer, machine, length)
    results = []
    for task in tasks:
        features, labels = {}, dict(task.labels)
        for split, texts in task.texts.items():
            if task.per_word:
                features[split], labels[split] = word_features(
                    encoder, texts, labels[split], tokenizer, machine, length)
            else:
                features[split] = all_features[:, [index[text] for text in texts]]
        results.append((task, features, labels))
    return results


def draw(features, labels, seed):
    """The training examples that a seed trains on; the other splits are kept whole."""
    order = np.random.default_rng(seed).permutation(len(labels["train"]))
    chosen = order[: max(1, round(DRAWN * len(order)))]
    features = {**features, "train": features["train"][:, chosen]}
    return features, {**labels, "train": labels["train"][chosen]}


def summary(task, scores):
    """What is kept of a task's scores, lists over seeds of {"valid", "test": list over layers}."""
    majority = best_constant(task.metric, task.labels["test"], task.classes)
    result = {"metric": task.metric, "majority": majority,
              "examples": {split: len(labels) for split, labels in task.labels.items()}}
    for name, seeds in scores.items():
        if seeds:
            test, valid = ([seed[split] for seed in seeds] for split in ("test", "valid"))
            result[name] = {**mean_and_std(test), "valid": np.mean(valid, axis=0).tolist()}
    return result
