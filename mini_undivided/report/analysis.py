"""Compare runs: CKA, attention, probes and rank collapse, as tables, figures and one report.

Runs that differ in nothing but their seed are a group; what is shown are the means of groups.
"""

from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mini_undivided.attention import STATISTICS, attention_sums, attention_weights
from mini_undivided.cka import OUTPUTS, compare
from mini_undivided.corpus import held_out, open_corpus, sentences
from mini_undivided.glue import collate, length_batches
from mini_undivided.metrics import mean_and_std
from mini_undivided.costs import count_parameters
from mini_undivided.model import BertConfig, Encoder
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
from mini_undivided.probe_tasks import glue_task, text_tasks, treebank_task
from mini_undivided.support.run_directory import (
    check_finished,
    read_record,
    resolve,
    results_folder,
)
from mini_undivided.support.tasks import find_task
from mini_undivided.tokenizer import (
    check_fits,
    encode,
    load_tokenizer,
    same_tokenizer,
    special_ids,
)

BATCH = 32  # sentences in a forward pass
RESULT = {"task?": str, "name": str, "from_scratch": bool, "scores": dict, "majority": dict}
LONGEST = 128  # tokens of a sentence that are looked at
LONGEST_DRAWN = 40


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
        torch.set_float32_matmul_precision("highest")  # TF32 is too coarse for a probe's search
        names = short_names(options.runs)
        self.runs = [Run(path, name) for path, name in zip(options.runs, names, strict=True)]
        if any(len(find_task(key).texts) > 1 for key in options.task):
            for run in self.runs:
                run.config.check_pairs(run.name)
        self.first, *others = self.runs
        for other in others:
            if not same_tokenizer(self.first.tokenizer, other.tokenizer):
                raise UserError(
                    f"{self.first.name} and {other.name} have different tokenizers; to be "
                    "compared, runs need the same tokens: train one with --tokenizer and the "
                    "other's folder")
        self.groups = replicates.group_runs(self.runs)  # {name: runs}
        self.one_kind = len(self.runs) > 1 and replicates.are_alike(self.runs)
        self.tokenizer = self.first.tokenizer
        positions = (run.config.max_position_embeddings for run in self.runs)
        self.length = min(LONGEST, *(run.longest for run in self.runs), *positions)
        self.corpus = options.corpus or self.first.options.get("corpus", ["docs"])
        default = "-vs-".join(name.replace("/", "-") for name in self.groups)
        self.out = Path(options.out or f"runs/report-{default}")
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

    def batches(self, name):
        """The sentences as batches of (ids, mask, segments), with a progress bar of that name."""
        rows = encode([(sentence,) for sentence in self.sentences], self.tokenizer, self.length)
        batches = length_batches(rows, BATCH, np.random.default_rng(0))
        bar = tqdm(batches, desc=name, unit=" batches", leave=False, mininterval=0.3, disable=None)
        return (collate([rows[i] for i in batch], self.machine) for batch in bar)

    @cached_property
    def encoders(self):
        """Every run's encoder, and for each group an untrained one, on the device."""
        encoders = {run.name: run.encoder for run in self.runs}
        encoders |= {untrained(name): runs[0].untrained(0) for name, runs in self.groups.items()}
        return {name: encoder.to(self.machine.device) for name, encoder in encoders.items()}

    def average(self, values):
        """Values by run → {group, or untrained group: mean and deviation over its runs}."""
        means = {name: mean_and_std([values[run.name] for run in runs])
                 for name, runs in self.groups.items()}
        return means | {untrained(name): mean_and_std([values[untrained(name)]])
                        for name in self.groups}

    def cka(self):
        """CKA of the first group with each other one, ceilings and floors; each one's collapse.

        A floor is the other group's untrained model. A ceiling is the CKA of two runs of one group,
        if it is as deep as the first.
        """
        first, *others = self.groups
        names = {name: [run.name for run in runs] for name, runs in self.groups.items()}
        depth = self.first.config.num_hidden_layers
        deep = {name: runs[0].config.num_hidden_layers for name, runs in self.groups.items()}
        pairs = {name: list(product(names[first], names[name])) for name in others}
        pairs |= {two_seeds(name): list(combinations(each, 2))
                  for name, each in names.items() if len(each) > 1 and deep[name] == depth}
        pairs |= {untrained(name): [(self.first.name, untrained(name))] for name in others}
        every = [pair for each in pairs.values() for pair in each]
        values, shapes, count = compare(
            self.encoders, self.batches("CKA"), every, self.options.per_sentence)
        alike = {
            "rows": count, "rows_are": "sentences" if self.options.per_sentence else "tokens",
            "first": first, "others": others, "one_kind": self.one_kind,
            "floors": {name: untrained(name) for name in others},
            "ceilings": [name for name in map(two_seeds, names) if name in pairs],
            "values": {name: {output: mean_and_std([values[pair][output] for pair in each])
                              for output in OUTPUTS} for name, each in pairs.items()},
            "collapse": {kind: self.average({name: x[:, i] for name, x in shapes.items()})
                         for i, kind in enumerate(("distance", "cosine"))}}
        write_json(self.out / "cka.json", alike)
        figures.plot_cka(alike, self.out)
        figures.plot_collapse(alike["collapse"], self.out)
        return alike

    def attention(self):
        """What heads look at → {run or untrained group: {statistic: (L, H)}}."""
        sums, count = dict.fromkeys(self.encoders, 0.0), 0
        for ids, mask, segments in self.batches("attention"):
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            is_sep = ids == special_ids(self.tokenizer)[3]
            count += int(real.sum())
            for name, encoder in self.encoders.items():
                weights = attention_weights(encoder, ids, mask, segments)
                sums[name] = sums[name] + attention_sums(weights, real, is_sep).cpu().double()
        looks = {name: dict(zip(STATISTICS, (x / count).tolist(), strict=True))
                 for name, x in sums.items()}
        write_json(self.out / "attention.json", looks)
        figures.plot_attention(self.attention_groups(looks), self.out)
        return looks

    def attention_groups(self, looks):
        """Statistics by run → {statistic: {group: mean and deviation by layer, of all heads}}.

        "heads": those of each run, (runs, L, H).
        """
        by_group = {}
        for kind in STATISTICS:
            heads = {name: np.array(each[kind]) for name, each in looks.items()}  # (L, H)
            by_group[kind] = self.average({name: x.mean(1) for name, x in heads.items()})
            for name, values in by_group[kind].items():
                members = [run.name for run in self.groups.get(name, ())] or [name]
                values["heads"] = [heads[member] for member in members]
        return by_group

    def probe(self):
        """Probe every run, and its untrained twin, on all tasks → {run: {task: scores}}."""
        options, device, probes = self.options, self.machine.device, {}
        tasks = text_tasks(self.sentences, options.examples)
        if options.conllu:
            tasks.append(treebank_task(options.conllu, options.examples))
        tasks += [glue_task(key, options.data_dir, options.examples) for key in options.task]
        for run in self.runs:
            fresh = lambda seed, run=run: run.untrained(seed).to(device)  # noqa: E731
            probes[run.name] = run_probes(
                run.encoder.to(device), fresh, tasks, self.tokenizer, self.machine, self.length,
                options.seeds, options.cls)
        write_json(self.out / "probe.json", probes)
        figures.plot_probes(self.probe_groups(probes), self.out)
        return probes

    def probe_groups(self, probes):
        """Scores of run_probes by run → by group, over the group's runs if it has several."""
        return {name: replicates.average_probes([probes[run.name] for run in runs])
                for name, runs in self.groups.items()}

    def report(self):
        """Everything: JSON files, figures, report.md → the report's text."""
        alike, looks, probes = self.cka(), self.attention(), self.probe()
        facts = {run.name: run.facts() for run in self.runs}
        write_json(self.out / "report.json", {"runs": [*facts.values()], "length": self.length})
        text = "\n\n".join(filter(None, self.parts(facts, alike, looks, probes))) + "\n"
        write_text(self.out / "report.md", text)
        return text

    def replicates(self, facts, looks, probes, by_group):
        """What the groups say of one another, or an empty string; by_group: of probe_groups."""
        measured = {}
        for name, runs in self.groups.items():
            layers = {task: tables.best_layer(each["trained"])
                      for task, each in by_group[name].items()}
            measured[name] = replicates.collect([
                replicates.measures(facts[run.name], looks[run.name], probes[run.name], layers)
                for run in runs])
        return replicates.compare_groups(measured)

    def parts(self, facts, alike, looks, probes):
        """The parts of the report, in Markdown."""
        texts = {run.record["corpus"]["fingerprint"] for run in self.runs if run.record}
        groups = [{**replicates.group_facts([facts[run.name] for run in runs]), "name": name}
                  for name, runs in self.groups.items()]
        by_group = self.probe_groups(probes)
        yield f"# {', '.join(self.groups)}"
        yield "\n".join(tables.findings(groups, alike, by_group))
        yield tables.runs_table(facts.values())
        yield self.replicates(facts, looks, probes, by_group)
        yield tables.baseline_text(self.first.record.get("baseline"))
        if len(texts) > 1:
            source = " ".join(self.corpus)
            yield ("These runs were trained on different text; "
                   f"the sentences here are held out from {source}.")
        yield tables.glue_table(facts.values())
        yield tables.cka_text(alike)
        yield tables.cka_table(alike)
        yield "\n".join(f"![CKA]({name})" for name in figures.cka_files(alike))
        yield tables.attention_table(self.attention_groups(looks))
        yield "![Attention](attention.png)"
        yield tables.probe_text(self.options.seeds)
        yield tables.probe_table(by_group)
        yield "![Probes](probes.png)"
        yield tables.collapse_table(alike)
        yield "![Rank collapse](collapse.png)"


