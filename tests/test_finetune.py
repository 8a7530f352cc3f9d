"""finetune.py, typed as a person types it."""

from functools import partial

import pytest
import torch
from helpers import run_script, write_lines

from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.support.files import read_json
from mini_undivided.tokenizer import save_tokenizer, train_tokenizer

run = partial(run_script, "finetune.py")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run with fresh weights."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    tokenizer = train_tokenizer(["the red fox and the grey gnu"] * 5, 90)
    torch.manual_seed(1)
    config = BertConfig(tokenizer.get_vocab_size(), 24, 1, 3, 41, ffn_layers=[])
    MaskedLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """CoLA and SST-2, a few rows each."""
    folder = tmp_path_factory.mktemp("glue")
    labels = ((1, "red"), (0, "grey"), (1, "red"))
    for name, head, row in (("CoLA", "", "gj04\t{}\t\tThe {} fox."),
                            ("SST-2", "sentence\tlabel", "{1} fox\t{0}")):
        rows = [row.format(*label) for label in labels] * 7
        for part in ("train", "dev"):
            write_lines(folder, f"{name}/{part}.tsv", *([head] if head else []), *rows)
    return folder


def test_a_task_from_start_to_table(encoder, data_dir):
    """A task prints its plan, a line for each seed, a table, and where the results are.

    The table has the mean, the deviation and the majority. No line is longer than 80 columns.
    """
    done = run(encoder, "--task", "sst2", "--data-dir", data_dir, "--seeds", 2, "--epochs", 1,
               "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for word in ("sst2: 21 examples, 1 epoch of 1 batch of 32", "sst2, seed 0: accuracy",
                 "sst2, seed 1: accuracy", "±", "66.7", f"written to {encoder}/glue: ",
                 "sst2.json"):
        assert word in done.stdout, word
    lines = [line for line in done.stdout.splitlines() if str(encoder) not in line]
    assert max(map(len, lines)) <= 80
    assert read_json(encoder / "glue" / "sst2.json")["options"]["seeds"] == 2


def test_all_takes_what_is_there(encoder, data_dir):
    """--task all says which tasks the folder lacks, and prints no average without them.

    The results of --from-scratch are kept apart.
    """
    done = run(encoder, "--task", "all", "--data-dir", data_dir, "--epochs", 1, "--from-scratch",
               "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "left out: MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI" in done.stdout
    assert "average" not in done.stdout
    assert (encoder / "glue" / "cola-from-scratch.json").exists()
