"""GLUE (Wang et al. 2018, 1804.07461): its nine tasks, their metrics, and the fine-tuning loop.

Letters: B examples in a batch, T tokens in the longest of them, K labels.
"""

import difflib
import math
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mini_undivided import corpus as corpora
from mini_undivided import runs, runtime
from mini_undivided import tokenizer as wordpiece
from mini_undivided.model import BertConfig, Encoder, SequenceClassifier
from mini_undivided.runtime import UserError

WARMUP = 0.1  # share of the steps
POOL = 50  # batches that are sorted by length together
EVAL_BATCH = 128


# Metrics: predictions and labels are arrays of the same length.


def accuracy(predicted, labels):
    """The share of predictions that are right."""
    return float(np.mean(predicted == labels))


def f1(predicted, labels):
    """The harmonic mean of precision and recall of label 1; 0 where there is no true positive."""
    true = np.sum((predicted == 1) & (labels == 1))
    wrong = np.sum(predicted != labels)
    return float(2 * true / (2 * true + wrong)) if true else 0.0


def matthews(predicted, labels):
    """Matthews' correlation of two binary arrays; 0 where one of them is constant, as scikit-learn has it."""
    return pearson(predicted, labels)


def pearson(predicted, labels):
    """The linear correlation; 0 where one side is constant, for which it is not defined."""
    x, y = np.float64(predicted), np.float64(labels)
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / norm) if norm > 1e-12 * len(x) else 0.0


def spearman(predicted, labels):
    """The correlation of the ranks; 0 where one side is constant."""
    return pearson(ranks(predicted), ranks(labels))


def ranks(values):
    """The ranks of values from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}


@dataclass(frozen=True)
class Task:
    """A task: its name, its texts' columns, its label's column and values (none: a number), its metrics.

    `hub` are the texts' columns in the hub's copy, `files` the base names of the dev (and test) files of each variant.
    """

    name: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: int = 3
    hub: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    plain: tuple[str, ...] = ()  # the columns of train and dev, where these have no header
    broken: int = 0  # ragged rows that the official files are known to hold


YES_NO = ("0", "1")
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", ("sentence",), "label", YES_NO, ("matthews",), 5, plain=("source", "label", "star", "sentence")),
    "sst2": Task("SST-2", ("sentence",), "label", YES_NO, ("accuracy",)),
    "mrpc": Task("MRPC", ("#1 String", "#2 String"), "Quality", YES_NO, ("accuracy", "f1"), 5, hub=PAIR),
    "stsb": Task("STS-B", PAIR, "score", (), ("pearson", "spearman"), 5),
    "qqp": Task("QQP", ("question1", "question2"), "is_duplicate", YES_NO, ("accuracy", "f1"), broken=3),
    "mnli": Task("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
                 hub=("premise", "hypothesis"), variants=("matched", "mismatched")),
    "qnli": Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, ("accuracy",)),
    "rte": Task("RTE", PAIR, "label", ENTAILMENT, ("accuracy",), 5),
    "wnli": Task("WNLI", PAIR, "label", YES_NO, ("accuracy",), 5),
}  # fmt: skip
BUILT_IN = {
    "docs-library": Task("docs-library", ("sentence",), "library", ("python", "numpy", "torch"), ("accuracy",), 5),
    "docs-next": Task("docs-next", PAIR, "next", YES_NO, ("accuracy",), 5),
}


@dataclass
class Split:
    """Examples: texts, a tuple of one or two strings each, and labels, an array (None where they are not given)."""

    texts: list
    labels: np.ndarray | None

    def __len__(self):
        return len(self.texts)

    def first(self, count):
        """The first `count` examples."""
        return self if count is None else Split(self.texts[:count], self.labels[:count])


def find_task(name):
    """The task of a name. Raises UserError, with the nearest name, where there is none."""
    known = {**TASKS, **BUILT_IN}
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UserError(f'there is no task "{name}"{hint} (tasks: {", ".join(known)})')
    return known[name]


def read_tsv(path, columns=None, broken=0):
    """Yield (line number, row as a dictionary) of a GLUE file. Quotation marks quote nothing.

    columns: the names, for a file without header. broken: ragged rows to leave out. Raises UserError with file and line.
    """
    skipped = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                fields = text.rstrip("\r\n").split("\t")
                if columns is None:
                    columns = fields
                elif len(fields) == len(columns):
                    yield number, dict(zip(columns, fields, strict=True))
                elif skipped < broken:
                    skipped += 1
                else:
                    raise UserError(f"{path}, line {number}: {len(fields)} columns, but there should be {len(columns)}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}, is not UTF-8 ({error})") from None
    if skipped:
        print(f"{path}: {skipped} broken rows left out")


def read_split(path, task, labelled, columns=None):
    """Read a file of a task → Split."""
    texts, labels = [], []
    for number, row in read_tsv(path, columns, task.broken if labelled else 0):  # a prediction must keep its row
        for column in (*task.texts, *([task.label] if labelled else [])):
            if column not in row:
                raise UserError(f'{path} has no column "{column}"; its columns are {", ".join(row)}')
        texts.append(tuple(row[column] for column in task.texts))
        if labelled:
            labels.append(parse_label(row[task.label], task, f"{path}, line {number}"))
    if not texts:
        raise UserError(f"{path} holds no examples")
    return Split(texts, np.array(labels) if labelled else None)


def parse_label(text, task, where):
    """A label's number, or for a regression its value."""
    try:
        if task.labels:
            return task.labels.index(text)
        if math.isfinite(value := float(text)):
            return value
        raise ValueError
    except ValueError:
        wanted = f"one of {', '.join(task.labels)}" if task.labels else "a number"
        raise UserError(f'{where}: the label "{text}" is not {wanted}') from None


