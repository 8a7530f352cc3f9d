"""Runs on several machines ("nodes"): two launches of torchrun that share no disk but the text."""

import os
import socket
import subprocess
import sys

import pytest
from helpers import ROOT, losses, train_options

from mini_undivided.run import pretrain

OPTIONS = (
    "--layers 2 --hidden-size 24 --heads 3 --vocab-size 150 --seq-len 19 --batch-tokens 114 "
    "--steps 7 --device cpu --dtype float32").split()


def two_machines(folder, *texts):
    """Run train.py as two nodes, each in a folder with a cache and a text of its own.

    → their exit statuses, and what they print.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]  # one that nothing listens on
    nodes = []
    for number, text in enumerate(texts):
        node = folder / f"node{number}"
        node.mkdir()
        launch = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}",
                  "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                       "MINI_UNDIVIDED_CACHE": str(node / "cache")}
        nodes.append(subprocess.Popen(
            [sys.executable, *launch, str(ROOT / "train.py"), "--corpus", str(text),
             "--out", "run", *OPTIONS],
            cwd=node, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    shown = [node.communicate()[0] for node in nodes]
    return [node.returncode for node in nodes], shown


def test_two_machines_train_as_one_process(zoo, tmp_path):
    """Two machines have the losses of one process with the same batch, to 1e-4.

    Each prepares the text once, in its own cache; the first alone prints and writes the run.
    """
    pretrain(train_options("--corpus", zoo, "--out", tmp_path / "alone", *OPTIONS))
    ends, shown = two_machines(tmp_path, zoo, zoo)
    assert ends == [0, 0], shown
    expected = losses(tmp_path / "alone")
    actual = losses(tmp_path / "node0" / "run")
    assert actual == pytest.approx(expected, abs=1e-4) and len(expected) == 7
    for node in range(2):
        assert len([*(tmp_path / f"node{node}" / "cache").glob("token-files-*")]) == 1
    assert not (tmp_path / "node1" / "run").exists()
    assert "validation loss" in shown[0] and "validation loss" not in shown[1]


def test_machines_need_the_same_text(zoo, farm, tmp_path):
    """Text that differs between machines is an error in one sentence; nothing was written."""
    ends, shown = two_machines(tmp_path, zoo, farm)
    assert all(ends)
    assert "".join(shown).count("error: the machines do not have the same text") == 1
    assert not (tmp_path / "node0" / "run").exists()


def test_an_error_on_another_machine_is_told(zoo, tmp_path):
    """If the text is missing on the second machine alone, the first says so."""
    _, (shown, _) = two_machines(tmp_path, zoo, tmp_path / "nowhere.txt")
    assert "error: " in shown and "nowhere.txt" in shown and "UserError" not in shown
