"""How fast this is, against `transformers` and against the machine itself. Needs the [test] extra.

    python tests/benchmark.py [--quick] [--only step|tokenise|finetune|growth|quality] [--compile]

Contenders run in turn (A B A B …), each round of each in a process of its own, on equal work: the
same sizes, batch, text and precision. Tables show the median, with the lowest and the highest in
brackets; ratios are of the medians. With a GPU, the training step is in bfloat16 and compiled on
both sides, at sequences of 128 and of 512.

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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

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

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# layers, width, heads, vocabulary, batch: the training step
STEP_SIZES = {"4 × 128": (4, 128, 4, 8192, 32), "4 × 256": (4, 256, 4, 8192, 32),
              "12 × 768": (12, 768, 12, 30528, 8)}
GROWTH_SIZES = [name for name in PRESETS if name != "laptop"]  # those of Turc et al. 2019
# tokens of a sentence: log mean, deviation, least, most
FINETUNE = {"SST-2": (2.4, 0.65, 3, 64), "MRPC": (3.95, 0.27, 25, 100)}


# The parent: starts workers, gathers what they say, prints tables

def ask(worker, **spec):
    """Run a worker in a process of its own → the dictionary that it prints as its last line."""
    command = [sys.executable, __file__, "--worker", worker, json.dumps(spec)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=quiet)
    if done.returncode:
        sys.exit(f"the worker {worker} failed with {spec}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(contenders, rounds):
    """Run every (worker, spec) of a dictionary once a round, in turn → {name: its results}."""
    results = {name: [] for name in contenders}
    for number in range(rounds):
        for name, (worker, spec) in contenders.items():
            say(f"round {number + 1} of {rounds}: {name}")
            results[name].append(ask(worker, **spec))
    say()
    return results


def say(what=""):
    """Say what is going on, on a line of the terminal that the next one overwrites."""
    print(f"\r{what:70}\r", file=sys.stderr, end="", flush=True)


def middle(results, key):
    return statistics.median(result[key] for result in results)


def spread(results, key, scale=1.0, digits=0):
    """Median (least–most) as text."""
    values = [result[key] / scale for result in results]
    chosen = min(values), statistics.median(values), max(values)
    low, mid, high = (f"{value:,.{digits}f}" for value in chosen)
    return f"{mid} ({low}–{high})"


def table(title, header, rows):
    """Print a table that is also Markdown."""
    rows = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n**{title}**\n", *lines, sep="\n", flush=True)


def step_section(args):
    """A whole training step: batch and masking, forward, backward, clipping, AdamW."""
    if ON_GPU:
        sizes = {f"12 × 768, T {T}": (12, 768, 12, 30528, 16384 // T, T) for T in (128, 512)}
    else:
        chosen = list(STEP_SIZES.items())[: 2 if args.quick else None]
        sizes = {name: (*size, 128) for name, size in chosen}
    speeds, rates = [], []
    for name, size in sizes.items():
        spec = {"size": size, "seconds": 2 if args.quick else 6,
                "compile": args.compile or ON_GPU}
        contenders = {
            "ours": ("our_step", {**spec, "ffn_layers": None, "products": True}),
            "transformers": ("their_step", spec),
            "ours, no FFN": ("our_step", {**spec, "ffn_layers": [], "products": True})}
        every = ours, theirs, without = tuple(in_turn(contenders, args.rounds).values())
        pace = [middle(each, "tokens_per_second") for each in every]
        memory = [f"{middle(each, 'peak_bytes') / 1e6:,.0f}" for each in every]
        speeds.append([
            name, *(spread(each, "tokens_per_second") for each in every),
            f"{pace[0] / pace[1]:.2f}", f"{pace[2] / pace[0]:.2f}", " / ".join(memory),
            f"{middle(ours, 'peak_bytes') / middle(theirs, 'peak_bytes'):.2f}"])
        for label, each in (("with FFNs", ours), ("no FFN", without)):
            rates.append([
                name, label,
                *(spread(each, key, 1e9) for key in ("flops_per_second", "matrix_rate")),
                f"{middle(each, 'use'):.2f}",
                f"{middle(each, 'mfu'):.0%}" if each[0]["mfu"] else "–",
                f"{middle(each, 'loader_share'):.2%}", f"{middle(each, 'first_seconds'):.1f}"])
    table("Training step: tokens/s, and peak memory of the process in MB",
          ["layers × width", *contenders, "ours / transformers", "no FFN / with",
           "memory: ours / transformers / no FFN", "ours / transformers"], speeds)
    table("Ours against the machine's own matrix multiplications of these shapes, in GFLOP/s",
          ["layers × width", "", "the step", "products alone", "ratio", "MFU", "batch and masking",
           "first step, s"], rates)
    if args.quick and not ON_GPU:
        print("\n12 × 768 is left out by --quick.")


def tokenise_section(args):
    """Our path from text to token file, against the tokenizers library alone.

    The library's own batch calls get the same text from memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = write_text(folder, (4 if args.quick else 50) * 10**6)
        calls = {call: ("their_tokens", {**spec, "call": call})
                 for call in ("encode_batch", "encode_batch_fast")}
        results = in_turn({"ours, to disk": ("our_tokens", spec), **calls}, args.rounds)
    ours = middle(results["ours, to disk"], "bytes_per_second")
    rows = [[name, spread(each, "bytes_per_second", 1e6, 2),
             f"{ours / middle(each, 'bytes_per_second'):.2f}",
             f"{middle(each, 'peak_bytes') / 1e6:,.0f}"] for name, each in results.items()]
    table("Tokenising: MB/s", ["", "MB/s", "ours / this", "peak memory, MB"], rows)


