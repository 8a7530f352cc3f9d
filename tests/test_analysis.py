"""The analysis of runs: what it compares, what it does without, and what it refuses."""

import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import NOUNS, write_corpus, write_lines

from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.report import figures, tables
from mini_undivided.report.analysis import Analysis, SavedRun, analyse, short_names
from mini_undivided.report.results import OUTPUTS, PAIRS, layer_rows, make_results, summarise
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.options import AnalyzeOptions
from mini_undivided.tokenizer import load_tokenizer, save_tokenizer


def options(three, *names, **changed):
    """The options of an analysis that takes a few seconds."""
    base = AnalyzeOptions([str(three / name) for name in names or ("full", "noffn")], seeds=1,
                          examples=150, device="cpu")
    return replace(base, **changed)


def matrix(results, kind, output="block"):
    """The mean CKA of all pairs of layers."""
    rows = results[(results.kind == kind) & (results.measure == OUTPUTS[output] + PAIRS)]
    return rows.pivot_table("value", "layer", "other_layer").to_numpy()


def test_every_option_changes_the_numbers(three, tmp_path):
    """Every option changes the numbers that are written.

    Examples, per sentence, another corpus, seeds, [CLS] and a GLUE task.
    """
    rows = [f"the {noun} {i}\t{i % 2}" for i, noun in enumerate(NOUNS * 3)]
    for part in ("train", "dev"):
        write_lines(tmp_path, f"SST-2/{part}.tsv", "sentence\tlabel", *rows)
    rows = [" ".join(f"The pig likes number {i + j} best of all." for j in range(5))
            for i in range(0, 4000, 5)]
    other = write_corpus(tmp_path, "other.jsonl", rows)
    plain = options(three, out=str(tmp_path / "out"))
    base = [*Analysis(plain).cka()]
    for change in ({"examples": 120}, {"corpus": [other]}):
        assert [*Analysis(replace(plain, **change)).cka()] != base, change
    plain = replace(plain, runs=plain.runs[:1])
    base = [*Analysis(plain).probe()]
    for change in ({"seeds": 2}, {"task": ["sst2"], "data_dir": str(tmp_path)}):
        assert [*Analysis(replace(plain, **change)).probe()] != base, change


def test_models_of_different_depth_are_compared(three, tmp_path):
    """Models of two and of three layers can be compared.

    The matrix is not square, and the report still has a column for each layer of the first model.
    """
    deep, tokenizer = tmp_path / "deep", load_tokenizer(three / "full")
    MaskedLM(BertConfig(tokenizer.get_vocab_size(), 36, 3, 3, 41)).save_pretrained(deep)
    save_tokenizer(tokenizer, deep)
    base = options(three, out=str(tmp_path / "out"))
    results = make_results(Analysis(replace(base, runs=[base.runs[0], str(deep)])).cka())
    assert matrix(results, "deep").shape == (3, 4)
    shown = tables.layers_table(results[results.measure == OUTPUTS["block"]])
    assert "embeddings | layer 1 | layer 2 |" in shown and "layer 3" not in shown


def test_replicates_are_compared_as_kinds(three, tmp_path):
    """CKA is the mean over all pairs of runs, the ceiling that of two seeds, whatever the order.

    Attention and collapse are means over a kind's runs.
    """
    def cka(*names):
        return make_results(Analysis(options(three, *names, out=str(tmp_path / "out"))).cka())

    alike, pairs = cka("full", "noffn", "twin"), [cka("full", "noffn"), cka("twin", "noffn")]
    turned = matrix(cka("twin", "noffn", "full"), "noffn")
    assert np.allclose(turned, matrix(alike, "noffn"), rtol=0, atol=1e-12)
    assert {"noffn", "full, two seeds", "noffn, untrained"} <= {*alike.kind}
    assert "full, two seeds" not in {*pairs[0].kind}
    values = [matrix(pair, "noffn") for pair in pairs]
    assert np.allclose(matrix(alike, "noffn"), np.mean(values, axis=0))
    curve = summarise(alike, "layer").loc[OUTPUTS["block"], "noffn"]
    diagonals = [np.diagonal(value) for value in values]
    assert np.allclose(curve["std"], np.std(diagonals, axis=0, ddof=1))
    assert np.allclose(matrix(alike, "full, two seeds"), matrix(cka("full", "twin"), "twin"))
    measure = "rank collapse: mean cosine of two tokens"
    single = [summarise(pair, "layer").loc[measure, name]["mean"]
              for pair, name in zip(pairs, ("full", "twin"), strict=True)]
    collapse = summarise(alike, "layer").loc[measure, "full"]["mean"]
    assert np.allclose(collapse, np.mean(single, axis=0))
    analysis = Analysis(options(three, "full", "noffn", "twin", out=str(tmp_path / "out")))
    assert not analysis.one_kind and Analysis(options(three, "full", "twin")).one_kind
    attention = make_results(analysis.attention())
    assert [*attention.kind.unique()] == ["full", "noffn", "full, untrained", "noffn, untrained"]
    attention = attention[attention.measure == "attention: weight on the token itself"]
    heads = attention[attention.kind == "full"].pivot_table("value", ["run", "layer"], "head")
    assert heads.shape == (2 * 2, 3)  # runs and layers, heads
    means = heads.to_numpy().mean(1).reshape(2, 2)  # (runs, L)
    curve = summarise(attention, "layer").loc["attention: weight on the token itself", "full"]
    assert np.allclose(curve["mean"], means.mean(0))
    assert np.allclose(curve["std"], means.std(0, ddof=1))


