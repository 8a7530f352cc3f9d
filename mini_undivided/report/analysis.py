"""Compare runs: CKA, attention, probes and rank collapse, as one table of results and a report.

Runs that differ in nothing but their seed are a kind; what is shown are the means of kinds.
"""

from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from mini_undivided.attention import STATISTICS, attention_sums, attention_weights
from mini_undivided.cka import compare
from mini_undivided.corpus import held_out, open_corpus, sentences
from mini_undivided.glue import collate, length_batches
from mini_undivided.probe import run_probes
from mini_undivided.probe_tasks import glue_task, text_tasks, treebank_task
from mini_undivided.report import figures, replicates, tables
from mini_undivided.report.opened import SavedRun, short_names
from mini_undivided.report.results import (
    CONTROL,
    TOKENS_COMPARED,
    TWO_SEEDS,
    UNTRAINED,
    VALID,
    cka_rows,
    compared,
    kinds_of,
    layer_rows,
    make_results,
    rows_of,
)
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_writable, write_text
from mini_undivided.support.machine import Machine
from mini_undivided.support.run_directory import results_folder
from mini_undivided.support.tasks import find_task
from mini_undivided.support.terminal import progress
from mini_undivided.tokenizer import encode, same_tokenizer, special_ids

BATCH = 32  # sentences in a forward pass
LONGEST = 128  # tokens of a sentence that are used
LONGEST_DRAWN = 40
COLLAPSE = ("distance from the mean, relative to the norm", "mean cosine of two tokens")


class Analysis:
    """Runs, opened and checked, and the held-out sentences on which they are compared."""

    def __init__(self, options):
        if options.data_dir and not options.task:
            raise UserError("--data-dir does nothing without --task, "
                            "which names the GLUE tasks to probe")
        tasks = [find_task(key) for key in options.task]
        self.options, self.machine = options, Machine.start(options.device, "float32")
        torch.set_float32_matmul_precision("highest")  # TF32 is too coarse for a probe's search
        names = short_names(options.runs)
        self.runs = [SavedRun(path, name) for path, name in zip(options.runs, names, strict=True)]
        if any(len(task.texts) > 1 for task in tasks):
            for run in self.runs:
                run.config.check_pairs(run.name)
        self.first, *others = self.runs
        for other in others:
            if not same_tokenizer(self.first.tokenizer, other.tokenizer):
                raise UserError(
                    f"{self.first.name} and {other.name} have different tokenizers; to be "
                    "compared, runs need the same tokens: train one with --tokenizer and the "
                    "other's folder")
        self.groups = replicates.group_runs(self.runs)  # {kind: runs}
        for kind, runs in self.groups.items():
            for run in runs:
                run.kind = kind
        untrained = [kind + UNTRAINED for kind in self.groups]  # which have no seed
        self.starts = {name: {"kind": name, "run": name} for name in untrained}
        self.starts |= {run.name: run.start for run in self.runs}
        self.one_kind = len(self.runs) > 1 == len({run.replicates for run in self.runs})
        self.tokenizer = self.first.tokenizer
        self.length = min(LONGEST, *(run.longest for run in self.runs))
        self.corpus = options.corpus or self.first.options.get("corpus", ["docs"])
        default = "-vs-".join(name.replace("/", "-") for name in self.groups)
        self.out = Path(options.out or f"runs/report-{default}")
        check_writable(self.out)
        self.fingerprint = None if options.corpus else self.first.fingerprint
        if not self.sentences:
            raise UserError(f"the held-out part of {' '.join(self.corpus)} has no sentences")

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
        bar = progress(batches, desc=name, unit=" batches")
        return (collate([rows[i] for i in batch], self.machine) for batch in bar)

    @cached_property
    def encoders(self):
        """Every run's encoder, and for each kind an untrained one, on the device."""
        encoders = {run.name: run.encoder for run in self.runs}
        encoders |= {kind + UNTRAINED: runs[0].untrained(0) for kind, runs in self.groups.items()}
        return {name: encoder.to(self.machine.device) for name, encoder in encoders.items()}

    def facts(self):
        """Yield rows of each run, and of the best model without context on the first one's text."""
        for run in self.runs:
            yield from run.facts()
        if baseline := self.first.record.get("baseline"):
            for measure, name in (("validation loss", "loss"), ("masked accuracy", "accuracy")):
                yield {"kind": "no context", "measure": measure, "value": baseline[name]}

    def cka(self):
        """Yield rows of CKA of the first kind with each other one, ceilings and floors; collapse.

        A floor is the other kind's untrained model. A ceiling is the CKA of two runs of one kind,
        if it is as deep as the first.
        """
        first, *others = self.groups
        names = {kind: [run.name for run in runs] for kind, runs in self.groups.items()}
        depths = {kind: runs[0].config.num_hidden_layers for kind, runs in self.groups.items()}
        pairs = {kind: list(product(names[first], names[kind])) for kind in others}
        pairs |= {kind + TWO_SEEDS: list(combinations(runs, 2)) for kind, runs in names.items()
                  if len(runs) > 1 and depths[kind] == depths[first]}
        pairs |= {kind + UNTRAINED: [(self.first.name, kind + UNTRAINED)] for kind in others}
        values, collapse, count = compare(
            self.encoders, self.batches("CKA"), [pair for runs in pairs.values() for pair in runs])
        yield {"kind": first, "measure": TOKENS_COMPARED, "value": count}
        for kind, runs in pairs.items():
            for pair in runs:
                for output, matrix in values[pair].items():
                    yield from cka_rows({"kind": kind, "run": " & ".join(pair)}, output,
                                        matrix.tolist())
        for i, what in enumerate(COLLAPSE):
            for name, curves in collapse.items():
                yield from layer_rows(
                    self.starts[name], f"rank collapse: {what}", curves[:, i].tolist())

    def attention(self):
        """Yield rows of what the heads of runs and of untrained encoders attend to."""
        sums, count = dict.fromkeys(self.encoders, 0.0), 0
        for ids, mask, segments in self.batches("attention"):
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            is_sep = ids == special_ids(self.tokenizer)[3]
            count += int(real.sum())
            for name, encoder in self.encoders.items():
                weights = attention_weights(encoder, ids, mask, segments)
                sums[name] = sums[name] + attention_sums(weights, real, is_sep).cpu().double()
        for i, what in enumerate(STATISTICS.values()):
            for name, total in sums.items():
                for head, values in enumerate((total[i] / count).T.tolist(), 1):
                    start = {**self.starts[name], "head": head}
                    yield from layer_rows(start, f"attention: {what}", values, first=1)

    def probe(self):
        """Yield rows of probes of all runs, of their untrained counterparts, and controls."""
        options = self.options
        tasks = text_tasks(self.sentences, options.examples)
        if options.conllu:
            tasks.append(treebank_task(options.conllu, options.examples))
        tasks += [glue_task(key, options.data_dir, options.examples) for key in options.task]
        for run in self.runs:
            scores = run_probes(
                run.encoder.to(self.machine.device), run.untrained, tasks, self.tokenizer,
                self.machine, self.length, options.seeds)
            variants = {"trained": run.start, "control": {**run.start, "kind": run.kind + CONTROL}}
            if run is self.groups[run.kind][0]:  # all of a kind have the same untrained ones
                variants["untrained"] = self.starts[run.kind + UNTRAINED]
            for task, result in scores.items():
                measure = f"probe: {task} ({result['metric']})"
                for variant, start in variants.items():
                    if score := result.get(variant):
                        yield from layer_rows(start, measure, score["mean"], score["std"])
                        yield from layer_rows(start, VALID + measure, score["valid"])
                yield {"kind": "majority", "measure": measure, "value": result["majority"]}

    def texts(self, results):
        """Yield the parts of the report, in Markdown, of what was measured."""
        kinds = [*kinds_of(results).index]  # as Markdown shows them
        yield f"# {', '.join(kinds)}"
        yield "\n".join(tables.findings(results, self.one_kind))
        yield tables.runs_table(results)
        yield tables.replicates_text(compared(results), kinds)
        yield tables.baseline_text(results)
        if len({run.fingerprint for run in self.runs if run.record}) > 1:
            yield ("These runs were trained on different text; the sentences here are held out "
                   f"from {' '.join(self.corpus)}.")
        yield tables.glue_table(results)
        if not (cka := rows_of(results, "CKA: ")).empty:
            yield tables.cka_text(cka, kinds[0], self.one_kind)
            yield tables.layers_table(cka[cka.other_layer.isna() & cka.layer.notna()])
            files = map(figures.cka_file, [*self.groups][1:])
            yield "\n".join(f"![CKA]({quote(file)})" for file in files)
        if not (attention := rows_of(results, "attention: ")).empty:
            yield "What tokens attend to, on average over tokens and heads; ± is over runs:"
            yield tables.layers_table(attention)
            yield "![Attention](attention.png)"
        if not rows_of(results, "probe: ").empty:
            yield tables.probe_text(self.options.seeds)
            yield tables.probe_table(results)
            yield "![Probes](probes.png)"
        if not (collapse := rows_of(results, "rank collapse: ")).empty:
            yield ("Rank collapse: distance of a sentence's token vectors from their mean (0: all "
                   "alike), and mean cosine of two of its tokens (1: all alike):")
            yield tables.layers_table(collapse)
            yield "![Rank collapse](collapse.png)"