def read_folder(task, data_dir, parts):
    """Read parts ("train", "dev", "test") of a task in the official layout → {part, or part_variant: Split}."""
    folder, found = Path(data_dir) / task.name, {}
    names = [(part, v) for part in parts for v in (("",) if part == "train" else task.variants)]
    files = {"_".join(filter(None, name)): folder / f"{'_'.join(filter(None, name))}.tsv" for name in names}
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        raise UserError(f"{task.name} is not in {data_dir}: looked for {', '.join(missing)}")
    for name, path in files.items():
        test = name.startswith("test")
        found[name] = read_split(path, task, not test, None if test else task.plain or None)
    return found


def read_hub(key, parts):
    """Read parts of a task from the Hugging Face hub → as read_folder."""
    import datasets  # late: slow to import

    task, found = TASKS[key], {}
    for part in parts:
        for variant in ("",) if part == "train" else task.variants:
            name = "_".join(filter(None, ("validation" if part == "dev" else part, variant)))
            try:
                rows = datasets.load_dataset("nyu-mll/glue", key, split=name)
            except Exception as error:  # the hub raises many kinds
                raise UserError(
                    f"{task.name} could not be had from the hub ({type(error).__name__}); give the folder of the GLUE "
                    f"files with --data-dir, or take a built-in task: {', '.join(BUILT_IN)}"
                ) from None
            columns = [rows[column] for column in task.hub or task.texts]
            labels = None if part == "test" else np.array(rows["label"])
            found["_".join(filter(None, (part, variant)))] = Split(list(zip(*columns, strict=True)), labels)
    return found


def read_built_in(key):
    """Make a built-in task from the held-out documents of the docs corpus, one in five for dev → as read_folder."""
    rng = np.random.default_rng(0)
    documents = [(library, corpora.sentences(text)) for library, text in corpora.held_out_docs()]
    everything = [sentence for _, found in documents for sentence in found]
    found = {"train": ([], []), "dev": ([], [])}
    for i, (library, group) in enumerate(documents):
        texts, labels = found["dev" if i % 5 == 4 else "train"]
        if key == "docs-library":
            texts += [(sentence,) for sentence in group]
            labels += [BUILT_IN[key].labels.index(library)] * len(group)
            continue
        for first, second in zip(group, group[1:], strict=False):
            follows = int(rng.random() < 0.5)
            texts.append((first, second if follows else everything[rng.integers(len(everything))]))
            labels.append(follows)
    return {part: Split(texts, np.array(labels)) for part, (texts, labels) in found.items()}


def read_task(key, data_dir, predict):
    """The examples of a task: {"train", "dev" or "dev_matched", ..., "test", ...: Split}."""
    parts = ("train", "dev", "test") if predict and key in TASKS else ("train", "dev")
    if key in BUILT_IN:
        return read_built_in(key)
    return read_folder(TASKS[key], data_dir, parts) if data_dir else read_hub(key, parts)


