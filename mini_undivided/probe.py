"""Linear probes: what can be read off a layer by a linear classifier that is trained on frozen features?

Letters: L layers with the embeddings' output, N examples, C hidden size, K classes, B texts in a batch, T tokens.

A probe's score alone says little, so each stands beside controls: the majority class, the same probe on the untrained
encoder, the embeddings' layer and, for tags of words, a control task of random tags (Hewitt & Liang 2019, 1909.03368).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mini_undivided import glue
from mini_undivided.runtime import UserError

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of the L2 penalty, strongest first: each fit starts from the one before
PARTS = ("train", "valid", "test")
SHARE = 0.8  # of the training examples that a seed draws
BINS = 6  # of sentence length, as in Conneau et al. 2018 (1805.01070)
WORDS = 10  # of word content
BATCH = 32  # texts in a forward pass


@dataclass
class Task:
    """What to read off. texts: {part: texts}, labels: {part: array}; a text is a tuple of one or two strings.

    For tags of words a text is a list of words, labels are a tag for each word of the texts in turn, and `control`
    gives random tags in the same form: control(seed) → {part: array}. A regression has float labels.
    """

    name: str
    texts: dict
    labels: dict
    metric: str = "accuracy"
    words: bool = False

    @property
    def classes(self):
        """The number of classes; 0 for a regression."""
        kinds = [labels for labels in self.labels.values() if labels.dtype.kind == "f"]
        return 0 if kinds else 1 + max(int(labels.max()) for labels in self.labels.values())

    def control(self, seed):
        """Labels of the control task: each kind of word always gets the same tag, drawn by its frequency.

        Only a probe that learns words by heart can do well there, so real score minus control score ("selectivity") is
        what the layer itself makes easy.
        """
        rng = np.random.default_rng(seed)
        kinds = sorted({word for texts in self.texts.values() for text in texts for word in text})
        tags = dict(zip(kinds, rng.choice(self.labels["train"], len(kinds)), strict=True))
        return {part: np.array([tags[word] for text in texts for word in text]) for part, texts in self.texts.items()}


def split(texts, labels, seed=0):
    """Shuffle examples into 60 % for training, 20 % for validation, 20 % for the test → two {part: ...}."""
    order = np.random.default_rng(seed).permutation(len(texts))
    cuts = np.split(order, [len(order) * 3 // 5, len(order) * 4 // 5])
    labels = np.asarray(labels)
    return {part: [texts[i] for i in cut] for part, cut in zip(PARTS, cuts, strict=True)}, {
        part: labels[cut] for part, cut in zip(PARTS, cuts, strict=True)
    }


# Tasks made from any text, after Conneau et al. 2018 (1805.01070).


def text_tasks(sentences, examples):
    """Sentence length, word content and bigram shift, made from a list of different sentences, `examples` at most.

    Raises UserError where they are too few.
    """
    rng = np.random.default_rng(0)
    sentences = [sentences[i] for i in rng.permutation(len(sentences))[:examples]]
    if len(sentences) < 100:
        raise UserError(f"the probes need 100 different sentences at least, but the text has {len(sentences)}")
    return [make(sentences) for make in (length_task, content_task, shift_task)]


def length_task(sentences):
    """How many words has the sentence? Bins that hold equally many sentences."""
    lengths = np.array([len(sentence.split()) for sentence in sentences])
    edges = np.unique(np.quantile(lengths, np.arange(1, BINS) / BINS))
    return Task("sentence length", *split([(s,) for s in sentences], np.searchsorted(edges, lengths)))


def content_task(sentences):
    """Which of ten words of middling frequency occurs in the sentence? Sentences that hold exactly one of them."""
    found = [{word.strip(".,;:!?()\"'").lower() for word in sentence.split()} for sentence in sentences]
    counts = Counter(word for words in found for word in sorted(words) if word.isalpha() and len(word) > 2)
    chosen = [word for word, _ in counts.most_common(50 + WORDS)[-WORDS:]]  # beyond "the" and "and"
    rows = [(sentence, words & set(chosen)) for sentence, words in zip(sentences, found, strict=True)]
    rows = [(sentence, chosen.index(*words)) for sentence, words in rows if len(words) == 1]
    return Task("word content", *split([(sentence,) for sentence, _ in rows], [label for _, label in rows]))


def shift_task(sentences):
    """Have two neighbouring words of the sentence changed places? Half have, never the first or the last word."""
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
    return Task("bigram shift", *split(texts, labels))


# Tasks from files.


def conllu_task(folder, examples):
    """Universal part-of-speech tags from a folder with *train*.conllu, *dev*.conllu and *test*.conllu → Task.

    Whole sentences are drawn until they hold `examples` words for training, a quarter for validation, as many for the test.
    """
    rng, tags, texts, labels = np.random.default_rng(0), {}, {}, {}
    for part, name, limit in zip(PARTS, ("train", "dev", "test"), (examples, examples // 4, examples), strict=True):
        paths = sorted(Path(folder).glob(f"*{name}*.conllu"))
        if len(paths) != 1:
            raise UserError(f"{folder} should hold one file *{name}*.conllu, but it holds {len(paths)}")
        sentences = list(read_conllu(paths[0]))
        if not sentences:
            raise UserError(f"{paths[0]} holds no sentences")
        texts[part], labels[part] = [], []
        for i in rng.permutation(len(sentences)):
            if len(labels[part]) >= limit:
                break
            words, found = zip(*sentences[i], strict=True)
            texts[part].append(list(words))
            labels[part] += [tags.setdefault(tag, len(tags)) for tag in found]
    return Task("part of speech", texts, {part: np.array(found) for part, found in labels.items()}, words=True)


def read_conllu(path):
    """Yield sentences as lists of (word, universal tag). Multi-word tokens (3-4) and empty nodes (3.1) are left out:

    the words that a multi-word token stands for have lines of their own. Raises UserError with file and line.
    """
    sentence = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\n").split("\t")
                if not line.strip():
                    if sentence:
                        yield sentence
                    sentence = []
                elif not line.startswith("#"):
                    if len(fields) != 10:
                        raise UserError(f"{path}, line {number}: {len(fields)} columns, but CoNLL-U has 10")
                    if fields[0].isdigit():
                        sentence.append((fields[1], fields[3]))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8") from None
    if sentence:
        yield sentence


def glue_task(key, data_dir, examples):
    """A task of GLUE on frozen features: its dev part is the test, a tenth of its training part the validation."""
    glue.find_task(key)
    parts = glue.read_task(key, data_dir, predict=False)
    train, test = parts["train"], next(part for name, part in parts.items() if name.startswith("dev"))
    order = np.random.default_rng(0).permutation(len(train))[:examples]
    cuts = {"train": order[len(order) // 10 :], "valid": order[: len(order) // 10]}
    texts = {part: [train.texts[i] for i in cut] for part, cut in cuts.items()}
    labels = {part: train.labels[cut] for part, cut in cuts.items()}
    task = {**glue.TASKS, **glue.BUILT_IN}[key]
    return Task(task.name, {**texts, "test": test.texts}, {**labels, "test": test.labels}, task.metrics[0])


# Features.


@torch.inference_mode()
def text_features(encoder, texts, tokenizer, machine, length, cls=False, bar=None):
    """Features of texts: the mean over a text's real tokens, or with `cls` its [CLS] → (L, N, C) float32 on the CPU."""
    rows = glue.encode(glue.Split(texts, None), tokenizer, length)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))  # the longest first: the rest fits in their memory
    found = torch.empty(encoder.config.num_hidden_layers + 1, len(rows), encoder.config.hidden_size)
    for i in range(0, len(order), BATCH):
        chosen = order[i : i + BATCH]
        ids, mask, segments = glue.collate([rows[j] for j in chosen], machine)
        _, layers = encoder(ids, mask, segments, output_hidden_states=True)
        x = torch.stack(layers)  # (L, B, T, C)
        if cls:
            x = x[:, :, 0]
        else:
            weights = torch.ones_like(ids) if mask is None else mask
            x = torch.einsum("lbtc,bt->lbc", x, weights / weights.sum(1, keepdim=True))
        found[:, chosen] = x.cpu()
        if bar:
            bar.update(len(chosen))
    return found


