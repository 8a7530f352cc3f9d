"""What a run needs before its loop: what does not fit is refused before training."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mini_undivided import pretrain
from mini_undivided.model import Encoder
from mini_undivided.report.analysis import analyse
from mini_undivided.support import run_directory
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json
from mini_undivided.support.options import (
    AnalyzeOptions,
    resume_options,
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seq_len": 7}, "seq_len is 7, but should be a whole number from 8"),
        ({"seq_len": 513}, "--seq-len 513 is longer than the model's 512 positions"),
        ({"heads": 5}, "5 heads do not divide the hidden size 24"),
        ({"ffn_layers": [2]}, "FFN layer 2 is out of range"),
        ({"batch_tokens": 18}, "--batch-tokens 18 is less than one sequence of 19 tokens"),
        ({"micro_batch": 4}, "--micro-batch 4 does not divide the 6 sequences"),
        ({"seq_len": 500, "batch_tokens": 500}, "too small for its validation part"),
        ({"corpus": ["nowhere.txt"]}, "nothing to read at nowhere.txt"),
        ({"init": "nowhere/at/all"}, "nowhere/at/all is not a folder"),
        ({"tokenizer": "nowhere/at/all"}, "nowhere/at/all is not a folder"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(options, change, sentence):
    """Options that do not fit together are a UserError that says so.

    No run directory is left behind.
    """
    with pytest.raises(UserError, match=sentence):
        pretrain.pretrain(replace(options, **change))
    assert not Path(options.out).exists()


def test_a_run_is_not_overwritten(options):
    """A second run into the same folder is refused."""
    pretrain.pretrain(replace(options, steps=1))
    with pytest.raises(UserError, match="already holds a run: resume it with --resume"):
        pretrain.pretrain(options)


def test_a_run_of_the_first_version_resumes_opens_and_is_analysed(tmp_path, monkeypatch):
    """A run that version 0.1.0 left half done goes on to its end.

    It opens in both libraries, and can be analysed.
    """
    shutil.copytree(Path(__file__).parent / "run_0.1.0", tmp_path / "run_0.1.0")
    monkeypatch.chdir(tmp_path)
    before = run_directory.read_log("run_0.1.0")
    record = pretrain.pretrain(resume_options({"out": "run_0.1.0"}), resume=True)
    assert record["status"] == "finished" and record["result"]["step"] == 40
    rows = run_directory.read_log("run_0.1.0")
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))
    assert record["result"]["validation_loss"] < before[-1].get("validation_loss", 5)
    encoder = Encoder.from_pretrained("run_0.1.0")
    assert encoder.config.ffn_layers == [1] and encoder.layers[0].ffn is None
    shutil.copytree("run_0.1.0", "copy")
    record["options"]["seed"] += 1  # two runs of one seed would be no replicates
    write_json(Path("copy/train.json"), record)
    analyse("cka", AnalyzeOptions(["run_0.1.0", "copy"], device="cpu"))
    text = Path("runs/report-run_0.1.0-vs-copy/report.md").read_text()
    assert " layer 2 |" in text and "1.00" in text
