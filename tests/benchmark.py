"""How fast this is, against `transformers` and against the machine itself. Needs the [test] extra.

    python tests/benchmark.py [--quick] [--only step|tokenise|finetune|growth|quality]

Contenders run in turn (A B A B …), each round of each in a process of its own, on equal work: the
same sizes, batch, text and precision. Tables show the median, with the lowest and the highest in
brackets; ratios are of the medians. All is measured on the CPU; gpu_check.py measures a GPU.

quality is run on request only (three quarters of an hour): the minutes to a given loss, with
`transformers`' usual recipe and with ours. Its curves go to docs/results/quality.json, contender by
contender, so that it can be stopped and started again, and from there to docs/quality.svg.
"""

import argparse
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader

from mini_undivided import data, glue, optim, pretrain, run
from mini_undivided import model as models
from mini_undivided.corpus import open_corpus
from mini_undivided.costs import flops_per_token
from mini_undivided.model import MaskedLM
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import PRESETS, FinetuneOptions, PretrainOptions
from mini_undivided.support.run_directory import read_log
from mini_undivided.support.tasks import Split
from mini_undivided.tokenizer import (
    SPECIAL, assemble, finish, load_tokenizer, save_tokenizer, train_tokenizer, word_pieces)
from mini_undivided.tokens import batches, cached_tokenizer, tokenize

# layers, width, heads, vocabulary, batch, tokens of a sequence: the training step
SIZES = {"4 × 128": (4, 128, 4, 8192, 32, 128), "4 × 256": (4, 256, 4, 8192, 32, 128),
         "12 × 768": (12, 768, 12, 30528, 8, 128)}
# tokens of a sentence: log mean, deviation, least, most
FINETUNE = {"SST-2": (2.4, 0.65, 3, 64), "MRPC": (3.95, 0.27, 25, 100)}


# The parent: starts workers, gathers their results, prints tables

