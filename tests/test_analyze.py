"""analyze.py and the report: what it writes, what it says, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from test_probe import write_treebank

import analyze
from mini_undivided import figures, glue, pretrain, report, runs
from mini_undivided.runtime import UserError

ROOT = Path(__file__).parent.parent
NOUNS = "fox hen owl cat dog bee ant cow pig elk".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of different sentences, a document each."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    verbs = "sees hears meets likes".split()
    for i in range(260):
        sentences = [
            f"The {rng.choice(NOUNS)} {rng.choice(verbs)} the {rng.choice(NOUNS)} and number {rng.integers(99)} of them"
            + " again" * int(rng.integers(7)) + "."
            for _ in range(20)
        ]  # fmt: skip
        (folder / f"{i}.txt").write_text(" ".join(sentences))
    return str(folder)


@pytest.fixture(scope="module")
def three(text, tmp_path_factory):
    """Three finished runs of a second: full, without FFNs, and another seed of full with another depth of training."""
    folder = tmp_path_factory.mktemp("runs")
    base = pretrain.Options(
        out="", corpus=[text], vocab_size=120, layers=2, hidden_size=24, heads=3, ffn_size=41, seq_len=33,
        batch_tokens=33 * 6, steps=9, lr=1e-2, device="cpu",
    )  # fmt: skip
    draw, pretrain.plot_losses = pretrain.plot_losses, lambda *_: None
    for name, changed in {"full": {}, "noffn": {"ffn_layers": []}, "twin": {"seed": 1}}.items():
        pretrain.pretrain(replace(base, out=str(folder / name), **changed))
    pretrain.plot_losses = draw
    return folder


def options(three, *names, **changed):
    """Options of an analysis of a few seconds."""
    made = report.Options([str(three / name) for name in names or ("full", "noffn")], seeds=1, examples=150, device="cpu")
    return replace(made, **changed)


def run(*arguments, cwd=ROOT):
    """Run analyze.py → the finished process, output as text."""
    command = [sys.executable, str(ROOT / "analyze.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_the_whole_report(three, tmp_path):
    """Two runs and a ceiling: tables on the terminal and in report.md, figures that differ from blank, numbers as JSON."""
    runs.write_json(three / "noffn" / "train.json", {**runs.read_json(three / "noffn" / "train.json")})
    result = {"name": "RTE", "from_scratch": False, "scores": {"accuracy": {"mean": 0.612, "std": 0.013}},
              "majority": {"accuracy": 0.527}}  # fmt: skip
    (three / "noffn" / "glue").mkdir(exist_ok=True)
    runs.write_json(three / "noffn" / "glue" / "rte.json", result)
    write_treebank(tmp_path, 60)
    out = tmp_path / "out"
    done = run(three / "full", three / "noffn", "--ceiling", three / "twin", "--conllu", tmp_path, "--examples", 150,
               "--seeds", 2, "--out", out, "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.name for path in out.iterdir()}
    assert written == {"report.md", "report.json", "cka.json", "probe.json", "cka-noffn.png", "probes.png", "collapse.png"}
    text = (out / "report.md").read_text()
    assert text.strip() in done.stdout
    for words in ("noffn has", "of full's parameters", "0 of 2", "2 of 2", "61.2 ± 1.3", "52.7", "another seed of full has",
                  "part of speech", "selectivity", "![CKA](cka-noffn.png)", "MFLOPs a token", "twin (ceiling)"):  # fmt: skip
        assert words in text, words
    for name in written:
        if name.endswith(".png"):
            from matplotlib import image

            assert image.imread(out / name).std() > 0.02
    alike = runs.read_json(out / "cka.json")
    shapes = {place: np.shape(values) for place, values in alike["values"]["noffn"].items()}
    assert shapes == {"block": (3, 3), "attention": (2, 2)}
    assert alike["rows"] > 256 and set(alike["values"]) == {"noffn", "twin (ceiling)", "untrained"}
    probes = runs.read_json(out / "probe.json")
    assert len(probes["full"]["sentence length"]["trained"]["mean"]) == 3 and "control" in probes["noffn"]["part of speech"]
    facts = runs.read_json(out / "report.json")["runs"]
    trained = runs.read_json(three / "full" / "train.json")
    assert facts[0]["validation_loss"] == trained["result"]["validation_loss"] and facts[1]["glue"] == [result]


def test_one_alone(three, tmp_path):
    """cka and probe write their own files only; probe takes a single run."""
    done = run("cka", three / "full", three / "twin", "--out", tmp_path / "a", "--examples", 150, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "Debiased linear CKA with full" in done.stdout and "Rank collapse" in done.stdout
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"cka.json", "cka-twin.png", "collapse.png"}
    done = run("probe", three / "noffn", "--out", tmp_path / "b", "--examples", 150, "--seeds", 1, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "bigram shift" in done.stdout
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"probe.json", "probes.png"}


def test_fill(three):
    """The likeliest words, one line a [MASK]; a sentence without one is refused."""
    done = run("fill", three / "noffn", "the [MASK] and the [MASK] .")
    assert done.returncode == 0 and [line[:8] for line in done.stdout.splitlines()] == ["[MASK] 1", "[MASK] 2"]
    refused = run("fill", three / "noffn", "the fox .")
    assert refused.returncode == 2 and 'error: there is no [MASK] in "the fox ."' in refused.stderr


def test_every_option_changes_the_numbers(three, tmp_path, monkeypatch):
    """Examples, per sentence, ceiling, seeds, [CLS], another corpus, a GLUE task: each changes what is written."""
    for name in ("plot_cka", "plot_collapse", "plot_probes"):
        monkeypatch.setattr(figures, name, lambda *_: None)  # most of the time that this takes
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        rows = "\n".join(f"the {noun} {i}\t{i % 2}" for i, noun in enumerate(NOUNS * 3))
        (tmp_path / "SST-2" / f"{part}.tsv").write_text(f"sentence\tlabel\n{rows}\n")
    other = tmp_path / "other.jsonl"
    rows = [" ".join(f"The pig likes number {i + j} best of all." for j in range(5)) for i in range(0, 4000, 5)]
    other.write_text("".join(f'{{"text": "{row}"}}\n' for row in rows))
    plain = options(three, out=str(tmp_path / "out"))
    base = report.Analysis(plain).cka()
    for change in ({"examples": 120}, {"per_sentence": True, "examples": 300}, {"ceiling": str(three / "twin")},
                   {"corpus": [str(other)]}):  # fmt: skip
        assert report.Analysis(replace(plain, **change)).cka() != base, change
    base = report.Analysis(plain).probe()
    for change in ({"seeds": 2}, {"cls": True}, {"task": ["sst2"], "data_dir": str(tmp_path)}):
        assert report.Analysis(replace(plain, **change)).probe() != base, change


def test_every_option_reaches_the_analysis():
    """The flags of the three commands are together the fields of report.Options."""
    commands = analyze.make_parser()._subparsers._group_actions[0].choices
    flags = {name: {action.dest for action in parser._actions} - {"help"} for name, parser in commands.items()}
    assert flags["report"] == flags["cka"] | flags["probe"] == {field.name for field in fields(report.Options)}
    assert flags["cka"] != flags["probe"]


def test_models_of_different_depth_are_compared(three, text, tmp_path):
    """Two layers against three: the matrix is not square, the report still has a row for each layer of the first."""
    deep = pretrain.Options(
        out=str(tmp_path / "deep"), corpus=[text], tokenizer=str(three / "full"), layers=3, hidden_size=36, heads=3,
        ffn_size=41, seq_len=33, batch_tokens=33 * 6, steps=3, device="cpu",
    )  # fmt: skip
    pretrain.pretrain(deep)
    made = options(three, out=str(tmp_path / "out"))
    found = report.Analysis(replace(made, runs=[made.runs[0], deep.out])).cka()
    assert np.shape(found["values"]["deep"]["block"]) == (3, 4)
    assert len(report.cka_table(found).splitlines()) == 2 + 3


def test_runs_without_a_record_are_read_too(three, tmp_path):
    """A Hugging Face directory has no train.json: its columns stay empty, and the text has to be named or is docs."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((three / "full" / name).read_bytes())
    analysis = report.Analysis(options(three, out=str(tmp_path / "out"), runs=[str(three / "full"), str(tmp_path)]))
    facts = [analysis.facts(run) for run in analysis.runs]
    assert "–" in report.runs_table(facts) and facts[1]["parameters"] == facts[0]["parameters"]
    assert "FLOPs" not in report.cost_sentence(*facts)


