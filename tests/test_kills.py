"""A run of train.py that is killed, started twice, or loses its terminal, its text or its disk.

`python -m pytest tests/test_kills.py --kills 200` kills it so many times, within saves, too.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, losses, small_run, train_options

from mini_undivided.run import pretrain
from mini_undivided.support import files, run_directory
from mini_undivided.support.checkpoint import read_weights
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import resume_options
from mini_undivided.support.terminal import catch_signals


def start(*arguments, flags=(), output=subprocess.DEVNULL, **settings):
    """Start train.py → the process. Its output goes nowhere: nobody reads a pipe while it works."""
    command = [sys.executable, *flags, ROOT / "train.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=output, stderr=output)


def wait_for(condition, process):
    """Wait until a condition holds, or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.02)


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tale, tmp_path, request):
    """However often it is killed, and wherever, resuming ends in the same weights and losses.

    Nothing temporary is left. A run that was killed before its first checkpoint is started again.
    """
    out, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = small_run(tale, out, "--steps", 150, "--dropout", 0.1)
    assert start(*arguments, "--out", whole).wait() == 0  # in a process with as many threads
    rng, kills = np.random.default_rng(os.getpid()), 0
    while True:
        resume = (out / "training_state.pt").exists()
        step = len(losses(out)) + rng.integers(1, 60)
        process = start(*(["--resume", "--out", out] if resume else arguments))
        if kills == request.config.getoption("--kills"):
            assert process.wait() == 0
            break
        if rng.random() < 0.5:
            wait_for(lambda: any(out.glob(".*.tmp")), process)  # something is saved
        else:
            wait_for(lambda step=step: len(losses(out)) >= step, process)
        process.kill()
        process.wait()
        kills += 1
        if process.returncode == 0:
            shutil.rmtree(out)  # it was too late: once more
    for name, tensor in read_weights(whole).items():
        assert torch.equal(tensor, read_weights(out)[name]), name
    assert losses(out) == losses(whole) and not list(out.glob(".*.tmp"))
    assert read_json(out / "train.json")["status"] == "finished"


def test_one_process_at_a_time(tale, tmp_path):
    """A second run in a run directory is refused, and a kill gives it free."""
    out = tmp_path / "run"
    first = start(*small_run(tale, out, "--steps", 5000))
    wait_for((out / "training_state.pt").exists, first)
    with pytest.raises(UserError, match="another process is training in"):
        pretrain(resume_options({"out": str(out)}), resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        pretrain(train_options(*small_run(tale, out)))
    first.kill()
    first.wait()
    run_directory.claim(out).release()


def test_a_run_without_a_checkpoint_can_be_started_again(tale, tmp_path):
    """What a run left that died before it saved is no obstacle; --resume says what to do."""
    options = train_options(*small_run(tale, tmp_path / "run"))
    out = Path(options.out)
    out.mkdir()
    record = {"status": "running", "options": vars(options),
              "corpus": {"fingerprint": "x", "documents": 1}}
    write_json(out / "train.json", record)
    (out / ".training_state.pt.999999999.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="no checkpoint yet: start it again without --resume"):
        pretrain(resume_options({"out": str(out)}), resume=True)
    assert pretrain(options)["status"] == "finished"
    assert not list(out.glob(".*.tmp"))  # nor what a kill left within a save


def test_a_run_belongs_to_its_text_and_tokenizer(tale, tmp_path):
    """A resumed run whose text or tokenizer has changed stops before it writes."""
    text = tmp_path / "tale.jsonl"
    text.write_bytes(Path(tale).read_bytes())
    out = tmp_path / "run"
    pretrain(train_options(*small_run(text, out)))
    record = {**read_json(out / "train.json"), "status": "interrupted"}
    write_json(out / "train.json", record)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with open(text, "a") as file:
        file.write('{"text": "One more document."}\n')
    with pytest.raises(UserError, match="the text of .*tale.jsonl is not that which the run in"):
        pretrain(resume_options({"out": str(out)}), resume=True)
    text.write_bytes(Path(tale).read_bytes())
    other = train_options(*small_run(text, tmp_path / "other", "--vocab-size", 60))
    pretrain(other)
    shutil.copy(tmp_path / "other" / "tokenizer.json", out)
    with pytest.raises(UserError, match="its tokenizer has changed|size mismatch"):
        pretrain(resume_options({"out": str(out)}), resume=True)
    (out / "tokenizer.json").write_bytes(before["tokenizer.json"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("under_torchrun", [False, True])
def test_a_second_signal_ends_a_run_except_under_torchrun(monkeypatch, under_torchrun):
    """torchrun passes on a signal that its processes may have had: that one must not end them."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if under_torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with catch_signals() as caught:
        signal.raise_signal(signal.SIGINT)
        with nullcontext() if under_torchrun else pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(caught) == 1 + under_torchrun


def test_a_full_disk_is_said_and_costs_nothing(tale, tmp_path, monkeypatch):
    """A disk that fills up ends the run with a sentence; the checkpoint before it is whole."""
    options = train_options(*small_run(tale, tmp_path / "run"))
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="could not be written: the disk is full"):
        pretrain(options)
    monkeypatch.setattr(files.os, "fsync", fsync)
    assert not list(Path(options.out).glob(".*.tmp"))
    assert pretrain(resume_options({"out": options.out}), resume=True)["status"] == "finished"


@pytest.mark.parametrize("module", ["numpy", "mini_undivided.report.training"])
def test_ctrl_c_before_training_begins(tale, tmp_path, module):
    """Ctrl-C while libraries are loaded or text is read: one word, status 130, nothing left.

    Python says which module it has just imported.
    """
    process = start(*small_run(tale, tmp_path / "run", "--steps", 10**6),
                    flags=["-X", "importtime"], output=subprocess.PIPE,
                    MINI_UNDIVIDED_CACHE=str(tmp_path / "cache"))
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    assert stderr.splitlines()[-1] == "interrupted" and not list(tmp_path.rglob(".*.tmp"))
