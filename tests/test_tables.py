"""The table of results, and tables and sentences that follow from it."""

import numpy as np
import pytest
from helpers import series

from mini_undivided.report import results, tables
from mini_undivided.support.tasks import GLUE

FULL = {"kind": "full", "run": "full-seed0", "seed": 0}
TWIN = {"kind": "full", "run": "full-seed1", "seed": 1}
NONE = {"kind": "none", "run": "none", "seed": 0}
UNTRAINED = {"kind": "none, untrained", "run": "none, untrained"}


def row(start, measure, value, **more):
    return {**start, "measure": measure, "value": value, **more}


def cells(text):
    """The cells of a Markdown table's rows by their first one."""
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines()
            if line.startswith("| ")]
    return {first.strip("| "): [cell.strip(" |") for cell in rest] for first, *rest in rows}


def probe_rows(start, mean, valid, std=None):
    return [*results.layer_rows(start, "probe: tags", mean, std),
            *results.layer_rows(start, results.VALID + "probe: tags", valid)]


def test_the_table_has_an_average_only_of_all_tasks():
    """The average is over the eight tasks without WNLI, each the mean of its metrics.

    It is there only if all nine tasks are. No line is longer than 80 columns.
    """
    found = []
    for i, (key, task) in enumerate(GLUE.items()):
        names = [metric + variant for variant in ("", "x")[: len(task.variants)]
                 for metric in task.metrics]
        scores = {name: {"mean": (i + j) / 20, "std": 0.01} for j, name in enumerate(names)}
        found.append({"task": key, "name": task.name, "scores": scores,
                      "majority": dict.fromkeys(names, 0.5)})
    means = [np.mean([score["mean"] for score in result["scores"].values()])
             for result in found if result["task"] != "wnli"]
    text = tables.finetuning_table(found)
    assert f"each the mean of its metrics: {100 * np.mean(means):.1f}" in text
    assert "average" not in tables.finetuning_table(found[1:])
    assert "± 1.0" in text and "MNLI" in text and max(map(len, text.splitlines())) <= 80


def test_means_are_over_runs_and_deviations_too():
    """What is measured in several heads of a run counts as its mean, whatever their number.

    The deviation has n - 1; that of a single run is the one over its repetitions.
    """
    rows = [row(FULL, "x", 1.0, layer=1, head=1), row(FULL, "x", 3.0, layer=1, head=2),
            row(TWIN, "x", 6.0, layer=1, head=1), row(NONE, "x", 5.0, layer=1, spread=0.25),
            row(UNTRAINED, "x", 7.0, layer=1)]
    summary = results.summarise(results.make_results(rows), "layer")
    assert list(summary.loc["x", "full", 1]) == [4.0, pytest.approx(8**0.5), 2]
    assert list(summary.loc["x", "none", 1]) == [5.0, 0.25, 1]
    assert np.isnan(summary.loc["x", "none, untrained", 1]["std"])


