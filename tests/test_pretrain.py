"""The pretraining loop: it trains what it should, splitting changes nothing, nothing is lost."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import B, T, V, config, losses, names, torchrun
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mini_undivided import data
from mini_undivided.corpus import open_corpus
from mini_undivided.costs import flops_per_token
from mini_undivided.model import MaskedLM
from mini_undivided.pretrain import WithLoss, masked_loss, train_step
from mini_undivided.report.training import fill, train
from mini_undivided.run import pretrain
from mini_undivided.support import checkpoint, run_directory
from mini_undivided.support.checkpoint import read_weights
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json
from mini_undivided.support.machine import Machine
from mini_undivided.tokenizer import load_tokenizer
from mini_undivided.tokens import tokenize


def identical(a, b):
    """Whether two dictionaries of tensors agree bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_a_whole_run_directory(options, tmp_path):
    """A run leaves all the files of a run directory; with all its FFNs, Hugging Face opens it.

    The folder of all runs is made with the first.
    """
    out = tmp_path / "runs" / "first"
    train(replace(options, ffn_layers=None, out=str(out)))
    record = read_json(out / "train.json")
    assert names(out) == [
        ".lock", "config.json", "log.jsonl", "loss.png", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "train.json", "training_state.pt", "training_state.pt.sum"]
    assert record["status"] == "finished"
    assert record["options"]["seq_len"] == 19 and record["corpus"]["documents"] == 160
    state = torch.load(out / "training_state.pt", weights_only=True)
    assert state["step"] == 12 and {"optimizer", "random", "model"} <= state.keys()
    rows = run_directory.read_log(out)
    validated = [row["step"] for row in rows if "validation_loss" in row]
    assert validated == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]  # ten times, the last at the end
    rows = [row for row in rows if "loss" in row]
    assert {"step", "tokens", "loss", "lr", "tokens_per_second"} <= rows[1].keys()
    assert [row["tokens"] for row in rows] == [6 * 19 * step for step in range(1, 13)]

    theirs, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(out)("ant [MASK] eel", return_tensors="pt")["input_ids"]
    ours = MaskedLM.from_pretrained(out)
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_an_untrained_model_knows_nothing_and_a_trained_one_much(options, ffn_layers):
    """The first loss is about ln(vocabulary), and training brings it down.

    After 400 steps the loss is far below that of the best model without context, with FFNs and
    without; and `fill` puts the word that is all around a [MASK] first, less likely ones after it.
    The result is what the saved model says of the held-out words.
    """
    result = pretrain(replace(options, steps=400, seed=1, ffn_layers=ffn_layers))["result"]
    model, tokenizer = MaskedLM.from_pretrained(options.out), load_tokenizer(options.out)
    assert abs(losses(options.out)[1] - math.log(tokenizer.get_vocab_size())) < 0.25
    assert result["validation_loss"] < result["baseline"]["loss"] - 0.7
    assert result["validation_accuracy"] > 0.6
    for words in fill(model, tokenizer, "cat cat [MASK] cat cat [MASK] cat", top=3):
        assert words[0][0] == "cat" and len(words) == 3
        assert [p for _, p in words] == sorted((p for _, p in words), reverse=True)

    valid = tokenize(open_corpus(options.corpus), tokenizer).valid
    sequences = data.Sequences(valid, options.seq_len, tokenizer)
    assert result["baseline"] == data.context_free_baseline(valid, sequences.is_special)
    batches = data.validation_batches(sequences, len(sequences))
    batch = data.MaskedBatch(*map(torch.cat, zip(*batches, strict=True)))
    counted = batch.labels != data.IGNORE_INDEX
    with torch.no_grad():
        logits = model(batch.input_ids, positions=batch.positions)[counted]
    labels = batch.labels[counted]
    correct = (logits.argmax(-1) == labels).float()
    at_mask = batch.input_ids.gather(1, batch.positions)[counted] == sequences.mask_id
    assert result["validation_loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert result["validation_accuracy"] == pytest.approx(correct.mean().item())
    assert result["accuracy_at_mask"] == pytest.approx(correct[at_mask].mean().item())


def test_the_loss_is_taken_in_float32():
    """A model under autocast returns bfloat16 logits: their loss is that of the same in float32."""
    logits = 5 * torch.randn(B, 3, V).bfloat16()
    batch = data.MaskedBatch(
        torch.zeros(B, T, dtype=torch.long), torch.zeros(B, 3, dtype=torch.long),
        torch.randint(V, (B, 3)))
    loss = masked_loss(lambda input_ids, positions: logits, batch)
    rows, labels = logits.flatten(0, 1), batch.labels.flatten()
    assert torch.equal(loss, F.cross_entropy(rows.float(), labels, reduction="sum"))
    assert loss.item() != F.cross_entropy(rows, labels, reduction="sum").item()


# The step.


@pytest.mark.parametrize("micro_batch", [2, 6])
def test_the_gradient_is_that_of_the_mean_loss(
        options, monkeypatch, before_train_step, micro_batch):
    """Before clipping a step's gradient is d(mean loss)/dw over all its masked positions.

    So the loss that is logged is the mean, and one batch is three micro-batches, though these do
    not have equally many positions.
    """
    wanted, means, uneven, seen = [], [], [], []

    def reference(model, optimizers, batches, *_):
        batch = data.MaskedBatch(*map(torch.cat, zip(*batches, strict=True)))
        logits = model.model(batch.input_ids)  # (B, T, V), of which the masked ones are gathered
        gathered = logits[torch.arange(len(logits))[:, None], batch.positions].flatten(0, 1)
        counted = batch.labels.flatten() != data.IGNORE_INDEX
        mean = F.cross_entropy(gathered[counted], batch.labels.flatten()[counted])
        wanted.append([*torch.autograd.grad(mean, [*model.parameters()])])
        means.append(mean.item())
        uneven.append(len({int((b.labels != data.IGNORE_INDEX).sum()) for b in batches}) > 1)

    def read_gradients(parameters, max_norm):
        seen.append([p.grad.clone() for p in parameters])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", read_gradients)
    before_train_step(reference)
    pretrain(replace(options, micro_batch=micro_batch, optimizer="adamw", steps=5))
    assert list(losses(options.out).values()) == pytest.approx(means, rel=1e-5)
    assert len(seen) == 5 and any(uneven) == (micro_batch == 2)
    torch.testing.assert_close(seen, wanted, atol=1e-6, rtol=1e-3)


def step_of(batches, scale, world_size=1):
    """How a step of plain gradient descent moves a model whose loss is `scale` times the usual."""
    torch.manual_seed(0)
    model = WithLoss(MaskedLM(config()).eval(), lambda *each: scale * masked_loss(*each))
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizers = [torch.optim.SGD(model.parameters(), lr=1.0)]
    train_step(model, optimizers, batches, 4, Machine(torch.device("cpu"), world_size=world_size))
    assert all(p.grad is None for p in model.parameters())
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before


def test_a_step_is_clipped_as_a_whole_and_shared_by_processes():
    """A gradient is clipped to a norm of 1 once, after the last micro-batch.

    The mean over two processes' gradients, which DDP takes, is the gradient of one process.
    """
    labels = torch.tensor([[7, data.IGNORE_INDEX, data.IGNORE_INDEX], [8, 9, 11]])
    positions = torch.tensor([[1, 2, 4], [2, 5, 6]])
    whole = data.MaskedBatch(torch.randint(5, V, (2, T)), positions, labels)
    halves = [*data.split(whole, 1)]
    small = step_of([whole], 0.05)
    assert small.norm() < 0.7
    for batches in ([whole], halves):
        large = step_of(batches, 50)
        torch.testing.assert_close(large, small / small.norm(), atol=1e-5, rtol=1e-3)
    one, other = (step_of([half], 0.05, world_size=2) for half in halves)
    torch.testing.assert_close((one + other) / 2, small, atol=1e-6, rtol=1e-3)


def test_the_learning_rate_follows_its_schedule(options, before_train_step):
    """The rate of each step is the schedule's in its middle: in the log, and in the optimizer."""
    used = []
    before_train_step(lambda model, optimizers, *_: used.append(
        [group["lr"] for group in optimizers[-1].param_groups]))
    pretrain(replace(options, steps=23, lr=0.0123))
    middles = [(step - 0.5) / 23 for step in range(1, 24)]
    wanted = [0.0123 * min(middle / 0.1, (1 - middle) / 0.9) for middle in middles]
    rows = [row for row in run_directory.read_log(options.out) if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, 24))
    assert [row["lr"] for row in rows] == pytest.approx(wanted)
    assert [first for first, _ in used] == [last for _, last in used] == pytest.approx(wanted)


