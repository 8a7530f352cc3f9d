"""Compare runs: CKA, probes and rank collapse, as tables, figures, JSON and one report."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mini_undivided.cka import compare
from mini_undivided.corpus import held_out, open_corpus, sentences
from mini_undivided.glue import collate, length_batches
from mini_undivided.model import BertConfig, Encoder, count_parameters
from mini_undivided.probe import run_probes
from mini_undivided.report import figures, replicates, tables
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    check_form,
    check_writable,
    read_json,
    write_json,
    write_text,
)
from mini_undivided.support.machine import Machine
from mini_undivided.support.probe_tasks import glue_task, text_tasks, treebank_task
from mini_undivided.support.run_directory import check_finished, read_record, resolve
from mini_undivided.support.tasks import find_task
from mini_undivided.tokenizer import check_fits, encode, load_tokenizer, same_tokenizer

BATCH = 32  # sentences in a forward pass
RESULT = {"task?": str, "name": str, "from_scratch": bool, "scores": dict, "majority": dict}
LONGEST = 128  # tokens of a sentence that are looked at


class Run:
    """A run directory or Hugging Face checkpoint, read: config, encoder, tokenizer, records."""

    def __init__(self, directory, name):
        check_finished(directory)
        self.folder, self.name = resolve(directory), name
        self.config = BertConfig.from_hugging_face(self.folder)
        self.tokenizer = load_tokenizer(self.folder)
        check_fits(self.tokenizer, self.config.vocab_size, directory)
        known = (self.folder / "train.json").exists()
        self.record = read_record(self.folder) if known else {}
        self.fingerprint = self.record["corpus"]["fingerprint"] if known else None
        self.options = self.record.get("options", {})

    @cached_property
    def encoder(self):
        """The trained encoder."""
        return Encoder.from_pretrained(self.folder)

    def untrained(self, seed):
        """The same architecture with fresh weights."""
        torch.manual_seed(seed)
        return Encoder(self.config).eval()

    @property
    def longest(self):
        """The most tokens of a sequence that the run was trained on."""
        return self.options.get("seq_len", self.config.max_position_embeddings)

    def facts(self):
        """What the tables say of the run, and what finetune.py left in it."""
        results = sorted((self.folder / "glue").glob("*.json"))
        return {"name": self.name, "parameters": count_parameters(self.config),
                "ffns": len(self.config.ffn_layers), "layers": self.config.num_hidden_layers,
                "flops_per_token": self.record.get("flops_per_token"),
                **self.record.get("result", {}),
                "glue": [read_result(path) for path in results]}


def read_result(path):
    """What finetune.py wrote of a task."""
    result = read_json(path, RESULT)
    for metric, score in result["scores"].items():
        check_form(score, {"mean": float, "std": float | None}, path, f'"{metric}"')
        check_form(result["majority"], {metric: float}, path)
    return result


class Analysis:
    """Runs, opened and checked, and the held-out sentences to look at them with."""

    def __init__(self, options):
        if options.data_dir and not options.task:
            reason = "which names the GLUE tasks to probe"
            raise UserError(f"--data-dir does nothing without --task, {reason}")
        for key in options.task:
            find_task(key)
        self.options, self.machine = options, Machine.start(options.device, "float32")
        names = short_names(options.runs)
        self.runs = [Run(path, name) for path, name in zip(options.runs, names, strict=True)]
        self.ceiling = None
        if options.ceiling:
            self.ceiling = Run(options.ceiling, f"{Path(options.ceiling).name} (ceiling)")
            check_ceiling(self.runs[0], self.ceiling)
        self.first, *others = self.compared = [*self.runs, *filter(None, [self.ceiling])]
        for other in others:
            if not same_tokenizer(self.first.tokenizer, other.tokenizer):
                raise UserError(
                    f"{self.first.name} and {other.name} have different tokenizers; to be "
                    "compared, runs need the same tokens: train one with --tokenizer and the "
                    "other's folder")
        self.tokenizer = self.first.tokenizer
        positions = (run.config.max_position_embeddings for run in self.runs)
        self.length = min(LONGEST, *(run.longest for run in self.runs), *positions)
        self.corpus = options.corpus or self.first.options.get("corpus", ["docs"])
        default = "-vs-".join(run.name.replace("/", "-") for run in self.runs)
        default += "-probes" * (len(self.runs) == 1)
        self.out = Path(options.out or f"runs/{default}")
        check_writable(self.out)
        self.fingerprint = None if options.corpus else self.first.fingerprint
        if not self.sentences:
            raise UserError(f"the held-out part of {' '.join(self.corpus)} has no sentences")
        self.out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def sentences(self):
        """Different held-out sentences, at most `examples`, spread over the corpus."""
        texts = held_out(open_corpus(self.corpus, self.fingerprint))
        every = list(dict.fromkeys(sentence for text in texts for sentence in sentences(text)))
        rng = np.random.default_rng(0)
        return [every[i] for i in sorted(rng.permutation(len(every))[: self.options.examples])]

    def cka(self):
        """CKA of the first run with each other one, ceiling and floor; each one's rank collapse."""
        device = self.machine.device
        encoders = {run.name: run.encoder.to(device) for run in self.compared}
        encoders["untrained"] = self.runs[-1].untrained(0).to(device)
        rows = encode([(sentence,) for sentence in self.sentences], self.tokenizer, self.length)
        batches = length_batches(rows, BATCH, np.random.default_rng(0))
        bar = tqdm(batches, desc="CKA", unit=" batches", leave=False, mininterval=0.3)
        inputs = (collate([rows[i] for i in batch], self.machine) for batch in bar)
        values, shapes, count = compare(encoders, inputs, self.options.per_sentence)
        alike = {
            "rows": count, "rows_are": "sentences" if self.options.per_sentence else "tokens",
            "first": self.first.name, "others": [run.name for run in self.runs[1:]],
            "ceiling": self.ceiling and self.ceiling.name, "floor": "untrained",
            "values": {name: {output: x.tolist() for output, x in outputs.items()}
                       for name, outputs in values.items()},
            "collapse": {name: {"distance": x[:, 0].tolist(), "cosine": x[:, 1].tolist()}
                         for name, x in shapes.items()}}
        write_json(self.out / "cka.json", alike)
        figures.plot_cka(alike, self.out)
        figures.plot_collapse(alike["collapse"], self.out)
        return alike

    def probe(self):
        """Probe every run, and its untrained twin, on all tasks → {run: {task: scores}}."""
        options, device, probes = self.options, self.machine.device, {}
        tasks = text_tasks(self.sentences, options.examples)
        if options.conllu:
            tasks.append(treebank_task(options.conllu, options.examples))
        tasks += [glue_task(key, options.data_dir, options.examples) for key in options.task]
        for run in self.runs:
            untrained = lambda seed, run=run: run.untrained(seed).to(device)  # noqa: E731
            probes[run.name] = run_probes(
                run.encoder.to(device), untrained, tasks, self.tokenizer, self.machine, self.length,
                options.seeds, options.cls)
        write_json(self.out / "probe.json", probes)
        figures.plot_probes(probes, self.out)
        return probes

    def report(self):
        """Everything: cka.json, probe.json, figures, report.json, report.md → the report's text."""
        alike, probes = self.cka(), self.probe()
        facts = [run.facts() for run in self.runs]
        write_json(self.out / "report.json", {"runs": facts, "length": self.length})
        text = "\n\n".join(filter(None, self.parts(facts, alike, probes))) + "\n"
        write_text(self.out / "report.md", text)
        return text

    def replicates(self, facts, probes):
        """What groups of runs that differ in nothing but their seed say, or an empty string."""
        measured = {run.name: replicates.measures(each, probes[run.name])
                    for run, each in zip(self.runs, facts, strict=True)}
        groups, values = replicates.group_runs(self.runs), []
        for group in groups:
            each = [measured[run.name] for run in group]
            names = dict.fromkeys(name for run in each for name in run)
            values.append({name: [run[name] for run in each if name in run] for name in names})
        return replicates.compare_groups(list(map(replicates.group_name, groups)), values)

    def parts(self, facts, alike, probes):
        """The parts of the report, in Markdown."""
        texts = {run.record["corpus"]["fingerprint"] for run in self.runs if run.record}
        yield f"# {', '.join(run.name for run in self.runs)}"
        yield "\n".join(tables.findings(facts, alike, probes))
        yield tables.runs_table(facts)
        yield self.replicates(facts, probes)
        yield tables.baseline_text(self.first.record.get("baseline"))
        if len(texts) > 1:
            source = " ".join(self.corpus)
            yield ("These runs were trained on different text; "
                   f"the sentences here are held out from {source}.")
        yield tables.glue_table(facts)
        yield tables.cka_text(alike)
        yield tables.cka_table(alike)
        yield "\n".join(f"![CKA]({name})" for name in figures.cka_files(alike))
        yield tables.probe_text(self.options.seeds)
        yield tables.probe_table(probes)
        yield "![Probes](probes.png)"
        yield tables.collapse_table(alike)
        yield "![Rank collapse](collapse.png)"