def test_precision_makes_another_kind(three, tmp_path):
    """A run in bfloat16 is no replicate of one in float32, though the option of both is "auto"."""
    for name in ("a", "b"):
        shutil.copytree(three / "full", tmp_path / name)
    path = tmp_path / "b/train.json"
    record = read_json(path)
    record["options"]["seed"] = 5
    for precision, same in (("float32", True), ("bfloat16", False)):
        record["machine"]["device"] = f"some device, {precision}"
        write_json(path, record)
        runs = [SavedRun(tmp_path / name, name) for name in ("a", "b")]
        assert (runs[0].replicates == runs[1].replicates) == same


@pytest.fixture
def drawn(monkeypatch):
    """(titles, labels) of the figures drawn: of each and of its panels, and of its curves."""
    titles, labels, legend = [], [], figures.legend_below

    def spied(axes, *columns):
        labels.extend(axes.get_legend_handles_labels()[1])
        titles.append(" ".join(axes.figure.get_suptitle().split()))
        titles.extend(" ".join(panel.get_title().split()) for panel in axes.figure.axes)
        legend(axes, *columns)

    monkeypatch.setattr(figures, "legend_below", spied)
    return titles, labels


def test_panels_say_which_differences_are_significant(tmp_path, drawn):
    """Below a measure stands how kinds of several seeds differ in it, or where its curves end."""
    def rows(kind, values):
        for seed, (first, last) in enumerate(values):
            start = {"kind": kind, "run": f"{kind}{seed}"}
            yield {**start, "measure": "FFNs", "value": 1.0}
            for measure, value in (("attention: weight on [CLS]", first), ("attention: x", last)):
                yield {**start, "measure": measure, "layer": 1, "value": value}
            yield from layer_rows(start, "rank collapse: y", [0.2, last])

    results = make_results([
        *rows("full", [(0.1, 0.3), (0.11, 0.4)]), *rows("none", [(0.51, 0.3), (0.52, 0.42)]),
        *rows("single", [(0.9, 0.9)])])
    figures.plot_results(results, tmp_path, one_kind=False)
    assert drawn[0][1] == "y last layer: full 0.35, none 0.36, single 0.90"
    assert drawn[0][3:] == [
        "weight on [CLS] on average, none is higher than full by 0.41",
        "x on average, no significant difference between none and full with 2 and 2 seeds"]


def test_figures_show_names_as_they_are(three, tmp_path, drawn):
    """Names with $, _ and | break neither figures nor tables, and are shown literally.

    The legend says which curve is whose CKA, and which is the floor; the title says how alike the
    runs are, as the report does.
    With FFNs is blue and without orange, whatever comes first; a further kind has a third colour.
    """
    for name, copy in {"noffn": "_n$_{$|*x*", "full": "full"}.items():
        shutil.copytree(three / name, tmp_path / copy)
    runs = [str(tmp_path / "full"), str(tmp_path / "_n$_{$|*x*")]
    shown = analyse("cka", options(three, runs=runs, out=str(tmp_path / "out")))
    name = " _n$_{$|*x*"
    titles, labels = drawn
    assert {name, f"{name} with full", f"{name}, untrained, with full (floor)"} <= {*labels}
    assert titles[0] in " ".join(shown.split()) and "outputs with full's is" in titles[0]
    assert "_n$_{$|*x* has" in shown
    text = (tmp_path / "out" / "report.md").read_text()
    assert "\\_n\\$\\_{\\$\\|\\*x\\*" in text and " _n$" not in text
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(links) == 2 and all((tmp_path / "out" / unquote(link)).exists() for link in links)
    style = figures.styles({"none": 0, "every2": 2, "full": 4})
    assert [style[kind][0] for kind in ("none", "every2", "full")] == [
        "tab:orange", "tab:blue", "tab:green"]


def test_runs_without_a_record_are_read_too(three, farm, tmp_path, monkeypatch):
    """A Hugging Face directory, which has no train.json, is read too.

    The columns of what it does not know stay empty. If it comes first, the text is the one that is
    named, or else docs.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((three / "full" / name).read_bytes())
    runs = [str(three / "full"), str(tmp_path)]
    analysis = Analysis(options(three, out=str(tmp_path / "out"), runs=runs))
    results = make_results(analysis.facts())
    *_, known, bare = tables.runs_table(results).splitlines()
    assert (known.count("–"), bare.count("–")) == (0, 5)
    assert tables.cost_sentence(results, *results.kind.unique()[:2]).endswith(
        "has 100% of full's parameters.")
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