def test_a_step_moves_each_tensor_once(options, monkeypatch, before_train_step):
    """Three copies to the device a step, however many micro-batches it has."""
    moved, counts, to_device = [], [], Machine.to_device
    monkeypatch.setattr(
        Machine, "to_device", lambda *each: moved.append(each) or to_device(*each))
    monkeypatch.setattr("mini_undivided.pretrain.VALIDATIONS", 0)
    before_train_step(lambda model, optimizers, batches, *_: counts.append(
        (len(batches), len(moved))))
    pretrain(replace(options, micro_batch=2, steps=5))
    assert counts == [(3, 3 * step) for step in range(1, 6)]


def test_berts_own_recipe_is_a_matter_of_options(options, tmp_path):
    """AdamW for all weights, 15 % masked and dropout 0.1, each by its option.

    Without the last nothing is dropped. Validation masks 15 % whatever training does, and the
    config that is saved has BERT's dropout, for fine-tuning.
    """
    assert options.dropout == 0
    berts = replace(options, optimizer="adamw", mlm_probability=0.15, dropout=0.1, seed=3,
                    seq_len=42, batch_tokens=42 * 5, steps=1)
    ours = replace(berts, optimizer="muon", mlm_probability=0.3, dropout=0.0,
                   out=str(tmp_path / "ours"))
    for each, masked, kinds in ((berts, 6, ["AdamW"]), (ours, 12, ["Muon", "AdamW"])):
        runs = []
        pretrain(each, announce=lambda record, run, tokenizer, runs=runs: runs.append(run))
        (run,) = runs
        assert [type(optimizer).__name__ for optimizer in run.optimizers] == kinds
        assert (run.batches.sequences.num_masked, run.valid_set.num_masked) == (masked, 6)  # of 40
        assert run.batches.seed == 3
        dropouts = [m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)]
        assert dropouts == [each.dropout] * (1 + 2 * 2 + 1)
        saved = read_json(Path(each.out) / "config.json")
        assert saved["hidden_dropout_prob"] == saved["attention_probs_dropout_prob"] == 0.1


