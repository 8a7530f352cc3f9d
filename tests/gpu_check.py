"""Is the code right and quick on a GPU, and do both kinds of model learn there?

    python tests/gpu_check.py --corpus text.jsonl --glue GLUE --out found    # on a GPU, 9 minutes
    python tests/gpu_check.py --corpus text.jsonl --glue GLUE --out found --tiny    # on a CPU

Right: parity, resume, analysis. Quick: speed, theirs, kernels. Alive: pretrain, finetune. Each part
has a process and a limit of its own; what it finds is in OUT/results.json and OUT/log.txt at once.
Entries named ok_… are checks.
"""

import argparse
import copy
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional as F

sys.path[:0] = [os.getcwd(), "tests"]  # in the root of the checkout
from benchmark import random_batches, their_update  # noqa: E402

from mini_undivided import cka, data, optim, pretrain, probe, run  # noqa: E402
from mini_undivided.costs import flops_per_token  # noqa: E402
from mini_undivided.model import BertConfig, Encoder, MaskedLM, attention  # noqa: E402
from mini_undivided.support.machine import Machine  # noqa: E402
from mini_undivided.support.options import PretrainOptions  # noqa: E402
from mini_undivided.support.run_directory import read_log, versions  # noqa: E402

LIMITS = {"versions": 40, "parity": 70, "resume": 80, "analysis": 40, "speed": 170, "theirs": 75,
          "kernels": 30, "pretrain": 170, "finetune": 80}  # seconds, in the order in which they run
