"""train.py, typed as a person types it: its options, its errors, its output."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from mini_undivided import runs
from mini_undivided.runtime import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small corpus of sentences."""
    path = tmp_path_factory.mktemp("text") / "tale.jsonl"
    sentence = "The {} walked slowly to the old {} and found nothing there but rain. "
    nouns = "fox hen owl cat dog bee ant cow pig elk".split()
    rows = [sentence.format(a, b) * 3 for a in nouns for b in nouns]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


def run(*arguments, cwd=ROOT):
    """Run train.py → the finished process, output as text."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"})


def small(text, out, *more):
    """Options of a run of a second."""
    return ["--corpus", text, "--out", out, "--layers", 2, "--hidden-size", 24, "--heads", 3, "--vocab-size", 200,
            "--seq-len", 21, "--batch-tokens", 210, "--steps", 11, "--device", "cpu", *more]  # fmt: skip


def options(*arguments):
    """What train.py makes of arguments, without running it."""
    return train.make_options(vars(train.make_parser().parse_args([str(a) for a in arguments])))


@pytest.mark.parametrize("name", train.PRESETS)
def test_the_readme_shows_the_presets(name):
    """Each row of the README's table has the preset's own numbers."""
    layers, width, heads, *others, lr = train.PRESETS[name]
    numbers = [f"{layers} × {width}", str(heads), *(f"{number:,}" for number in others), f"{lr:f}".rstrip("0")]
    assert f"| {name} | {' | '.join(numbers)} |" in (ROOT / "README.md").read_text()


def test_a_run_says_what_it_does_and_what_came_out(text, tmp_path):
    """Before: corpus, model with the FFNs' parameters, batch, device. After: loss, entropy, filled sentences."""
    done = run(*small(text, tmp_path / "run", "--no-ffn"))
    assert done.returncode == 0, done.stderr
    for word in ("100 documents", "no FFN", "an FFN in every layer would add 9,552", "million FLOPs a token",
                 "210 tokens = 10 sequences of 21", "cpu, 1 threads, float32", "validation loss", "unigram entropy",
                 "it was:"):  # fmt: skip
        assert word in done.stdout, word
    assert re.search(r"< 00:0\d, step 11, loss \d\.\d+, [\d,]+ tokens/s", done.stderr)


def test_help_answers_without_loading_pytorch():
    """--help names every option, and imports neither torch nor numpy."""
    code = "import sys, train; train.make_parser().format_help(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
    assert {"--no-ffn", "--minutes", "--init"} <= set(run("--help").stdout.replace(",", " ").split())


