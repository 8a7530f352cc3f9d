"""Fine-tuning as people see it: a run is opened, trained on tasks, and its scores are kept."""

from dataclasses import asdict

import numpy as np
import torch

from mini_undivided import glue
from mini_undivided.metrics import in_words, majority, mean_and_std
from mini_undivided.model import SequenceClassifier
from mini_undivided.report.opened import SavedRun
from mini_undivided.report.tables import count, wrap
from mini_undivided.support.checkpoint import label_names, read_pooler
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_writable, read_json, write_json
from mini_undivided.support.glue_files import SUBMISSION, tasks_in, write_predictions
from mini_undivided.support.machine import Machine
from mini_undivided.support.run_directory import results_folder
from mini_undivided.support.tasks import BUILT_IN, GLUE, find_task
from mini_undivided.tokenizer import encode, save_tokenizer


def finetune(options):
    """Fine-tune a run on a task, or "all" of GLUE → results, their folder. Errors come early."""
    if options.task == "all":
        keys = tasks_in(options.data_dir) if options.data_dir else list(GLUE)
    else:
        find_task(options.task)
        keys = [options.task]
    tuner = Finetuner(options)
    return [tuner.run(key) for key in keys], tuner.out


class Finetuner:
    """A run, read once, and fine-tuned on task after task."""

    def __init__(self, options):
        self.options, self.source = options, SavedRun(options.run)
        self.config, self.tokenizer = self.source.config, self.source.tokenizer
        self.machine = Machine.start(options.device, options.dtype, self.config.hidden_size)
        self.encoder = self.source.encoder
        self.pooler = read_pooler(self.source.folder, self.config)  # None: the run has none
        self.lr = options.lr or glue.default_lr(self.config.hidden_size)
        self.max_length = self.choose_length()
        self.out = results_folder(options.run) / "glue"
        check_writable(self.out)

    def choose_length(self):
        """The tokens after which a text is cut: --max-length, or what the run was trained on."""
        limit, trained = self.config.max_position_embeddings, self.source.longest
        length = self.options.max_length or min(128, trained)
        if length > limit:
            raise UserError(f"--max-length {length} is more than "
                            f"the {limit} positions of {self.options.run}")
        if length > trained:
            print(f"--max-length {length}: pretraining showed {trained} tokens, so that "
                  "the vectors of the positions after that are as they were at its start")
        return length

    def run(self, key):
        """Fine-tune on a task once a seed, and write its results → the dictionary written."""
        task, options = find_task(key), self.options
        if len(task.texts) > 1:
            self.config.check_pairs(options.run)
        splits = glue.read_task(key, options.data_dir, options.predict)
        train = splits["train"] = splits["train"].first(options.train_examples)
        rows = {part: self.encode(split) for part, split in splits.items()}
        values = {}
        for seed in range(options.seeds):
            model, scores = self.train(key, rows, splits, seed)
            for name, value in scores.items():
                values.setdefault(name, []).append(value)
            print(f"{key}, seed {seed}: {in_words(scores)}", flush=True)
            if seed == 0 and options.predict:
                out = self.out / "from-scratch" if options.from_scratch else self.out
                write_predictions(out, key, {
                    split: glue.predict(model, rows[split], self.machine)
                    for split in rows if (key, split) in SUBMISSION})
            if options.save:
                self.save(model, key, seed)
        result = {
            "task": key, "name": task.name, "built_in": key in BUILT_IN,
            "from_scratch": options.from_scratch,
            "options": {**asdict(options), "epochs": options.epochs or task.epochs, "lr": self.lr,
                        "max_length": self.max_length},
            "train_examples": len(train),
            "scores": {name: {**mean_and_std(v), "values": v} for name, v in values.items()},
            "primary": next(iter(values)), "majority": majority(task, splits)}
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / f"{self.file_name(key)}.json", result)
        return result

    def train(self, key, rows, splits, seed):
        """Fine-tune from one seed → the model, and {metric: value} on dev at the end."""
        task, options = find_task(key), self.options
        torch.manual_seed(seed)
        model, epochs = self.make_model(task), options.epochs or task.epochs
        if seed == 0:
            print(self.describe(key, rows["train"], epochs), flush=True)
        return model, glue.fine_tune(
            model, task, splits, rows, self.machine, epochs, options.batch_size, self.lr, seed)

    def make_model(self, task):
        """The run's encoder, or with --from-scratch a fresh one, under a fresh head."""
        model = SequenceClassifier(self.config, max(1, len(task.labels)))
        model.to(self.machine.device)
        if not self.options.from_scratch:
            model.encoder.load_state_dict(self.encoder.state_dict())
            if self.pooler:
                model.pooler.load_state_dict(self.pooler)
        return model

    def encode(self, split):
        """A split's texts as token ids and segment ids."""
        return encode(split.texts, self.tokenizer, self.max_length)

    def describe(self, key, train, epochs):
        """What a task's training is going to be, as a line of text."""
        size = self.options.batch_size
        batches = glue.length_batches(train, size, np.random.default_rng(0))
        return wrap(f"{key}: {count(len(train), 'example')}, {count(epochs, 'epoch')} of "
                    f"{count(len(batches), 'batch', 'batches')} of {size}, learning rate up to "
                    f"{self.lr:g}, {glue.padding_ratio(train, batches):.1%} padding, "
                    f"{self.machine}", 2)

    def file_name(self, key):
        """Results of a task have its name; those of the control are kept apart."""
        return f"{key}-from-scratch" if self.options.from_scratch else key

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
