"""gpu_check.py, which shows on a GPU what no CPU can: its logic here, and it itself with --gpu."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = "versions parity resume analysis speed theirs kernels pretrain finetune".split()


@pytest.fixture
def check(tmp_path):
    """Run gpu_check.py on a small corpus and a small RTE → the process, its results."""
    def run(*more, env=os.environ):
        rows = [f"the fox {i} sees the red hen and the owl {i % 7} . " * 20 for i in range(60)]
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (tmp_path / "text.jsonl").write_text(lines)
        folder = tmp_path / "glue" / "RTE"
        folder.mkdir(parents=True)
        lines = [f"{i}\tthe fox {i}\tthe hen\t{'not_' * (i % 2)}entailment" for i in range(13)]
        for name in ("train", "dev"):
            text = "\n".join(["index\tsentence1\tsentence2\tlabel", *lines, ""])
            (folder / f"{name}.tsv").write_text(text)
        command = [sys.executable, "tests/gpu_check.py", "--corpus", tmp_path / "text.jsonl",
                   "--glue", tmp_path / "glue", "--out", tmp_path / "found",
                   "--work", tmp_path / "work", *more]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=env)
        return done, json.loads((tmp_path / "found" / "results.json").read_text())

    return run


def test_every_part_works_on_a_cpu(check):
    """With --tiny every part ends well and finds what it looks for, and all its checks hold."""
    done, results = check("--tiny", "--budget", 3000, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout
    assert [*results] == PARTS
    checks = {name: [key for key in found if key.startswith("ok_")] for name, found in results.items()}
    assert [len(checks[name]) for name in PARTS] == [1, 6, 1, 2, 0, 0, 0, 2, 2]
    assert "failed checks: none; parts that ended badly: none" in done.stdout


def test_a_part_that_fails_takes_no_other_down(check):
    """Without GLUE's files a part fails and is named, the one after it runs, the status is 1."""
    done, results = check("--tiny", "--parts", "finetune,versions")
    assert results["finetune"]["ok_noffn_rte"] is False and results["versions"]["exit"] == 0
    assert done.returncode == 1 and "failed checks: ['finetune.ok_noffn_rte'" in done.stdout


def test_the_budget_is_kept(check):
    """A part for which no time is left is skipped, and that counts as a bad end."""
    done, results = check("--tiny", "--parts", "parity", "--budget", 5)
    assert results["parity"]["exit"] == "no time left" and done.returncode == 1


def test_the_suite_sees_no_gpu():
    """The tests, and the processes that they start, compute on the CPU."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(check, gpu_environment):
    """On a GPU, logits, gradients, steps, resumed runs, CKA and probes are a CPU's."""
    done, results = check("--parts", "versions,parity,resume,analysis", env=gpu_environment)
    assert done.returncode == 0, done.stdout
    assert not results["versions"]["machine"].startswith("cpu")