def analyse(command, options):
    """Do one of report, cka and probe, and write results.csv, figures and report.md → a summary."""
    if command != "probe" and len(options.runs) < 2:
        raise UserError(f"{command} compares two runs or more, "
                        f"but only {options.runs[0]} was given")
    analysis = Analysis(options)
    measured = {"report": (analysis.cka, analysis.attention, analysis.probe),
                "cka": (analysis.cka,), "probe": (analysis.probe,)}[command]
    rows = [row for measure in (analysis.facts, *measured) for row in measure()]
    results = make_results(rows)
    out = analysis.out
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "results.csv", results.to_csv(index=False))
    figures.plot_results(results, out, analysis.one_kind)
    literal = results.assign(kind=results.kind.map(tables.escape),
                             run=results.run.map(tables.escape, na_action="ignore"))
    write_text(out / "report.md", "\n\n".join(filter(None, analysis.texts(literal))) + "\n")
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    summary = tables.summary_text(results, analysis.one_kind)
    return f"{summary}\n{tables.wrap(f'written to {out}: {files}')}"


def draw_attention(run, sentence):
    """Draw the attention weights of a sentence → the path of the figure."""
    path = results_folder(run) / "attention.png"
    run = SavedRun(run)
    check_writable(path.parent)
    encoding = run.tokenizer.encode(sentence)
    most = min(LONGEST_DRAWN, run.longest)
    if len(encoding.ids) > most:
        reason = "can be drawn legibly" if most == LONGEST_DRAWN else "were seen in training"
        long = f"the sentence has {len(encoding.ids)} tokens"
        raise UserError(f"{long}, and no more than {most} {reason}: cut it")
    weights = attention_weights(run.encoder, torch.tensor([encoding.ids]))[:, 0]  # (L, H, T, T)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.plot_heads(weights, encoding.tokens, f"{run.name}: attention weights", path)
    return path