def test_sentences_say_what_the_numbers_say():
    """Higher and lower, the share of the way from floor to ceiling, and nothing where these lie together or are missing."""
    first = {"name": "a", "parameters": 200, "flops_per_token": 50, "validation_loss": 3.0, "tokens": 1000}
    other = {"name": "b", "parameters": 100, "flops_per_token": 20, "validation_loss": 3.25, "tokens": 2000}
    assert report.cost_sentence(first, other) == (
        "b has 50% of a's parameters and 40% of its FLOPs a token; after 2,000 and 1,000 tokens its validation loss is "
        "0.250 nats higher."
    )
    assert "0.250 nats lower" in report.cost_sentence(other, first)
    assert "after 1,000 tokens its" in report.cost_sentence(first, {**other, "tokens": 1000})

    def alike(b, ceiling, floor):
        values = {name: {"attention": [[x]]} for name, x in (("b", b), ("c", ceiling), ("f", floor)) if x is not None}
        return {"first": "a", "ceiling": None if ceiling is None else "c", "floor": "f", "values": values}

    assert report.alike_sentence(alike(0.5, 0.8, 0.2), "b").endswith("it goes 50% of the way from floor to ceiling.")
    assert "too close together" in report.alike_sentence(alike(0.5, 0.22, 0.2), "b")
    assert "without a ceiling" in report.alike_sentence(alike(0.5, None, 0.2), "b")