def test_validation_is_without_dropout_and_training_with_it(options, monkeypatch):
    """Validation runs in evaluation mode without gradients, and training goes on in its own mode.
    """
    modes, forward = [], MaskedLM.forward

    def spy(self, *args, **kwargs):
        modes.append((self.training, torch.is_grad_enabled()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MaskedLM, "forward", spy)
    pretrain(options)
    assert modes.count((True, True)) == 12 and set(modes) == {(True, True), (False, False)}
    assert modes.index((False, False)) < 4  # some training comes after a validation


@pytest.fixture
def counter(monkeypatch):
    """Counts the graphs of torch.compile, which here raises an error at a graph break."""
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **settings: compile(
        model, backend=counter, fullgraph=True, **settings))
    return counter


@pytest.mark.parametrize("pairs", [False, True])
def test_a_run_is_one_graph(options, tmp_path, counter, pairs):
    """A compiled run has one graph, the loss within it, and trains as one that is not compiled.

    So has each of three models in one process, where PyTorch compiles no function more than so many
    times.
    """
    options = replace(options, micro_batch=2, steps=3, next_sentence=pairs)
    pretrain(options)
    assert counter.frame_count == 0
    with torch._dynamo.config.patch(cache_size_limit=1):  # recompile_limit, from 2.7 on
        for number, width in enumerate((24, 36, 48), 1):
            out = str(tmp_path / str(width))
            pretrain(replace(options, compile=True, hidden_size=width, out=out))
            assert counter.frame_count == number
    assert losses(tmp_path / "24") == pytest.approx(losses(options.out), abs=1e-5)