def finetune_section(args):
    """An epoch of fine-tuning, against a plain loop with padding.

    The sentences are as long as those of SST-2 and MRPC.
    """
    rows = []
    for name, lengths in FINETUNE.items():
        spec = {"size": (4, 256, 4, 8192, 32), "lengths": lengths,
                "count": 192 if args.quick else 1600}
        contenders = {"ours": ("our_finetune", spec), "transformers": ("their_finetune", spec)}
        both = tuple(in_turn(contenders, args.rounds).values())
        ours, theirs = (middle(each, "examples_per_second") for each in both)
        rows.append([name, *(spread(each, "examples_per_second") for each in both),
                     f"{ours / theirs:.2f}", *(f"{middle(each, 'padding'):.1%}" for each in both)])
    table("Fine-tuning 4 × 256, batch 32: examples/s, and the share of padding",
          ["as long as", "ours", "transformers", "ratio", "padding: ours", "transformers"], rows)


def growth_section(args):
    """How the cost of a training step grows with model and sequence, of tokenising with text."""
    names = GROWTH_SIZES[: 2 if args.quick else None]
    lengths, rows = (64, 128) if args.quick else (64, 128, 256, 512), []
    for name, ffn_layers in itertools.product(names, (None, [])):
        layers, width, heads = (PRESETS[name][key] for key in ("layers", "hidden_size", "heads"))
        cells = []
        for T in lengths:
            say(f"{name}, sequences of {T}")
            result = ask("our_step", size=(layers, width, heads, 8192, 2048 // T, T), seconds=1,
                         compile=ON_GPU, ffn_layers=ffn_layers)
            cells.append(f"{result['tokens_per_second']:,.0f} / {result['peak_bytes'] / 1e6:,.0f}")
        rows.append([f"{name} {layers} × {width}" + ", no FFN" * (ffn_layers == []), *cells])
    say()
    table("Training, 2,048 tokens a batch, vocabulary 8,192: "
          "tokens/s / peak memory in MB, by sequence length", ["model", *map(str, lengths)], rows)
    rows = []
    for megabytes in (1, 4) if args.quick else (1, 10, 100, 1000):
        say(f"a corpus of {megabytes} MB")
        with tempfile.TemporaryDirectory() as folder:
            result = ask("our_tokens", **write_text(folder, megabytes * 10**6))
        rows.append([f"{megabytes:,} MB", f"{result['bytes_per_second'] / 1e6:.2f}",
                     f"{result['peak_bytes'] / 1e6:,.0f}"])
    say()
    table("Tokenising, by the size of the corpus", ["corpus", "MB/s", "peak memory, MB"], rows)


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
    steps = 300 if args.quick else 5000
    contenders = {f"transformers, learning rate {lr:g}": ("their_quality", {"steps": steps, "lr": lr})
                  for lr in RATES}
    contenders |= {f"ours, seed {seed}": ("our_quality", {"seed": seed, "quick": args.quick})
                   for seed in range(1 if args.quick else 3)}
    curves = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.quick else {}
    for name, (worker, spec) in contenders.items():
        if name not in curves:
            say(name)
            curves[name] = ask(worker, **spec)
            if not args.quick:
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(curves, indent=1) + "\n")
    say()
    report_quality(curves)
    if not args.quick:
        plot_quality(curves)