def untrained(name):
    """The name of a group's untrained model."""
    return f"{name}, untrained"


def two_seeds(name):
    """The name of the comparison of a group's runs with one another."""
    return f"{name}, two seeds"


def short_names(paths):
    """The runs' folder names, or if these are not all different, their paths."""
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"a run is given twice: {' '.join(map(str, paths))}")
    names = [Path(path).resolve().name if Path(path).is_dir() else Path(path).name
             for path in paths]
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
        scores = analysis.probe_groups(analysis.probe())
        parts = [tables.probe_text(options.seeds), tables.probe_table(scores)]
    text = "\n\n".join(parts)
    files = ", ".join(sorted(path.name for path in analysis.out.iterdir()))
    return f"{text}\n\nwritten to {analysis.out}: {files}"


def draw_attention(run, sentence):
    """Draw who looks at whom in a sentence → the path of the figure."""
    path = results_folder(run) / "attention.png"
    run = Run(run, Path(run).name)
    check_writable(path.parent)
    encoding = run.tokenizer.encode(sentence)
    most = min(LONGEST_DRAWN, run.longest)
    if len(encoding.ids) > most:
        reason = "can be drawn legibly" if most == LONGEST_DRAWN else "were seen in training"
        long = f"the sentence has {len(encoding.ids)} tokens"
        raise UserError(f"{long}, and no more than {most} {reason}: cut it")
    weights = attention_weights(run.encoder, torch.tensor([encoding.ids]))[:, 0]  # (L, H, T, T)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.plot_heads(weights, encoding.tokens, f"{run.name}: who looks at whom", path)
    return path