def measure(worker, **spec):
    """Run a worker in a process of its own → the dictionary that it prints as its last line."""
    print(worker, spec, file=sys.stderr)
    command = [sys.executable, __file__, "--worker", worker, json.dumps(spec)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode:
        sys.exit(f"the worker {worker} failed with {spec}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(contenders, rounds):
    """Run every (worker, spec) of a dictionary once a round → {name: {key: a value a round}}."""
    results = {name: defaultdict(list) for name in contenders}
    for _, (name, (worker, spec)) in itertools.product(range(rounds), contenders.items()):
        for key, value in measure(worker, **spec).items():
            results[name][key].append(value)
    return results


def spread(values, scale=1.0, digits=0):
    """Median (lowest–highest) as text."""
    chosen = median(values), min(values), max(values)
    mid, low, high = (f"{value / scale:,.{digits}f}" for value in chosen)
    return f"{mid} ({low}–{high})"


def print_table(title, header, rows):
    """Print a Markdown table."""
    from mini_undivided.report.tables import table  # late: workers measure their memory

    rows = [[str(cell) for cell in row] for row in rows]
    print(f"\n**{title}**\n\n{table(header, rows)}", flush=True)


def step_section(args):
    """A whole training step: batch and masking, forward, backward, clipping, AdamW."""
    speeds, rates = [], []
    for name, size in SIZES.items():
        if args.quick and size[0] == 12:
            continue
        spec = {"size": size, "seconds": 2 if args.quick else 6}
        contenders = {
            "ours": ("our_step", {**spec, "products": True}),
            "transformers": ("their_step", spec),
            "ours, no FFN": ("our_step", {**spec, "products": True, "ffn_layers": []})}
        ours, theirs, without = results = [*in_turn(contenders, args.rounds).values()]
        tokens = [median(result["tokens_per_second"]) for result in results]
        memory = [median(result["peak_bytes"]) for result in results]
        speeds.append([
            name, *(spread(result["tokens_per_second"]) for result in results),
            f"{tokens[0] / tokens[1]:.2f}", f"{tokens[2] / tokens[0]:.2f}",
            " / ".join(f"{peak / 1e6:,.0f}" for peak in memory), f"{memory[0] / memory[1]:.2f}"])
        for label, result in (("with FFNs", ours), ("no FFN", without)):
            rates.append([
                name, label, spread(result["flops_per_second"], 1e9),
                spread(result["matrix_rate"], 1e9), f"{median(result['use']):.2f}",
                f"{median(result['loader_ratio']):.2%}"])
    print_table(
        "Training step: tokens/s, and peak memory of the process in MB",
        ["layers × width", *contenders, "ours / transformers", "no FFN / with",
         "memory: ours / transformers / no FFN", "ours / transformers"], speeds)
    print_table(
        "Ours against the machine's own matrix multiplications of these shapes, in GFLOP/s",
        ["layers × width", "", "the step", "products alone", "ratio", "batch and masking"], rates)


def tokenise_section(args):
    """Our path from text to token file, against the tokenizers library alone.

    The library's own batch calls get the same text from memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = write_text(folder, (4 if args.quick else 50) * 10**6)
        calls = {call: ("their_tokens", {**spec, "call": call})
                 for call in ("encode_batch", "encode_batch_fast")}
        results = in_turn({"ours, to disk": ("our_tokens", spec), **calls}, args.rounds)
    ours = median(results["ours, to disk"]["bytes_per_second"])
    rows = [[name, spread(result["bytes_per_second"], 1e6, 2),
             f"{ours / median(result['bytes_per_second']):.2f}",
             f"{median(result['peak_bytes']) / 1e6:,.0f}"] for name, result in results.items()]
    print_table("Tokenising: MB/s", ["", "MB/s", "ours / this", "peak memory, MB"], rows)


def finetune_section(args):
    """An epoch of fine-tuning, against a plain loop with padding.

    The sentences are as long as those of SST-2 and MRPC.
    """
    rows = []
    for name, lengths in FINETUNE.items():
        spec = {"size": (4, 256, 4, 8192, 32), "lengths": lengths,
                "count": 192 if args.quick else 1600}
        contenders = {"ours": ("our_finetune", spec), "transformers": ("their_finetune", spec)}
        results = in_turn(contenders, args.rounds).values()
        ours, theirs = (median(result["examples_per_second"]) for result in results)
        rows.append([name, *(spread(result["examples_per_second"]) for result in results),
                     f"{ours / theirs:.2f}",
                     *(f"{median(result['padding']):.1%}" for result in results)])
    print_table("Fine-tuning 4 × 256, batch 32: examples/s, and the ratio of padding",
                ["as long as", "ours", "transformers", "ratio", "padding: ours", "transformers"],
                rows)


def growth_section(args):
    """How the cost of a training step grows with model and sequence, of tokenising with text."""
    names = [name for name in PRESETS if name != "laptop"][: 2 if args.quick else None]
    lengths, rows = (64, 128) if args.quick else (64, 128, 256, 512), []
    for name, ffn_layers in itertools.product(names, (None, [])):  # sizes of Turc et al. 2019
        layers, width, heads = (PRESETS[name][key] for key in ("layers", "hidden_size", "heads"))
        cells = []
        for T in lengths:
            result = measure("our_step", size=(layers, width, heads, 8192, 2048 // T, T),
                             seconds=1, ffn_layers=ffn_layers)
            cells.append(f"{result['tokens_per_second']:,.0f} / {result['peak_bytes'] / 1e6:,.0f}")
        rows.append([f"{name} {layers} × {width}" + ", no FFN" * (ffn_layers == []), *cells])
    print_table("Training, 2,048 tokens a batch, vocabulary 8,192: tokens/s / peak memory in MB, "
                "by sequence length", ["model", *map(str, lengths)], rows)
    rows = []
    for megabytes in (1, 4) if args.quick else (1, 10, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            result = measure("our_tokens", **write_text(folder, megabytes * 10**6))
        rows.append([f"{megabytes:,} MB", f"{result['bytes_per_second'] / 1e6:.2f}",
                     f"{result['peak_bytes'] / 1e6:,.0f}"])
    print_table("Tokenising, by the size of the corpus", ["", "MB/s", "peak memory, MB"], rows)


def write_text(folder, size):
    """Write a text file of about `size` bytes, and a tokenizer for it → their paths.

    The frequencies of its words are Zipf's.
    """
    chance = random.Random(0)
    letters = "etaoinshrdlucmwfgypb", range(20, 0, -1)  # and how often they come
    words = ["".join(chance.choices(*letters, k=chance.randint(1, 11))) for _ in range(30000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    block = ""
    while len(block) < min(size, 4 * 10**6):
        block += " ".join(chance.choices(words, weights, k=300)).capitalize() + ".\n"
    save_tokenizer(train_tokenizer(block[: 10**6].splitlines(), 8192), folder)
    path = Path(folder) / "text.txt"
    with open(path, "w") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
    return {"text": str(path), "tokenizer": folder}


RESULTS = Path(__file__).parent.parent / "docs" / "results" / "quality.json"
RATES = (5e-4, 1e-3, 2e-3)  # what the usual recipe is tried with; its best one counts


def quality_section(args):
    """Minutes to a given validation loss, on the same tokens and validation masks.

    Theirs: BertForMaskedLM with its dropout, AdamW, 15 % dynamic masking, full-length sequences, a
    linear warm-up and decay. Ours: the laptop preset, with all FFNs.
    """
    contenders = {
        f"transformers, learning rate {lr:g}": ("their_quality", {
            "steps": 300 if args.quick else 5000, "lr": lr}) for lr in RATES}
    shorter = {"steps": 300} if args.quick else {}
    contenders |= {f"ours, seed {seed}": ("our_quality", {"seed": seed, **shorter})
                   for seed in range(1 if args.quick else 3)}
    curves = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.quick else {}
    for name, (worker, spec) in contenders.items():
        if name not in curves:
            curves[name] = measure(worker, **spec)
            if not args.quick:
                RESULTS.write_text(json.dumps(curves, indent=1) + "\n")
    report_quality(curves)
    if not args.quick:
        plot_quality(curves)


def report_quality(curves):
    """Print the minutes to each loss, and how each run ended."""
    lowest = {name: min(loss for *_, loss in curve["points"]) for name, curve in curves.items()}
    theirs = min((name for name in curves if "transformers" in name), key=lowest.get)
    ours = [curve["points"] for name, curve in curves.items() if "ours" in name]
    rows = []
    for loss in (6.0, 5.75, round(lowest[theirs], 3), 5.5, 5.0, 4.5, 4.25, 4.0):
        slow, *quick = (minutes_to(loss, points) for points in (curves[theirs]["points"], *ours))
        rows.append([loss, f"{slow:.2f}", " ".join(f"{minutes:.2f}" for minutes in np.sort(quick)),
                     f"{slow / np.median(quick):.1f}"])
    print_table("Minutes of training to a validation loss: 4 × 128, 1,024 tokens a step, one run "
                "each", ["loss", theirs, f"ours, {len(ours)} seeds", "ratio to the median"], rows)
    rows = [[name, f"{curve['points'][-1][2]:.3f}", f"{curve['accuracy']:.1%}",
             f"{curve['points'][-1][1] / 60:.1f}"] for name, curve in curves.items()]
    print_table("At the end", ["run", "validation loss", "masked accuracy", "minutes"], rows)


def minutes_to(loss, points):
    """Minutes until a curve of (step, seconds, loss) reaches a loss, interpolated, or NaN."""
    before = (0, 0.0, math.inf)
    for point in points:
        if point[2] <= loss:
            drop = before[2] - point[2]  # infinite before the first point
            return (point[1] - (loss - point[2]) / drop * (point[1] - before[1])) / 60
        before = point
    return math.nan


def plot_quality(curves):
    """Loss against minutes, as docs/quality.svg."""
    # late: workers measure their memory
    from mini_undivided.report.figures import figure, legend_below

    title = "Minutes to a validation loss: this recipe and the usual one"
    lines = {"0.001": "--", "0.002": ":", "0.0005": "-."}  # by learning rate
    with figure(RESULTS.parent.parent / "quality.svg", 1, 1, (7, 4), title) as (_, (axes,)):
        for name, curve in curves.items():
            _, seconds, losses = zip(*curve["points"], strict=True)
            kind, _, seed = name.partition(", seed")
            axes.plot([s / 60 for s in seconds], losses, lines.get(name.split()[-1], "-"),
                      color="tab:blue" if "ours" in name else "black", marker=".",
                      label=kind if not seed or seed == " 0" else None)
        axes.set(xscale="log", xlabel="minutes of training", ylabel="validation loss (nats)")
        axes.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
        axes.minorticks_off()
        legend_below(axes, 2)


# The workers of the quality section

def our_quality(seed, **changes):
    """A run as `python train.py --seed N` does it: its curve, as its log has it."""
    with tempfile.TemporaryDirectory() as out:
        options = PretrainOptions.preset("laptop", seed=seed, out=out, device="cpu", **changes)
        record = run.pretrain(options)
        seconds, tokens, points = 0.0, 0, []
        for row in read_log(out):
            if "loss" in row:  # the first step, whose speed is not said, counts as if it took none
                seconds += (row["tokens"] - tokens) / row.get("tokens_per_second", math.inf)
                tokens = row["tokens"]
            else:
                points.append([row["step"], round(seconds, 2), round(row["validation_loss"], 4)])
    return {"points": points, "accuracy": record["result"]["validation_accuracy"]}


def their_logits(model, batch):
    """Their logits at the masked positions of a batch, (B, M, V)."""
    logits = model(input_ids=batch.input_ids).logits  # (B, T, V)
    return logits.gather(1, batch.positions[:, :, None].expand(-1, -1, logits.size(-1)))


def their_quality(steps, lr):
    """The usual recipe: its curve, validated as ours is, but twice as often."""
    from transformers import BertConfig, BertForMaskedLM, get_linear_schedule_with_warmup

    preset = PRESETS["laptop"]
    T, batch_size = preset["seq_len"], preset["batch_tokens"] // preset["seq_len"]
    size = preset["layers"], preset["hidden_size"], preset["heads"], preset["vocab_size"]
    corpus = open_corpus(["docs"])
    tokenizer = cached_tokenizer(corpus, preset["vocab_size"])
    tokens = tokenize(corpus, tokenizer)
    torch.manual_seed(0)
    batches = their_batches(data.Sequences(tokens.train, T, tokenizer), batch_size, tokenizer)
    model = BertForMaskedLM(BertConfig(**step_config(size, dropout=0.1))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    seconds, points = 0.0, []
    pretrain.log_row = lambda run, row: None
    validated = SimpleNamespace(  # as much of a run as `validate` reads
        machine=Machine(torch.device("cpu")), model=model,
        valid_set=data.Sequences(tokens.valid, T, tokenizer),
        objective=run.MASKED_LM._replace(logits=their_logits))

    for step in range(1, steps + 1):
        started = time.perf_counter()
        their_update(model, optimizer, next(batches))
        schedule.step()
        seconds += time.perf_counter() - started
        if step % (steps // 20) == 0:
            limit = pretrain.FULL_TOKENS if step == steps else pretrain.QUICK_TOKENS
            scores = pretrain.validate(validated, limit)
            points.append([step, round(seconds, 2), round(scores["validation_loss"], 4)])
    return {"points": points, "accuracy": scores["validation_accuracy"]}


# The workers of the training step

def our_step(size, seconds, ffn_layers=None, products=False):
    """Our training step; with `products` also the time of its matrix multiplications alone."""
    *_, vocabulary, batch_size, T = size
    machine = Machine.start("cpu")
    batches = random_batches(vocabulary, batch_size, T)
    config = models.BertConfig(**step_config(size), ffn_layers=ffn_layers)
    torch.manual_seed(0)
    model, loading = pretrain.WithLoss(MaskedLM(config).train()), []
    optimizers = [optim.adamw(model.parameters(), 1e-4)]

    def step(number):
        started = time.perf_counter()
        batch = batches.batch(number)
        num_masked = int((batch.labels != data.IGNORE_INDEX).sum())
        loading.append(time.perf_counter() - started)
        pretrain.train_step(model, optimizers, [batch], num_masked, machine)

    step_seconds, num_masked = median(time_steps(step, seconds)), batches.sequences.num_masked
    result = {"tokens_per_second": batch_size * T / step_seconds,
              "peak_bytes": machine.peak_memory()}
    if not products:
        return result
    shapes = matrix_products(config, batch_size, T, num_masked)
    flops = flops_per_token(config, T, num_masked) * batch_size * T
    assert abs(sum(count * 6 * b * m * k * n for count, b, m, k, n in shapes) / flops - 1) < 1e-6
    alone = sum(count * time_product(*shape, machine) for count, *shape in shapes)
    return {**result, "flops_per_second": flops / step_seconds, "matrix_rate": flops / alone,
            "use": alone / step_seconds, "loader_ratio": median(loading) / step_seconds}


def their_step(size, seconds):
    """What a user of `transformers` writes: its collator, its model with labels, torch's AdamW."""
    from transformers import BertConfig, BertForMaskedLM

    *_, vocabulary, batch_size, T = size
    tokenizer, tokens = random_text(vocabulary)
    batches = their_batches(data.Sequences(tokens, T, tokenizer), batch_size, tokenizer)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**step_config(size))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    times = time_steps(lambda _: their_update(model, optimizer, next(batches)), seconds)
    return {"tokens_per_second": batch_size * T / median(times),
            "peak_bytes": Machine(torch.device("cpu")).peak_memory()}


def their_batches(sequences, size, tokenizer):
    """Yield for ever what a DataLoader and the collator of `transformers` make of sequences."""
    from transformers import DataCollatorForLanguageModeling

    rows = [{"input_ids": row} for row in torch.from_numpy(sequences.read(range(len(sequences))))]
    collate = DataCollatorForLanguageModeling(their_tokenizer(tokenizer))
    loader = DataLoader(rows, size, shuffle=True, drop_last=True, collate_fn=collate)
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield {name: batch[name] for name in ("input_ids", "labels")}


def their_update(model, optimizer, *parts):
    """Step on a batch, in one or more micro-batches of equal size; on a GPU in bfloat16."""
    device = model.device.type
    for part in parts:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**part).loss
        (loss / len(parts)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def step_config(size, dropout=0.0):
    """The sizes of both sides' models, under Hugging Face's names."""
    layers, width, heads, vocabulary, *_ = size
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
            "vocab_size": vocabulary, "intermediate_size": 4 * width,
            "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


def their_tokenizer(tokenizer):
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def random_text(vocabulary):
    """A tokenizer with that many entries, and 2**19 random ids of its ordinary words."""
    words = [*SPECIAL, *(f"w{i}" for i in range(vocabulary - len(SPECIAL)))]
    pieces = word_pieces({word: i for i, word in enumerate(words)})
    ids = np.random.default_rng(0).integers(len(SPECIAL), vocabulary, 2**19)
    return finish(assemble(pieces), "the benchmark"), ids.astype(np.uint16)


def random_batches(vocabulary, batch_size, T, mlm_probability=data.MLM_PROBABILITY):
    """TrainingBatches of random text."""
    tokenizer, tokens = random_text(vocabulary)
    sequences = data.Sequences(tokens, T, tokenizer, mlm_probability)
    return data.TrainingBatches(sequences, batch_size, seed=0)


def time_steps(step, seconds):
    """Seconds of each step, at least three, after two that take their memory."""
    times = []
    while len(times) < 5 or sum(times[2:]) < seconds:
        before = time.perf_counter()
        step(len(times))
        times.append(time.perf_counter() - before)
    return times[2:]


def matrix_products(config, B, T, M):
    """The forward matrix multiplications of a step, the last layer's at M positions.

    Each is (count, b, m, k, n): b products of (m, k) and (k, n).
    """
    C, H, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    products = [(1, 1, B * M, C, C), (1, 1, B * M, C, config.vocab_size)]
    for layer in range(config.num_hidden_layers):
        queries = M if layer == config.num_hidden_layers - 1 else T
        products += [(2, 1, B * T, C, C), (2, 1, B * queries, C, C)]
        products += [(1, B * H, queries, C // H, T), (1, B * H, queries, T, C // H)]
        if layer in config.ffn_layers:
            products += [(1, 1, B * queries, C, inner), (1, 1, B * queries, inner, C)]
    return products


@cache
def time_product(b, m, k, n, machine):
    """Seconds that b products (m, k) (k, n) and those of their backward pass take at their best."""
    x, w, y = (torch.randn(b, *shape, device=machine.device, dtype=machine.dtype).squeeze(0)
               for shape in ((m, k), (n, k), (m, n)))
    return min(time_steps(lambda _: (x @ w.mT, y @ w, y.mT @ x), 0.2))


# The workers of tokenising

def our_tokens(text, tokenizer):
    tokenizer = load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory(dir=Path(text).parent) as cache:
        os.environ["MINI_UNDIVIDED_CACHE"] = cache
        started = time.perf_counter()
        tokenize(open_corpus([text]), tokenizer)
        return tokenising_speed(text, started)


def their_tokens(text, tokenizer, call):
    """The library alone, called with 2 MB of text in memory at a time; what it returns is dropped.

    Its fast call, without offsets into the text, is the one that ours uses.
    """
    tokenizer = load_tokenizer(tokenizer)
    groups = [[piece.text for piece in batch] for batch in batches(open_corpus([text]).pieces())]
    started = time.perf_counter()
    for batch in groups:
        getattr(tokenizer, call)(batch, add_special_tokens=False)
    return tokenising_speed(text, started)


def tokenising_speed(text, started):
    """The speed of tokenising a file, and the most memory held."""
    seconds = time.perf_counter() - started
    memory = Machine(torch.device("cpu")).peak_memory()
    return {"bytes_per_second": Path(text).stat().st_size / seconds, "peak_bytes": memory}


# The workers of fine-tuning

def random_examples(lengths, count, vocabulary):
    """Lists of random token ids with these lengths, between [CLS] and [SEP]."""
    mean, deviation, least, most = lengths
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(mean, deviation, count)).clip(least, most).astype(int)
    return [[2, *rng.integers(5, vocabulary, size).tolist(), 3] for size in sizes]


def our_finetune(size, lengths, count):
    from mini_undivided.report import finetuning

    *_, vocabulary, _ = size
    with tempfile.TemporaryDirectory() as folder:
        config = models.BertConfig(**step_config(size, dropout=0.1))
        models.Encoder(config).save_pretrained(folder)
        save_tokenizer(random_text(vocabulary)[0], folder)
        options = FinetuneOptions(folder, "sst2", epochs=1, batch_size=size[-1], device="cpu")
        tuner = finetuning.Finetuner(options)
    train = [(ids, [0] * len(ids)) for ids in random_examples(lengths, count, vocabulary)]
    splits = {"train": Split([], np.arange(count) % 2)}
    started = time.perf_counter()
    tuner.train("sst2", {"train": train}, splits, seed=0)
    seconds = time.perf_counter() - started
    groups = glue.length_batches(train, size[-1], np.random.default_rng(0))
    return {"examples_per_second": count / seconds, "padding": glue.padding_ratio(train, groups)}


def their_finetune(size, lengths, count):
    """The loop of `transformers`' examples.

    A shuffled DataLoader, each batch padded to its longest sequence, and dropout 0.1.
    """
    from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

    *_, vocabulary, batch_size = size
    collate = DataCollatorWithPadding(their_tokenizer(random_text(vocabulary)[0]))
    ids = random_examples(lengths, count, vocabulary)
    examples = [{"input_ids": row, "labels": i % 2} for i, row in enumerate(ids)]
    loader = DataLoader(examples, batch_size, shuffle=True, collate_fn=collate)
    torch.manual_seed(0)
    config = BertConfig(**step_config(size, dropout=0.1))
    model = BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    positions = real = 0
    started = time.perf_counter()
    for batch in loader:
        their_update(model, optimizer, batch)
        positions += batch["input_ids"].numel()
        real += int(batch["attention_mask"].sum())
    return {"examples_per_second": count / (time.perf_counter() - started),
            "padding": 1 - real / positions}


SECTIONS = {"step": step_section, "tokenise": tokenise_section, "finetune": finetune_section,
            "growth": growth_section, "quality": quality_section}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, in minutes")
    parser.add_argument("--only", choices=SECTIONS, help="this section alone")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, spec = args.worker
        print(json.dumps(globals()[name](**json.loads(spec))))
        return
    args.rounds = 2 if args.quick else 3
    for name in [args.only] if args.only else list(SECTIONS)[:-1]:
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