def encode(split, tokenizer, max_length):
    """Token ids and segment ids of each example, [CLS] A [SEP] (B [SEP]), cut to max_length, the longer text first."""
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    inputs = [texts if len(texts) == 2 else texts[0] for texts in split.texts]
    encodings = tokenizer.encode_batch(inputs)
    tokenizer.no_truncation()
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def collate(rows, runtime_):
    """Pad encoded examples to the longest → input_ids, attention_mask (None where nothing was padded), segments."""
    lengths = [len(ids) for ids, _ in rows]
    tensors = torch.zeros(2, len(rows), max(lengths), dtype=torch.long)  # [PAD] is 0 in every BERT vocabulary
    for i, row in enumerate(rows):
        tensors[:, i, : lengths[i]] = torch.tensor(row)
    mask = None
    if min(lengths) < max(lengths):
        mask = runtime_.move(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])  # (B, T)
    ids, segments = (runtime_.move(tensor) for tensor in tensors)
    return ids, mask, segments


def length_batches(rows, size, rng):
    """Yield index arrays of `size` examples of similar length: shuffled, sorted within pools, the batches shuffled."""
    lengths, order = np.array([len(ids) for ids, _ in rows]), rng.permutation(len(rows))
    pools = [order[i : i + POOL * size] for i in range(0, len(order), POOL * size)]
    pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    batches = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def padding_share(rows, batches):
    """Which share of the tokens of these batches is padding."""
    real = sum(len(ids) for ids, _ in rows)
    return 1 - real / sum(len(batch) * max(len(rows[i][0]) for i in batch) for batch in batches)


@torch.inference_mode()
def predict(model, rows, runtime_):
    """The model's answers for encoded examples, in their order: class numbers, or values for a regression."""
    model.eval()
    order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
    answers = []
    for i in range(0, len(rows), EVAL_BATCH):
        ids, mask, segments = collate([rows[j] for j in order[i : i + EVAL_BATCH]], runtime_)
        with runtime_.autocast():
            answers.append(model(ids, mask, segments).float().cpu())  # (B, K)
    logits = torch.cat(answers).numpy()
    found = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)
    restored = np.empty_like(found)
    restored[order] = found
    return restored


@dataclass
class Options:
    """What finetune.py's options say. None: the task's or the size's default."""

    run: str
    data_dir: str | None = None
    seeds: int = 1
    epochs: int | None = None
    lr: float | None = None
    batch_size: int = 32
    max_length: int = 128
    train_examples: int | None = None
    from_scratch: bool = False
    predict: bool = False
    save: bool = False
    device: str = "auto"
    dtype: str = "auto"


def default_lr(width):
    """Ours, for three to five epochs: small models want more than BERT-Base, for which 3e-5 is usual."""
    return 3e-4 if width <= 256 else 1e-4 if width <= 512 else 3e-5


