"""The study's script: its commands are valid, results are kept once, tables follow from them."""

import importlib.util
import json

import numpy as np
import pytest
from helpers import ROOT, train_options

import finetune
from mini_undivided.costs import count_parameters
from mini_undivided.model import BertConfig
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json
from mini_undivided.support.tasks import GLUE


def script(name):
    """A script in docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path, monkeypatch):
    """docs/study.py as a module that keeps its results in a temporary folder."""
    module = script("study")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    for group in module.GROUPS:
        (tmp_path / group).mkdir()
    return module


@pytest.fixture
def made(study, tmp_path, monkeypatch):
    """{name: command} of the jobs that `study.train` has done instead of training."""
    commands = {}
    monkeypatch.setattr(study, "do", lambda group, name, command: commands.update({name: command}))
    monkeypatch.setattr(study, "lock_of", lambda group, name: tmp_path / "locks" / name)
    return commands


def result(loss, tokens=2_000_000):
    """What is kept of a run."""
    return {"validation_loss": loss, "validation_accuracy": 0.3, "tokens": tokens,
            "parameters": 12_345, "flops_per_token": 2.5e6}


def write_scores(folder, name, scores):
    """Keep the score of a fine-tuning for each seed."""
    for seed, score in enumerate(scores):
        write_json(folder / f"glue/{name}-seed{seed}.json", {"scores": [score]})


def rows_of(table):
    """The cells of a Markdown table, without its header."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]


@pytest.mark.parametrize("name, model", [("deep", "full"), ("wide", "full"), ("narrow", "none")])
def test_equal_parameters_are_equal(study, name, model):
    """What stands for equal parameters differs from its model by less than 4 %."""
    def parameters(name):
        made = train_options("--preset", "laptop", *study.ARCHITECTURES[name][1])
        return count_parameters(BertConfig(
            made.vocab_size, made.hidden_size, made.layers, made.heads, made.ffn_size,
            ffn_layers=made.ffn_layers))

    assert parameters(name) == pytest.approx(parameters(model), rel=0.04)


def test_every_command_is_one_of_ours(study):
    """All jobs have different names and valid commands, of the length their group says."""
    words = {"TEXT": "novels", "GLUE": "glue", "FULL": "1e12"}
    every = [*study.jobs()]
    assert len({(group, name) for group, name, _ in every}) == len(every) > 100
    assert {group for group, _, _ in every} == {*study.GROUPS}
    for group, name, (script, *options) in every:
        options = [words.get(option, option) for option in options]
        assert (script == "finetune.py") == (group == "glue")
        if script == "finetune.py":
            made = finetune.parser().parse_args(options)
            assert made.run.startswith("runs/study/accuracy/") and made.task in study.TASKS
        elif "--init" not in options:
            made = train_options(*options)
            by_flops = group in ("flops", "scale") or name.startswith("flops")
            assert (made.flops is not None) == by_flops
            assert (made.minutes is not None) == (group == "minutes")


def test_results_are_kept_and_not_made_twice(study, made, tmp_path):
    """A job whose result is there is skipped; one that another process holds is left to it."""
    write_json(tmp_path / "tokens/full-seed0.json", {"flops": 1})
    held = study.claim(tmp_path / "locks/none-seed1")
    study.train("novels", "glue", ["tokens"])
    held.release()
    assert "full-seed1" in made and not {"full-seed0", "none-seed1"} & {*made}
    names = [name for group, name, _ in study.jobs() if group == "tokens"]
    assert [*made] == [name for name in names if name in made]


def test_words_in_capitals_are_replaced(study, made, tmp_path, monkeypatch):
    """TEXT and GLUE are the folders given, FULL the FLOPs that a full run took."""
    write_json(tmp_path / "tokens/full-seed0.json", {"flops": 2.5e13})
    monkeypatch.setattr(study, "can_begin", lambda command: True)
    study.train("some/novels", "some/glue", ["flops", "glue"])
    deep, rte = made["deep-seed2"], made["none-rte-scratch"]
    assert deep[deep.index("--flops") + 1] == "2.5e+13"
    assert deep[deep.index("--corpus") + 1] == "some/novels"
    assert rte[rte.index("--data-dir") + 1] == "some/glue"