def test_what_kinds_are_compared_by():
    """One number per run: the mean over layers and heads, and a probe's at its kind's best layer.

    That layer is chosen on the validation part, for all runs of a kind together. Fine-tunings of
    one run are one number, those from scratch another; what was not measured is left out.
    """
    tuned = {"measure": "fine-tuned: RTE accuracy", "value": 0.6, "spread": 0.1}
    rows = results.make_results([
        *(row(run, "FFNs", 2) for run in (FULL, TWIN, NONE)), row(FULL, "validation loss", 4.0),
        {**FULL, **tuned}, {**FULL, **tuned, "measure": "fine-tuned from scratch: RTE accuracy"},
        {"kind": "majority", **tuned},
        *results.layer_rows({**FULL, "head": 1}, "attention: share on [CLS]", [0.1, 0.5], first=1),
        *results.layer_rows({**FULL, "head": 2}, "attention: share on [CLS]", [0.3, 0.7], first=1),
        *probe_rows(FULL, [0.1, 0.9, 0.3], [0.0, 0.3, 0.2]),
        *probe_rows(TWIN, [0.2, 0.8, 0.4], [0.0, 0.1, 0.6]),
        *probe_rows(NONE, [0.6, 0.7, 0.5], [0.9, 0.1, 0.6]),
        *probe_rows(UNTRAINED, [0.6, 0.7, 0.5], [0.9, 0.1, 0.6])])
    assert results.compared(rows).to_dict() == pytest.approx({
        ("validation loss", "full", "full-seed0"): 4.0,
        ("fine-tuned: RTE accuracy", "full", "full-seed0"): 0.6,
        ("fine-tuned from scratch: RTE accuracy", "full", "full-seed0"): 0.6,
        ("attention: share on [CLS]", "full", "full-seed0"): 0.4,
        ("probe: tags", "full", "full-seed0"): 0.3, ("probe: tags", "full", "full-seed1"): 0.4,
        ("probe: tags", "none", "none"): 0.6})


def test_sentences_say_what_the_numbers_say():
    """The sentences say what is higher or lower, and how far from floor to ceiling.

    There is no share of the way if floor and ceiling are close together or missing, and no FLOPs or
    loss of a checkpoint without a record.
    """
    def facts(start, parameters, flops, loss, tokens):
        numbers = {"parameters": parameters, "MFLOPs per token": flops, "validation loss": loss,
                   "tokens seen": tokens}
        return [row(start, measure, value) for measure, value in numbers.items() if value]

    rows = results.make_results([*facts(FULL, 200, 50, 2.5, 1000), *facts(TWIN, 200, 50, 3.5, 1000),
                                 *facts(NONE, 100, 20, 3.25, 2000)])
    assert tables.cost_sentence(rows, "full", "none") == (
        "none has 50% of full's parameters and 40% of its FLOPs per token; "
        "after 2,000 and 1,000 tokens its validation loss is 0.250 nats higher.")
    assert "0.250 nats lower" in tables.cost_sentence(rows, "none", "full")
    rows = results.make_results([*facts(FULL, 200, 50, 3.0, 1000), *facts(NONE, 50, None, None, 0)])
    assert tables.cost_sentence(rows, "full", "none") == "none has 25% of full's parameters."

    def sentence(ceilings, floor, one_kind=False):
        values = {"none": 0.5, **ceilings, "none, untrained": floor}
        cka = results.make_results([row for kind, value in values.items() for row in
                                    results.cka_rows({"kind": kind}, "attention", [[value]])])
        return tables.cka_sentence(cka, "full", "none", one_kind)

    assert sentence({"full, two seeds": 0.7, "none, two seeds": 0.9}, 0.2).endswith(
        "that of full, two seeds 0.70, of none, two seeds 0.90, and of an untrained model 0.20, "
        "so it goes 50% of the way from floor to ceiling.")
    assert "too close together" in sentence({"full, two seeds": 0.22}, 0.2)
    assert "without two seeds" in sentence({}, 0.2)
    assert sentence({}, 0.2, one_kind=True).endswith("is 0.50 on average (floor 0.20).")


def test_equal_depth():
    """Layers are paired at equal depth.

    That is the diagonal for models of one depth; for others, the layer at the same share of the
    depth, and ends with ends.
    """
    assert results.equal_depth((3, 3)) == [0, 1, 2]
    assert results.equal_depth((3, 7)) == [0, 3, 6]
    assert results.equal_depth((5, 2))[0::4] == [0, 1]
    assert results.equal_depth((2, 4), first=1) == [1, 3]  # of attention, layers begin at 1
    rows = results.make_results(results.cka_rows({}, "attention", [[0.1, 0.2], [0.3, 0.4]]))
    assert rows[rows.other_layer.isna()][["layer", "value"]].values.tolist() == [[1, 0.1], [2, 0.4]]
    whole = rows[rows.other_layer.notna()].pivot_table("value", "layer", "other_layer")
    assert whole.to_numpy().tolist() == [[0.1, 0.2], [0.3, 0.4]]


