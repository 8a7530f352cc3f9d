"""train.py, used as a person types it: its options, its errors, its output."""

import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from helpers import ROOT, losses, run_script, small_run, train_options

from mini_undivided.report.training import train
from mini_undivided.run import pretrain
from mini_undivided.support import checkpoint
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import resume_options
from mini_undivided.support.run_directory import read_log

run = partial(run_script, "train.py")


def test_a_run_says_what_it_does_and_what_came_out(tale, tmp_path, monkeypatch):
    """A run says what it is going to do, and what came out.

    Before: the corpus, the model with the FFNs' parameters, the batch and the device. After: the
    loss, the entropy and filled sentences, which fit the terminal.
    """
    monkeypatch.setenv("COLUMNS", "44")
    done = run(*small_run(tale, tmp_path / "run", "--no-ffn"))
    assert done.returncode == 0, done.stderr
    for word in (
        "100 documents", "no FFN", "million FLOPs per token",
        "210 tokens = 10 sequences of 21", "cpu, 1 thread, float32", "validation loss",
        "5 whole documents", "of the held-out words are in runs of 13",
        "without context the best model has", "it was:"):
        assert word in " ".join(done.stdout.split()), word  # lines are wrapped
    fills = done.stdout.partition("filled in:\n")[2].splitlines()
    assert fills and max(map(len, fills)) <= 44


def test_what_ffns_would_add_does_not_depend_on_the_heads(tale, tmp_path, capsys, monkeypatch):
    """A model with BERT's second head is told the same; one with all FFNs is told nothing.

    On a terminal a bar shows the time left, loss and tokens/s.
    """
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for flags, told in ((["--no-ffn"], True), ([], False)):
        out = tmp_path / str(told)
        train(train_options(*small_run(tale, out), "--steps", 3, "--next-sentence", *flags))
        captured = capsys.readouterr()
        assert re.search(r"< 00:0\d, step 3, loss \d\.\d+, [\d,]+ tokens/s", captured.err)
        shown = " ".join(captured.out.split())
        assert ("; an FFN in every layer would add 9,552 (+" in shown) == told


EFFECTS = [
    ("--layers", 3), ("--hidden-size", 30), ("--heads", 2), ("--ffn-size", 55),
    ("--vocab-size", 60), ("--cased",), ("--seq-len", 34), ("--batch-tokens", 420), ("--lr", 0.02),
    ("--muon-lr", 0.02), ("--optimizer", "adamw"),
    ("--mlm-probability", 0.3), ("--next-sentence",), ("--dropout", 0.3), ("--seed", 1),
    ("--no-ffn",), ("--ffn-every", 2), ("--ffn-layers", "0"), ("--steps", 5),
    ("--dtype", "bfloat16")]


def test_every_option_changes_the_run(tale, tmp_path):
    """Each option that should change the numbers does: no two runs have the same losses."""
    seen = {}
    for i, arguments in enumerate([(), *EFFECTS]):
        out = tmp_path / str(i)
        pretrain(train_options(*small_run(tale, out), "--steps", 2, *arguments))
        key = tuple(losses(out).values())
        assert key not in seen, f"{arguments} gave the same run as {seen[key]}"
        seen[key] = arguments


def test_ctrl_c_saves_and_resume_goes_on(tale, tmp_path, capsys):
    """Ctrl-C saves the run, says so and ends with status 130; --resume goes on to the end.

    Another --lr is refused; a run that is finished shows its results again.
    """
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *map(str, small_run(tale, out, "--steps", 4000))],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not read_log(out) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert f"interrupted and saved; resume it with: python train.py --resume --out {out}" in stdout
    assert read_json(out / "train.json")["status"] == "interrupted"

    with pytest.raises(UserError, match="takes the options of the run in --out: leave out --lr"):
        resume_options({"out": str(out), "lr": 0.5})
    record, state = read_json(out / "train.json"), checkpoint.read_state(out)
    steps = record["options"]["steps"] = state["step"] + 20  # a shorter way to the end
    write_json(out / "train.json", record)
    checkpoint.write_state(out, {**state, "progress": state["step"] / steps})
    assert train(resume_options({"out": str(out)}), resume=True)
    assert list(losses(out)) == list(range(1, steps + 1))
    results = capsys.readouterr().out.partition("\nwithout context")[2]
    (out / "loss.png").rename(out / ".loss.png.999999999.tmp")  # of a kill after the last step
    assert train(resume_options({"out": str(out)}), resume=True)
    again = capsys.readouterr().out
    assert "is finished; to train it further" in again
    assert results and again.partition("\nwithout context")[2] == results
    moved = shutil.copytree(out, out.parent / "moved")
    (out / "loss.png").unlink()
    (moved / "loss.png").unlink()
    assert train(resume_options({"out": str(moved)}), resume=True)
    assert f"written to {moved}" in capsys.readouterr().out
    assert (moved / "loss.png").exists() and not (out / "loss.png").exists()
    shutil.copy(moved / "loss.png", out)
    assert (out / "loss.png").exists() and not list(out.glob(".*.tmp"))