def test_the_same_seed_gives_the_same_run_and_zero_is_a_seed(options, tmp_path):
    """Equal seeds give equal weights bit for bit, dropout included; seeds 0 and 1 do not."""
    options, results = replace(options, dropout=0.1, steps=5), []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(replace(options, seed=seed, out=str(tmp_path / name)))
        results.append(read_weights(tmp_path / name))
    assert identical(results[0], results[1]) and not identical(results[0], results[2])


def stop(optimizers):
    """A signal, as Ctrl-C sends it: the run saves and ends after this step."""
    os.kill(os.getpid(), 15)


def crash(optimizers):
    """An end that no handler sees, two steps after the last checkpoint."""
    raise SystemError("power cut")


@pytest.mark.parametrize("optimizer, ends", [("muon", stop), ("adamw", stop), ("muon", crash)])
def test_a_resumed_run_equals_an_uninterrupted_one(
        options, tmp_path, before_train_step, optimizer, ends):
    """A run that is stopped by a signal, or killed between two checkpoints, loses nothing.

    Resumed, it equals an uninterrupted one bit for bit: weights, optimizers and log.
    """
    options = replace(options, dropout=0.1, optimizer=optimizer)
    pretrain(options)
    stopped, steps = replace(options, out=str(tmp_path / "stopped")), []

    def end_the_seventh(model, optimizers, *_):
        steps.append(len(steps) + 1)
        if steps[-1] == 7:
            ends(optimizers)

    before_train_step(end_the_seventh)
    if ends is stop:
        assert pretrain(stopped)["status"] == "interrupted"
        assert checkpoint.read_state(stopped.out)["step"] == 7
    else:
        with pytest.raises(SystemError):
            pretrain(stopped)
        assert checkpoint.read_state(stopped.out)["step"] < 7
    torch.manual_seed(99)  # whatever happened in between
    assert pretrain(stopped, resume=True)["status"] == "finished"

    assert identical(read_weights(options.out), read_weights(stopped.out))
    a, b = checkpoint.read_state(options.out), checkpoint.read_state(stopped.out)
    for one, other in zip(a["optimizer"], b["optimizer"], strict=True):
        assert one["state"].keys() == other["state"].keys() != set()
        assert all(identical(entry, other["state"][i]) for i, entry in one["state"].items())
    logs = [[{**row, "tokens_per_second": 0} for row in run_directory.read_log(each.out)]
            for each in (options, stopped)]
    assert logs[0] == logs[1]


def test_minutes_and_speed_leave_out_the_first_step_of_a_process(
        options, monkeypatch, before_train_step):
    """With --minutes a run ends when its time is up, its learning rate then near 0.

    The first step of each process, which may compile, counts neither there nor in tokens a second.
    """
    clock, steps = [0.0], []

    def tick(*_):
        steps.append(len(steps) + 1)
        clock[0] += 1000 if steps[-1] in (1, 12) else 1  # seconds
        if steps[-1] == 11:
            stop(None)

    for module in ("pretrain", "support.log"):
        monkeypatch.setattr(
            f"mini_undivided.{module}.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    before_train_step(tick)
    options = replace(options, steps=None, minutes=20 / 60)
    assert pretrain(options)["status"] == "interrupted"
    record = pretrain(options, resume=True)
    assert record["status"] == "finished" and record["result"]["seconds"] == 20
    assert record["result"]["tokens_per_second"] == 6 * 19
    rows = [row for row in run_directory.read_log(options.out) if "loss" in row]
    assert [row.get("tokens_per_second") for row in rows] == [
        None, *[114] * 10, None, *[114] * 10]
    rates = [row["lr"] / options.lr for row in rows]
    begins = [0, *range(11), *range(10, 20)]  # seconds of the run at which each step began
    assert rates == pytest.approx([s / 2 if s < 2 else (20 - s) / 18 for s in begins])


def test_a_loss_that_is_not_finite_stops_the_run(options, before_train_step):
    """A loss of NaN is an error that names the step and the learning rate.

    The checkpoint before it stays as it was.
    """
    steps = []

    def breaks(model, *_):
        steps.append(model)
        if len(steps) == 8:
            model.model.head.bias.data.fill_(math.nan)

    before_train_step(breaks)
    with pytest.raises(
            UserError, match=r"loss became nan at step 8 with a learning rate of \d.*--lr"):
        pretrain(options)
    assert checkpoint.read_state(options.out)["step"] < 8
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(options.out).values())