KINDS = {"noffn": [], "full": None}  # ffn_layers


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--glue", help="folder of the official GLUE files")
    parser.add_argument("--out", default=os.environ.get("OUT", "gpu_check_out"))
    parser.add_argument("--work", default=tempfile.gettempdir() + "/gpu_check_work")
    parser.add_argument("--budget", type=float, default=535, help="seconds for all parts")
    parser.add_argument("--steps", type=int, default=600, help="of pretraining, 32,768 tokens each")
    parser.add_argument("--parts", default=",".join(LIMITS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.part:
        return run_parts(args, arguments)
    machine = Machine.start("auto", "bfloat16")  # on a CPU, too, so that the same code runs
    globals()["part_" + args.part](args, machine, Found(f"{args.out}/part-{args.part}.json"))


def run_parts(args, arguments):
    """Run the parts one after another, each in a process, and collect what they find."""
    for folder in (args.out, args.work):
        Path(folder).mkdir(parents=True, exist_ok=True)
    begin, results = time.monotonic(), {}
    log = open(f"{args.out}/log.txt", "a")  # noqa: SIM115 (until the end)

    def start(part, limit):
        settings = {"PART_LIMIT": str(limit), "MINI_UNDIVIDED_CACHE": f"{args.work}/cache",
                    "TORCHINDUCTOR_CACHE_DIR": f"{args.work}/inductor", "PYTHONUNBUFFERED": "1"}
        print(f"== {part}, at {time.monotonic() - begin:.0f} s", file=log, flush=True)
        return subprocess.Popen(  # `timeout` ends all processes of a part, and no others
            ["timeout", "-s", "KILL", str(limit), sys.executable, __file__, *arguments,
             "--part", part], stdout=log, stderr=log, env={**os.environ, **settings})

    if "pretrain" in args.parts:  # its text is prepared while the first parts use the GPU
        start("prepare", args.budget)
    for name in args.parts.split(","):
        now, path = time.monotonic(), Path(args.out, f"part-{name}.json")
        limit = min(LIMITS[name] * (10 if args.tiny else 1), args.budget - (now - begin))
        code = start(name, limit).wait() if limit > 8 else "no time left"
        results[name] = json.loads(path.read_text()) if path.exists() else {}
        results[name] |= {"exit": code, "seconds": round(time.monotonic() - now, 1)}
        path.unlink(missing_ok=True)
        Path(args.out, "results.json").write_text(json.dumps(results, indent=1))
        print(name, json.dumps(results[name]), flush=True)
    failed = [f"{name}.{key}" for name, found in results.items() for key, value in found.items()
              if key.startswith("ok_") and not value or key.endswith("ERROR")]
    ended = [name for name, found in results.items() if found["exit"]]
    print(f"{time.monotonic() - begin:.0f} s in all; failed checks: {failed or 'none'}; "
          f"parts that ended badly: {ended or 'none'}")
    sys.exit(bool(failed or ended))


class Found(dict):
    """What a part found; every entry is on disk as soon as it is there."""

    def __init__(self, path):
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
            self[f"{key} ERROR"] = f"{type(error).__name__}: {error}"[:500]


def config(args, **changes):
    """A BertConfig without dropout: base with changes or, --tiny, one with fewer of everything."""
    sizes = dict(vocab_size=30528, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tiny = dict(vocab_size=1008, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
                intermediate_size=192) if args.tiny else {}
    return BertConfig(**{**sizes, **changes, **tiny})


def seconds(work):
    """Seconds of a call, the GPU waited for."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def clock(work, repeats=10):
    """Median seconds of a call, after two that do not count."""
    return statistics.median([seconds(work) for _ in range(2 + repeats)][2:])


def flat(model):
    """All parameters of a model as one vector on the CPU."""
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def distance(x, y):
    """‖x - y‖ / ‖y‖ in float64 on the CPU."""
    x, y = x.detach().cpu().double(), y.detach().cpu().double()
    return ((x - y).norm() / y.norm().clamp(min=1e-30)).item()


def part_versions(args, machine, found):
    found["versions"] = {**versions(), "cuda": torch.version.cuda}
    found["machine"], peak = str(machine), machine.peak_flops()
    found["ok_known"] = not machine.on_gpu or bool(peak and machine.compiles)
    n = 8192 if machine.on_gpu else 128
    x, y = torch.randn(2, n, n, device=machine.device, dtype=torch.bfloat16)
    found["matmul_tflops_peak"] = 2e-12 * n**3 / clock(lambda: x @ y), peak


def part_parity(args, half, found):
    """Logits, losses, gradients and weights after three steps, on the CPU and on the GPU."""
    torch.set_float32_matmul_precision("highest")
    cpu, gpu = Machine(torch.device("cpu")), Machine(half.device)
    for kind, kept in KINDS.items():
        torch.manual_seed(0)
        reference = MaskedLM(sizes := config(args, num_hidden_layers=3, ffn_layers=kept))
        batches = random_batches(sizes.vocab_size, 8, 64, 0.4)
        far = copy.deepcopy(reference).to(gpu.device)
        batch, losses, worst, weights = batches.batch(0), {}, {}, []
        n = batch.labels.numel()
        error = distance(pretrain.masked_logits(far, gpu.batch_to_device(batch)),
                         pretrain.masked_logits(reference, batch))
        models = {"cpu": (reference, cpu), "gpu": (far, gpu), "bf16": (copy.deepcopy(far), half),
                  "compiled": (copy.deepcopy(far), half)}
        for name, (model, where) in models.items():
            step = pretrain.WithLoss(model)
            step = where.compile(step) if name == "compiled" and where.compiles else step
            parts = [*data.split(where.batch_to_device(batch), 4)]
            losses[name] = pretrain.train_step(step, [], parts, n, where).item() / n
            pairs = zip(model.named_parameters(), reference.parameters(), strict=True)
            worst[name] = max(  # gradients stay where there is no optimizer
                (distance(p.grad, q.grad), key) for (key, p), q in pairs if q.grad.norm() > 1e-4)
        for model, where in (models["cpu"], models["gpu"]):
            model.zero_grad()
            both = optim.muon_and_adamw(model, 0.01, 3e-4)
            for number in range(3):
                parts = [where.batch_to_device(batches.batch(number))]
                pretrain.train_step(pretrain.WithLoss(model), both, parts, n, where)
            weights.append(flat(model))
        found[kind] = {"logits": error, "losses": losses, "gradients": worst,
                       "weights": distance(*weights)}
        found[f"ok_{kind}_float32"] = error < 1e-4 and worst["gpu"][0] < 1e-3
        found[f"ok_{kind}_steps"] = distance(*weights) < 1e-3
        found[f"ok_{kind}_bf16"] = max(abs(loss - losses["cpu"]) for loss in losses.values()) < 0.02


def part_resume(args, machine, found):
    """An interrupted run ends about as far from a whole one as a second whole one does."""
    take = pretrain.take_step

    def interrupted(running, *rest):
        loss = take(running, *rest)
        if running.state.step == 3:
            signal.raise_signal(signal.SIGINT)
        return loss

    text = Path(args.work, "text.jsonl")  # little: a tokenizer is trained on it
    with open(args.corpus) as file:
        text.write_text("".join(itertools.islice(file, 300)))
    for compiled in (False, True) if machine.compiles else (False,):
        weights = {}
        for name in ("once", "again", "resumed"):
            options = PretrainOptions.preset(
                "laptop", corpus=[str(text)], dropout=0.1, compile=compiled, layers=2,
                out=f"{args.work}/{name}-{compiled}", steps=5 if args.tiny else 40)
            if name == "resumed":
                with patch.object(pretrain, "take_step", interrupted):
                    assert run.pretrain(options)["status"] == "interrupted"
            run.pretrain(options, resume=name == "resumed")
            weights[name] = flat(MaskedLM.from_pretrained(options.out))
        far = {name: distance(weights[name], weights["once"]) for name in ("again", "resumed")}
        found[f"distance, compiled {compiled}"] = far
        allowed = max(1e-3, 3 * far["again"]) if machine.on_gpu else 0
        found[f"ok_resume, compiled {compiled}"] = far["resumed"] <= allowed


def part_analysis(args, machine, found):
    """CKA and probes on the CPU and on the GPU."""
    torch.set_float32_matmul_precision("highest")  # as report.analysis does
    torch.manual_seed(0)
    encoders = {name: Encoder(config(args, num_hidden_layers=4, ffn_layers=kept)).eval()
                for name, kept in KINDS.items()}
    ids, mask = torch.randint(5, 1000, (16, 40)), torch.arange(40) < torch.randint(9, 41, (16, 1))
    labels = {name: torch.randint(4, (300,)).numpy() for name in ("train", "valid", "test")}
    centres, values, scores = torch.randn(3, 4, 64), [], []
    features = {name: torch.stack([4 * torch.randn(len(y), 64) + layer[y] for layer in centres])
                for name, y in labels.items()}
    for where in ("cpu", machine.device):
        there = {name: encoder.to(where) for name, encoder in encoders.items()}
        outputs = cka.compare(there, [(ids.to(where), mask.to(where), None)], [tuple(KINDS)])[0]
        values.append(torch.cat([x.flatten() for x in outputs[tuple(KINDS)].values()]))
        moved = {name: x.to(where) for name, x in features.items()}
        scores.append(torch.tensor(probe.probe(moved, labels, 4)["test"]))
    for name, (x, y), limit in (("cka", values, 1e-3), ("probe", scores, 0.01)):
        found[name] = (x - y).abs().max().item()
        found[f"ok_{name}"] = found[name] <= limit


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
            return "no time left"
        sizes = config(args, ffn_layers=KINDS[kind], **changes)
        batches = random_batches(sizes.vocab_size, tokens // length, length, 0.4)
        losses = []
        if machine.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        torch.manual_seed(0)
        model = MaskedLM(sizes).to(machine.device)
        both = optim.muon_and_adamw(model, 0.01, 3e-4, machine.quick_dtype)
        step = pretrain.WithLoss(model)
        step = machine.compile(step) if compiled else step
        fitting = max(1, machine.tokens_at_once(sizes) // length)
        micro = micro or min(tokens // length, 2 ** (fitting.bit_length() - 1))

        def take(steps):
            for number in range(steps):
                batch = batches.batch(number)
                parts = [*data.split(machine.batch_to_device(batch), micro)]
                losses.append(pretrain.train_step(step, both, parts, batch.labels.numel(), machine))

        first, _, took = (seconds(partial(take, steps)) for steps in (1, 2, count))
        flops = flops_per_token(sizes, length, batches.sequences.num_masked) * tokens * count
        peak, masked = machine.peak_flops(), batches.batch(0).labels.numel()
        return {"tokens_per_second": round(tokens * count / took), "first_s": first,
                "mfu": peak and flops / took / peak, "peak_GB": machine.peak_memory() / 1e9,
                "micro_batch": micro, "loss": losses[-1].item() / masked,
                "batch_ms": 1e3 * clock(lambda: batches.batch(1), 1)}

    for kind in KINDS:
        found.attempt(kind, measure, kind)
    for kind in KINDS:
        found.attempt(f"{kind}, micro-batches of 128", measure, kind, micro=128)
        with patch.object(torch.nn.LayerNorm, "forward", bfloat16_norm):
            found.attempt(f"{kind}, bfloat16 norms", measure, kind)
        found.attempt(f"{kind}, 16 tokens", measure, kind, 16)
        with patch.object(F, "scaled_dot_product_attention", attention):
            found.attempt(f"{kind}, 16 tokens, attention written out", measure, kind, 16)
        found.attempt(f"{kind}, vocabulary of 30,522", measure, kind, vocab_size=30522)
        found.attempt(f"{kind}, not compiled", measure, kind, compiled=False)


def part_theirs(args, machine, found):
    """transformers' BertForMaskedLM on as much text: sdpa, bfloat16, compiled, fused AdamW."""
    from transformers import BertConfig, BertForMaskedLM

    settings = config(args).to_hugging_face("BertForMaskedLM")
    model = BertForMaskedLM(BertConfig(**settings, attn_implementation="sdpa"))
    model = model.to(machine.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model = torch.compile(model, dynamic=False) if machine.compiles else model
    ids = torch.randint(5, settings["vocab_size"], (2, 2, 32) if args.tiny else (8, 128, 128))
    labels = torch.where(torch.rand(ids.shape) < 0.4, ids, -100)
    parts = [{"input_ids": x.to(machine.device), "labels": y.to(machine.device)}
             for x, y in zip(ids, labels, strict=True)]
    took = clock(lambda: their_update(model, optimizer, *parts), 1 if args.tiny else 8)
    found["tokens_per_second"] = ids.numel() / took
    found["peak_GB"] = machine.peak_memory() / 1e9


def part_kernels(args, machine, found):
    """Milliseconds of attention by length and form, forward and backward."""
    forms = {"written out": attention, "fused": F.scaled_dot_product_attention}
    if machine.compiles:
        forms["written out, compiled"] = torch.compile(attention)
    for T in (16, 32, 64, 128, 512)[: 2 if args.tiny else 5]:
        qkv = torch.randn(3, (32 if args.tiny else 2**14) // T, 12, T, 64, device=machine.device,
                          dtype=torch.bfloat16, requires_grad=True)
        for name, form in forms.items():
            found.attempt(f"{T} tokens, {name}", lambda form=form, qkv=qkv: 1e3 * clock(
                lambda: torch.autograd.grad(form(*qkv).sum(), qkv)))


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
    while not Path(args.work, "prepared").exists():  # the part's limit ends this
        time.sleep(0.2)
    for kind in KINDS:
        with patch.object(pretrain, "VALIDATIONS", 3):  # with each a checkpoint of 1.8 GB
            result = found[kind] = run.pretrain(options(args, kind))["result"]
        rows = read_log(f"{args.work}/{kind}")
        found[f"{kind}_curve"] = [(row["step"], row["loss"]) for row in rows if "loss" in row][::6]
        limit = result["baseline"]["loss"] + (9 if args.tiny else 0.5)
        found[f"ok_{kind}_learns"] = result["validation_loss"] < limit


def part_finetune(args, machine, found):
    """Both runs at once, task after task; what is done by the time limit is kept."""
    more = ["--epochs", "1", "--train-examples", "9"] if args.tiny else ["--lr", "1e-4"]
    for task in ("rte", "mrpc", "stsb")[: 1 if args.tiny else 3]:
        command = [sys.executable, "finetune.py", "--task", task, "--data-dir", args.glue, *more]
        jobs = {kind: subprocess.Popen([*command, f"{args.work}/{kind}"]) for kind in KINDS}
        for kind, job in jobs.items():
            found[f"ok_{kind}_{task}"] = job.wait() == 0
            if found[f"ok_{kind}_{task}"]:
                path = Path(args.work, kind, "glue", f"{task}.json")
                found[f"{kind} {task}"] = json.loads(path.read_text())["scores"]


if __name__ == "__main__":
    main(sys.argv[1:])
