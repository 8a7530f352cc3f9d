"""Is the code right and quick on a GPU, and do both kinds of model learn there?

    python tests/gpu_check.py --corpus text.jsonl --glue GLUE --out found    # on a GPU, 9 minutes
    python tests/gpu_check.py --corpus text.jsonl --glue GLUE --out found --tiny    # on a CPU

Right: parity, resume, analysis. Quick: speed, theirs, kernels. Alive: pretrain, finetune. Each part
has a process and a limit of its own; what it finds is in OUT/results.json and OUT/log.txt at once.
Entries named ok_… are checks.
"""

import argparse
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional as F

HERE = Path.cwd()  # the root of the checkout
sys.path[:0] = [str(HERE), str(HERE / "tests")]
from benchmark import random_text  # noqa: E402

from mini_undivided import cka, data, optim, pretrain, probe, run  # noqa: E402
from mini_undivided.costs import flops_per_token  # noqa: E402
from mini_undivided.model import BertConfig, Encoder, MaskedLM, attention  # noqa: E402
from mini_undivided.support.machine import Machine  # noqa: E402
from mini_undivided.support.options import PretrainOptions  # noqa: E402
from mini_undivided.support.run_directory import versions  # noqa: E402

LIMITS = {"versions": 40, "parity": 70, "resume": 80, "analysis": 40, "speed": 170, "theirs": 75,
          "kernels": 30, "pretrain": 170, "finetune": 80}  # seconds, in the order in which they run