@torch.inference_mode()
def word_features(encoder, texts, tokenizer, machine, length, bar=None):
    """Features of words, lists of which are the texts: each word's first sub-word → (L, N, C), and which words have one.

    A word is without where it is longer away than `length` tokens, or holds nothing that the tokenizer keeps.
    """
    encodings = tokenizer.encode_batch(texts, is_pretokenized=True)
    starts = np.cumsum([0, *map(len, texts)])
    found, kept = [], []
    for i in range(0, len(texts), BATCH):
        batch = encodings[i : i + BATCH]
        ids, mask, segments = glue.collate([(e.ids[:length], e.type_ids[:length]) for e in batch], machine)
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
        found.append(torch.stack([layer[rows, columns] for layer in layers]).cpu())  # (L, words of the batch, C)
        if bar:
            bar.update(len(batch))
    return torch.cat(found, dim=1), np.array(kept)


# The probe.


def fit(features, labels, classes, strengths=STRENGTHS, steps=200):
    """Fit a linear probe on each layer at once, for each strength of the penalty in turn, to convergence.

    features (L, N, C); labels (N,) class numbers, or floats with classes = 0. Minimises the mean loss (cross-entropy, or
    half the squared error) + strength / 2 · |W|² by L-BFGS. → a list of (W (L, C, K), b (L, 1, K)), one a strength.
    """
    L, _, C = features.shape
    W = torch.zeros(L, C, max(1, classes), device=features.device, requires_grad=True)
    b = torch.zeros(L, 1, max(1, classes), device=features.device, requires_grad=True)
    found = []
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [W, b], max_iter=steps, tolerance_grad=1e-4, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def closure(strength=strength, optimizer=optimizer):
            optimizer.zero_grad()
            loss = losses(torch.baddbmm(b, features, W), labels, classes).sum() + strength / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append((W.detach().clone(), b.detach().clone()))
    return found