def test_a_run_ends_at_its_flops(options, tmp_path):
    """--flops makes a run as long as the steps do whose FLOPs these are, and says so in its record.

    A model with fewer of them per token sees more tokens.
    """
    by_steps = pretrain(options)["result"]
    cost = flops_per_token(MaskedLM.from_pretrained(options.out).config, 19, 7)  # 7 of 17 are 40 %
    assert by_steps["flops"] == pytest.approx(12 * 6 * 19 * cost)
    changes = {"steps": None, "flops": by_steps["flops"], "out": str(tmp_path / "flops")}
    by_flops = pretrain(replace(options, **changes))["result"]
    assert by_flops["step"] == 12
    assert by_flops["validation_loss"] == pytest.approx(by_steps["validation_loss"], abs=1e-5)
    changes |= {"ffn_layers": [], "out": str(tmp_path / "light")}
    assert pretrain(replace(options, **changes))["result"]["step"] > 12


# Several processes.

SCRIPT = """
import gc, json, pathlib, sys
import torch
from torch import distributed as dist
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel
from mini_undivided.report.training import train
from mini_undivided.support.machine import Machine
from mini_undivided.support.options import PretrainOptions
Machine.quick_dtype = torch.float32
destroy, compile, counter = dist.destroy_process_group, torch.compile, CompileCounter()
def after_ddp():
    assert not [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
    destroy()
dist.destroy_process_group = after_ddp
torch.compile = lambda *args, **kw: compile(*args, **kw, backend=counter, fullgraph=True)
train(PretrainOptions(**json.loads(sys.argv[1])))
assert counter.frame_count == 1, counter.frame_count
# none if there is no /proc
threads = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads
"""


def test_an_error_of_the_first_process_ends_both(tmp_path):
    """A text that is not there: the first process says so, the other ends without a traceback."""
    done = torchrun("train.py", "--corpus", "nowhere.txt", "--out", tmp_path / "run")
    assert done.returncode and done.stderr.count("error: nothing to read at nowhere") == 1
    assert "RuntimeError" not in done.stderr and not (tmp_path / "run").exists()


def test_two_processes_equal_one(options, tmp_path, monkeypatch):
    """Two gloo processes under torchrun have the losses of one with the same batch.

    So they have the same validation, over a batch for each, and the same accuracy on pairs. They
    compile, to one graph; there is one log and one bar.

    DDP goes before the group (else both processes sometimes wait for each other), and gloo's
    threads are gone when `pretrain` returns (else they sometimes abort the interpreter as it ends).
    """
    monkeypatch.setattr(Machine, "quick_dtype", torch.float32)  # Muon amplifies rounding
    options = replace(options, seq_len=8, batch_tokens=64, micro_batch=2, next_sentence=True)
    one = pretrain(options)["result"]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    together = replace(options, out=str(tmp_path / "two"), compile=True)
    done = torchrun(script, json.dumps(vars(together)))
    assert done.returncode == 0, done.stderr
    assert losses(together.out) == pytest.approx(losses(options.out), abs=1e-4)
    assert len(run_directory.read_log(together.out)) == len(run_directory.read_log(options.out))
    for name, tensor in read_weights(options.out).items():
        torch.testing.assert_close(
            read_weights(together.out)[name], tensor, atol=1e-3, rtol=1e-3)
    two = read_json(Path(together.out) / "train.json")["result"]
    for name in ("validation_loss", "validation_accuracy", "accuracy_at_mask", "pair_accuracy"):
        assert one[name] == pytest.approx(two[name], abs=1e-4)
    assert done.stdout.count("corpus ") == 1