KINDS = {"noffn": [], "full": None}  # ffn_layers


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--glue", help="folder of the official GLUE files")
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu_check_out"))
    parser.add_argument("--work", default=f"{tempfile.gettempdir()}/gpu_check_work",
                        help="runs and caches: not kept")
    parser.add_argument("--budget", type=float, default=535, help="seconds for all parts")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining, 32,768 tokens each")
    parser.add_argument("--parts", default=",".join(LIMITS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.part:
        return run_parts(args)
    machine = Machine.start("auto", "bfloat16")  # on a CPU, too, so that the same code runs
    globals()["part_" + args.part](args, machine, Found(f"{args.out}/part-{args.part}.json"))


def run_parts(args):
    """Run the parts one after another, each in a process, and collect what they find."""
    Path(args.out).mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1",
           "MINI_UNDIVIDED_CACHE": f"{args.work}/cache",
           "TORCHINDUCTOR_CACHE_DIR": f"{args.work}/inductor"}
    begin, results, path = time.monotonic(), {}, Path(args.out, "results.json")
    command = [sys.executable, __file__, *sys.argv[1:], "--part"]
    log = open(f"{args.out}/log.txt", "a")  # noqa: SIM115
    start = partial(subprocess.Popen, stdout=log, stderr=log, start_new_session=True)
    # The text is prepared on the CPU while the first parts use the GPU.
    jobs = [start([*command, "prepare"], env=env)] if "pretrain" in args.parts else []
    for name in args.parts.split(","):
        now, found = time.monotonic(), Path(args.out, f"part-{name}.json")
        limit = min(LIMITS[name] * (10 if args.tiny else 1), args.budget - (now - begin))
        if limit > 8:
            print(f"== {name}, at {now - begin:.0f} s, limit {limit:.0f} s", file=log, flush=True)
            jobs.append(start([*command, name], env={**env, "PART_LIMIT": str(limit)}))
            try:
                code = jobs[-1].wait(limit)
            except subprocess.TimeoutExpired:
                code = f"ended after {limit:.0f} s"
                end(jobs[-1])
        else:
            code = "skipped: no time left"
        results[name] = json.loads(found.read_text()) if found.exists() else {}
        results[name] |= {"exit": code, "seconds": round(time.monotonic() - now, 1)}
        found.unlink(missing_ok=True)  # few files travel back
        path.write_text(json.dumps(results, indent=1))
        print(name, json.dumps(results[name]), flush=True)
    for job in jobs:
        end(job)
    bad = [f"{name}.{key}" for name, found in results.items() for key, value in found.items()
           if key.startswith("ok_") and not value or key.endswith("ERROR")]
    ended = [name for name, found in results.items() if found["exit"]]
    print(f"{time.monotonic() - begin:.0f} s in all; failed checks: {bad or 'none'}; "
          f"parts that ended badly: {ended or 'none'}")
    sys.exit(bool(bad or ended))


def end(job):
    """End a part that still works, with its own processes and no others."""
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


class Found(dict):
    """What a part found; every entry is on disk as soon as it is there."""

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        print(key, value, flush=True)
        self.path.write_text(json.dumps(self, default=str))

    def attempt(self, key, work, *arguments, **more):
        """self[key] = work(*arguments, **more), or the error: what follows goes on."""
        try:
            self[key] = work(*arguments, **more)
        except Exception as error:
            traceback.print_exc()
            self[f"{key} ERROR"] = f"{type(error).__name__}: {error}"[:500]


# What the parts share.

def config(args, **changes):
    """A BertConfig without dropout: base with changes or, --tiny, one with fewer of everything."""
    sizes = dict(vocab_size=30528, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                 intermediate_size=3072, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tiny = dict(vocab_size=1008, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                intermediate_size=192) if args.tiny else {}
    return BertConfig(**{**sizes, **changes, **tiny})


def synchronise():
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock(work, repeats=10):
    """Median milliseconds of a call, after two that do not count."""
    times = []
    for _ in range(2 + repeats):
        synchronise()
        started = time.perf_counter()
        work()
        synchronise()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def distance(x, y):
    """‖x - y‖ / ‖y‖ in float64 on the CPU."""
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    return ((x - y).norm() / y.norm().clamp(min=1e-30)).item()


def random_batches(config, tokens, length):
    """TrainingBatches of random words, 40 % of them masked."""
    tokenizer, text = random_text(config.vocab_size)
    return data.TrainingBatches(
        data.Sequences(text, length, tokenizer, 0.4), tokens // length, seed=0)


def part_versions(args, machine, found):
    found["versions"] = {**versions(), "cuda": torch.version.cuda}
    found["machine"], found["compiles"] = str(machine), machine.compiles
    found["peak_flops"] = machine.peak_flops()
    found["ok_known"] = not machine.on_gpu or bool(machine.peak_flops() and machine.compiles)
    n = 8192 if machine.on_gpu else 256
    x, y = torch.randn(2, n, n, device=machine.device, dtype=torch.bfloat16)
    found["matmul_tflops"] = 2 * n**3 / clock(lambda: x @ y) / 1e9


# Right.

def part_parity(args, half, found):
    """Logits, losses, gradients and weights after three steps, on the CPU and on the GPU."""
    torch.set_float32_matmul_precision("highest")
    cpu, gpu = Machine(torch.device("cpu")), Machine(half.device)
    for kind, kept in KINDS.items():
        torch.manual_seed(0)
        reference = MaskedLM(sizes := config(args, num_hidden_layers=3, ffn_layers=kept))
        batches, far = random_batches(sizes, 512, 64), copy.deepcopy(reference).to(gpu.device)
        batch = batches.batch(0)
        expected, n = pretrain.masked_logits(reference, batch), batch.labels.numel()
        error = distance(pretrain.masked_logits(far, gpu.batch_to_device(batch)), expected)
        mask = torch.arange(64) < torch.randint(8, 65, (8, 1))
        padded = far.encoder(batch.input_ids.to(gpu.device), mask.to(gpu.device)).cpu()[mask]
        errors = error, distance(padded, reference.encoder(batch.input_ids, mask)[mask])
        models = {"cpu": (reference, cpu), "gpu": (far, gpu), "bf16": (copy.deepcopy(far), half),
                  "compiled": (copy.deepcopy(far), half)}
        losses, worst, weights = {}, {}, []
        for name, (model, where) in models.items():
            step = pretrain.WithLoss(model)
            step = where.compile(step) if name == "compiled" and where.compiles else step
            parts = [*data.split(where.batch_to_device(batch), 4)]
            losses[name] = pretrain.train_step(step, [], parts, n, where).item() / n
            worst[name] = max(  # gradients stay where there is no optimizer
                (distance(p.grad, q.grad), name) for (name, p), q
                in zip(model.named_parameters(), reference.parameters(), strict=True)
                if q.grad.norm() > 1e-4)
        for model, where in (models["cpu"], models["gpu"]):
            model.zero_grad()
            both = optim.muon_and_adamw(model, 0.01, 3e-4)
            for number in range(3):
                parts = [where.batch_to_device(batches.batch(number))]
                pretrain.train_step(pretrain.WithLoss(model), both, parts, n, where)
            weights.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
        found[f"{kind}_outputs"], found[f"{kind}_losses"] = errors, losses
        found[f"{kind}_gradients"], found[f"{kind}_weights"] = worst, distance(*weights)
        found[f"ok_{kind}_float32"] = max(errors) < 1e-4 and worst["gpu"][0] < 1e-3
        found[f"ok_{kind}_steps"] = found[f"{kind}_weights"] < 1e-3
        found[f"ok_{kind}_bf16"] = max(
            abs(losses[name] - losses["cpu"]) for name in ("bf16", "compiled")) < 0.02


def part_resume(args, machine, found):
    """An interrupted run ends about as far from a whole one as a second whole one does."""
    take, stop = pretrain.take_step, {}

    def interrupting(running, *rest):
        loss = take(running, *rest)
        if running.state.step == stop.get("at"):
            signal.raise_signal(signal.SIGINT)
        return loss

    for compiled in (False, True) if machine.compiles else (False,):
        weights, sizes = {}, {"steps": 5 if args.tiny else 40}
        for name in ("once", "again", "resumed"):
            options = PretrainOptions.preset(
                "laptop", corpus=[args.corpus], dropout=0.1, compile=compiled, layers=2,
                out=f"{args.work}/resume-{name}-{compiled}", **sizes)
            stop["at"] = 3 if name == "resumed" else None
            with patch.object(pretrain, "take_step", interrupting):
                ends = [run.pretrain(options)["status"]]
            if name == "resumed":
                ends.append(run.pretrain(options, resume=True)["status"])
            model = MaskedLM.from_pretrained(options.out)
            weights[name] = torch.cat([p.flatten() for p in model.parameters()])
        far = {name: distance(weights[name], weights["once"]) for name in ("again", "resumed")}
        found[f"distance, compiled {compiled}"] = far
        allowed = max(1e-3, 3 * far["again"]) if machine.on_gpu else 0
        found[f"ok_resume, compiled {compiled}"] = (
            ends == ["interrupted", "finished"] and far["resumed"] <= allowed)


def part_analysis(args, machine, found):
    """CKA and probes on the CPU and on the GPU."""
    torch.set_float32_matmul_precision("highest")  # as report.analysis does
    torch.manual_seed(0)
    encoders = {name: Encoder(config(args, num_hidden_layers=4, ffn_layers=kept)).eval()
                for name, kept in KINDS.items()}
    batches = [(torch.randint(5, 1000, (16, 40)), torch.arange(40) < torch.randint(9, 41, (16, 1)))
               for _ in range(6)]
    labels = {name: torch.randint(4, (n,)).numpy()
              for name, n in (("train", 900), ("valid", 300), ("test", 300))}
    centres, values, scores = torch.randn(3, 4, 64), [], []
    features = {name: torch.stack([4 * torch.randn(len(y), 64) + layer[y] for layer in centres])
                for name, y in labels.items()}
    for where in ("cpu", machine.device):
        there = {name: encoder.to(where) for name, encoder in encoders.items()}
        moved = [(ids.to(where), mask.to(where), None) for ids, mask in batches]
        outputs = cka.compare(there, moved, [("full", "noffn")])[0]["full", "noffn"]
        values.append(torch.cat([value.flatten() for value in outputs.values()]))
        moved = {name: x.to(where) for name, x in features.items()}
        scores.append(torch.tensor(probe.probe(moved, labels, 4)["test"]))
    for name, (x, y), limit in (("cka", values, 1e-3), ("probe", scores, 0.01)):
        found[name] = (x - y).abs().max().item()
        found[f"ok_{name}"] = found[name] <= limit


# Quick.

def bfloat16_norm(norm, x):
    """LayerNorm in bfloat16, and so the residuals, where autocast computes in float32."""
    with torch.autocast(x.device.type, enabled=False):
        x, weight, bias = (tensor.bfloat16() for tensor in (x, norm.weight, norm.bias))
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def part_speed(args, machine, found):
    """Steps of the base preset by the package's own functions, as they are and otherwise."""
    tokens, count = (2**8, 1) if args.tiny else (2**17, 12)
    over = time.monotonic() + float(os.environ["PART_LIMIT"]) - 25

    def measure(kind, length=128, micro=None, compiled=machine.compiles, **changes):
        if time.monotonic() > over:
            return "no time"
        sizes = config(args, ffn_layers=KINDS[kind], **changes)
        batches, steps, losses = random_batches(sizes, tokens, length), 3 + count, []
        if machine.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        model = MaskedLM(sizes).to(machine.device)
        both = optim.muon_and_adamw(model, 0.01, 3e-4, machine.quick_dtype)
        step = pretrain.WithLoss(model)
        step = machine.compile(step) if compiled else step
        fitting = max(1, machine.tokens_at_once(sizes) // length)
        micro = micro or min(tokens // length, 2 ** (fitting.bit_length() - 1))
        loading, ends = 0.0, [time.perf_counter()]
        for number in range(steps):
            started = time.perf_counter()
            batch = batches.batch(number)
            loading += time.perf_counter() - started
            parts = [*data.split(machine.batch_to_device(batch), micro)]
            losses.append(pretrain.train_step(step, both, parts, batch.labels.numel(), machine))
            if number in (0, 2, steps - 1):  # the first compiles, two more are not timed
                synchronise()
                ends.append(time.perf_counter())
        seconds, peak = (ends[3] - ends[2]) / count, machine.peak_flops()
        flops = flops_per_token(sizes, length, batches.sequences.num_masked) * tokens
        return {"tokens_per_second": round(tokens / seconds), "first_s": ends[1] - ends[0],
                "mfu": peak and flops / seconds / peak, "peak_GB": machine.peak_memory() / 1e9,
                "micro_batch": micro, "batch_ms": 1e3 * loading / steps,
                "loss": losses[-1].item() / batch.labels.numel()}

    for kind in KINDS:
        found.attempt(kind, measure, kind)
    for kind in KINDS:
        found.attempt(f"{kind}, micro-batches of 128", measure, kind, micro=1 if args.tiny else 128)
        with patch.object(torch.nn.LayerNorm, "forward", bfloat16_norm):
            found.attempt(f"{kind}, bfloat16 norms", measure, kind)
        found.attempt(f"{kind}, 16 tokens", measure, kind, 16)
        with patch.object(F, "scaled_dot_product_attention", attention):
            found.attempt(f"{kind}, 16 tokens, attention written out", measure, kind, 16)
        found.attempt(f"{kind}, vocabulary of 30,522", measure, kind, vocab_size=30522)
        found.attempt(f"{kind}, not compiled", measure, kind, compiled=False)


def part_theirs(args, machine, found):
    """transformers' BertForMaskedLM on as much text: sdpa, bfloat16, compiled, fused AdamW."""
    import transformers

    settings = config(args).to_hugging_face("BertForMaskedLM")
    settings = {name: value for name, value in settings.items() if name != "ffn_layers"}
    model = transformers.BertForMaskedLM(transformers.BertConfig(
        **settings, attn_implementation="sdpa")).to(machine.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model, dynamic=False) if machine.compiles else model
    shape = (2, 2, 32) if args.tiny else (8, 128, 128)
    ids = torch.randint(5, model.config.vocab_size, shape, device=machine.device)
    labels = torch.where(torch.rand(shape, device=machine.device) < 0.4, ids, -100)

    def step():
        for x, y in zip(ids, labels, strict=True):
            with machine.autocast():
                loss = compiled(input_ids=x, labels=y).loss
            (loss / len(ids)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found["tokens_per_second"] = 1e3 * ids.numel() / clock(step, 1 if args.tiny else 8)
    found["peak_GB"] = machine.peak_memory() / 1e9


def part_kernels(args, machine, found):
    """Milliseconds of attention by length and form, forward and backward."""
    forms = {"written out": attention, "fused": F.scaled_dot_product_attention}
    if machine.compiles:
        forms["written out, compiled"] = torch.compile(attention)
    for T in (16, 32, 64, 128, 512)[: 2 if args.tiny else 5]:
        leaves = torch.randn(3, (32 if args.tiny else 2**14) // T, 12, T, 64,
                             device=machine.device, dtype=torch.bfloat16, requires_grad=True)
        for name, form in forms.items():
            found.attempt(f"{T} tokens, {name}", clock,
                          lambda form=form, x=leaves: torch.autograd.grad(form(*x).sum(), x))


# Alive.

def options(args, kind):
    """The PretrainOptions of base or, --tiny, of some steps of laptop."""
    tokenizer = Path(__file__).with_name("tokenizer.json")  # trained on this text beforehand
    shared = dict(corpus=[args.corpus], out=f"{args.work}/{kind}", ffn_layers=KINDS[kind])
    if args.tiny:
        return PretrainOptions.preset("laptop", **shared, steps=5, layers=2, vocab_size=500)
    return PretrainOptions.preset(
        "base", **shared, tokenizer=str(tokenizer) if tokenizer.exists() else None,
        steps=args.steps, batch_tokens=2**15, lr=1e-3)


def part_prepare(args, machine, found):
    run.prepare_text(options(args, "full"), False)
    Path(args.work, "prepared").touch()


def part_pretrain(args, machine, found):
    """Both kinds on real text: losses over time."""
    pretrain.VALIDATIONS = 3  # a checkpoint of base, 1.8 GB, comes with each
    while not Path(args.work, "prepared").exists():  # the part's limit ends this
        time.sleep(0.2)
    for kind in KINDS:
        found[kind] = run.pretrain(options(args, kind))["result"]
        rows = map(json.loads, Path(args.work, kind, "log.jsonl").read_text().splitlines())
        found[f"{kind}_curve"] = [(row["step"], row["loss"]) for row in rows if "loss" in row][::6]
        limit = found[kind]["baseline"]["loss"] + (9 if args.tiny else 0.5)
        found[f"ok_{kind}_learns"] = found[kind]["validation_loss"] < limit


def part_finetune(args, machine, found):
    """Both runs at once, task after task; what is done by the time limit is kept."""
    more = ["--epochs", "1", "--train-examples", "9"] if args.tiny else ["--lr", "1e-4"]
    for task in ("rte", "mrpc", "stsb")[: 1 if args.tiny else 3]:
        command = [sys.executable, "finetune.py", "--task", task, "--data-dir", args.glue, *more]
        jobs = {kind: subprocess.Popen([*command, f"{args.work}/{kind}"]) for kind in KINDS}
        for kind, job in jobs.items():
            found[f"ok_{kind}_{task}"] = job.wait() == 0
            path = Path(args.work, kind, "glue", f"{task}.json")
            row = json.loads(path.read_text()) if path.exists() else {}
            found[f"{kind} {task}"] = {key: row.get(key) for key in ("scores", "majority")}


if __name__ == "__main__":
    main()
