"""analyze.py and the report: what it writes, what it says, and what it refuses."""

import shutil
import sys
from dataclasses import fields
from functools import partial

import pandas
import pytest
from helpers import change_tensors, names, run_script, write_treebank
from matplotlib import image

import analyze
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import AnalyzeOptions

run = partial(run_script, "analyze.py")


def test_the_whole_report(three, tmp_path):
    """Two runs and another seed of the first give tables, figures and a table of results.

    The terminal has a summary that fits 80 columns, and the path; the tables are in report.md, all
    numbers in results.csv, and the figures are not blank.
    """
    score = {"name": "RTE", "from_scratch": False, "majority": {"accuracy": 0.527},
             "scores": {"accuracy": {"mean": 0.612, "std": 0.013}}}
    (three / "noffn" / "glue").mkdir(exist_ok=True)
    write_json(three / "noffn" / "glue" / "rte.json", score)
    write_treebank(tmp_path, 60)
    out = tmp_path / "out"
    done = run(three / "full", three / "noffn", three / "twin", "--conllu", tmp_path,
               "--examples", 150, "--seeds", 1, "--out", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    figures = {"cka-noffn.png", "attention.png", "probes.png", "collapse.png"}
    assert {path.name for path in out.iterdir()} == {"report.md", "results.csv", *figures}
    shown = " ".join(done.stdout.split())
    for words in ("noffn has", "of full's parameters", "- validation loss: one run of a kind does",
                  "other measures: no significant difference", f"written to {out}: attention."):
        assert words in shown, words
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(out) not in line) and "|" not in shown
    text = (out / "report.md").read_text()
    for words in ("noffn has", "of full's parameters", "61.2 ± 1.3", "52.7", "full, two seeds",
                  "Replicates: mean", "entropy of a token's weights", "part of speech",
                  "![Attention](attention.png)", "![CKA](cka-noffn.png)", "selectivity",
                  "the best model without context", "MFLOPs per token"):
        assert words in text, words
    for name in figures:
        assert image.imread(out / name).std() > 0.02
    results = pandas.read_csv(out / "results.csv")

    def find(measure, kind):
        return results[results.measure.str.startswith(measure) & (results.kind == kind)]

    assert len(find("CKA: block outputs of all", "noffn")) == 2 * 3 * 3  # two pairs of runs
    assert len(find("CKA: attention outputs of all", "full, two seeds")) == 2 * 2
    assert find("CKA: number of tokens", "full").value.item() > 256
    assert find("probe: sentence length", "full").layer.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(find("probe: part of speech", "noffn, control task")) == 3
    assert find("fine-tuned: RTE", "noffn")[["value", "spread"]].values.tolist() == [[0.612, 0.013]]
    trained = read_json(three / "full" / "train.json")["result"]
    loss = find("validation loss", "full")[["run", "seed", "value"]].values.tolist()
    assert loss[0] == ["full", 0, trained["validation_loss"]] and loss[1][:2] == ["twin", 1]


@pytest.fixture
def here(monkeypatch, capsys):
    """Run analyze.py in this process → what it prints."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["analyze.py", *map(str, arguments)])
        analyze.main()
        return capsys.readouterr().out

    return call


def test_one_alone(three, tmp_path, here):
    """cka and probe write only what they measure, and probe takes a single run."""
    here("cka", three / "full", three / "twin", "--out", tmp_path / "a", "--examples", 150)
    assert names(tmp_path / "a") == ["cka-twin.png", "collapse.png", "report.md", "results.csv"]
    text = (tmp_path / "a" / "report.md").read_text()
    assert "Debiased linear CKA with full" in text and "Rank collapse" in text
    assert "robes" not in text and "![Attention]" not in text
    here("probe", three / "noffn", "--out", tmp_path / "b", "--examples", 150, "--seeds", 1)
    assert names(tmp_path / "b") == ["probes.png", "report.md", "results.csv"]
    assert "bigram shift" in (tmp_path / "b" / "report.md").read_text()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_constant_layer_is_shown_as_such(three, tmp_path, here):
    """A layer with one vector for all tokens has no CKA but a rank collapse: so says the report."""
    flat = shutil.copytree(three / "noffn", tmp_path / "flat")

    def flatten(tensors):
        for name in tensors:
            if "layer.1." in name and name.endswith("LayerNorm.weight"):
                tensors[name].zero_()
            if "layer.1." in name and name.endswith("LayerNorm.bias"):
                tensors[name].fill_(0.3)

    change_tensors(flat, flatten)
    shown = here("cka", three / "full", flat, "--out", tmp_path, "--examples", 150)
    assert "has no mean: a layer is constant" in " ".join(shown.split())
    text = (tmp_path / "report.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines()
            if line.startswith("|")}
    assert rows["block outputs, flat"] == "–" and "nan" not in text
    assert "(a layer with the same vector in all rows has none)" in text


def test_fill(three, here):
    """fill prints the likeliest words, one line for each [MASK]."""
    shown = here("fill", three / "noffn", "the [MASK] and the [MASK] .")
    assert [line[:8] for line in shown.splitlines()] == ["[MASK] 1", "[MASK] 2"]


def test_every_option_reaches_the_analysis():
    """The flags of report, cka and probe together are the fields of AnalyzeOptions."""
    commands = analyze.parser()._subparsers._group_actions[0].choices
    flags = {name: {action.dest for action in parser._actions} - {"help"}
             for name, parser in commands.items()}
    every = {field.name for field in fields(AnalyzeOptions)}
    assert flags["report"] == flags["cka"] | flags["probe"] == every
    assert flags["cka"] != flags["probe"]
