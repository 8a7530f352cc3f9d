"""train.py, used as a person types it: its options, its errors, its output."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial

import pytest
from helpers import ROOT, help_of, run_script, small_run, train_options

from mini_undivided.support import run_directory
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import PretrainOptions, TrainShortcuts, dashed

run = partial(run_script, "train.py")


def test_a_run_says_what_it_does_and_what_came_out(tale, tmp_path):
    """A run says what it is going to do, and what came out.

    Before: the corpus, the model with the FFNs' parameters, the batch and the device. After: the
    loss, the entropy and filled sentences.
    """
    done = run(*small_run(tale, tmp_path / "run", "--no-ffn"))
    assert done.returncode == 0, done.stderr
    for word in (
        "100 documents",
        "no FFN",
        "an FFN in every layer would add 9,552",
        "million FLOPs per token",
        "210 tokens = 10 sequences of 21",
        "cpu, 1 thread, float32",
        "validation loss",
        "5 whole documents",
        "of the held-out words are in runs of 13",
        "without context the best model has",
        "it was:",
    ):
        assert word in " ".join(done.stdout.split()), word  # lines are wrapped
    assert re.search(r"< 00:0\d, step 11, loss \d\.\d+, [\d,]+ tokens/s", done.stderr)


def test_what_ffns_would_add_does_not_depend_on_the_heads(tale, tmp_path, capsys):
    """A model with BERT's second head is told the same; one with all FFNs is told nothing."""
    from mini_undivided.report.training import train

    for flags, said in ((["--no-ffn"], True), ([], False)):
        out = tmp_path / str(said)
        train(train_options(*small_run(tale, out), "--steps", 1, "--next-sentence", *flags))
        shown = " ".join(capsys.readouterr().out.split())
        assert ("; an FFN in every layer would add 9,552 (+" in shown) == said


def test_help_answers_without_loading_pytorch():
    """--help names every option, and imports neither torch nor numpy."""
    words, imported = help_of("train.py")
    options = {dashed(field.name) for field in (*fields(PretrainOptions), *fields(TrainShortcuts))}
    assert options <= set(words) and imported == []


EFFECTS = [
    ("--layers", 3),
    ("--hidden-size", 30),
    ("--heads", 2),
    ("--ffn-size", 55),
    ("--vocab-size", 60),
    ("--cased",),
    ("--seq-len", 34),
    ("--short-first", 0),
    ("--batch-tokens", 420),
    ("--lr", 0.02),
    ("--dropout", 0.3),
    ("--seed", 1),
    ("--no-ffn",),
    ("--ffn-every", 2),
    ("--ffn-layers", "0"),
    ("--steps", 5),
    ("--dtype", "bfloat16"),
]


def test_every_option_changes_the_run(tale, tmp_path):
    """Each option that should change the numbers does.

    No two of these runs end with the same losses.
    """
    from mini_undivided.pretrain import pretrain

    seen = {}
    for i, arguments in enumerate([(), *EFFECTS]):
        out = tmp_path / str(i)
        pretrain(train_options(*small_run(tale, out), "--steps", 3, *arguments))
        key = tuple(row["loss"] for row in run_directory.read_log(out) if "loss" in row)
        assert key not in seen, f"{arguments} gave the same run as {seen[key]}"
        seen[key] = arguments


@pytest.mark.parametrize(
    ("flags", "compiled"), [([], False), (["--no-compile"], False), (["--compile"], True)]
)
def test_compile_is_asked_for(tale, tmp_path, monkeypatch, flags, compiled):
    """--compile trains torch.compile's version of the model.

    On a CPU it is not the default.
    """
    import torch

    from mini_undivided.pretrain import pretrain

    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: calls.append(model) or model)
    pretrain(train_options(*small_run(tale, tmp_path / "run", *flags)))
    assert len(calls) == compiled


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--no-ffn", "--ffn-every", 2],
            "error: --no-ffn and --ffn-every exclude each other: give one of them",
        ),
        (
            ["--steps", 3, "--minutes", 1],
            "error: --steps and --minutes exclude each other: give one of them",
        ),
        (["--lr", "-1"], "argument --lr: -1 is not a number from 1e-12 to 100"),
        (["--layers", "0"], "argument --layers: 0 is not a whole number from 1 to 1,000"),
        (["--dropout", "1.5"], "argument --dropout: 1.5 is not a number from 0 to 0.99"),
        (
            ["--ffn-layers", "1,x"],
            "argument --ffn-layers: 1,x is not a list of layer numbers, such as 3,7,11",
        ),
        (["--preset", "huge"], "huge is not one of"),
        (
            ["--heads", 5],
            "error: 5 heads do not divide the hidden size 128; choose a number of heads that does",
        ),
        (
            ["--ffn-layers", "9"],
            "error: FFN layer 9 is out of range: the 4 layers are numbered from 0 to 3",
        ),
        (
            ["--corpus", "nowhere.txt"],
            "error: nothing to read at nowhere.txt: no such file or folder",
        ),
        (["--init", "runs/nothing"], "error: runs/nothing is not a folder"),
        (
            ["--resume", "--out", "runs/nothing"],
            "error: there is no run to resume in runs/nothing; name it with --out",
        ),
        (["--device", "cuda"], "error: --device cuda: this PyTorch sees no CUDA GPU"),
    ],
)
def test_wrong_things_typed(arguments, sentence, tmp_path):
    """A mistake ends with status 2 and one sentence, without a traceback.

    No run directory is left behind.
    """
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_saves_and_resume_goes_on(tale, tmp_path):
    """Ctrl-C saves the run, says so and ends with status 130; --resume goes on to the end.

    Another --lr is refused; a run that is finished shows its results again.
    """
    out = tmp_path / "run"
    arguments = small_run(tale, out)
    arguments[arguments.index("--steps") + 1] = 4000
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not run_directory.read_log(out) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"interrupted and saved; resume it with: python train.py --resume --out {out}" in stdout
    assert read_json(out / "train.json")["status"] == "interrupted"

    refused = run("--resume", "--out", out, "--lr", "0.5")
    assert refused.returncode == 2 and "--lr 0.5 is not the 0.002 that the run" in refused.stderr
    record = read_json(out / "train.json")
    state = run_directory.read_state(out)
    step = state["step"]
    record["options"]["steps"] = step + 20  # a shorter way to the end
    write_json(out / "train.json", record)
    run_directory.write_state(out, {**state, "progress": step / (step + 20)})
    done = run("--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in run_directory.read_log(out) if "loss" in row]
    assert steps == list(range(1, step + 21))
    (out / "loss.png").rename(out / ".loss.png.999999999.tmp")
    again = run("--resume", "--out", out)  # what a kill after the last step took is shown again
    assert again.returncode == 0 and "is finished; to train it further" in again.stdout
    assert done.stdout.partition("validation loss")[2].splitlines()[-6:] == (
        again.stdout.splitlines()[-6:]
    )
    assert (out / "loss.png").exists() and not list(out.glob(".*.tmp"))