def report_quality(curves):
    """Print the minutes to each loss, and how each run ended."""
    lowest = {name: min(loss for *_, loss in curve["points"]) for name, curve in curves.items()}
    theirs = min((name for name in curves if "transformers" in name), key=lowest.get)
    ours = [curve for name, curve in curves.items() if "ours" in name]
    rows = []
    for loss in (6.0, 5.75, round(lowest[theirs], 3), 5.5, 5.0, 4.5, 4.25, 4.0):
        times = [time_to(loss, curve["points"]) for curve in ours]
        reached = sorted(t for t in times if t is not None)
        slow, quick = time_to(loss, curves[theirs]["points"]), statistics.median(reached or [0])
        minutes = [f"{seconds / 60:.2f}" for seconds in reached]
        rows.append([loss, f"{slow / 60:.2f}" if slow else "–", " ".join(minutes) or "–",
                     f"{slow / quick:.1f}" if slow and quick else "–"])
    table("Minutes of training to a validation loss: 4 × 128, 1,024 tokens a step, one run each",
          ["loss", theirs, f"ours, {len(ours)} seeds", "ratio to the median"], rows)
    rows = [[name, f"{curve['points'][-1][2]:.3f}", f"{curve['accuracy']:.1%}",
             f"{curve['points'][-1][1] / 60:.1f}"] for name, curve in curves.items()]
    table("At the end", ["run", "validation loss", "masked accuracy", "minutes"], rows)


def time_to(loss, points):
    """Seconds until a curve of (step, seconds, loss) reaches a loss, interpolated, or None."""
    before = (0, 0.0, float("inf"))
    for point in points:
        if point[2] <= loss:
            drop = before[2] - point[2]  # infinite before the first point
            return point[1] - (loss - point[2]) / drop * (point[1] - before[1])
        before = point
    return None