def test_names_of_runs():
    """Folder names, or paths where these are alike; the same run twice is refused."""
    assert report.short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert report.short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="a run is given twice"):
        report.short_names(["x/a", "x/a"])


def test_bad_runs_are_refused(three, text, tmp_path):
    """Other tokenizers, a run that is still written, too few examples, tasks that do not exist: a sentence each."""
    other = pretrain.Options(out=str(tmp_path / "other"), corpus=[text], vocab_size=100, layers=1, hidden_size=24, heads=3,
                             ffn_size=41, seq_len=33, batch_tokens=33 * 6, steps=1, device="cpu")  # fmt: skip
    pretrain.pretrain(other)
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="full and other have different tokenizers; to be compared, runs need the same"):
        report.Analysis(options(three, out=out, runs=[str(three / "full"), other.out]))
    record = runs.read_json(Path(other.out) / "train.json")
    runs.write_json(Path(other.out) / "train.json", {**record, "status": "running"})
    with pytest.raises(UserError, match="other"):
        report.Analysis(options(three, out=out, runs=[other.out, str(three / "full")]))
    with pytest.raises(UserError, match="needs 256 tokens at least"):
        report.Analysis(options(three, out=out, examples=3)).cka()
    with pytest.raises(UserError, match="100 different sentences at least"):
        report.Analysis(options(three, out=out, examples=30)).probe()
    with pytest.raises(UserError, match='did you mean "sst2"'):
        report.Analysis(options(three, out=out, task=["sst3"]))
    with pytest.raises(UserError, match="--data-dir does nothing without --task"):
        report.Analysis(options(three, out=out, data_dir="x"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give two runs to compare, or a command: report, cka, probe, fill"),
        (["runs/a"], "error: report compares two runs or more, but only runs/a was given"),
        (["runs/nothing", "runs/more"], "error: runs/nothing is not a folder"),
        (["cka", "a", "b", "--examples", "0"], "invalid whole value: '0'"),
        (["probe", "a", "--ceiling", "b"], "unrecognized arguments: --ceiling b"),
    ],
)
def test_wrong_things_typed(arguments, sentence, tmp_path):
    """A mistake ends with status 2 and one sentence, without a traceback."""
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_help_answers_without_loading_pytorch():
    """--help names the commands, and imports neither torch nor numpy."""
    code = "import sys, analyze; analyze.make_parser().format_help(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
    assert all(name in analyze.make_parser().format_help() for name in analyze.COMMANDS)


def test_without_matplotlib_the_numbers_are_still_written(three, tmp_path, monkeypatch, capsys):
    """A machine without matplotlib gets the JSON and a line that says what is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report.Analysis(options(three, out=str(tmp_path))).cka()
    assert {path.name for path in tmp_path.iterdir()} == {"cka.json"}
    assert "matplotlib is not installed: no figure was drawn" in capsys.readouterr().out
    assert figures.pyplot() is None and glue.TASKS