def test_selectivity_is_the_score_less_the_controls():
    """Score, control and selectivity are those of the layer that the validation part chose.

    The untrained encoder has the layer that its own validation part chose. Without a control task
    there is no selectivity.
    """
    rows = [row(NONE, "FFNs", 0), row({"kind": "majority"}, "probe: tags", 0.35),
            *probe_rows(NONE, [0.5, 0.8, 0.9], [0.1, 0.7, 0.2], [0.03, 0.02, 0.01]),
            *probe_rows(UNTRAINED, [0.4, 0.3, 0.6], [0.5, 0.2, 0.1])]
    control = probe_rows({**NONE, "kind": "none, control task"}, [0.7, 0.55, 0.2], [0.9, 0.1, 0.1])
    shown = ["none", "1", "80.0 ± 2.0", "50.0 ± 3.0", "40.0", "35.0"]
    for more, last in ((control, ["55.0", "25.0"]), ([], ["–", "–"])):
        text = tables.probe_table(results.make_results(rows + more))
        assert cells(text)["tags"] == [*shown, *last]


def test_tables_show_deviations_where_there_are_several_runs():
    """There is a ± over runs, or none for one run; what a kind does not have is a dash."""
    rows = [*results.layer_rows(FULL, "CKA: block outputs", [0.4, 0.3]),
            *results.layer_rows(TWIN, "CKA: block outputs", [0.6, 0.8]),
            *results.layer_rows(NONE, "CKA: attention outputs", [0.12], first=1)]
    shown = cells(tables.layers_table(results.make_results(rows)))
    assert shown[""] == ["embeddings", "layer 1"]
    assert shown["block outputs, full"] == ["0.50 ± 0.14", "0.55 ± 0.35"]
    assert shown["attention outputs, none"] == ["–", "0.12"]
    values = series({"loss": {"full": [4.0, 4.1], "none": [4.3]}, "RTE": {"full": [0.5]}})
    text = tables.replicates_text(values, ["full", "none"])
    assert cells(text)["loss"] == ["4.050 ± 0.071 (2)", "4.300 (1)"]
    assert cells(text)["RTE"] == ["0.500 (1)", "–"]
    assert text.count("- loss: ") == 1 and "- RTE" not in text
    single = series({"loss": {"full": [4.0], "none": [4.3]}})
    assert tables.replicates_text(single, ["full", "none"]) == ""
    tuned = {"measure": "fine-tuned: RTE accuracy"}
    text = tables.glue_table(results.make_results([
        row(FULL, "FFNs", 1), row(NONE, "FFNs", 0), {**FULL, **tuned, "value": 0.6, "spread": 0.1},
        {**TWIN, **tuned, "value": 0.8, "spread": 0.1}, {**tuned, "kind": "majority", "value": 0.5},
        {**NONE, **tuned, "value": 0.612, "spread": 0.013}]))
    assert cells(text)["fine-tuned: RTE accuracy"] == ["70.0 ± 14.1", "61.2 ± 1.3", "50.0"]


def test_counts_and_lines(monkeypatch):
    """One is singular; lines are broken between words, at the terminal's width, and indented."""
    assert tables.count(1, "epoch") == "1 epoch" and tables.count(2500, "step") == "2,500 steps"
    assert tables.count(1, "batch", "batches") == "1 batch"
    assert tables.count(2, "batch", "batches") == "2 batches"
    monkeypatch.setenv("COLUMNS", "40")
    lines = tables.wrap("model       4 layers, 128 wide, with-out-hyphen breaks " + "x" * 50, 12)
    assert lines.splitlines() == [
        "model       4 layers, 128 wide,", " " * 12 + "with-out-hyphen breaks", " " * 12 + "x" * 50]
