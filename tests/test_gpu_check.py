"""gpu_check.py, which shows on a GPU what no CPU can: its logic here, and it itself with --gpu."""

import json
import os
from unittest.mock import patch

import gpu_check
import pytest
from helpers import ROOT, write_corpus, write_lines

CHECKS = {"versions": 1, "parity": 6, "resume": 1, "analysis": 2, "speed": 0, "theirs": 0,
          "kernels": 0, "pretrain": 2, "finetune": 2}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run gpu_check.py with these arguments on a small corpus and a small RTE."""
    rows = [f"the fox {i} sees the red hen and the owl {i % 7} . " * 20 for i in range(60)]
    text = write_corpus(tmp_path, "text.jsonl", rows)
    lines = [f"{i}\tthe fox {i}\tthe hen\t{'not_' * (i % 2)}entailment" for i in range(13)]
    for name in ("train", "dev"):
        write_lines(tmp_path, f"RTE/{name}.tsv", "index\tsentence1\tsentence2\tlabel", *lines)
    folders = ["--glue", str(tmp_path), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(ROOT)
    for name, value in {"PART_LIMIT": "3000", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    return lambda *more, corpus=text: gpu_check.main(["--corpus", corpus, *folders, *more])


def results(tmp_path, name="results"):
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_every_part_works_on_a_cpu(check, tmp_path):
    """With --tiny every part ends well and finds what it looks for, and all its checks hold."""
    assert [*CHECKS] == [*gpu_check.LIMITS]
    for name in ("prepare", *CHECKS):
        check("--tiny", "--part", name)
    for name, count in CHECKS.items():
        found = results(tmp_path, f"part-{name}")
        checks = {key: value for key, value in found.items() if key.startswith("ok_")}
        assert len(checks) == count and all(checks.values()), found
        assert found and not any(key.endswith("ERROR") for key in found)


def test_a_part_that_fails_takes_no_other_down(check, tmp_path, capfd):
    """A part that dies is named, with the check that had failed; the next runs, the status is 1.

    One for which no time is left is skipped, which is a bad end, too.
    """
    (tmp_path / "part-resume.json").write_text('{"ok_resume": false, "ok_other": true}')
    with pytest.raises(SystemExit, match="True"):
        check("--tiny", "--parts", "resume,versions", corpus="/nowhere")
    assert results(tmp_path)["resume"]["exit"] == 1 and results(tmp_path)["versions"]["exit"] == 0
    assert "failed checks: ['resume.ok_resume']; parts that ended badly: ['resume']" in (
        capfd.readouterr().out)
    with pytest.raises(SystemExit, match="True"):
        check("--tiny", "--parts", "parity", "--budget", "5")
    assert results(tmp_path)["parity"]["exit"] == "no time left"


def test_the_suite_sees_no_gpu():
    """The tests, and the processes that they start, compute on the CPU."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(check, tmp_path, gpu_environment):
    """On a GPU, logits, gradients, steps, resumed runs, CKA and probes are a CPU's."""
    with patch.dict(os.environ, gpu_environment, clear=True):
        with pytest.raises(SystemExit, match="False"):
            check("--parts", "versions,parity,resume,analysis")
    assert not results(tmp_path)["versions"]["machine"].startswith("cpu")
