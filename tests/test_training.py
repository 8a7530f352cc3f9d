"""Replicates of a run, the curve of its losses, and the band of usual ones."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from helpers import small_run
from matplotlib import colors, image

import train
from mini_undivided import pretrain
from mini_undivided import run as run_module
from mini_undivided.report import figures, training
from mini_undivided.support import options as run_options
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json


def test_the_band_is_that_of_default_runs_alone(tmp_path, monkeypatch):
    """Runs by default, of any seed and on any device, have a band: with all FFNs or with none."""
    bands = {"full": {"mean": [4.0]}, "noffn": {"mean": [5.0]}}
    monkeypatch.setattr(training, "DEFAULT_RUNS", tmp_path / "bands.json")
    write_json(tmp_path / "bands.json", bands)

    def band(**changes):
        made = run_options.PretrainOptions.preset("laptop", **changes)
        return training.usual_losses(asdict(made))

    assert band() == band(seed=3, device="cpu", out="x") == bands["full"]
    assert band(ffn_layers=[], compile=False) == bands["noffn"]
    for changes in (
            {"ffn_layers": [3]}, {"lr": 1e-3}, {"corpus": ["x"]}, {"steps": 9}, {"flops": 1e9}):
        assert band(**changes) is None, changes


def test_the_loss_curve(tmp_path, monkeypatch):
    """loss.png has pale grey where the band lies; without a step it is not drawn.

    Its curves are blue with FFNs and orange without, and it says what is masked. Its title has the
    last validation loss, if there is one, beside that of the best model without context.
    """
    (tmp_path / "log.jsonl").write_text("")
    write_json(tmp_path / "config.json", {"ffn_layers": []})
    record = {"options": {"out": str(tmp_path), "mlm_probability": 0.4}, "baseline": {"loss": 5.5}}
    figures.plot_losses(record)
    assert not (tmp_path / "loss.png").exists()
    rows = [{"step": i, "tokens": i, "loss": 5.0 - i / 9} for i in range(1, 9)]
    valid = [{"step": i, "tokens": i, "validation_loss": 6.0 - i / 16} for i in (4, 8)]
    band = {"seeds": 5, "tokens": [2, 8], "mean": [4, 3], "std": [1, 1]}
    labels, titles, legend = [], [], figures.legend_below
    monkeypatch.setattr(figures, "legend_below", lambda axes, *columns: (
        labels.append(axes.get_legend_handles_labels()[1]),
        titles.append(" ".join(axes.figure.get_suptitle().split())), legend(axes, *columns)))

    def pixels(color, alpha):
        mixed = 1 - alpha + alpha * np.array(colors.to_rgb(color))
        drawn = image.imread(tmp_path / "loss.png")[..., :3]
        return (np.abs(drawn - mixed) < 0.01).all(-1).sum()

    for usual, ffns, color, more in (
            (None, [], "tab:orange", []), (band, [0], "tab:blue", valid)):
        log = (json.dumps(row) + "\n" for row in rows + more)
        (tmp_path / "log.jsonl").write_text("".join(log))
        write_json(tmp_path / "config.json", {"ffn_layers": ffns})
        figures.plot_losses(record, usual)
        assert pixels(color, 0.45) > 100
        assert (pixels("gray", 0.35) > 10_000) == (usual is not None)
    assert labels[0][0] == "training, 40% of the tokens masked"
    assert titles[0].endswith("loss on masked tokens (lower is better)")
    assert titles[1].endswith(
        "validation loss 5.500 nats, 0.00 nats under the best model without context")


def test_replicates_are_trained_skipped_and_resumed(farm, tmp_path, capsys, monkeypatch):
    """--seeds N trains seeds 0 to N - 1, each in its folder, as single runs with these seeds do.

    Called again, it skips what is finished and resumes what is not; other options, another
    precision or text are refused.
    """
    farm = shutil.copytree(farm, tmp_path / "farm")
    typed = vars(train.parser().parse_args([str(x) for x in small_run(farm, tmp_path / "run")]))
    step = pretrain.train_step

    def interrupted(*arguments):
        interrupted.calls += 1
        if interrupted.calls == 11 + 4:  # in the second run
            os.kill(os.getpid(), 15)
        return step(*arguments)

    interrupted.calls = 0
    monkeypatch.setattr(pretrain, "train_step", interrupted)
    assert not training.train_seeds({**typed, "seeds": 3})
    shown = capsys.readouterr()
    assert "run 2 of 3, seed 1: " in shown.out
    assert not (tmp_path / "run-seed2").exists()
    assert training.train_seeds({**typed, "seeds": 3})
    shown = capsys.readouterr().out
    assert "run 1 of 3" not in shown and "run 3 of 3" in shown and interrupted.calls == 33
    losses = [read_json(tmp_path / name / "train.json")["result"]["validation_loss"]
              for name in ("run", "run-seed1", "run-seed2")]
    assert len(set(losses)) == 3
    assert f"3 seeds: validation loss {mean(losses):.3f} ± {stdev(losses):.3f} nats" in shown
    alone = run_options.train_options({**typed, "seed": 1, "out": str(tmp_path / "alone")})
    assert run_module.pretrain(alone)["result"]["validation_loss"] == losses[1]
    default = {name: value for name, value in typed.items() if name != "steps"}
    for changed, message in ((typed | {"lr": 0.5}, "lr 0.002, not 0.5, and is no replicate"),
                             (default, "steps 11, not 3000"),
                             (typed | {"dtype": "bfloat16"}, "dtype auto, not bfloat16")):
        with pytest.raises(UserError, match=f"run was started with {message}"):
            training.train_seeds({**changed, "seeds": 3})
    own = {**typed, "out": str(tmp_path / "own"), "tokenizer": str(tmp_path / "run")}
    own.pop("vocab_size", None)
    assert training.train_seeds({**own, "seeds": 1})
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace('"lowercase": true', '"lowercase": false')
    (tmp_path / "run/tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="own was trained with another tokenizer than that of"):
        training.train_seeds({**own, "seeds": 2})
    shutil.copy(other / "tokenizer.json", tmp_path / "run")
    (Path(farm) / "0.txt").write_text("Another text.")
    with pytest.raises(UserError, match="run was trained on another text than .* is now"):
        training.train_seeds({**typed, "seeds": 4})
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--seeds does not work under torchrun"):
        training.train_seeds({**typed, "seeds": 3})