def check_ceiling(first, ceiling):
    """Raise UserError if the ceiling is not another seed of the first run."""
    if ceiling.folder.resolve() == first.folder.resolve():
        raise UserError("--ceiling names the first run itself: its CKA would be 1")
    if ceiling.config != first.config:
        raise UserError(f"--ceiling {ceiling.folder} has another architecture than {first.name}: "
                        "give another seed of it")


def short_names(paths):
    """The runs' folder names, or if these are not all different, their paths."""
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"a run is given twice: {' '.join(map(str, paths))}")
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else [str(Path(path)) for path in paths]


def analyse(command, options):
    """Do one of report, cka and probe → its tables as text, and where the rest is."""
    if command != "probe" and len(options.runs) < 2:
        given = f"only {options.runs[0]} was given"
        raise UserError(f"{command} compares two runs or more, but {given}")
    analysis = Analysis(options)
    if command == "report":
        parts = [analysis.report()]
    elif command == "cka":
        alike = analysis.cka()
        parts = [tables.cka_text(alike), tables.cka_table(alike), tables.collapse_table(alike)]
    else:
        parts = [tables.probe_text(options.seeds), tables.probe_table(analysis.probe())]
    text = "\n\n".join(parts)
    files = ", ".join(sorted(path.name for path in analysis.out.iterdir()))
    return f"{text}\n\nwritten to {analysis.out}: {files}"
