"""Tables and sentences: what they say follows from the numbers."""

import numpy as np

from mini_undivided.report import tables
from mini_undivided.support.tasks import GLUE


def test_the_table_has_an_average_only_of_all_tasks(capsys):
    """The table has an average only if all nine tasks are there.

    It is over the eight tasks without WNLI, each the mean of its metrics.
    """
    results = []
    for i, (key, task) in enumerate(GLUE.items()):
        names = [
            metric + variant
            for variant in ("", "x")[: len(task.variants)]
            for metric in task.metrics
        ]
        scores = {name: {"mean": (i + j) / 20, "std": 0.01} for j, name in enumerate(names)}
        results.append(
            {
                "task": key,
                "name": task.name,
                "built_in": False,
                "scores": scores,
                "majority": dict.fromkeys(names, 0.5),
            }
        )
    means = [
        np.mean([s["mean"] for s in r["scores"].values()]) for r in results if r["task"] != "wnli"
    ]
    average = (
        "average of the 8 tasks without WNLI, each the mean of its metrics: "
        f"{100 * np.mean(means):.1f}"
    )
    assert average in tables.finetuning_table(results)
    assert "average" not in tables.finetuning_table(results[1:])
    assert "± 1.0" in tables.finetuning_table(results)
    assert "MNLI" in tables.finetuning_table(results)


def test_sentences_say_what_the_numbers_say():
    """The sentences say what is higher or lower, and how far from floor to ceiling.

    There is no share of the way if floor and ceiling are close together or missing.
    """
    first = {
        "name": "a",
        "parameters": 200,
        "flops_per_token": 50,
        "validation_loss": 3.0,
        "tokens": 1000,
    }
    other = {
        "name": "b",
        "parameters": 100,
        "flops_per_token": 20,
        "validation_loss": 3.25,
        "tokens": 2000,
    }
    assert tables.cost_sentence(first, other) == (
        "b has 50% of a's parameters and 40% of its FLOPs a token; "
        "after 2,000 and 1,000 tokens its validation loss is 0.250 nats higher."
    )
    assert "0.250 nats lower" in tables.cost_sentence(other, first)
    assert "after 1,000 tokens its" in tables.cost_sentence(first, {**other, "tokens": 1000})

    def alike(b, ceilings, floor, one_kind=False):
        values = {"b": b, **ceilings, "f": floor}
        values = {name: {"attention": {"mean": [[x]], "std": None}} for name, x in values.items()}
        return {"first": "a", "ceilings": list(ceilings), "floors": {"b": "f"}, "values": values,
                "one_kind": one_kind}

    two = {"a, two seeds": 0.7, "b, two seeds": 0.9}
    assert tables.alike_sentence(alike(0.5, two, 0.2), "b").endswith(
        "that of a, two seeds 0.70, of b, two seeds 0.90, and of an untrained model 0.20, "
        "so it goes 50% of the way from floor to ceiling.")
    assert "too close together" in tables.alike_sentence(alike(0.5, {"c": 0.22}, 0.2), "b")
    assert "without two seeds" in tables.alike_sentence(alike(0.5, {}, 0.2), "b")
    alone = tables.alike_sentence(alike(0.5, {}, 0.2, one_kind=True), "b")
    assert alone.endswith("is 0.50 on average (floor 0.20).")


def test_equal_depth():
    """Layers are paired at equal depth.

    That is the diagonal for models of one depth; for others, the layer at the same share of the
    depth, and ends with ends.
    """
    square = np.arange(9).reshape(3, 3)
    assert [value for *_, value in tables.equal_depth(square)] == [0, 4, 8]
    assert [(i, j) for i, j, _ in tables.equal_depth(np.zeros((3, 7)))] == [(0, 0), (1, 3), (2, 6)]
    assert [(i, j) for i, j, _ in tables.equal_depth(np.zeros((5, 2)))][0::4] == [(0, 0), (4, 1)]


def test_selectivity_is_the_score_less_the_controls():
    """Score, control and selectivity are those of the layer that the validation part chose.

    The untrained encoder has the layer that its own validation part chose. Without a control task
    there is no selectivity.
    """
    scores = {
        "trained": {"mean": [0.5, 0.8, 0.9], "std": [0.03, 0.02, 0.01], "valid": [0.1, 0.7, 0.2]},
        "untrained": {"mean": [0.4, 0.3, 0.6], "std": None, "valid": [0.5, 0.2, 0.1]},
        "control": {"mean": [0.7, 0.55, 0.2], "std": None, "valid": [0.9, 0.1, 0.1]},
        "majority": 0.35,
    }
    cells = ["1", "80.0 ± 2.0", "50.0 ± 3.0", "40.0", "35.0"]
    assert tables.probe_cells(scores) == [*cells, "55.0", "25.0"]
    del scores["control"]
    assert tables.probe_cells(scores) == [*cells, "–", "–"]


def test_tables_show_deviations_where_there_are_several_runs():
    """CKA and collapse have a ± over runs, or none for one run; short columns end in dashes."""
    one = {"mean": [[0.5, 0.1], [0.2, 0.75]], "std": None}
    many = {"mean": [[0.9]], "std": [[0.125]]}
    alike = {"values": {"b": {"attention": many, "block": one}}}
    *_, zero, last, = tables.cka_table(alike).splitlines()
    assert [cell.strip() for cell in zero.split("|")[2:4]] == ["–", "0.50"]
    assert [cell.strip() for cell in last.split("|")[2:4]] == ["0.90 ± 0.12", "0.75"]
    curve = {"mean": [0.9, 0.25, 0.5], "std": [0.1, 0.2, 0.125]}
    *_, row = tables.collapse_table({"collapse": {"distance": {"b": curve}}}).splitlines()
    assert row == "| distance, b |       0.90 |  0.25 | 0.90 | 0.50 ± 0.12 |"
    looks = {"self": {"deep": {"mean": [0.375, 0.5], "std": [0.125, 0.25]},
                      "flat": {"mean": [0.125], "std": None}}}
    deep, flat = (row.split("|")[2:4] for row in tables.attention_table(looks).splitlines()[-2:])
    assert [cell.strip() for cell in deep + flat] == [
        "0.38 ± 0.12", "0.50 ± 0.25", "0.12", "–"]