def plot_quality(curves):
    """Loss against minutes, as docs/quality.svg."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quality"  # the same file from the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        _, seconds, losses = zip(*curve["points"], strict=True)
        ours = "ours" in name
        rate = name.split()[-1]
        axes.plot([s / 60 for s in seconds], losses, marker=".", label=name,
                  color="#c0392b" if ours else "#2c3e50",
                  linestyle="-" if ours else {"0.001": "--", "0.002": ":"}.get(rate, "-."))
    axes.set(xscale="log", xlabel="minutes of training", ylabel="validation loss (nats)",
             title="Minutes to a validation loss: this recipe and the usual one")
    axes.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(RESULTS.parent.parent / "quality.svg", metadata={"Date": None})


# The workers of the quality section

def our_quality(seed, quick):
    """A run as `python train.py --seed N` does it: its curve, as its log has it."""
    with tempfile.TemporaryDirectory() as out:
        changes = {"steps": 300} if quick else {}
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
    from transformers import (
        BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling,
        get_linear_schedule_with_warmup)

    preset = PRESETS["laptop"]
    T, batch_size = preset["seq_len"], preset["batch_tokens"] // preset["seq_len"]
    size = preset["layers"], preset["hidden_size"], preset["heads"], preset["vocab_size"]
    corpus = open_corpus(["docs"])
    tokenizer = cached_tokenizer(corpus, preset["vocab_size"])
    tokens = tokenize(corpus, tokenizer)
    train = data.Sequences(tokens.train, T, tokenizer)
    collate = DataCollatorForLanguageModeling(their_tokenizer(tokenizer))
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**step_config(size, dropout=0.1))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    order, seconds, points = [], 0.0, []
    pretrain.log = lambda run, row: None
    validated = SimpleNamespace(  # as much of a run as `validate` asks for
        machine=Machine(torch.device("cpu")), model=model,
        valid_set=data.Sequences(tokens.valid, T, tokenizer),
        objective=run.MASKED_LM._replace(logits=their_logits))

    for step in range(1, steps + 1):
        started = time.perf_counter()
        if len(order) < batch_size:
            order = np.random.default_rng(step).permutation(len(train)).tolist()
        rows, order = order[:batch_size], order[batch_size:]
        batch = collate([{"input_ids": row} for row in torch.from_numpy(train.read(rows))])
        model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - started
        if step % (steps // 20) == 0:
            limit = pretrain.FULL_TOKENS if step == steps else pretrain.QUICK_TOKENS
            scores = pretrain.validate(validated, limit)
            points.append([step, round(seconds, 2), round(scores["validation_loss"], 4)])
    return {"points": points, "accuracy": scores["validation_accuracy"]}


# The workers of the training step

def our_step(size, seconds, compile, ffn_layers, products=False):
    """Our training step; with `products` also the time of its matrix multiplications alone."""
    *_, vocabulary, batch_size, T = size
    machine = Machine.start(DEVICE)
    tokenizer, tokens = random_text(vocabulary)
    training = data.TrainingBatches(data.Sequences(tokens, T, tokenizer), batch_size, seed=0)
    config = models.BertConfig(**step_config(size), ffn_layers=ffn_layers)
    torch.manual_seed(0)
    model = MaskedLM(config).to(machine.device).train()
    optimizers = [optim.adamw(model.parameters(), 1e-4)]
    model = pretrain.WithLoss(model)
    model, loading = machine.compile(model) if compile else model, []

    def step(number):
        started = time.perf_counter()
        batch = training.batch(number)
        num_masked = int((batch.labels != data.IGNORE_INDEX).sum())
        batch = machine.batch_to_device(batch)
        loading.append(time.perf_counter() - started)
        pretrain.train_step(model, optimizers, [batch], num_masked, machine)

    first, times = time_steps(step, seconds)
    step_seconds, num_masked = statistics.median(times), training.sequences.num_masked
    result = {"tokens_per_second": batch_size * T / step_seconds, "first_seconds": first,
              "peak_bytes": memory()}
    if not products:
        return result
    shapes = matrix_products(config, batch_size, T, num_masked)
    flops = flops_per_token(config, T, num_masked) * batch_size * T
    assert abs(sum(count * 6 * b * m * k * n for count, b, m, k, n in shapes) / flops - 1) < 1e-6
    alone, peak = time_products(shapes, machine), machine.peak_flops()
    return {**result, "flops_per_second": flops / step_seconds, "matrix_rate": flops / alone,
            "use": alone / step_seconds, "mfu": peak and flops / step_seconds / peak,
            "loader_share": statistics.median(loading) / step_seconds}


def their_step(size, seconds, compile):
    """What a user of `transformers` writes: its collator, its model with labels, torch's AdamW."""
    from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

    *_, vocabulary, batch_size, T = size
    torch.set_float32_matmul_precision("high")
    tokenizer, tokens = random_text(vocabulary)
    collate = DataCollatorForLanguageModeling(their_tokenizer(tokenizer))
    rows = torch.from_numpy(tokens[: len(tokens) // (T - 2) * (T - 2)].astype("int64"))
    rows = F.pad(F.pad(rows.view(-1, T - 2), (1, 0), value=2), (0, 1), value=3)  # [CLS] … [SEP]
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**step_config(size))).to(DEVICE).train()
    take = their_update(model)
    parallel = torch.compile(model) if compile else model

    def step(number):
        chosen = torch.randint(len(rows), (batch_size,)).tolist()
        batch = collate([{"input_ids": rows[i]} for i in chosen])
        take(parallel, {name: batch[name] for name in ("input_ids", "labels")})

    first, times = time_steps(step, seconds)
    pace = batch_size * T / statistics.median(times)
    return {"tokens_per_second": pace, "peak_bytes": memory(), "first_seconds": first}


