"""The analysis of runs: what it compares, what it does without, and what it refuses."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import NOUNS, SMALL

from mini_undivided import pretrain
from mini_undivided.report import figures, tables
from mini_undivided.report.analysis import Analysis, short_names
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import AnalyzeOptions, PretrainOptions


def options(three, *names, **changed):
    """The options of an analysis that takes a few seconds."""
    base = AnalyzeOptions(
        [str(three / name) for name in names or ("full", "noffn")],
        seeds=1,
        examples=150,
        device="cpu",
    )
    return replace(base, **changed)


def test_every_option_changes_the_numbers(three, tmp_path, monkeypatch):
    """Every option changes the numbers that are written.

    Examples, per sentence, another corpus, seeds, [CLS] and a GLUE task.
    """
    for name in ("plot_cka", "plot_collapse", "plot_attention", "plot_probes"):
        monkeypatch.setattr(figures, name, lambda *_: None)  # most of the time that this takes
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        rows = "\n".join(f"the {noun} {i}\t{i % 2}" for i, noun in enumerate(NOUNS * 3))
        (tmp_path / "SST-2" / f"{part}.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    other = tmp_path / "other.jsonl"
    rows = [
        " ".join(f"The pig likes number {i + j} best of all." for j in range(5))
        for i in range(0, 4000, 5)
    ]
    other.write_text("".join(f'{{"text": "{row}"}}\n' for row in rows))
    plain = options(three, out=str(tmp_path / "out"))
    base = Analysis(plain).cka()
    for change in (
        {"examples": 120},
        {"per_sentence": True, "examples": 300},
        {"corpus": [str(other)]},
    ):
        assert Analysis(replace(plain, **change)).cka() != base, change
    base = Analysis(plain).probe()
    for change in ({"seeds": 2}, {"cls": True}, {"task": ["sst2"], "data_dir": str(tmp_path)}):
        assert Analysis(replace(plain, **change)).probe() != base, change


def test_models_of_different_depth_are_compared(three, farm, tmp_path):
    """Models of two and of three layers can be compared.

    The matrix is not square, and the report still has a row for each layer of the first model.
    """
    deep = PretrainOptions(
        out=str(tmp_path / "deep"),
        corpus=[farm],
        tokenizer=str(three / "full"),
        **{**SMALL, "layers": 3, "hidden_size": 36},
        seq_len=33,
        batch_tokens=33 * 6,
        steps=3,
    )
    pretrain.pretrain(deep)
    base = options(three, out=str(tmp_path / "out"))
    result = Analysis(replace(base, runs=[base.runs[0], deep.out])).cka()
    assert np.shape(result["values"]["deep"]["block"]["mean"]) == (3, 4)
    assert len(tables.cka_table(result).splitlines()) == 2 + 3


def test_replicates_are_compared_as_groups(three, tmp_path, monkeypatch):
    """CKA is the mean over all pairs of runs, the ceiling that of two seeds, whatever the order.

    Attention and collapse are means over a group's runs.
    """
    for name in ("plot_cka", "plot_collapse", "plot_attention"):
        monkeypatch.setattr(figures, name, lambda *_: None)
    out = str(tmp_path / "out")

    def cka(*names):
        return Analysis(options(three, *names, out=out)).cka()

    alike, pairs = cka("full", "noffn", "twin"), [cka("full", "noffn"), cka("twin", "noffn")]
    assert cka("twin", "noffn", "full")["values"]["noffn"] == alike["values"]["noffn"]
    assert alike["first"] == "full" and alike["others"] == ["noffn"]
    assert alike["ceilings"] == ["full, two seeds"] and pairs[0]["ceilings"] == []
    values = [pair["values"]["noffn"]["block"]["mean"] for pair in pairs]
    assert np.allclose(alike["values"]["noffn"]["block"]["mean"], np.mean(values, axis=0))
    assert np.allclose(alike["values"]["noffn"]["block"]["std"], np.std(values, axis=0, ddof=1))
    ceiling = cka("full", "twin")["values"]["twin"]
    assert alike["values"]["full, two seeds"] == ceiling
    assert alike["floors"] == {"noffn": "noffn, untrained"} and not alike["one_kind"]
    assert cka("full", "twin")["one_kind"]
    single = [pair["collapse"]["cosine"]["full" if i == 0 else "twin"]["mean"]
              for i, pair in enumerate(pairs)]
    assert np.allclose(alike["collapse"]["cosine"]["full"]["mean"], np.mean(single, axis=0))
    analysis = Analysis(options(three, "full", "noffn", "twin", out=out))
    looks = analysis.attention()
    groups = analysis.attention_groups(looks)["self"]
    assert list(groups) == ["full", "noffn", "full, untrained", "noffn, untrained"]
    heads = np.array([looks[name]["self"] for name in ("full", "twin")])  # (runs, L, H)
    assert heads.shape == (2, 2, 3) and np.array_equal(groups["full"]["heads"], heads)
    assert np.allclose(groups["full"]["mean"], heads.mean((0, 2)))
    assert np.allclose(groups["full"]["std"], heads.mean(2).std(0, ddof=1))


def test_runs_without_a_record_are_read_too(three, farm, tmp_path, monkeypatch):
    """A Hugging Face directory, which has no train.json, is read too.

    The columns of what it does not know stay empty. If it comes first, the text is the one that is
    named, or else docs.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((three / "full" / name).read_bytes())
    analysis = Analysis(
        options(three, out=str(tmp_path / "out"), runs=[str(three / "full"), str(tmp_path)])
    )
    facts = [run.facts() for run in analysis.runs]
    assert facts[1]["parameters"] == facts[0]["parameters"]
    *_, known, bare = tables.runs_table(facts).splitlines()
    assert (known.count("–"), bare.count("–")) == (0, 5)
    assert "FLOPs" not in tables.cost_sentence(*facts)
    monkeypatch.setattr(Analysis, "sentences", ["docs takes long to read"])
    for named, text in (([], ["docs"]), ([farm], [farm])):
        base = options(three, out=str(tmp_path / "out"), corpus=named)
        assert Analysis(replace(base, runs=[str(tmp_path), base.runs[0]])).corpus == text


