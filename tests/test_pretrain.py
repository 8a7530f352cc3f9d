"""The pretraining loop: it trains what it should, splitting changes nothing, nothing is lost."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import B, T, V, saved_by_them, torchrun

from mini_undivided import data, pretrain
from mini_undivided.model import BertConfig, MaskedLM, PairedMaskedLM, flops_per_token
from mini_undivided.optim import adamw
from mini_undivided.report.training import train
from mini_undivided.support import checkpoint, run_directory
from mini_undivided.support.checkpoint import read_pooler
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json
from mini_undivided.support.machine import Machine
from mini_undivided.tokenizer import load_tokenizer, save_tokenizer


def weights(out):
    """The tensors that a run wrote."""
    return checkpoint.read_weights(out)


def losses(out):
    """step → loss, from the log."""
    return {row["step"]: row["loss"] for row in run_directory.read_log(out) if "loss" in row}


def identical(a, b):
    """Whether two dictionaries of tensors agree bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_writes_a_whole_run_directory(options):
    """A run leaves all the files of a run directory.

    If it has all its FFNs, Hugging Face opens it.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    train(replace(options, ffn_layers=None))
    record = read_json(Path(options.out) / "train.json")
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_state.pt",
        "training_state.pt.sum",
        "train.json",
        "log.jsonl",
        "loss.png",
    }
    out = Path(options.out)
    assert {path.name for path in out.iterdir()} == names
    assert record["status"] == "finished"
    assert record["options"]["seq_len"] == 19 and record["corpus"]["documents"] == 160
    state = torch.load(out / "training_state.pt", weights_only=True)
    assert state["step"] == 12 and {"optimizer", "random", "model"} <= state.keys()
    row = run_directory.read_log(out)[0]
    assert {"step", "tokens", "loss", "lr", "tokens_per_second"} <= row.keys()
    assert row["tokens"] == 7 * 16

    theirs, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = AutoTokenizer.from_pretrained(out)("ant [MASK] eel", return_tensors="pt")["input_ids"]
    ours = MaskedLM.from_pretrained(out)
    torch.testing.assert_close(ours(ids), theirs.eval()(ids).logits, atol=1e-5, rtol=1e-5)


def test_an_untrained_model_knows_nothing_and_a_trained_one_much(options):
    """The first loss is about ln(vocabulary), and training brings it down.

    After 400 steps the loss is far below that of the best model without context.
    """
    record = pretrain.pretrain(replace(options, steps=400, seed=1))
    vocabulary = load_tokenizer(options.out).get_vocab_size()
    assert abs(losses(options.out)[1] - math.log(vocabulary)) < 0.25
    result = record["result"]
    assert result["validation_loss"] < result["baseline"]["loss"] - 0.7
    assert result["validation_accuracy"] > 0.6


def test_a_small_model_overfits_one_batch():
    """40 steps on one batch bring its loss from ln V to nearly 0, with and without FFNs."""
    machine = Machine.start("cpu", "float32")
    for ffn_layers in (None, []):
        config = BertConfig(
            vocab_size=61,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=51,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            ffn_layers=ffn_layers,
        )
        model = MaskedLM(config)
        optimizers = [adamw(model.parameters(), 1e-2)]
        batch = data.MaskedBatch(
            torch.randint(5, 61, (3, 17)),
            torch.tensor([[1, 5], [2, 9], [3, 16]]),
            torch.tensor([[7, 8], [9, data.IGNORE], [11, 12]]),
        )
        first = pretrain.train_step(model, optimizers, [batch], 5, machine) / 5
        for _ in range(40):
            last = pretrain.train_step(model, optimizers, [batch], 5, machine) / 5
        assert abs(first - math.log(61)) < 0.4 and last < 0.02


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulation_equals_one_large_batch(options, tmp_path, monkeypatch, optimizer):
    """6 sequences at once or 2 at a time give the same losses and weights.

    They agree to float tolerance, with uneven masks too.
    """
    monkeypatch.setenv("MINI_UNDIVIDED_CPU", "plain")  # Muon in float32
    options = replace(options, optimizer=optimizer)
    pretrain.pretrain(replace(options, micro_batch=6))
    pretrain.pretrain(replace(options, micro_batch=2, out=str(tmp_path / "split")))
    a, b = losses(options.out), losses(tmp_path / "split")
    assert a.keys() == b.keys() and all(abs(a[step] - b[step]) < 1e-4 for step in a)
    for name, tensor in weights(options.out).items():
        torch.testing.assert_close(weights(tmp_path / "split")[name], tensor, atol=1e-3, rtol=1e-3)


def test_the_loss_of_pairs_is_that_of_transformers(tmp_path):
    """Over the number of masked places, it is the loss of BertForPreTraining: a mean of each kind.

    Where as many are masked in each sequence, micro-batches change nothing.
    """
    torch.manual_seed(0)
    reference, folder = saved_by_them(tmp_path, "BertForPreTraining")
    ids, places = torch.randint(5, V, (B, T)), torch.tensor([[1, 5, 12]] * B)
    segments = (torch.arange(T) > 6).long().expand(B, T)
    batch = data.MaskedBatch(
        ids, places, torch.randint(5, V, (B, 3)), segments, torch.randint(0, 2, (B,)))
    labels = torch.full((B, T), -100).scatter(1, places, batch.labels)
    wanted = reference(ids, torch.ones_like(ids), segments, labels=labels,
                       next_sentence_label=batch.is_random).loss
    model, parts = PairedMaskedLM.from_pretrained(folder), list(batch.micro_batches(2))
    losses = [sum(pretrain.paired_loss(model, part) for part in each).item() / (3 * B)
              for each in ([batch], parts)]
    assert losses == pytest.approx([wanted.item()] * 2, rel=1e-5)


def test_pairs_are_learned(options, tmp_path):
    """With --next-sentence a run learns whether parts belong together, and keeps the head.

    Documents of the corpus say one word each (some pairs span two). Fine-tuning begins with the
    pooler of such a run, and a run with one sequence a batch is refused.
    """
    run = replace(options, next_sentence=True, seq_len=33, batch_tokens=33 * 16, steps=500)
    record = pretrain.pretrain(run)
    tokenizer = load_tokenizer(run.out)
    corpus = pretrain.setup.open_corpus(run.corpus, None)
    tokens = pretrain.setup.tokenize(corpus, tokenizer)
    pairs = data.TrainingData(data.Sequences(tokens.train, 33, tokenizer, 0.4), 200, 9, pairs=True)
    model, batch = PairedMaskedLM.from_pretrained(run.out), pairs.batch(0)
    with torch.no_grad():
        _, logits = model(batch.input_ids, None, batch.token_type_ids, positions=batch.positions)
    assert (logits.argmax(1) == batch.is_random).float().mean() > 0.75
    assert record["result"]["pair_accuracy"] > 0.6  # of few pairs, a part of which span documents
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert torch.equal(read_pooler(run.out, model.config)["weight"], model.pooler.weight)
    with pytest.raises(UserError, match="--next-sentence takes the parts of a pair from two"):
        pretrain.pretrain(replace(run, batch_tokens=33, out=str(tmp_path / "one")))


def test_the_loss_of_a_step_is_over_all_its_masked_places():
    """Each masked place counts the same, not each micro-batch.

    The two micro-batches have 1 and 5 masked places.
    """
    machine = Machine.start("cpu", "float32")
    config = BertConfig(
        vocab_size=31,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=9,
    )
    model = MaskedLM(config).eval()
    ids, positions = torch.randint(5, 31, (2, 11)), torch.arange(1, 6).expand(2, 5)
    labels = torch.tensor([[7] + [data.IGNORE] * 4, [8, 9, 10, 11, 12]])
    logits = model(ids)
    expected = torch.nn.functional.cross_entropy(logits[0, 1:2], labels[0, :1], reduction="sum")
    expected = (
        expected + torch.nn.functional.cross_entropy(logits[1, 1:6], labels[1], reduction="sum")
    ) / 6
    gradient = torch.autograd.grad(expected, model.head.bias)[0]
    seen = {}

    class Spy(torch.optim.SGD):
        def step(self):
            seen["gradient"] = model.head.bias.grad.clone()

    parts = list(data.MaskedBatch(ids, positions, labels).micro_batches(1))
    total = pretrain.train_step(model, [Spy(model.parameters(), lr=0.0)], parts, 6, machine)
    assert total / 6 == pytest.approx(expected.item(), rel=1e-5)
    # train_step clips to norm 1: the direction is what must agree
    torch.testing.assert_close(
        seen["gradient"] / seen["gradient"].norm(), gradient / gradient.norm(), atol=1e-5, rtol=0
    )


def test_the_same_seed_gives_the_same_run_and_zero_is_a_seed(options, tmp_path):
    """Equal seeds give equal weights bit for bit, dropout included.

    Seed 0 and seed 1 give different ones.
    """
    options = replace(options, dropout=0.1, steps=5)
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain.pretrain(replace(options, seed=seed, out=str(tmp_path / name)))
        results.append(weights(tmp_path / name))
    assert identical(results[0], results[1]) and not identical(results[0], results[2])


def test_a_run_begins_with_short_sequences(options, monkeypatch):
    """Half of a run is on 16 tokens, which then double in equal shares up to --seq-len.

    Tokens are counted as they are.
    """
    shapes, step = [], pretrain.train_step

    def spy(model, optimizer, batches, *rest):
        shapes.append(
            (sum(len(batch.input_ids) for batch in batches), batches[0].input_ids.size(1))
        )
        return step(model, optimizer, batches, *rest)

    monkeypatch.setattr(pretrain, "train_step", spy)
    pretrain.pretrain(replace(options, seq_len=70, batch_tokens=150, short_first=0.5))
    assert shapes == [(9, 16)] * 6 + [(4, 32)] * 2 + [(2, 64)] * 2 + [(2, 70)] * 2
    tokens = [row["tokens"] for row in run_directory.read_log(options.out) if "loss" in row]
    assert tokens == [sum(rows * length for rows, length in shapes[:i]) for i in range(1, 13)]
    shapes.clear()
    pretrain.pretrain(replace(options, short_first=0.0, out=options.out + "-long"))
    assert shapes == [(6, 19)] * 12


@pytest.mark.parametrize("dropout, optimizer", [(0.0, "muon"), (0.1, "muon"), (0.1, "adamw")])
def test_a_resumed_run_equals_an_uninterrupted_one(
        options, tmp_path, monkeypatch, dropout, optimizer):
    """A run stopped by a signal and resumed equals an uninterrupted one, bit for bit.

    It is stopped after step 7; weights, optimiser and log are the same.
    """
    options = replace(options, dropout=dropout, optimizer=optimizer)
    pretrain.pretrain(options)
    stopped = replace(options, out=str(tmp_path / "stopped"))
    step = pretrain.train_step

    def interrupted(*arguments):
        interrupted.calls += 1
        if interrupted.calls == 7:
            os.kill(os.getpid(), 15)
        return step(*arguments)

    interrupted.calls = 0
    monkeypatch.setattr(pretrain, "train_step", interrupted)
    assert pretrain.pretrain(stopped)["status"] == "interrupted"
    assert run_directory.read_state(stopped.out)["step"] == 7
    monkeypatch.setattr(pretrain, "train_step", step)
    torch.manual_seed(99)  # whatever happened in between
    assert pretrain.pretrain(stopped, resume=True)["status"] == "finished"

    assert identical(weights(options.out), weights(stopped.out))
    a, b = run_directory.read_state(options.out), run_directory.read_state(stopped.out)
    for one, other in zip(a["optimizer"], b["optimizer"], strict=True):
        assert one["state"].keys() == other["state"].keys() != set()
        assert all(identical(entry, other["state"][i]) for i, entry in one["state"].items())
    assert losses(options.out) == losses(stopped.out)
    validation = [
        [row for row in run_directory.read_log(out) if "loss" not in row]
        for out in (options.out, stopped.out)
    ]
    assert validation[0] == validation[1]


def test_a_kill_between_two_checkpoints_costs_only_the_steps_since(options, tmp_path, monkeypatch):
    """A run killed hard and resumed still ends with the same weights.

    At step 9, where no handler runs, it goes back to the last checkpoint.
    """
    pretrain.pretrain(options)
    killed = replace(options, out=str(tmp_path / "killed"))
    step = pretrain.train_step

    def dies(*arguments):
        dies.calls += 1
        if dies.calls == 9:
            raise SystemError("power cut")
        return step(*arguments)

    dies.calls = 0
    monkeypatch.setattr(pretrain, "train_step", dies)
    with pytest.raises(SystemError):
        pretrain.pretrain(killed)
    monkeypatch.setattr(pretrain, "train_step", step)
    pretrain.pretrain(killed, resume=True)
    assert identical(weights(options.out), weights(killed.out))
    assert losses(options.out) == losses(killed.out)


def test_the_checkpoint_before_survives_a_kill_while_saving(options, monkeypatch):
    """If writing the new weights fails midway, the old ones are still there, intact.

    No temporary file is left over.
    """
    record = pretrain.pretrain(options)
    before = weights(options.out)

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise SystemError("power cut")

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises(SystemError):
        MaskedLM.from_pretrained(options.out).save_pretrained(options.out)
    assert identical(weights(options.out), before) and record["status"] == "finished"
    assert not list(Path(options.out).glob(".*"))


def test_minutes_end_the_run_on_the_clock_with_the_schedule_at_its_end(options, monkeypatch):
    """With --minutes, the run stops when the time is up.

    By then, the learning rate has come down to nearly 0.
    """
    record = pretrain.pretrain(replace(options, steps=None, minutes=0.05))
    rates = [row["lr"] for row in run_directory.read_log(options.out) if "loss" in row]
    assert record["status"] == "finished" and 3.0 <= record["result"]["seconds"] < 6.0
    assert max(rates) > 0.9 * options.lr and rates[-1] < 0.05 * options.lr
    assert rates.index(max(rates)) < 0.5 * len(rates)


def test_a_loss_that_is_not_finite_stops_the_run(options, monkeypatch):
    """A loss of NaN is an error that names the step and the learning rate.

    The checkpoint before it stays as it was.
    """
    step = pretrain.train_step

    def breaks(model, optimizer, *arguments):
        breaks.calls += 1
        return step(model, optimizer, *arguments) * (float("nan") if breaks.calls == 8 else 1.0)

    breaks.calls = 0
    monkeypatch.setattr(pretrain, "train_step", breaks)
    with pytest.raises(
        UserError, match=r"loss became nan at step 8 with a learning rate of \d.*--lr"
    ):
        pretrain.pretrain(options)
    assert run_directory.read_state(options.out)["step"] < 8
    assert all(torch.isfinite(tensor).all() for tensor in weights(options.out).values())


def test_a_run_ends_at_its_flops(options, tmp_path):
    """--flops makes a run as long as the steps do whose FLOPs these are, and says so in its record.

    A model with fewer of them a token sees more tokens.
    """
    options = replace(options, short_first=0.0)
    by_steps = pretrain.pretrain(options)["result"]
    length = 6 * 19
    cost = flops_per_token(MaskedLM.from_pretrained(options.out).config, 19, 7)  # 7 of 17 are 40 %
    assert by_steps["flops"] == pytest.approx(12 * length * cost)
    changes = {"steps": None, "flops": by_steps["flops"], "out": str(tmp_path / "flops")}
    by_flops = pretrain.pretrain(replace(options, **changes))["result"]
    assert by_flops["step"] == 12
    assert by_flops["validation_loss"] == pytest.approx(by_steps["validation_loss"], abs=1e-5)
    with pytest.raises(UserError, match="a run has one length"):
        pretrain.pretrain(replace(options, steps=None))
    changes |= {"ffn_layers": [], "out": str(tmp_path / "light")}
    assert pretrain.pretrain(replace(options, **changes))["result"]["step"] > 12


def test_held_out_text_without_words_to_hide_is_refused(options, tmp_path):
    """Sequences so full of [SEP] that 15 % of their words are none cannot validate a run."""
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps({"text": f"ant{i % 9}"}) + "\n" for i in range(900)))
    with pytest.raises(UserError, match="no sequence with words enough to hide one"):
        pretrain.pretrain(replace(options, corpus=[str(path)], seq_len=8, batch_tokens=64))


def test_init_starts_from_a_run_with_its_ffns_kept_or_cut(options, tmp_path):
    """With --init, the first loss is the old run's last, far below ln V.

    FFNs can be cut out of the weights on the way.
    """
    pretrain.pretrain(replace(options, steps=100))
    old = losses(options.out)[100]
    further = replace(
        options,
        init=options.out,
        ffn_layers=None,
        steps=3,
        lr=1e-9,
        muon_lr=1e-9,
        out=str(tmp_path / "more"),
    )
    pretrain.pretrain(further)
    assert abs(losses(further.out)[1] - old) < 0.5 < losses(options.out)[1] - old
    cut = replace(further, ffn_layers=[], out=str(tmp_path / "cut"))
    pretrain.pretrain(cut)
    assert not [name for name in weights(cut.out) if "intermediate" in name]
    assert [name for name in weights(further.out) if "intermediate" in name]
    name = "bert.encoder.layer.1.attention.self.query.weight"
    torch.testing.assert_close(
        weights(cut.out)[name], weights(options.out)[name], atol=1e-6, rtol=1e-5
    )


def test_init_from_hugging_face(options, tmp_path):
    """--init starts from a directory that `transformers` wrote.

    The weights are the same, and the tokenizer is its own.
    """
    from transformers import BertConfig as TheirConfig
    from transformers import BertForMaskedLM

    pretrain.pretrain(replace(options, steps=1))
    size = load_tokenizer(options.out).get_vocab_size()
    theirs = BertForMaskedLM(
        TheirConfig(
            vocab_size=size,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=41,
            max_position_embeddings=37,
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    save_tokenizer(load_tokenizer(options.out), tmp_path / "theirs")
    start = replace(
        options,
        init=str(tmp_path / "theirs"),
        ffn_layers=None,
        steps=1,
        lr=1e-12,
        muon_lr=1e-12,
        out=str(tmp_path / "ours"),
    )
    pretrain.pretrain(start)
    query = theirs.state_dict()["bert.encoder.layer.0.attention.self.query.weight"]
    torch.testing.assert_close(
        weights(start.out)["bert.encoder.layer.0.attention.self.query.weight"], query
    )
    with pytest.raises(UserError, match="--seq-len 38 is longer than the model's 37 positions"):
        pretrain.pretrain(replace(start, seq_len=38, out=str(tmp_path / "long")))


SCRIPT = """
import gc, json, pathlib, sys
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from mini_undivided.report.training import train
from mini_undivided.support.options import PretrainOptions
destroy = dist.destroy_process_group
def after_ddp():
    assert not [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
    destroy()
dist.destroy_process_group = after_ddp
train(PretrainOptions(**json.loads(sys.argv[1])))
# none if there is no /proc
threads = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads
"""


def test_an_error_of_the_first_process_ends_both(tmp_path):
    """A text that is not there: the first process says so, the other ends without a traceback."""
    done = torchrun("train.py", "--corpus", "nowhere.txt", "--out", tmp_path / "run")
    assert done.returncode and done.stderr.count("error: nothing to read at nowhere") == 1
    assert "RuntimeError" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("pairs", [False, True])
def test_two_processes_equal_one(options, tmp_path, monkeypatch, pairs):
    """Two gloo processes under torchrun have the losses of one with the same batch.

    So they have the same accuracy on pairs. There is one log and one bar.

    DDP goes before the group (else both processes sometimes wait for each other), and gloo's
    threads are gone when `pretrain` returns (else they sometimes abort the interpreter as it ends).
    """
    monkeypatch.setenv("MINI_UNDIVIDED_CPU", "plain")  # Muon in float32, as rounding is amplified
    # an even number of sequences of 16 and of 19
    options = replace(options, micro_batch=1, batch_tokens=128, next_sentence=pairs)
    pretrain.pretrain(options)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    together = replace(options, out=str(tmp_path / "two"))
    done = torchrun(script, json.dumps(vars(together)))
    assert done.returncode == 0, done.stderr
    a, b = losses(options.out), losses(together.out)
    assert a.keys() == b.keys() and all(abs(a[step] - b[step]) < 1e-4 for step in a)
    assert len(run_directory.read_log(together.out)) == len(run_directory.read_log(options.out))
    for name, tensor in weights(options.out).items():
        torch.testing.assert_close(weights(together.out)[name], tensor, atol=1e-3, rtol=1e-3)
    results = [
        read_json(Path(out) / "train.json")["result"] for out in (options.out, together.out)
    ]
    for name in ["validation_loss", *["pair_accuracy"] * pairs]:
        assert results[0][name] == pytest.approx(results[1][name], abs=1e-4)
    assert done.stdout.count("corpus ") == 1
    assert "%|" not in done.stderr  # a bar is for a terminal
