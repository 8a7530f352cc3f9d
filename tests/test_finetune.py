"""finetune.py, typed as a person types it."""

import shutil
from functools import partial

import pytest
from helpers import run_script

from mini_undivided.support.files import read_json

run = partial(run_script, "finetune.py")


@pytest.fixture
def encoder(three, tmp_path):
    """A copy of a run without FFNs."""
    return shutil.copytree(three / "noffn", tmp_path / "noffn", ignore=lambda *_: ["glue"])


def test_a_task_from_start_to_table(encoder, glue_dir):
    """A task prints its plan, a line for each seed, a table, and where the results are.

    The table has the mean, the deviation and the majority. No line is longer than 80 columns.
    """
    done = run(encoder, "--task", "sst2", "--data-dir", glue_dir, "--seeds", 2, "--epochs", 1,
               "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for word in ("sst2: 211 examples, 1 epoch of 7 batches of 32", "sst2, seed 0: accuracy",
                 "sst2, seed 1: accuracy", "±", "62.3", f"written to {encoder}/glue: ",
                 "sst2.json"):
        assert word in done.stdout, word
    lines = [line for line in done.stdout.splitlines() if str(encoder) not in line]
    assert max(map(len, lines)) <= 80
    assert read_json(encoder / "glue" / "sst2.json")["options"]["seeds"] == 2


def test_all_takes_what_is_there(encoder, glue_dir):
    """--task all says which tasks the folder lacks, and prints no average without them.

    The results of --from-scratch are kept apart.
    """
    done = run(encoder, "--task", "all", "--data-dir", glue_dir, "--epochs", 1, "--from-scratch",
               "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "left out: CoLA, MRPC, QQP, QNLI, RTE, WNLI" in done.stdout
    assert "average" not in done.stdout
    assert (encoder / "glue" / "mnli-from-scratch.json").exists()