def test_a_job_waits_for_what_it_needs(study, tmp_path, monkeypatch):
    """Fine-tuning needs its run to be finished, and a length in FLOPs the run it is taken from."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    tune = ["finetune.py", "run", "--task", "rte"]
    assert not study.can_begin(tune)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.safetensors").touch()
    write_json(tmp_path / "run/train.json", {"status": "running"})
    assert not study.can_begin(tune)
    write_json(tmp_path / "run/train.json", {"status": "finished"})
    assert study.can_begin(tune)
    assert not study.can_begin(["train.py", "--flops", study.flops_of_full("accuracy")])
    write_json(tmp_path / "accuracy/full-seed0.json", {"flops": 5e13})
    assert study.can_begin(["train.py", "--flops", study.flops_of_full("accuracy")])
    assert study.can_begin(["train.py", "--init", "run"])
    assert not study.can_begin(["train.py", "--init", "other"])


def test_fine_tuning_keeps_the_scores(study, tmp_path, monkeypatch):
    """Of the control its own file is read, all seeds of it; without, the run's."""
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "call", lambda command: None)
    for name, values in {"rte": [0.6], "rte-from-scratch": [0.5, 0.4]}.items():
        (tmp_path / "run/glue").mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / f"run/glue/{name}.json", {
            "name": "RTE", "primary": "accuracy", "scores": {"accuracy": {"values": values}},
            "majority": {"accuracy": 0.53}, "train_examples": 2490})
    tune = ["finetune.py", "run", "--task", "rte"]
    study.do("glue", "none-rte-seed3", tune)
    study.do("glue", "none-rte-scratch", [*tune, "--from-scratch"])
    kept = {path.stem: json.loads(path.read_text())["scores"] for path in tmp_path.glob("glue/*")}
    assert kept == {"none-rte-seed3": [0.6], "none-rte-scratch": [0.5, 0.4]}


def test_differences_on_glue(study, tmp_path):
    """What pretraining is worth to each kind, its difference from full's, and tasks' mean.

    A task that lacks results is left out; the two kinds without FFNs share the models from scratch.
    """
    rng = np.random.default_rng(3)
    first, *others = study.TASKS
    for task in study.TASKS:
        for name in ("full", "none", "flops"):
            write_scores(tmp_path, f"{name}-{task}", rng.random(3).round(3).tolist())
            if name != "flops":
                scores = rng.random(3).round(3).tolist()
                write_json(tmp_path / f"glue/{name}-{task}-scratch.json", {"scores": scores})

    def of(name, which):
        return np.array([[run["scores"] for run in study.results("glue", f"{name}-{task}-{which}")]
                         for task in study.TASKS]).reshape(len(study.TASKS), 3) * 100

    def interval(ours, theirs):
        return study.in_brackets(*study.difference(ours, theirs), 1)

    def table():
        return {first: cells for first, *cells in rows_of(study.glue_table())}

    full, fresh, flops, none = (of("full", "seed"), of("full", "scratch"), of("flops", "seed"),
                                of("none", "scratch"))
    rows = table()
    assert len(rows) == 2 + 2 + 1 + 3 + 2 * 2
    assert rows["with FFNs: worth of pretraining"][0] == interval(full[0], fresh[0])
    assert rows["with FFNs: worth of pretraining"][-1] == interval(full.mean(0), fresh.mean(0))
    assert rows["no FFN, equal FLOPs minus FFNs: score"][1] == interval(flops[1], full[1])
    assert rows["no FFN, equal FLOPs minus FFNs: worth of pretraining"][2] == interval(
        flops[2] - none[2], full[2] - fresh[2])
    (tmp_path / f"glue/full-{first}-seed1.json").unlink()
    worth = table()["with FFNs: worth of pretraining"]
    assert study.finished_tasks() == others and len(worth) == len(others) + 1
    assert worth[-1] == interval(full[1:].mean(0), fresh[1:].mean(0))


def test_speed_is_a_median_with_its_range(study, tmp_path):
    """Three turns of a kind make one row: median and range of the speed, median of the memory."""
    for turn, speed in enumerate((3000, 1000, 2500)):
        write_json(tmp_path / f"speed/wide-turn{turn}.json", {
            **result(4.0), "tokens_per_second": speed, "peak_memory_bytes": (turn + 3) * 2**20})
    ((_, *row),) = rows_of(study.speed_table())
    assert row == ["12,345", "2,500", "1,000 to 3,000", "4"]


def test_tables_follow_from_results(study, tmp_path):
    """Mean and deviation over seeds, and the difference from full with its interval."""
    for name, losses in {"full": (4.0, 4.1), "none": (4.3, 4.5), "wide": (4.2,)}.items():
        for seed, loss in enumerate(losses):
            write_json(tmp_path / f"tokens/{name}-seed{seed}.json", result(loss))
    rows = rows_of(study.compare("tokens", study.results("tokens", "full")))
    gap, half = study.difference([4.3, 4.5], [4.0, 4.1])
    assert [row[5] for row in rows] == ["4.050 ± 0.071", "4.400 ± 0.141", "4.200"]
    assert [row[7] for row in rows] == [
        "–", f"{gap:+.3f} [{gap - half:+.3f}, {gap + half:+.3f}]", "–"]
    assert rows[0][1:5] == ["12,345", "2.50", "2.00", "2"]


def test_damaged_results_are_named(study, tmp_path):
    """A result that lacks a number, or has text in its place, is an error that names the file."""
    for damaged in ({}, {**result(4.0), "validation_loss": "4"}, {**result(4.0), "curve": [3]}):
        write_json(tmp_path / "tokens/full-seed1.json", damaged)
        with pytest.raises(UserError, match=r"full-seed1\.json"):
            study.results("tokens", "full")
    write_json(tmp_path / "glue/full-rte-seed0.json", {"scores": ["0.5"]})
    with pytest.raises(UserError, match=r'seed0\.json: an entry of "scores" is 0.5, but should'):
        study.glue_scores("full", "seed")