def memory(device=DEVICE):
    """The most memory held, in bytes: the GPU's, or the process's."""
    return Machine(torch.device(device)).peak_memory()


def their_update(model):
    """→ a function that moves a batch, computes the loss, and takes a step of AdamW."""
    fused = True if ON_GPU else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)

    def take(model, batch):
        batch = {name: tensor.to(DEVICE, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(DEVICE, torch.bfloat16, enabled=ON_GPU):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return take


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


def time_steps(step, seconds):
    """Seconds of the first step, and of each step after it, of which there are at least three.

    The first step compiles and takes its memory.
    """
    group = 10 if ON_GPU else 1  # a GPU is waited for once in ten steps, as in training

    def timed(start, count):
        before = time.perf_counter()
        for number in range(start, start + count):
            step(number)
        if ON_GPU:
            torch.cuda.synchronize()
        return (time.perf_counter() - before) / count

    first, _ = timed(0, 1), timed(1, 1)
    times = []
    while len(times) < 3 or sum(times) * group < seconds:
        times.append(timed(2 + len(times) * group, group))
    return first, times


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


def time_products(products, machine):
    """Seconds that the products take alone, at their best of a few tries.

    Each one comes with the two of its backward pass.
    """
    total = 0.0
    for shape in {tuple(shape) for _, *shape in products}:
        b, m, k, n = shape
        x, w, y = (torch.randn(b, *of, device=machine.device, dtype=machine.dtype).squeeze(0)
                   for of in ((m, k), (n, k), (m, n)))

        def three(_, x=x, w=w, y=y):
            return x @ w.mT, y @ w, y.mT @ x

        _, times = time_steps(three, 0.2)
        total += min(times) * sum(count for count, *other in products if tuple(other) == shape)
    return total


# The workers of tokenising

def our_tokens(text, tokenizer):
    tokenizer = load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory(dir=Path(text).parent) as cache:
        os.environ["MINI_UNDIVIDED_CACHE"] = cache
        started = time.perf_counter()
        tokenize(open_corpus([text]), tokenizer)
        return pace_of_tokens(text, started)


def their_tokens(text, tokenizer, call):
    """The library alone, called with 2 MB of text in memory at a time; what it returns is dropped.

    Its fast call, without offsets into the text, is the one that ours uses.
    """
    tokenizer = load_tokenizer(tokenizer)
    groups = [[piece.text for piece in batch] for batch in batches(open_corpus([text]).pieces())]
    started = time.perf_counter()
    for batch in groups:
        getattr(tokenizer, call)(batch, add_special_tokens=False)
    return pace_of_tokens(text, started)


def pace_of_tokens(text, started):
    """The speed of tokenising a file, and the most memory held."""
    seconds = time.perf_counter() - started
    return {"bytes_per_second": Path(text).stat().st_size / seconds, "peak_bytes": memory("cpu")}


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
        options = FinetuneOptions(folder, "sst2", epochs=1, batch_size=size[-1], device=DEVICE)
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
    examples = [{"input_ids": each, "labels": i % 2} for i, each in enumerate(ids)]
    loader = torch.utils.data.DataLoader(examples, batch_size, shuffle=True, collate_fn=collate)
    torch.manual_seed(0)
    config = BertConfig(**step_config(size, dropout=0.1))
    model = BertForSequenceClassification(config).to(DEVICE).train()
    take, positions, real = their_update(model), 0, 0
    started = time.perf_counter()
    for batch in loader:
        take(model, batch)
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
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU too")
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
