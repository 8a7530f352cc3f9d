"""analyze.py and the report: what it writes, what it says, and what it refuses."""

from dataclasses import fields
from functools import partial

import numpy as np
import pytest
from helpers import help_of, run_script, write_treebank

import analyze
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import AnalyzeOptions

run = partial(run_script, "analyze.py")


def test_the_whole_report(three, tmp_path):
    """Two runs and another seed of the first give tables, figures and JSON.

    The tables are on the terminal and in report.md, the figures are not blank, and the numbers are
    in cka.json, probe.json and report.json.
    """
    result = {
        "name": "RTE",
        "from_scratch": False,
        "scores": {"accuracy": {"mean": 0.612, "std": 0.013}},
        "majority": {"accuracy": 0.527},
    }
    (three / "noffn" / "glue").mkdir(exist_ok=True)
    write_json(three / "noffn" / "glue" / "rte.json", result)
    write_treebank(tmp_path, 60)
    out = tmp_path / "out"
    done = run(
        three / "full",
        three / "noffn",
        three / "twin",
        "--conllu",
        tmp_path,
        "--examples",
        150,
        "--seeds",
        2,
        "--out",
        out,
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    written = {path.name for path in out.iterdir()}
    assert written == {
        "report.md",
        "report.json",
        "cka.json",
        "attention.json",
        "probe.json",
        "cka-noffn.png",
        "attention.png",
        "probes.png",
        "collapse.png",
    }
    text = (out / "report.md").read_text()
    assert text.strip() in done.stdout
    for words in (
        "noffn has",
        "of full's parameters",
        "0 of 2",
        "2 of 2",
        "61.2 ± 1.3",
        "52.7",
        "full, two seeds",
        "Replicates: mean",
        "entropy of a token's weights",
        "![Attention](attention.png)",
        "part of speech",
        "selectivity",
        "![CKA](cka-noffn.png)",
        "the best model without context", "MFLOPs a token",
    ):
        assert words in text, words
    for name in written:
        if name.endswith(".png"):
            from matplotlib import image

            assert image.imread(out / name).std() > 0.02
    alike = read_json(out / "cka.json")
    values = alike["values"]["noffn"]
    shapes = {place: np.shape(each["mean"]) for place, each in values.items()}
    assert shapes == {"block": (3, 3), "attention": (2, 2)}
    assert alike["rows"] > 256 and set(alike["values"]) == {
        "noffn", "full, two seeds", "noffn, untrained"}
    probes = read_json(out / "probe.json")
    assert len(probes["full"]["sentence length"]["trained"]["mean"]) == 3
    assert "control" in probes["noffn"]["part of speech"]
    facts = read_json(out / "report.json")["runs"]
    trained = read_json(three / "full" / "train.json")
    assert facts[0]["validation_loss"] == trained["result"]["validation_loss"]
    assert facts[1]["glue"] == [result]


def test_one_alone(three, tmp_path):
    """cka and probe write only their own files, and probe takes a single run."""
    done = run(
        "cka",
        three / "full",
        three / "twin",
        "--out",
        tmp_path / "a",
        "--examples",
        150,
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "Debiased linear CKA with full" in done.stdout and "Rank collapse" in done.stdout
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "cka.json",
        "cka-twin.png",
        "collapse.png",
    }
    done = run(
        "probe",
        three / "noffn",
        "--out",
        tmp_path / "b",
        "--examples",
        150,
        "--seeds",
        1,
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "bigram shift" in done.stdout
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"probe.json", "probes.png"}


def test_fill(three):
    """fill prints the likeliest words, one line for each [MASK].

    A sentence without a [MASK] is refused.
    """
    done = run("fill", three / "noffn", "the [MASK] and the [MASK] .")
    assert done.returncode == 0
    assert [line[:8] for line in done.stdout.splitlines()] == [
        "[MASK] 1",
        "[MASK] 2",
    ]
    refused = run("fill", three / "noffn", "the fox .")
    assert refused.returncode == 2 and 'error: there is no [MASK] in "the fox ."' in refused.stderr


def test_every_option_reaches_the_analysis():
    """The flags of report, cka and probe together are the fields of AnalyzeOptions."""
    commands = analyze.parser()._subparsers._group_actions[0].choices
    flags = {
        name: {action.dest for action in parser._actions} - {"help"}
        for name, parser in commands.items()
    }
    assert (
        flags["report"]
        == flags["cka"] | flags["probe"]
        == {field.name for field in fields(AnalyzeOptions)}
    )
    assert flags["cka"] != flags["probe"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give two runs to compare, or a command: report, cka, probe, attention, fill"),
        (["runs/a"], "error: report compares two runs or more, but only runs/a was given"),
        (["runs/nothing", "runs/more"], "error: runs/nothing is not a folder"),
        (
            ["cka", "a", "b", "--examples", "0"],
            "argument --examples: 0 is not a whole number from 1",
        ),
        (["probe", "a", "--per-sentence"], "unrecognized arguments: --per-sentence"),
    ],
)
def test_wrong_things_typed(arguments, sentence, tmp_path):
    """A mistake ends with status 2 and one sentence, without a traceback."""
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_help_answers_without_loading_pytorch():
    """--help names the commands, and imports neither torch nor numpy."""
    words, imported = help_of("analyze.py")
    assert set(analyze.COMMANDS) <= set(words) and imported == []
