"""Compare runs: CKA, probes and rank collapse, as tables, figures, JSON and one report.

Letters: L layers of a run, not counting the embeddings' output.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mini_undivided import cka, figures, glue, probe, runs, runtime
from mini_undivided import corpus as corpora
from mini_undivided import tokenizer as wordpiece
from mini_undivided.cka import equal_depth
from mini_undivided.model import BertConfig, Encoder, count_parameters
from mini_undivided.runtime import UserError

BATCH = 32  # sentences in a forward pass


@dataclass
class Options:
    """What analyze.py's options say. None: the default that the option's help gives."""

    runs: list[str]
    out: str | None = None
    corpus: list[str] | None = None
    examples: int = 5000
    seeds: int = 3
    ceiling: str | None = None
    per_sentence: bool = False
    cls: bool = False
    conllu: str | None = None
    task: list[str] = field(default_factory=list)
    data_dir: str | None = None
    device: str = "auto"


class Run:
    """A run directory (or a Hugging Face checkpoint) as it is read: config, encoder, tokenizer, records."""

    def __init__(self, directory, name):
        runs.check_finished(directory)
        self.folder, self.name = runs.resolve(directory), name
        self.config = BertConfig.from_hugging_face(self.folder)
        self.tokenizer = wordpiece.load(self.folder)
        wordpiece.check_fits(self.tokenizer, self.config.vocab_size, directory)
        known = (self.folder / "train.json").exists()
        self.record = runs.read_json(self.folder / "train.json") if known else {}
        self.result = self.record.get("result", {})

    @cached_property
    def encoder(self):
        return Encoder.from_pretrained(self.folder)

    def untrained(self, seed):
        """The same architecture with fresh weights."""
        torch.manual_seed(seed)
        return Encoder(self.config).eval()

    def glue(self):
        """What finetune.py left: a list of its results."""
        return [runs.read_json(path) for path in sorted((self.folder / "glue").glob("*.json"))]


class Analysis:
    """Runs, opened and checked, and the text to look at them with: held-out sentences that none was trained on."""

    def __init__(self, options):
        if options.data_dir and not options.task:
            raise UserError("--data-dir does nothing without --task, which names the GLUE tasks to probe")
        for key in options.task:
            glue.find_task(key)
        self.options, self.machine = options, runtime.start(options.device, "float32")
        self.runs = [Run(path, name) for path, name in zip(options.runs, short_names(options.runs), strict=True)]
        self.ceiling = Run(options.ceiling, f"{Path(options.ceiling).name} (ceiling)") if options.ceiling else None
        self.first = self.runs[0]
        for other in [*self.runs[1:], *([self.ceiling] if self.ceiling else [])]:
            if not wordpiece.same(self.first.tokenizer, other.tokenizer):
                raise UserError(
                    f"{self.first.name} and {other.name} have different tokenizers; to be compared, runs need the same "
                    "tokens: train one with --tokenizer and the other's folder"
                )
        self.tokenizer = self.first.tokenizer
        lengths = [run.record.get("options", {}).get("seq_len", run.config.max_position_embeddings) for run in self.runs]
        self.length = min(128, *lengths, *(run.config.max_position_embeddings for run in self.runs))
        self.corpus = options.corpus or self.first.record.get("options", {}).get("corpus", ["docs"])
        default = "-vs-".join(run.name.replace("/", "-") for run in self.runs)
        self.out = Path(options.out or f"runs/{default}")
        self.out.mkdir(parents=True, exist_ok=True)

    @cached_property
    def sentences(self):
        """Different held-out sentences, at most `examples`, spread over the corpus."""
        found = {}
        for text in corpora.held_out(corpora.open_corpus(self.corpus)):
            found.update(dict.fromkeys(corpora.sentences(text)))
        found = list(found)
        rng = np.random.default_rng(0)
        return [found[i] for i in sorted(rng.permutation(len(found))[: self.options.examples])]

    def cka(self):
        """CKA of the first run with each other one, with ceiling and floor, and every run's rank collapse → dictionary."""
        others = [*self.runs, *([self.ceiling] if self.ceiling else [])]
        encoders = {run.name: run.encoder.to(self.machine.device) for run in others}
        encoders["untrained"] = self.runs[-1].untrained(0).to(self.machine.device)
        rows = glue.encode(glue.Split([(s,) for s in self.sentences], None), self.tokenizer, self.length)
        batches = glue.length_batches(rows, BATCH, np.random.default_rng(0))
        bar = tqdm(batches, desc="CKA", unit=" batches", leave=False, mininterval=0.3)
        inputs = (glue.collate([rows[i] for i in batch], self.machine) for batch in bar)
        values, shapes, count = cka.compare(encoders, inputs, self.options.per_sentence)
        found = {
            "rows": count,
            "rows_are": "sentences" if self.options.per_sentence else "tokens",
            "first": self.first.name,
            "others": [run.name for run in self.runs[1:]],
            "ceiling": self.ceiling and self.ceiling.name,
            "floor": "untrained",
            "values": {name: {place: x.tolist() for place, x in places.items()} for name, places in values.items()},
            "collapse": {name: {"distance": x[:, 0].tolist(), "cosine": x[:, 1].tolist()} for name, x in shapes.items()},
        }
        runs.write_json(self.out / "cka.json", found)
        figures.plot_cka(found, self.out)
        figures.plot_collapse(found["collapse"], self.out)
        return found

    def probe(self):
        """Probe every run, and its untrained twin, on all tasks → {run: {task: scores}}."""
        options, found = self.options, {}
        tasks = probe.text_tasks(self.sentences, options.examples)
        if options.conllu:
            tasks.append(probe.conllu_task(options.conllu, options.examples))
        tasks += [probe.glue_task(key, options.data_dir, options.examples) for key in options.task]
        for run in self.runs:
            encoder = run.encoder.to(self.machine.device)
            fresh = lambda seed, run=run: run.untrained(seed).to(self.machine.device)  # noqa: E731
            found[run.name] = probe.run(
                encoder, fresh, tasks, self.tokenizer, self.machine, self.length, options.seeds, options.cls
            )
        runs.write_json(self.out / "probe.json", found)
        figures.plot_probes(found, self.out)
        return found

    def report(self):
        """Everything: cka.json, probe.json, figures, report.json and report.md → the report's text."""
        alike, probes = self.cka(), self.probe()
        runs.write_json(self.out / "report.json", {"runs": [self.facts(run) for run in self.runs], "length": self.length})
        text = "\n\n".join(filter(None, self.chapters(alike, probes))) + "\n"
        with runs.atomic(self.out / "report.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        return text

    def facts(self, run):
        """What the first table says of a run, and its GLUE results."""
        return {
            "name": run.name,
            "parameters": count_parameters(run.config),
            "ffns": run.config.num_hidden_layers if run.config.ffn_layers is None else len(run.config.ffn_layers),
            "layers": run.config.num_hidden_layers,
            "flops_per_token": run.record.get("flops_per_token"),
            **run.result,
            "glue": run.glue(),
        }

    def chapters(self, alike, probes):
        """The parts of the report, in Markdown."""
        facts = [self.facts(run) for run in self.runs]
        names = ", ".join(run.name for run in self.runs)
        others = {run.record["corpus"]["fingerprint"] for run in self.runs if run.record}
        yield f"# {names}"
        yield "\n".join(findings(facts, alike, probes))
        yield runs_table(facts)
        if len(others) > 1:
            yield f"These runs were trained on different text; the sentences here are held out from {' '.join(self.corpus)}."
        yield glue_table(facts)
        yield cka_text(alike)
        yield cka_table(alike)
        yield "\n".join(f"![CKA]({name})" for name in figures.cka_files(alike))
        yield probe_text(self.options.seeds)
        yield probe_table(probes)
        yield "![Probes](probes.png)"
        yield collapse_table(alike)
        yield "![Rank collapse](collapse.png)"


def short_names(paths):
    """The runs' folder names, or where these are not all different, their paths."""
    names = [Path(path).name for path in paths]
    if len(set(map(str, paths))) < len(paths):
        raise UserError(f"a run is given twice: {' '.join(map(str, paths))}")
    return names if len(set(names)) == len(names) else list(map(str, paths))


# Tables, in Markdown that is also readable in a terminal.


def table(header, rows):
    """Rows of strings as an aligned Markdown table; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
             for row in [header, rule, *rows]]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def spread(mean, deviation, scale=100):
    """A mean with its standard deviation, in hundredths."""
    return f"{scale * mean:.1f}" + ("" if deviation is None else f" ± {scale * deviation:.1f}")


def runs_table(facts):
    """Size, cost and pretraining result of each run."""

    def show(fact, name, form):
        return "–" if fact.get(name) is None else form.format(fact[name])

    header = ["run", "FFNs", "parameters", "MFLOPs a token", "tokens seen", "tokens/s", "validation loss", "masked accuracy"]
    names = ("flops_per_token", "tokens", "tokens_per_second", "validation_loss", "validation_accuracy")
    forms = ("{:.2f}", "{:,}", "{:,.0f}", "{:.3f}", "{:.1%}")
    rows = []
    for fact in facts:
        scaled = {**fact, "flops_per_token": fact["flops_per_token"] and fact["flops_per_token"] / 1e6}
        cells = [show(scaled, name, form) for name, form in zip(names, forms, strict=True)]
        rows.append([fact["name"], f"{fact['ffns']} of {fact['layers']}", f"{fact['parameters']:,}", *cells])
    return table(header, rows)


def glue_table(facts):
    """The dev scores that finetune.py left in the runs, or an empty string."""
    rows = {}
    for fact in facts:
        for result in fact["glue"]:
            column = fact["name"] + ", from scratch" * result["from_scratch"]
            for metric, score in result["scores"].items():
                row = rows.setdefault((result["name"], metric), {"majority": result["majority"][metric]})
                row[column] = spread(score["mean"], score["std"])
    columns = sorted({column for row in rows.values() for column in row if column != "majority"})
    body = [[f"{name} {metric}", *(row.get(column, "–") for column in columns), f"{100 * row['majority']:.1f}"]
            for (name, metric), row in rows.items()]  # fmt: skip
    return "Fine-tuned, dev scores × 100:\n\n" + table(["task", *columns, "majority"], body) if rows else ""


def cka_text(alike):
    ceiling = f", its ceiling {alike['ceiling']}" if alike["ceiling"] else ", no ceiling (--ceiling RUN, another seed)"
    return (
        f"Debiased linear CKA with {alike['first']} at equal depth, n = {alike['rows']:,} {alike['rows_are']}{ceiling}, "
        "its floor an untrained model of the last run's architecture:"
    )


def cka_table(alike):
    """CKA at equal depth: a row a layer, a column for each other run, ceiling and floor, at both places."""
    names = list(alike["values"])
    columns = [(name, place) for place in cka.PLACES for name in names]
    curves = {(n, p): [value for *_, value in equal_depth(alike["values"][n][p])] for n, p in columns}
    depth = len(curves[names[0], "block"])
    rows = [["embeddings", *(f"{curves[n, p][0]:.3f}" if p == "block" else "–" for n, p in columns)]]
    for layer in range(1, depth):
        cells = [curves[n, p][layer if p == "block" else layer - 1] for n, p in columns]
        rows.append([f"layer {layer}", *(f"{value:.3f}" for value in cells)])
    return table(["", *(f"{name}, {place}" for name, place in columns)], rows)


def probe_text(seeds):
    return (
        f"Linear probes on frozen features, test scores × 100 of each run's best layer (0: embeddings), mean ± deviation "
        f"over {seeds} seeds:"
    )


def probe_table(probes):
    """For each task and run its best layer, beside embeddings, untrained encoder, majority and control."""
    header = ["task", "run", "layer", "score", "embeddings", "untrained", "majority", "control", "selectivity"]
    rows = []
    for task in next(iter(probes.values())):
        for name, found in probes.items():
            scores = found[task]
            rows.append([task, name, *probe_cells(scores)])
    return table(header, rows)


def probe_cells(scores):
    """The cells of one task and run: layer, score, embeddings, untrained, majority, control, selectivity."""

    def at(kind, layer):
        return spread(scores[kind]["mean"][layer], scores[kind]["std"] and scores[kind]["std"][layer])

    best = int(np.argmax(scores["trained"]["mean"]))
    cells = [str(best), at("trained", best), at("trained", 0), at("untrained", int(np.argmax(scores["untrained"]["mean"])))]
    control = ["–", "–"]
    if "control" in scores:
        gap = scores["trained"]["mean"][best] - scores["control"]["mean"][best]
        control = [at("control", best), f"{100 * gap:.1f}"]
    return [*cells, f"{100 * scores['majority']:.1f}", *control]


def collapse_table(alike):
    """The last layers' rank collapse, and the embeddings'."""
    rows = []
    for name, found in alike["collapse"].items():
        for kind in ("distance", "cosine"):
            rows.append([f"{name}, {kind}", f"{found[kind][0]:.3f}", f"{min(found[kind]):.3f}",
                         f"{max(found[kind]):.3f}", f"{found[kind][-1]:.3f}"])  # fmt: skip
    head = (
        "Rank collapse: distance of a sentence's token vectors from their mean, relative to their norm (0: all alike), and "
        "mean cosine of two of its tokens (1: all alike):\n\n"
    )
    return head + table(["", "embeddings", "least", "most", "last layer"], rows)


def findings(facts, alike, probes):
    """Two or three sentences a pair of runs: what the numbers say, and how far they go."""
    first = facts[0]
    for other in facts[1:]:
        yield cost_sentence(first, other)
        yield alike_sentence(alike, other["name"])
        gaps = {task: max(probes[other["name"]][task]["trained"]["mean"]) - max(found["trained"]["mean"])
                for task, found in probes[first["name"]].items()}  # fmt: skip
        listed = ", ".join(f"{task} {100 * gap:+.1f}" for task, gap in gaps.items())
        yield f"Best-layer probe scores of {other['name']} less those of {first['name']}, in points: {listed}."
    yield "Each run is one seed of pretraining: differences as small as those between seeds say nothing of FFNs."


def cost_sentence(first, other):
    """Size, compute and validation loss of a run beside the first one's."""
    text = f"{other['name']} has {other['parameters'] / first['parameters']:.0%} of {first['name']}'s parameters"
    if first["flops_per_token"] and other["flops_per_token"]:
        text += f" and {other['flops_per_token'] / first['flops_per_token']:.0%} of its FLOPs a token"
    if "validation_loss" in first and "validation_loss" in other:
        gap = other["validation_loss"] - first["validation_loss"]
        seen = " and ".join(dict.fromkeys(f"{run['tokens']:,}" for run in (other, first)))
        text += f"; after {seen} tokens its validation loss is {abs(gap):.3f} nats "
        text += "higher" if gap > 0 else "lower"
    return text + "."


def alike_sentence(alike, name):
    """The mean CKA of attention outputs at equal depth, on the scale from floor to ceiling."""
    mean = {
        key: float(np.mean([value for *_, value in equal_depth(places["attention"])]))
        for key, places in alike["values"].items()
    }
    floor, ceiling = mean[alike["floor"]], mean.get(alike["ceiling"])
    text = f"At equal depth, CKA of its attention outputs with {alike['first']}'s is {mean[name]:.2f} in the mean"
    if ceiling is None:
        return text + f" (floor {floor:.2f}); without a ceiling one cannot say whether that is much."
    text += f"; another seed of {alike['first']} has {ceiling:.2f}, an untrained model {floor:.2f}"
    if ceiling - floor < 0.05:
        return text + ": too close together to tell likeness from none."
    return text + f", so it goes {(mean[name] - floor) / (ceiling - floor):.0%} of the way from floor to ceiling."
