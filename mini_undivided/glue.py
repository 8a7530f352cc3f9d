"""GLUE (Wang et al. 2018, 1804.07461): metrics, batches of similar length, the fine-tuning loop.

Letters: B examples in a batch, T tokens in the longest of them, K labels.

Fine-tuning puts a small new head on a pretrained encoder and trains both, briefly, on a task's
examples. What pretraining was worth shows against the same model with fresh weights
(--from-scratch).
"""

import math
import time

import numpy as np
import torch
from torch.nn import functional as F

from mini_undivided.corpus import held_out_docs, sentences
from mini_undivided.optim import adamw, scale_learning_rates, warmup_decay
from mini_undivided.support.errors import UserError
from mini_undivided.support.glue_files import make_docs_task, read_glue
from mini_undivided.support.tasks import BUILT_IN

SORTED = 50  # batches whose examples are sorted by length together
EVAL_BATCH = 128


# Metrics: predictions and labels are arrays of the same length.

def accuracy(predicted, labels):
    """The share of predictions that are right."""
    return float(np.mean(predicted == labels))


def f1(predicted, labels):
    """The harmonic mean of precision and recall of label 1; 0 if there is no true positive.

    2 TP / (2 TP + FP + FN): true positives, false positives and false negatives.
    """
    true = np.sum((predicted == 1) & (labels == 1))
    wrong = np.sum(predicted != labels)
    return float(2 * true / (2 * true + wrong)) if true else 0.0


def matthews(predicted, labels):
    """Matthews' correlation: Pearson's, of two binary arrays; 0 if one is constant."""
    return pearson(predicted, labels)


def pearson(predicted, labels):
    """The linear correlation Σ xy / √(Σ x² Σ y²), means subtracted; 0 if one side is constant."""
    x, y = np.float64(predicted), np.float64(labels)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def spearman(predicted, labels):
    """The correlation of the ranks; 0 if one side is constant."""
    return pearson(ranks(predicted), ranks(labels))


def ranks(values):
    """The ranks of values from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS = {each.__name__: each for each in (accuracy, f1, matthews, pearson, spearman)}


def score(task, splits, predictions):
    """{metric: value} on the dev parts; a variant's name stands after its metric's.

    predictions: {part: array}.
    """
    scores = {}
    for part, split in splits.items():
        if part.startswith("dev"):
            variant = part.removeprefix("dev").replace("_", " ")
            for name in task.metrics:
                scores[name + variant] = METRICS[name](predictions[part], split.labels)
    return scores


def best_constant(task, splits):
    """{metric: the best that one answer for all examples scores} on the dev parts: no model."""
    answers = range(len(task.labels)) if task.labels else [0.0]
    guesses = ({part: np.full(len(split), a) for part, split in splits.items()} for a in answers)
    scores = [score(task, splits, guess) for guess in guesses]
    return {metric: max(each[metric] for each in scores) for metric in scores[0]}


def mean_and_std(values):
    """Mean and standard deviation (n - 1) of numbers or arrays over seeds, the latter as lists.

    Of one value there is no deviation, but None.
    """
    values = np.stack(values)
    deviation = values.std(axis=0, ddof=1).tolist() if len(values) > 1 else None
    return {"mean": values.mean(axis=0).tolist(), "std": deviation}


# Examples and batches.


def read_task(key, data_dir=None, predict=False):
    """The examples of a task of GLUE (as `read_glue`) or of a built-in one → {part: Split}."""
    if key in BUILT_IN:
        return make_docs_task(key, [(lib, sentences(text)) for lib, text in held_out_docs()])
    return read_glue(key, data_dir, predict)


def collate(rows, machine):
    """Pad encoded examples to the longest → ids, mask (None without padding), segments, (B, T)."""
    lengths = [len(ids) for ids, _ in rows]
    tensors = torch.zeros(2, len(rows), max(lengths), dtype=torch.long)  # 0 is BERT's [PAD]
    for i, row in enumerate(rows):
        tensors[:, i, : lengths[i]] = torch.tensor(row)
    mask = None
    if min(lengths) < max(lengths):
        mask = machine.move(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])  # (B, T)
    ids, segments = (machine.move(tensor) for tensor in tensors)
    return ids, mask, segments


def length_batches(rows, size, rng):
    """Index arrays of `size` examples of similar length: shuffled, then sorted within pools."""
    lengths, order = np.array([len(ids) for ids, _ in rows]), rng.permutation(len(rows))
    pools = [order[i : i + SORTED * size] for i in range(0, len(order), SORTED * size)]
    pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padding_share(rows, batches):
    """The share of the tokens of these batches that is padding."""
    real = sum(len(ids) for ids, _ in rows)
    return 1 - real / sum(len(batch) * max(len(rows[i][0]) for i in batch) for batch in batches)


# The loop.

def fine_tune(model, rows, labels, plan, lr, machine, bar):
    """Train on the batches of `plan`, a list for each epoch → yields an epoch's number after it.

    The learning rate rises and falls as in pretraining. Raises UserError if the loss is not finite.
    """
    optimizer, steps = adamw(model.parameters(), lr), sum(map(len, plan))
    factors = (warmup_decay((step + 0.5) / steps) for step in range(steps))
    for epoch, batches in enumerate(plan, 1):
        loss = train_epoch(model, optimizer, factors, batches, rows, labels, machine, bar)
        if not math.isfinite(loss):
            advice = f"try a lower --lr than {lr:g}"
            raise UserError(f"the loss became {loss} in epoch {epoch}; {advice}")
        yield epoch


def train_epoch(model, optimizer, factors, batches, rows, labels, machine, bar):
    """A step for each batch → the last loss. Integer labels are classes.

    factors: an iterator of what each step's learning rate is multiplied by.
    """
    model.train()
    tokens, started = 0, time.perf_counter()
    for number, batch in enumerate(batches, 1):
        scale_learning_rates([optimizer], next(factors))
        ids, mask, segments = collate([rows[i] for i in batch], machine)
        targets = torch.from_numpy(labels[batch])  # (B,)
        regression = targets.is_floating_point()
        targets = machine.move(targets.float() if regression else targets)
        with machine.autocast():
            logits = model(ids, mask, segments).float()  # (B, K)
        loss = F.mse_loss(logits[:, 0], targets) if regression else F.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        if number % 10 == 0:  # reading the loss makes the CPU wait for a GPU
            speed = tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"loss {loss.item():.3f}, {speed:,.0f} tokens/s", refresh=False)
        bar.update()
    return loss.item()


@torch.inference_mode()
def predict(model, rows, machine):
    """The model's predictions for encoded examples, in their order: class numbers, or values."""
    model.eval()
    order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
    logits = []
    for i in range(0, len(rows), EVAL_BATCH):
        ids, mask, segments = collate([rows[j] for j in order[i : i + EVAL_BATCH]], machine)
        with machine.autocast():
            logits.append(model(ids, mask, segments).float().cpu())  # (B, K)
    logits = torch.cat(logits).numpy()
    if not np.isfinite(logits).all():
        raise UserError("the model's predictions are no longer numbers: try a lower --lr")
    predictions = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    restored = np.empty_like(predictions)
    restored[order] = predictions
    return restored


def default_lr(width):
    """Ours, for three to five epochs: small models want more than BERT-Base's usual 3e-5."""
    return 3e-4 if width <= 256 else 1e-4 if width <= 512 else 3e-5