def test_the_frontier_is_the_best_size_at_each_budget(study, tmp_path):
    """Slopes are those of a planted power of ten; the table has dashes for what is missing."""
    for i, budget in enumerate(study.BUDGETS[:2]):
        for size, more in (("2x64", 0.1), ("3x96", 0.0)):
            loss = 10 - 0.5 * np.log10(budget) + more
            write_json(tmp_path / f"scale/{size}-none-{budget:.1e}.json", result(loss))
    losses = study.scale()
    points = study.frontier(losses["none"])
    assert [budget for budget, _ in points] == list(study.BUDGETS[:2])
    assert study.slope(points) == pytest.approx(0.5)
    *_, last = study.scale_table(losses).splitlines()
    assert last.startswith("| **best, no FFN**") and last.count("–") == 1


def test_cut_models_are_compared_with_the_whole_ones(study, tmp_path):
    """Losses and scores of the models that were cut, each less those that were not."""
    scores = {"full": [0.3, 0.5, 0.46], "cut0": [0.2, 0.21, 0.31]}
    for name, values in scores.items():
        write_scores(tmp_path, f"{name}-stsb", values)
        write_scores(tmp_path, f"{name}-qnli", values[::-1])
        for seed, score in enumerate(values):
            write_json(tmp_path / f"accuracy/{name}-seed{seed}.json", result(4.0 + score))
    whole, cut = rows_of(study.cuts_table())
    gap = study.gap_of([100 * x for x in scores["cut0"]], [100 * x for x in scores["full"]], 1)
    assert whole[1:] == ["4.420 ± 0.106", *["42.0 ± 10.6", "–"] * 2]
    assert (cut[0], cut[3], cut[5]) == ("all FFNs cut out", gap, gap)


def test_marks_are_filled_and_the_rest_stays(study):
    """Content goes between a document's marks, again and again."""
    text = "a\n<!-- x -->\n\nold\n\n<!-- end of x -->\nb"
    once = study.fill(text, "x", "new")
    assert once == study.fill(once, "x", "new") == text.replace("old", "new")


def test_the_band_of_default_runs(study, tmp_path):
    """The band is mean and deviation of the curves over seeds, once both kinds have two."""
    for name in ("full", "full-seed1", "noffn"):
        curve = [[10, 5.0 + len(name)], [20, 4.0]]
        write_json(tmp_path / f"docs/{name}.json", {**result(4.0), "curve": curve})
    band = study.default_runs()
    assert list(band) == ["full"] and band["full"]["tokens"] == [10, 20]
    assert band["full"]["mean"] == [12.0, 4.0]
    assert band["full"]["std"] == pytest.approx([6 / 2**0.5, 0])


def test_sentences_to_pretrain_on(tmp_path):
    """docs/sentences.py writes the training sentences that are in no dev part, in copies.

    Of SST-2's phrases those in no other; CoLA's file has no header.
    """
    sentences = script("sentences")
    for key in sentences.COPIES:
        task = GLUE[key]
        head = list(task.plain) or ["a", "b", "c", *task.texts, task.label]
        for split, texts in {"train": ["new", "old"], "dev": ["old", "old"]}.items():
            rows = [[f"{key} {text} {column}" if column in task.texts else "" for column in head]
                    for text in texts]
            if key == "sst2" and split == "train":
                rows = [[*"abc", phrase, ""]
                        for phrase in ("a good film ", "good film ", "good", "oo")]
            for row in rows:
                row[head.index(task.label)] = task.labels[0] if task.labels else "2.5"
            path = tmp_path / "GLUE" / task.name / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = rows if task.plain else [head, *rows]
            path.write_text("".join("\t".join(row) + "\n" for row in lines))
    sentences.main(tmp_path / "GLUE", tmp_path / "text")
    found = {path.name: [json.loads(line)["text"] for line in path.read_text().splitlines()]
             for path in (tmp_path / "text").iterdir()}
    assert found["sst2.jsonl"] == found["sst23.jsonl"] == ["a good film", "oo"]
    assert found["cola.jsonl"] == ["cola new sentence"]
    assert found["mrpc2.jsonl"] == [f"mrpc new {column}" for column in GLUE["mrpc"].texts]
    assert len(found) == sum(sentences.COPIES.values())
    with pytest.raises(UserError, match="give two folders"):
        sentences.main("GLUE")


def test_kept_commands_name_no_folder_of_one_machine():
    """Whoever repeats a result has other folders than we: commands have relative paths only."""
    files = [*(ROOT / "docs/results/study").rglob("*.json")]
    assert len(files) > 100
    for path in files:
        assert " /" not in json.loads(path.read_text(encoding="utf-8")).get("command", ""), path