def test_names_of_runs():
    """Runs are named by their folders, or by their paths if two folders have the same name.

    The same run given twice is refused.
    """
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="a run is given twice"):
        short_names(["x/a", "x/a"])


def test_bad_runs_are_refused(three, farm, tmp_path):
    """What cannot be analysed is refused in one sentence.

    Different tokenizers, a run that is still being written, too few examples, a task that does not
    exist, and --data-dir without --task.
    """
    other = PretrainOptions(
        out=str(tmp_path / "other"),
        corpus=[farm],
        **{**SMALL, "vocab_size": 100, "layers": 1},
        seq_len=33,
        batch_tokens=33 * 6,
        steps=1,
    )
    pretrain.pretrain(other)
    out = str(tmp_path / "out")
    with pytest.raises(
        UserError,
        match="full and other have different tokenizers; to be compared, runs need the same",
    ):
        Analysis(options(three, out=out, runs=[str(three / "full"), other.out]))
    record = read_json(Path(other.out) / "train.json")
    write_json(Path(other.out) / "train.json", {**record, "status": "running"})
    with pytest.raises(UserError, match="other"):
        Analysis(options(three, out=out, runs=[other.out, str(three / "full")]))
    with pytest.raises(UserError, match="needs 256 tokens at least"):
        Analysis(options(three, out=out, examples=3)).cka()
    with pytest.raises(UserError, match="100 different sentences at least"):
        Analysis(options(three, out=out, examples=30)).probe()
    with pytest.raises(UserError, match='did you mean "sst2"'):
        Analysis(options(three, out=out, task=["sst3"]))
    with pytest.raises(UserError, match="--data-dir does nothing without --task"):
        Analysis(options(three, out=out, data_dir="x"))


def test_without_matplotlib_the_numbers_are_still_written(three, tmp_path, monkeypatch, capsys):
    """A machine without matplotlib gets the JSON, and a line that says what is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    Analysis(options(three, out=str(tmp_path))).cka()
    assert {path.name for path in tmp_path.iterdir()} == {"cka.json"}
    assert "matplotlib is not installed: no figure was drawn" in capsys.readouterr().out
