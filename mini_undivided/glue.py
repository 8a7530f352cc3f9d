"""GLUE (Wang et al. 2018, 1804.07461): metrics, batches of similar length, the fine-tuning loop.

Letters: B examples in a batch, T tokens in the longest of them, K labels.

Fine-tuning puts a small new head on a pretrained encoder and trains both, briefly, on a task's
examples. What pretraining was worth shows against the same model with fresh weights
(--from-scratch).
"""

import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mini_undivided.corpus import held_out_docs, sentences
from mini_undivided.model import BertConfig, Encoder, SequenceClassifier
from mini_undivided.pretrain import adamw, set_learning_rate, warmup_decay
from mini_undivided.support.checkpoint import label_names, read_pooler
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_writable, read_json, write_json
from mini_undivided.support.glue_files import (
    make_docs_task,
    read_glue,
    tasks_in,
    write_predictions,
)
from mini_undivided.support.machine import Machine
from mini_undivided.support.run_directory import check_finished, resolve, trained_length
from mini_undivided.support.tasks import BUILT_IN, GLUE, find_task
from mini_undivided.tokenizer import check_fits, encode, load_tokenizer, save_tokenizer

POOL = 50  # batches that are sorted by length together
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
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return 0.0 if norm <= 1e-12 * len(x) else float(np.sum(x * y) / norm)


def spearman(predicted, labels):
    """The correlation of the ranks; 0 if one side is constant."""
    return pearson(ranks(predicted), ranks(labels))


def ranks(values):
    """The ranks of values from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS = {each.__name__: each for each in (accuracy, f1, matthews, pearson, spearman)}


def score(task, splits, answers):
    """{metric: value} of answers on the dev parts; a variant's name stands after its metric's."""
    scores = {}
    for part, split in splits.items():
        if part.startswith("dev"):
            variant = part.removeprefix("dev").replace("_", " ")
            for name in task.metrics:
                scores[name + variant] = METRICS[name](answers[part], split.labels)
    return scores


def best_constant(task, splits):
    """{metric: the best that one answer for all examples scores} on the dev parts: no model."""
    answers = range(len(task.labels)) if task.labels else [0.0]
    guesses = ({part: np.full(len(split), a) for part, split in splits.items()} for a in answers)
    scores = [score(task, splits, guess) for guess in guesses]
    return {metric: max(each[metric] for each in scores) for metric in scores[0]}


def word_overlap(splits):
    """The dev accuracy of a rule without a model: B follows A if they share so many words.

    How many is chosen on the training part.
    """
    def shared(split):
        pairs = [[set(text.lower().split()) for text in pair] for pair in split.texts]
        return np.array([len(a & b) / max(1, min(len(a), len(b))) for a, b in pairs])

    train, labels = shared(splits["train"]), splits["train"].labels
    limit = max(np.unique(train), key=lambda limit: accuracy(train >= limit, labels))
    return accuracy(shared(splits["dev"]) >= limit, splits["dev"].labels)


def summarise(values):
    """Mean and standard deviation (n - 1) of values over seeds; of one value the latter is None."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


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
    pools = [order[i : i + POOL * size] for i in range(0, len(order), POOL * size)]
    pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padding_share(rows, batches):
    """The share of the tokens of these batches that is padding."""
    real = sum(len(ids) for ids, _ in rows)
    return 1 - real / sum(len(batch) * max(len(rows[i][0]) for i in batch) for batch in batches)


# The loop.

def train_epoch(model, optimizer, rates, batches, rows, labels, machine, bar):
    """A step for each batch, at the next of `rates` → the last loss. Integer labels are classes."""
    model.train()
    tokens, started = 0, time.perf_counter()
    for number, batch in enumerate(batches, 1):
        set_learning_rate(optimizer, next(rates))
        ids, mask, segments = collate([rows[i] for i in batch], machine)
        targets = machine.move(torch.from_numpy(labels[batch]))  # (B,)
        with machine.autocast():
            logits = model(ids, mask, segments).float()  # (B, K)
        if targets.is_floating_point():
            loss = F.mse_loss(logits[:, 0], targets.float())
        else:
            loss = F.cross_entropy(logits, targets)
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
    """The model's answers for encoded examples, in their order: class numbers, or values."""
    model.eval()
    order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
    logits = []
    for i in range(0, len(rows), EVAL_BATCH):
        ids, mask, segments = collate([rows[j] for j in order[i : i + EVAL_BATCH]], machine)
        with machine.autocast():
            logits.append(model(ids, mask, segments).float().cpu())  # (B, K)
    logits = torch.cat(logits).numpy()
    if not np.isfinite(logits).all():
        raise UserError("the model's answers are no longer numbers: try a lower --lr")
    answers = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    restored = np.empty_like(answers)
    restored[order] = answers
    return restored


def default_lr(width):
    """Ours, for three to five epochs: small models want more than BERT-Base's usual 3e-5."""
    return 3e-4 if width <= 256 else 1e-4 if width <= 512 else 3e-5


