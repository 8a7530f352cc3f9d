"""Linear probes: what can be read off a layer by a linear classifier trained on frozen features?

Letters: L layers with the embeddings', N examples, C hidden size, K classes, B texts, T tokens.

A probe minimises  mean loss(W x + b, label) + λ/2 |W|²,  with the encoder left as it is. Its score
alone says little, so beside it stand controls: the majority class; the same probe on the untrained
encoder; the embeddings' layer; and, for tags of words, a control task with random tags (Hewitt &
Liang 2019, 1909.03368), which only a probe that learns words by heart can solve.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mini_undivided.cka import text_means
from mini_undivided.glue import METRICS, collate, read_task
from mini_undivided.support.errors import UserError
from mini_undivided.support.tasks import find_task
from mini_undivided.support.treebank import read_treebank
from mini_undivided.tokenizer import encode

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # λ, strongest first: each fit starts from the one before
PARTS = ("train", "valid", "test")
SHARE = 0.8  # of the training examples that a seed draws
BINS = 6  # of sentence length, as in Conneau et al. 2018 (1805.01070)
WORDS = 10  # of word content
BATCH = 32  # texts in a forward pass


# The probe.

def fit(features, labels, classes, strengths=STRENGTHS, steps=200):
    """Fit linear probes on all layers at once → for each λ (W (L, C, K), b (L, 1, K)).

    features (L, N, C); labels (N,) class numbers, or floats with classes = 0. The loss is the mean
    cross entropy, or half the mean squared error; L-BFGS minimises it, to convergence.
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
    mean, deviation = train.mean(1, keepdim=True), train.std(1, keepdim=True)
    scaled = {part: (x - mean) / deviation.clamp(min=1e-6) for part, x in features.items()}
    targets = torch.as_tensor(labels["train"], device=mean.device)
    offset = 0.0 if classes else targets.mean().item()  # a regression starts from the mean
    fits = fit(scaled["train"], targets if classes else (targets - offset).float(), classes)
    scores = {part: [] for part in ("valid", "test")}  # by strength, then by layer
    for W, b in fits:
        for part in scores:
            logits = torch.baddbmm(b, scaled[part], W)  # (L, N, K)
            answers = (logits.argmax(-1) if classes else logits[..., 0] + offset).cpu().numpy()
            scores[part].append([METRICS[metric](layer, labels[part]) for layer in answers])
    best = np.argmax(scores["valid"], axis=0)  # (L,): of equally good strengths the strongest
    chosen = list(enumerate(best))
    return {part: [table[i][layer] for layer, i in chosen] for part, table in scores.items()}


# Tasks.

@dataclass
class ProbeTask:
    """What to read off. texts: {part: tuples of one or two strings}, labels: {part: array}.

    For tags of words a text is a list of words, and labels are a tag for each word of the texts in
    turn. A regression has float labels.
    """

    name: str
    texts: dict
    labels: dict
    metric: str = "accuracy"
    words: bool = False

    @property
    def classes(self):
        """The number of classes; 0 for a regression."""
        parts = self.labels.values()
        if any(labels.dtype.kind == "f" for labels in parts):
            return 0
        return 1 + max(int(labels.max()) for labels in parts)

    def control(self, seed):
        """Labels of the control task: each different word has one tag, drawn by frequency.

        The score on the real tags minus that on these is the selectivity: what the layer itself
        makes easy.
        """
        rng = np.random.default_rng(seed)
        texts = self.texts.items()
        kinds = sorted({word for _, part in texts for text in part for word in text})
        tags = dict(zip(kinds, rng.choice(self.labels["train"], len(kinds)), strict=True))
        return {name: np.array([tags[w] for text in part for w in text]) for name, part in texts}


