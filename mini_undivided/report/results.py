"""The results of an analysis as one tidy table, from which tables, figures and verdicts come.

A row is one number; what does not apply to it is empty. The columns, also of results.csv:

kind         a group of replicates, or what it is held against: "noffn, untrained" has fresh
             weights, "noffn, two seeds" is CKA of two of its runs, "noffn, control task" has random
             tags, "majority" is the best that one answer for all scores
run, seed    the run (of CKA, the pair of runs), and its pretraining seed
measure      "validation loss", "CKA: block outputs", "probe: bigram shift (accuracy)", …
layer        from 1, or 0 for the embeddings
head         of attention
other_layer  of CKA of all pairs of layers: the layer of the other model
value        the number
spread       its standard deviation over repetitions within the run (a probe's draws of training
             examples, fine-tuning seeds), where it is their mean
"""

import numpy as np

COLUMNS = ("kind", "run", "seed", "measure", "layer", "head", "other_layer", "value", "spread")
TYPES = {"layer": "Int64", "head": "Int64", "other_layer": "Int64", "value": float, "spread": float}
UNTRAINED, TWO_SEEDS, CONTROL = ", untrained", ", two seeds", ", control task"
OUTPUTS = {"attention": "CKA: attention outputs", "block": "CKA: block outputs"}
PAIRS = " of all pairs of layers"
TOKENS_COMPARED = "CKA: number of tokens"
VALID = "validation part, "  # what the measures begin with on which a layer is chosen
COMPARED = ("validation loss", "masked accuracy", "fine-tuned", "attention: ", "probe: ")


def make_results(rows):
    """The table of rows, dictionaries by column."""
    import pandas  # late: train.py, which needs no results, starts the sooner

    return pandas.DataFrame(rows, columns=COLUMNS, dtype=object).astype(TYPES)


def layer_rows(start, measure, values, spread=None, first=0):
    """A row for the value of each layer; start: the columns that they share."""
    spread = [None] * len(values) if spread is None else spread
    return [{**start, "measure": measure, "layer": layer, "value": value, "spread": deviation}
            for layer, (value, deviation) in enumerate(zip(values, spread, strict=True), first)]


def cka_rows(start, output, matrix):
    """Rows of a CKA matrix of an output ("attention", "block"): all of it, and at equal depth."""
    first = int(output == "attention")  # embeddings have none
    diagonal = [row[j] for row, j in zip(matrix, equal_depth(np.shape(matrix), first), strict=True)]
    cells = [{**start, "measure": OUTPUTS[output] + PAIRS, "layer": i, "other_layer": j, "value": x}
             for i, row in enumerate(matrix, first) for j, x in enumerate(row, first)]
    return layer_rows(start, OUTPUTS[output], diagonal, first=first) + cells


def equal_depth(shape, first=0):
    """For each row of a CKA matrix the column whose layer has the same relative depth.

    Depth is a layer's number, with the embeddings as 0, divided by the number of layers. first: the
    layer of the first row.
    """
    most, others = (size - 1 + first for size in shape)
    layers = np.rint(np.arange(first, most + 1) * others / max(1, most))
    return (np.maximum(layers, first) - first).astype(int).tolist()


def rows_of(results, prefix):
    """The rows of measures that begin with a prefix, or with one of several."""
    return results[results.measure.str.startswith(prefix)]


def kinds_of(results):
    """How many FFNs the model of a kind has: a Series by kind, in the order of the groups."""
    return results[results.measure == "FFNs"].groupby("kind", sort=False).value.first()


def summarise(results, *columns):
    """Mean, standard deviation and number of runs, of each measure, kind and value of `columns`.

    What is measured several times in one run, as in each head, counts as its mean. Of a single run
    the deviation is that over its repetitions, if there is one.
    """
    keys, how = ["measure", "kind", *columns], {"sort": False, "dropna": False}
    runs = results.groupby([*keys, "run"], **how)[["value", "spread"]].mean().groupby(keys, **how)
    summary = runs.value.agg(["mean", "std", "count"])
    return summary.assign(std=summary["std"].fillna(runs.spread.first()))


def best_layers(results):
    """The layer of a probe that the validation part chooses: a Series by measure and kind."""
    rows = rows_of(results, VALID)
    rows = rows.assign(measure=rows.measure.str.removeprefix(VALID))
    means = summarise(rows, "layer")["mean"].groupby(["measure", "kind"], sort=False)
    return means.idxmax().map(lambda index: index[-1])


def compared(results):
    """What kinds are compared by, one number per run: a Series by measure, kind and run.

    A probe's number is that of the kind's best layer, one layer for all its runs; several
    fine-tunings of one pretrained model count as one number, their mean.
    """
    kinds = kinds_of(results).index
    rows = rows_of(results[results.kind.isin(kinds)], COMPARED)
    rows = rows.join(best_layers(results).rename("best"), on=["measure", "kind"])
    rows = rows[rows.best.isna() | (rows.best == rows.layer)]
    return rows.groupby(["measure", "kind", "run"], sort=False).value.mean()