class Finetuner:
    """A run's encoder and tokenizer, read once, and fine-tuned on task after task."""

    def __init__(self, options):
        check_finished(options.run)
        self.options, self.machine = options, Machine.start(options.device, options.dtype)
        self.folder = resolve(options.run)
        self.config = BertConfig.from_hugging_face(self.folder)
        self.encoder = Encoder.from_pretrained(self.folder)
        self.pooler = read_pooler(self.folder, self.config)  # None: the run has none
        self.tokenizer = load_tokenizer(self.folder)
        self.lr = options.lr or default_lr(self.config.hidden_size)
        check_fits(self.tokenizer, self.config.vocab_size, options.run)
        limit = self.config.max_position_embeddings
        trained = min(limit, trained_length(self.folder) or limit)
        self.max_length = options.max_length or min(128, trained)
        if self.max_length > limit:
            where = f"the {limit} positions of {options.run}"
            raise UserError(f"--max-length {self.max_length} is more than {where}")
        if self.max_length > trained:
            print(f"--max-length {self.max_length}: pretraining showed {trained} tokens, so that "
                  "the vectors of the positions after that are as random as at its start")
        local = Path(options.run).is_dir()
        self.out = (Path(options.run) if local else Path("runs") / self.folder.name) / "glue"
        check_writable(self.out)

    def run(self, key):
        """Fine-tune on a task once a seed, and write its results → the dictionary written."""
        task, options = find_task(key), self.options
        splits = read_task(key, options.data_dir, options.predict)
        train = splits["train"] = splits["train"].first(options.train_examples)
        rows = {part: self.encode(split) for part, split in splits.items()}
        values, seconds = {}, []
        for seed in range(options.seeds):
            model, scores, took = self.train(key, rows, splits, seed)
            seconds.append(took)
            for name, value in scores.items():
                values.setdefault(name, []).append(value)
            print(f"{key}, seed {seed}: {in_words(scores)}", flush=True)
            if seed == 0 and options.predict:
                def answer(part, split, model=model):
                    return predict(model, self.encode(split) if split else rows[part], self.machine)

                write_predictions(self.out, key, task, answer, options.data_dir)
            if options.save:
                self.save(model, key, seed)
        result = {
            "task": key, "name": task.name, "built_in": key in BUILT_IN,
            "from_scratch": options.from_scratch,
            "options": {**asdict(options), "epochs": options.epochs or task.epochs, "lr": self.lr,
                        "max_length": self.max_length},
            "train_examples": len(train),
            "scores": {name: summarise(v) for name, v in values.items()},
            "primary": next(iter(values)), "majority": best_constant(task, splits),
            "seconds_per_epoch": float(np.median(seconds))}
        if key == "docs-next":
            result["word_overlap"] = word_overlap(splits)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / f"{self.file_name(key)}.json", result)
        return result

    def train(self, key, rows, splits, seed):
        """Fine-tune from one seed → model, {metric: value} on dev at the end, seconds an epoch."""
        task, options = find_task(key), self.options
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        model = self.make_model(task)
        optimizer = adamw(model, self.lr)
        epochs = options.epochs or task.epochs
        plan = [length_batches(rows["train"], options.batch_size, rng) for _ in range(epochs)]
        steps, seconds = sum(map(len, plan)), 0.0
        rates = (self.lr * warmup_decay((step + 0.5) / steps) for step in range(steps))
        dev, name = [part for part in rows if part.startswith("dev")], f"{key}, seed {seed}"
        examples, labels = rows["train"], splits["train"].labels
        if seed == 0:
            print(self.describe(key, examples, plan), flush=True)
        with tqdm(total=steps, desc=name, leave=False, dynamic_ncols=True, mininterval=0.3) as bar:
            for epoch, batches in enumerate(plan, 1):
                started = time.perf_counter()
                loss = train_epoch(
                    model, optimizer, rates, batches, examples, labels, self.machine, bar)
                seconds += time.perf_counter() - started
                if not math.isfinite(loss):
                    advice = f"try a lower --lr than {self.lr:g}"
                    raise UserError(f"{key}: the loss became {loss} in epoch {epoch}; {advice}")
                answers = {part: predict(model, rows[part], self.machine) for part in dev}
                scores = score(task, splits, answers)
                bar.write(f"{name}, epoch {epoch} of {len(plan)}: {in_words(scores)}")
        return model, scores, seconds / len(plan)

    def make_model(self, task):
        """The run's encoder, or with --from-scratch a fresh one, under a fresh head."""
        model = self.machine.place(SequenceClassifier(self.config, max(1, len(task.labels))))
        if not self.options.from_scratch:
            model.encoder.load_state_dict(self.encoder.state_dict())
            if self.pooler:
                model.pooler.load_state_dict(self.pooler)
        return model

    def encode(self, split):
        """A split's texts as token ids and segment ids."""
        return encode(split.texts, self.tokenizer, self.max_length)

    def describe(self, key, train, plan):
        """What a task's training is going to be, as a line of text."""
        padding = f"{padding_share(train, plan[0]):.1%} padding"
        epochs = f"{len(plan)} epochs of {len(plan[0]):,} batches of {self.options.batch_size}"
        return (f"{key}: {len(train):,} examples, {epochs}, learning rate up to {self.lr:g}, "
                f"{padding}, {self.machine}")

    def file_name(self, key):
        """Results of a task have its name; those of the control are kept apart."""
        return key + "-from-scratch" * self.options.from_scratch

    def save(self, model, key, seed):
        """Write a fine-tuned model with its tokenizer and the names of its labels."""
        out, task = self.out / f"{self.file_name(key)}-seed{seed}", find_task(key)
        model.save_pretrained(out)
        save_tokenizer(self.tokenizer, out)
        kind = "single_label_classification" if task.labels else "regression"
        settings = {**read_json(out / "config.json"), "problem_type": kind}
        if task.labels:
            settings |= label_names(task.labels)
        write_json(out / "config.json", settings)


def in_words(scores):
    """Scores × 100, as a line of text."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


def finetune(options):
    """Fine-tune a run on a task, or "all" of GLUE → results, their folder. Errors come early."""
    if options.task == "all":
        keys = tasks_in(options.data_dir) if options.data_dir else list(GLUE)
    else:
        find_task(options.task)
        keys = [options.task]
    tuner = Finetuner(options)
    return [tuner.run(key) for key in keys], tuner.out