def split(texts, labels):
    """Shuffle and cut: 60 % for training, 20 % each for validation and test → texts, labels."""
    order, labels = np.random.default_rng(0).permutation(len(texts)), np.asarray(labels)
    cuts = np.split(order, [len(order) * 3 // 5, len(order) * 4 // 5])
    parts = dict(zip(PARTS, cuts, strict=True))
    texts = {part: [texts[i] for i in cut] for part, cut in parts.items()}
    return texts, {part: labels[cut] for part, cut in parts.items()}


def text_tasks(sentences, examples):
    """Three tasks after Conneau et al. 2018 (1805.01070). UserError if the sentences are few."""
    rng = np.random.default_rng(0)
    sentences = [sentences[i] for i in rng.permutation(len(sentences))[:examples]]
    if len(sentences) < 100:
        few = f"the text has {len(sentences)}"
        raise UserError(f"the probes need 100 different sentences at least, but {few}")
    return [make(sentences) for make in (length_task, content_task, shift_task)]


def length_task(sentences):
    """How many words has the sentence? Bins that hold equally many sentences."""
    lengths = np.array([len(sentence.split()) for sentence in sentences])
    edges = np.unique(np.quantile(lengths, np.arange(1, BINS) / BINS))
    bins = np.searchsorted(edges, lengths)
    return ProbeTask("sentence length", *split([(sentence,) for sentence in sentences], bins))


def content_task(sentences):
    """Which of ten words of middling frequency is in the sentence? Exactly one of them is."""
    bags = [{w.strip(".,;:!?()\"'").lower() for w in sentence.split()} for sentence in sentences]
    counts = Counter(w for words in bags for w in sorted(words) if w.isalpha() and len(w) > 2)
    chosen = [word for word, _ in counts.most_common(50 + WORDS)[-WORDS:]]  # beyond "the" and "and"
    rows = [(s, words & set(chosen)) for s, words in zip(sentences, bags, strict=True)]
    rows = [((s,), chosen.index(*words)) for s, words in rows if len(words) == 1]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    return ProbeTask("word content", *split(texts, labels))


def shift_task(sentences):
    """Have two neighbouring words been swapped? In half of the sentences, in their inside."""
    rng, texts, labels = np.random.default_rng(0), [], []
    for sentence in sentences:
        words = sentence.split()
        places = [i for i in range(1, len(words) - 2) if words[i].lower() != words[i + 1].lower()]
        if not places:
            continue
        labels.append(int(rng.random() < 0.5))
        if labels[-1]:
            i = rng.choice(places)
            words[i], words[i + 1] = words[i + 1], words[i]
        texts.append((" ".join(words),))
    return ProbeTask("bigram shift", *split(texts, labels))


def treebank_task(folder, examples):
    """Universal part-of-speech tags from a folder of CoNLL-U files.

    Whole sentences are drawn until they hold `examples` words for training, a quarter for
    validation, as many for the test.
    """
    rng, tags, texts, labels = np.random.default_rng(0), {}, {}, {}
    limits = {"train": examples, "valid": examples // 4, "test": examples}
    for part, sentences in read_treebank(folder).items():
        texts[part], labels[part] = [], []
        for i in rng.permutation(len(sentences)):
            if len(labels[part]) >= limits[part]:
                break
            texts[part].append([word for word, _ in sentences[i]])
            labels[part] += [tags.setdefault(tag, len(tags)) for _, tag in sentences[i]]
    labels = {part: np.array(each) for part, each in labels.items()}
    return ProbeTask("part of speech", texts, labels, words=True)


def glue_task(key, data_dir, examples):
    """A task of GLUE: its dev part is the test, a tenth of its training part the validation."""
    task, splits = find_task(key), read_task(key, data_dir)
    train, test = splits["train"], next(s for name, s in splits.items() if name.startswith("dev"))
    order = np.random.default_rng(0).permutation(len(train))[:examples]
    cuts = {"train": order[len(order) // 10 :], "valid": order[: len(order) // 10]}
    texts = {part: [train.texts[i] for i in cut] for part, cut in cuts.items()}
    labels = {part: train.labels[cut] for part, cut in cuts.items()}
    texts, labels = {**texts, "test": test.texts}, {**labels, "test": test.labels}
    return ProbeTask(task.name, texts, labels, task.metrics[0])


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
    words = sum(len(part) for task in tasks if task.words for part in task.texts.values())
    different = (text for t in tasks if not t.words for part in t.texts.values() for text in part)
    place = {text: i for i, text in enumerate(dict.fromkeys(different))}
    results, total = [], len(place) + words
    with tqdm(total=total, desc="features", unit=" texts", leave=False, mininterval=0.3) as bar:
        if place:
            every = text_features(encoder, list(place), tokenizer, machine, length, cls, bar)
        for task in tasks:
            features, kept = {}, {}
            for part, texts in task.texts.items():
                if task.words:
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
    total = seeds * sum(3 if task.words else 2 for task in tasks)
    with tqdm(total=total, desc="probes", leave=False) as bar:
        for seed in range(seeds):
            fresh = task_features(untrained(seed), tasks, tokenizer, machine, length, cls)
            for i, task in enumerate(tasks):
                jobs = {"trained": (trained[i], task.labels), "untrained": (fresh[i], task.labels)}
                if task.words:
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
            spread = np.std(values, axis=0, ddof=1).tolist() if len(values) > 1 else None
            result[name] = {"mean": np.mean(values, axis=0).tolist(), "std": spread,
                            "valid": np.mean(valid, axis=0).tolist()}
    return result