def test_presets_are_the_sizes_of_the_miniatures():
    """tiny 2/128, mini 4/256, small 4/512, medium 8/512, base 12/768 (1908.08962), heads of 64, FFN of 4 × width."""
    sizes = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}
    for name, (layers, width) in sizes.items():
        made = options("--preset", name)
        assert (made.layers, made.hidden_size, made.heads, made.ffn_size) == (layers, width, width // 64, 4 * width)


def test_ffn_options():
    """Which layers keep an FFN, and what the run is called."""
    cases = {
        (): (None, "runs/full"),
        ("--no-ffn",): ([], "runs/noffn"),
        ("--ffn-every", 3, "--layers", 7): ([0, 3, 6], "runs/ffn-0-3-6"),
        ("--ffn-every", 4, "--preset", "base"): ([3, 7, 11], "runs/base-ffn-3-7-11"),
        ("--ffn-layers", "0,2", "--seed", 5): ([0, 2], "runs/ffn-0-2-seed5"),
    }
    for arguments, (ffn_layers, out) in cases.items():
        made = options(*arguments)
        assert (made.ffn_layers, made.out) == (ffn_layers, out)


CHANGES = [
    ("--preset", "mini"), ("--layers", "5"), ("--hidden-size", "64"), ("--heads", "2"), ("--ffn-size", "77"),
    ("--corpus", "a.txt"), ("--tokenizer", "vocab.txt"), ("--vocab-size", "999"), ("--cased",), ("--seq-len", "33"),
    ("--short-first", "0.2"), ("--batch-tokens", "999"), ("--micro-batch", "3"), ("--steps", "7"), ("--minutes", "2.5"),
    ("--lr", "0.1"), ("--dropout", "0.2"), ("--seed", "3"), ("--device", "cpu"), ("--dtype", "bfloat16"), ("--compile",),
    ("--out", "x"), ("--no-ffn",), ("--ffn-every", "2"), ("--ffn-layers", "1"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", CHANGES, ids=lambda arguments: arguments[0])
def test_every_option_changes_the_options_of_the_run(arguments):
    """Each flag reaches pretrain.Options."""
    assert options(*arguments) != options()


EFFECTS = [
    ("--layers", 3), ("--hidden-size", 30), ("--heads", 2), ("--ffn-size", 55), ("--vocab-size", 60), ("--cased",),
    ("--seq-len", 34), ("--short-first", 0), ("--batch-tokens", 420), ("--lr", 0.02), ("--dropout", 0.3), ("--seed", 1),
    ("--no-ffn",), ("--ffn-every", 2), ("--ffn-layers", "0"), ("--steps", 5), ("--dtype", "bfloat16"),
]  # fmt: skip


def test_every_option_changes_the_run(text, tmp_path, monkeypatch):
    """Each option that should change the numbers does: no two of these runs end with the same losses."""
    monkeypatch.setattr("mini_undivided.pretrain.plot_losses", lambda *_: None)  # half of so short a run's time
    from mini_undivided.pretrain import pretrain

    seen = {}
    for i, arguments in enumerate([(), *EFFECTS]):
        out = tmp_path / str(i)
        pretrain(options(*small(text, out), "--steps", 3, *arguments))
        key = tuple(row["loss"] for row in runs.read_log(out) if "loss" in row)
        assert key not in seen, f"{arguments} gave the same run as {seen[key]}"
        seen[key] = arguments


@pytest.mark.parametrize(("flags", "compiled"), [([], False), (["--no-compile"], False), (["--compile"], True)])
def test_compile_is_asked_for(text, tmp_path, monkeypatch, flags, compiled):
    """--compile trains torch.compile's version of the model; on a CPU it is not the default."""
    import torch

    from mini_undivided.pretrain import pretrain

    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: calls.append(model) or model)
    pretrain(options(*small(text, tmp_path / "run", *flags)))
    assert len(calls) == compiled


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-ffn", "--ffn-every", 2], "not allowed with argument"),
        (["--steps", 3, "--minutes", 1], "not allowed with argument"),
        (["--lr", "-1"], "invalid positive number value: '-1'"),
        (["--layers", "0"], "invalid positive whole number value: '0'"),
        (["--dropout", "1.5"], "invalid share from 0 to 1 value"),
        (["--ffn-layers", "1,x"], "invalid layers value: '1,x'"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--heads", 5], "error: 5 heads do not divide the hidden size 128; choose a number of heads that does"),
        (["--ffn-layers", "9"], "error: FFN layer 9 is out of range: the 4 layers are numbered from 0 to 3"),
        (["--corpus", "nowhere.txt"], "error: nothing to read at nowhere.txt: no such file or folder"),
        (["--init", "runs/nothing"], "error: runs/nothing is not a folder"),
        (["--resume", "--out", "runs/nothing"], "error: there is no run to resume in runs/nothing; name it with --out"),
        (["--device", "cuda"], "error: --device cuda: this PyTorch sees no CUDA GPU"),
    ],
)  # fmt: skip
def test_wrong_things_typed(arguments, sentence, tmp_path):
    """A mistake ends with status 2 and one sentence, without a traceback and without a run directory."""
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_ctrl_c_saves_and_resume_goes_on(text, tmp_path):
    """Ctrl-C: saved, said so, status 130. --resume ends the run; another --lr or a finished run is refused."""
    out = tmp_path / "run"
    arguments = small(text, out)
    arguments[arguments.index("--steps") + 1] = 4000
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    while not runs.read_log(out) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert f"interrupted and saved; go on with: python train.py --resume --out {out}" in stdout
    assert runs.read_json(out / "train.json")["status"] == "interrupted"

    refused = run("--resume", "--out", out, "--lr", "0.5")
    assert refused.returncode == 2 and "--lr 0.5 is not the 0.002 that the run" in refused.stderr
    record = runs.read_json(out / "train.json")
    step = runs.read_state(out)["step"]
    record["options"]["steps"] = step + 20  # a shorter way to the end
    runs.write_json(out / "train.json", record)
    done = run("--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in runs.read_log(out) if "loss" in row]
    assert steps == list(range(1, step + 21))
    again = run("--resume", "--out", out)
    assert again.returncode == 2 and "is finished; to train it further" in again.stderr


def test_init_takes_sizes_from_the_run(text, tmp_path):
    """--init brings sizes and tokenizer; giving them too is refused; --ffn-every counts the run's own layers."""
    from mini_undivided.pretrain import pretrain

    pretrain(options(*small(text, tmp_path / "a")))
    made = options("--init", tmp_path / "a")
    assert (made.layers, made.hidden_size, made.heads, made.ffn_layers) == (2, 24, 3, "as saved")
    assert options("--init", tmp_path / "a", "--ffn-every", 2).ffn_layers == [1]
    with pytest.raises(UserError, match="--layers cannot go with --init"):
        options("--init", tmp_path / "a", "--layers", 3)