class Finetuner:
    """A run's encoder and tokenizer, read once, and fine-tuned on task after task."""

    def __init__(self, options):
        runs.check_finished(options.run)
        self.options, self.machine = options, runtime.start(options.device, options.dtype)
        self.folder = runs.resolve(options.run)
        self.config = BertConfig.from_hugging_face(self.folder)
        self.encoder = Encoder.from_pretrained(self.folder)
        self.tokenizer = wordpiece.load(self.folder)
        wordpiece.check_fits(self.tokenizer, self.config.vocab_size, options.run)
        limit = self.config.max_position_embeddings
        if options.max_length > limit:
            raise UserError(f"--max-length {options.max_length} is more than the {limit} positions of {options.run}")
        self.out = Path(options.run) / "glue" if Path(options.run).is_dir() else Path("runs") / self.folder.name / "glue"

    def run(self, key):
        """Fine-tune on a task once a seed, and write its results → the dictionary that was written."""
        task, options = find_task(key), self.options
        splits = read_task(key, options.data_dir, options.predict)
        train = splits["train"] = splits["train"].first(options.train_examples)
        rows = {part: encode(split, self.tokenizer, options.max_length) for part, split in splits.items()}
        values, seconds = {}, []
        for seed in range(options.seeds):
            model, scores, took = self.train(key, task, rows, splits, seed)
            seconds.append(took)
            for name, value in scores.items():
                values.setdefault(name, []).append(value)
            print(f"{key}, seed {seed}: {in_words(scores)}", flush=True)
            if seed == 0 and options.predict:
                self.write_predictions(key, task, model, rows)
            if options.save:
                self.save(model, key, task, seed)
        result = {
            "task": key,
            "name": task.name,
            "built_in": key in BUILT_IN,
            "from_scratch": options.from_scratch,
            "options": {**asdict(options), "epochs": self.epochs(task), "lr": self.lr},
            "train_examples": len(train),
            "scores": {name: summarise(v) for name, v in values.items()},
            "primary": next(iter(values)),
            "majority": score(task, splits, {part: majority(task, train, len(split)) for part, split in splits.items()}),
            "seconds_per_epoch": float(np.median(seconds)),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        runs.write_json(self.out / f"{key}{'-from-scratch' * options.from_scratch}.json", result)
        return result

    @property
    def lr(self):
        return self.options.lr or default_lr(self.config.hidden_size)

    def epochs(self, task):
        return self.options.epochs or task.epochs

    def train(self, key, task, rows, splits, seed):
        """Fine-tune from one seed → model, {metric: value} on dev after the last epoch, seconds an epoch of training."""
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        model = self.make_model(task)
        optimizer = runtime.adamw(model, self.lr)
        plan = [length_batches(rows["train"], self.options.batch_size, rng) for _ in range(self.epochs(task))]
        steps, seconds = sum(map(len, plan)), 0.0
        rates = (self.lr * runtime.warmup_decay((step + 0.5) / steps, WARMUP) for step in range(steps))
        dev = [part for part in rows if part.startswith("dev")]
        if seed == 0:
            print(self.describe(key, rows["train"], plan), flush=True)
        with tqdm(total=steps, desc=f"{key}, seed {seed}", leave=False, dynamic_ncols=True, mininterval=0.3) as bar:
            for epoch, batches in enumerate(plan, 1):
                started = time.perf_counter()
                loss = self.train_epoch(model, optimizer, task, rows["train"], splits["train"].labels, batches, rates, bar)
                seconds += time.perf_counter() - started
                if not math.isfinite(loss):
                    raise UserError(f"{key}: the loss became {loss} in epoch {epoch}; try a lower --lr than {self.lr:g}")
                scores = score(task, splits, {part: predict(model, rows[part], self.machine) for part in dev})
                bar.write(f"{key}, seed {seed}, epoch {epoch} of {len(plan)}: {in_words(scores)}")
        return model, scores, seconds / len(plan)

    def make_model(self, task):
        """The run's encoder, or with --from-scratch a fresh one, under a fresh head."""
        model = SequenceClassifier(self.config, max(1, len(task.labels))).to(self.machine.device)
        if not self.options.from_scratch:
            model.encoder.load_state_dict(self.encoder.state_dict())
        return model

    def describe(self, key, train, plan):
        """What a task's training is going to be, as a line of text."""
        return (
            f"{key}: {len(train):,} examples, {len(plan)} epochs of {len(plan[0]):,} batches of {self.options.batch_size}, "
            f"learning rate up to {self.lr:g}, {padding_share(train, plan[0]):.1%} padding, {self.machine}"
        )

    def train_epoch(self, model, optimizer, task, train, labels, batches, rates, bar):
        """A step for each batch → the last loss."""
        model.train()
        tokens, started = 0, time.perf_counter()
        for number, batch in enumerate(batches, 1):
            runtime.set_learning_rate(optimizer, next(rates))
            ids, mask, segments = collate([train[i] for i in batch], self.machine)
            targets = self.machine.move(torch.from_numpy(labels[batch]))
            with self.machine.autocast():
                logits = model(ids, mask, segments).float()  # (B, K)
            loss = F.cross_entropy(logits, targets) if task.labels else F.mse_loss(logits[:, 0], targets.float())
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

    def save(self, model, key, task, seed):
        """Write a fine-tuned model with its tokenizer and the names of its labels."""
        out = self.out / f"{key}{'-from-scratch' * self.options.from_scratch}-seed{seed}"
        model.save_pretrained(out)
        wordpiece.save(self.tokenizer, out)
        settings = runs.read_json(out / "config.json")
        settings["problem_type"] = "single_label_classification" if task.labels else "regression"
        if task.labels:
            settings["id2label"] = dict(enumerate(task.labels))
            settings["label2id"] = {label: i for i, label in enumerate(task.labels)}
        runs.write_json(out / "config.json", settings)

    def write_predictions(self, key, task, model, rows):
        """Write the test predictions as the GLUE server takes them, and zip all that there are."""
        folder = self.out / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        jobs = {part: name for part, name in SUBMISSION.items() if part[0] == key}
        for (_, part), name in jobs.items():
            if part == "ax":
                if not self.options.data_dir:
                    continue
                path = Path(self.options.data_dir) / "AX" / "diagnostic.tsv"
                if not path.exists():
                    print(f"AX is left out of the predictions: {path} does not exist")
                    continue
                rows["ax"] = encode(read_split(path, task, False), self.tokenizer, self.options.max_length)
            answers = predict(model, rows[part], self.machine)
            lines = [task.labels[a] if task.labels else f"{min(5.0, max(0.0, a)):.3f}" for a in answers]
            with runs.atomic(folder / f"{name}.tsv") as temporary:
                text = "index\tprediction\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(lines))
                temporary.write_text(text, encoding="utf-8")
        with runs.atomic(self.out / "submission.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for path in sorted(folder.glob("*.tsv")):
                archive.write(path, path.name)


# The GLUE server's names: (task, part) → file.
SUBMISSION = {
    **{(key, "test"): task.name for key, task in TASKS.items() if key != "mnli"},
    ("mnli", "test_matched"): "MNLI-m",
    ("mnli", "test_mismatched"): "MNLI-mm",
    ("mnli", "ax"): "AX",
}


def score(task, splits, answers):
    """{metric: value} of answers on the dev parts; a variant's name stands behind its metric's."""
    found = {}
    for part, split in splits.items():
        if part.startswith("dev"):
            variant = part.removeprefix("dev").replace("_", " ")
            for name in task.metrics:
                found[name + variant] = METRICS[name](answers[part], split.labels)
    return found


def in_words(scores):
    """Scores in hundredths, as a line of text."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())


def majority(task, train, count):
    """What one says without looking: the commonest label of the training part, or for a regression its mean."""
    answer = np.bincount(train.labels).argmax() if task.labels else train.labels.mean()
    return np.full(count, answer)


def summarise(values):
    """Mean and standard deviation (n - 1) of a list over seeds; the deviation of one value is None."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": values}


def finetune(options, name):
    """Fine-tune a run on a task, or on "all" nine of GLUE → a list of results, and the folder they were written to.

    Raises UserError before long work.
    """
    keys = list(TASKS) if name == "all" else [name]
    for key in keys:
        find_task(key)
    if name == "all" and options.data_dir:
        keys = [key for key in TASKS if (Path(options.data_dir) / TASKS[key].name / "train.tsv").exists()]
        missing = [TASKS[key].name for key in TASKS if key not in keys]
        if not keys:
            raise UserError(f"none of the nine tasks is in {options.data_dir}: looked for CoLA/train.tsv and so on")
        if missing:
            print(f"not in {options.data_dir}, so left out: {', '.join(missing)}")
    tuner = Finetuner(options)
    return [tuner.run(key) for key in keys], tuner.out


def table(results):
    """The results as lines of text, in hundredths, and GLUE's average where all its tasks but WNLI are there."""
    lines = [f"{'task':14} {'metric':20} {'dev score':>14}  {'majority':>8}"]
    for result in results:
        for metric, s in result["scores"].items():
            spread = f" ± {100 * s['std']:.1f}" if s["std"] is not None else ""
            value = f"{100 * s['mean']:.1f}{spread}"
            lines.append(f"{result['name']:14} {metric:20} {value:>14}  {100 * result['majority'][metric]:8.1f}")
    tasks = {r["task"]: np.mean([s["mean"] for s in r["scores"].values()]) for r in results if not r["built_in"]}
    if set(tasks) == set(TASKS):
        mean = np.mean([value for key, value in tasks.items() if key != "wnli"])
        lines.append(f"average of the 8 tasks without WNLI, each the mean of its metrics: {100 * mean:.1f}")
    return "\n".join(lines)