def losses(logits, labels, classes):
    """The mean loss of each layer: logits (L, N, K) → (L,)."""
    if classes:
        return torch.stack([F.cross_entropy(layer, labels) for layer in logits])
    return (logits[..., 0] - labels).square().mean(1) / 2


def probe(features, labels, classes, metric="accuracy"):
    """Train on part "train", choose the strength on "valid", score on "test", a layer at a time → list of L scores.

    features {part: (L, N, C)}; labels {part: array}. Features are standardised by their mean and deviation on "train".
    """
    mean, deviation = features["train"].mean(1, keepdim=True), features["train"].std(1, keepdim=True)
    scaled = {part: (x - mean) / deviation.clamp(min=1e-6) for part, x in features.items()}
    train = torch.as_tensor(labels["train"], device=mean.device)
    offset = 0.0 if classes else train.mean().item()  # so that a regression's penalty starts from the mean
    fits = fit(scaled["train"], train if classes else (train - offset).float(), classes)
    scores = {part: [] for part in ("valid", "test")}
    for W, b in fits:
        for part, found in scores.items():
            logits = torch.baddbmm(b, scaled[part], W)  # (L, N, K)
            answers = (logits.argmax(-1) if classes else logits[..., 0] + offset).cpu().numpy()
            found.append([glue.METRICS[metric](layer, labels[part]) for layer in answers])
    best = np.argmax(scores["valid"], axis=0)  # (L,): of equally good strengths the strongest
    return [scores["test"][choice][layer] for layer, choice in enumerate(best)]


def draw(features, labels, seed):
    """The share of the training examples that a seed trains on; the other parts are kept whole."""
    count = features["train"].size(1)
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, round(SHARE * count))]
    drawn = {**features, "train": features["train"][:, torch.from_numpy(chosen)]}
    return drawn, {**labels, "train": labels["train"][chosen]}


def features_of(encoder, tasks, tokenizer, machine, length, cls=False):
    """Features of all tasks of a kind, each different text seen once → for each task {part: (L, N, C)}, {part: kept}.

    `kept` are the numbers of the examples that have features: all, but for words.
    """
    texts = list(dict.fromkeys(text for task in tasks if not task.words for found in task.texts.values() for text in found))
    words = sum(len(found) for task in tasks if task.words for found in task.texts.values())
    place = {text: i for i, text in enumerate(texts)}
    made = []
    with tqdm(total=len(texts) + words, desc="features", unit=" texts", leave=False, mininterval=0.3) as bar:
        if texts:
            everything = text_features(encoder, texts, tokenizer, machine, length, cls, bar)
        for task in tasks:
            features, kept = {}, {}
            for part, found in task.texts.items():
                if task.words:
                    features[part], kept[part] = word_features(encoder, found, tokenizer, machine, length, bar)
                else:
                    kept[part] = np.arange(len(found))
                    features[part] = everything[:, [place[text] for text in found]]
            made.append((features, kept))
    return made


def run(encoder, untrained, tasks, tokenizer, machine, length, seeds=3, cls=False):
    """Probe an encoder and its untrained twins on tasks.

    untrained: a function, seed → Encoder with fresh weights. → {task: {"metric", "majority", "examples", "trained",
    "untrained" and for tags "control": {"mean": [L], "std": [L]} over seeds}}. A seed draws the training examples, the
    untrained weights, and the tags of the control task.
    """
    trained = features_of(encoder, tasks, tokenizer, machine, length, cls)
    scores = [{"trained": [], "untrained": [], "control": []} for _ in tasks]
    with tqdm(total=seeds * sum(3 if task.words else 2 for task in tasks), desc="probes", leave=False) as bar:
        for seed in range(seeds):
            fresh = features_of(untrained(seed), tasks, tokenizer, machine, length, cls)
            for i, task in enumerate(tasks):
                jobs = [("trained", trained[i], task.labels), ("untrained", fresh[i], task.labels)]
                if task.words:
                    jobs.append(("control", trained[i], task.control(seed)))
                for name, (features, kept), labels in jobs:
                    labels = {part: found[kept[part]] for part, found in labels.items()}
                    drawn, labels = draw(features, labels, seed)
                    drawn = {part: x.to(machine.device) for part, x in drawn.items()}
                    scores[i][name].append(probe(drawn, labels, task.classes, task.metric))
                    bar.update()
    return {task.name: summary(task, found) for task, found in zip(tasks, scores, strict=True)}


def summary(task, scores):
    """What is kept of a task's scores, lists over seeds of lists over layers."""
    train, test = task.labels["train"], task.labels["test"]
    answer = np.bincount(train).argmax() if task.classes else train.mean()
    found = {
        "metric": task.metric,
        "majority": glue.METRICS[task.metric](np.full(len(test), answer), test),
        "examples": {part: len(labels) for part, labels in task.labels.items()},
    }
    for name, values in scores.items():
        if values:
            spread = np.std(values, axis=0, ddof=1).tolist() if len(values) > 1 else None
            found[name] = {"mean": np.mean(values, axis=0).tolist(), "std": spread}
    return found
