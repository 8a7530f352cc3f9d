"""Damaged and hostile files: whatever stands in them, they load or end in one sentence.

`python -m pytest tests/test_fuzz.py --fuzz 10000` tries so many mutations of each kind of file.
"""

import gzip
import json
import lzma
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_lines, write_treebank

from mini_undivided.corpus import open_corpus
from mini_undivided.model import MaskedLM
from mini_undivided.report import tables
from mini_undivided.report.analysis import Run
from mini_undivided.report.results import make_results
from mini_undivided.support import run_directory
from mini_undivided.support.checkpoint import read_weights
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json
from mini_undivided.support.glue_files import read_split
from mini_undivided.support.options import resume_options
from mini_undivided.support.tasks import GLUE
from mini_undivided.support.treebank import read_treebank
from mini_undivided.tokenizer import load_tokenizer

ODD = (None, [], {}, "x", "", -5, 0, 0.5, 10**9, 10**30, 1e308, True, False, [0.5], [[]], {"a": 1})


def mutate_bytes(content, rng):
    """Flip a bit, cut, insert, zero or repeat some bytes, up to three times."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 33))
        kind = rng.integers(5)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content[at:at] = rng.bytes(length)
        elif kind == 3:
            content[at : at + length] = bytes(len(content[at : at + length]))
        else:
            content[at:at] = content[at : at + length]
    return bytes(content)


def mutate_json(content, rng):
    """Replace, drop or double a value somewhere in a JSON text, or mutate its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    value = json.loads(content)
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = places[rng.integers(len(places))]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = ODD[rng.integers(len(ODD))]
    if rng.random() < 0.05:
        value = ODD[rng.integers(len(ODD))]
    return json.dumps(value).encode()


@pytest.fixture
def run(tmp_path, three):
    """A run directory, and more files of each kind that somebody else may have written."""
    folder = tmp_path / "run"
    shutil.copytree(three / "full", folder)
    scores = {"accuracy": {"mean": 0.5, "std": None, "values": [0.5]}}
    write_json(folder / "rte.json", {"task": "rte", "name": "RTE", "from_scratch": False,
                                     "scores": scores, "majority": {"accuracy": 0.5}})
    tensors = read_weights(folder)
    torch.save({"model": tensors}, folder / "pytorch_model.bin")
    write_json(folder / "index.json", {"weight_map": {name: "part.bin" for name in tensors}})
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
    token = {"content": "[MASK]", "lstrip": True, "rstrip": False, "special": True}
    write_json(folder / "settings.json", {
        "do_lower_case": True, "strip_accents": None, "mask_token": "[MASK]",
        "added_tokens_decoder": {"4": token}, "extra_special_tokens": ["[E1]"]})
    write_json(folder / "map.json", {"mask_token": token, "bos_token": "[E0]"})
    write_json(folder / "added.json", {"[E1]": len(words)})
    rows = [json.dumps({"text": f"Line {i} of the text.", "held_out": i}) for i in range(30)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    (folder / "text.txt.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "text.jsonl.xz").write_bytes(lzma.compress("\n".join(rows).encode()))
    write_treebank(folder, 3)
    write_lines(folder, "rows.tsv", "sentence\tlabel", *(f"red {i}\t1" for i in range(9)))
    return folder


def load_model(folder):
    """Open the weights."""
    MaskedLM.from_pretrained(folder)


def load_pickle(folder):
    """Open pytorch_model.bin."""
    (folder / "model.safetensors").unlink()
    MaskedLM.from_pretrained(folder)


def load_shards(folder):
    """Open pytorch_model.bin through an index."""
    (folder / "pytorch_model.bin").rename(folder / "part.bin")
    (folder / "index.json").rename(folder / "pytorch_model.bin.index.json")
    load_pickle(folder)


def load_words(folder):
    """Open vocab.txt with settings beside it."""
    (folder / "tokenizer.json").unlink()
    (folder / "settings.json").rename(folder / "tokenizer_config.json")
    load_tokenizer(folder).encode("The cat [MASK] the dog.")


def load_maps(folder):
    """Open tokenizer.json anew from its vocabulary, with the older files of tokens beside it."""
    (folder / "tokenizer_config.json").unlink()
    (folder / "map.json").rename(folder / "special_tokens_map.json")
    (folder / "added.json").rename(folder / "added_tokens.json")
    load_tokenizer(folder).encode("The cat [MASK] the dog.")


def load_record(folder):
    """Read what a report and --resume say of a run."""
    load_results(folder)
    resume_options({"out": str(folder)})


def load_results(folder):
    """Read what a report says of a run."""
    (folder / "glue").mkdir()
    shutil.copy(folder / "rte.json", folder / "glue")
    rows = make_results(Run(folder, "run").facts())
    tables.runs_table(rows), tables.glue_table(rows), tables.cost_sentence(rows, "run", "run")


def load_text(name):
    """A function that reads all of a corpus file."""
    return lambda folder: list(open_corpus(str(folder / name)).pieces())


KINDS = {
    "config.json": (mutate_json, load_model),
    "model.safetensors": (mutate_bytes, load_model),
    "pytorch_model.bin": (mutate_bytes, load_pickle),
    "index.json": (mutate_json, load_shards),
    "tokenizer.json": (
        mutate_json, lambda folder: load_tokenizer(folder).encode("The cat [MASK] the dog.")),
    "settings.json": (mutate_json, load_words),
    "vocab.txt": (mutate_bytes, load_words),
    "map.json": (mutate_json, load_maps),
    "added.json": (mutate_json, load_maps),
    "train.json": (mutate_json, load_record),
    "log.jsonl": (mutate_bytes, run_directory.read_log),
    "rte.json": (mutate_json, load_results),
    "rows.tsv": (mutate_bytes, lambda folder: read_split(
        folder / "rows.tsv", GLUE["sst2"], labelled=True)),
    "xx-ud-dev.conllu": (mutate_bytes, read_treebank),
    "text.txt.gz": (mutate_bytes, load_text("text.txt.gz")),
    "text.jsonl.xz": (mutate_bytes, load_text("text.jsonl.xz")),
    "text.jsonl": (mutate_bytes, load_text("text.jsonl"))}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_loads_or_is_an_error(run, name, request, tmp_path):
    """A mutated file of any kind is opened, or refused by a UserError; nothing else happens."""
    mutate, load = KINDS[name]
    whole = (run / name).read_bytes()
    load(shutil.copytree(run, tmp_path / "whole"))  # undamaged, it loads
    refused = 0
    for seed in range(request.config.getoption("--fuzz")):
        folder = tmp_path / "copy"
        shutil.copytree(run, folder, copy_function=os.link)
        content = mutate(whole, np.random.default_rng(seed))
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        try:
            load(folder)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, (seed, str(error))
            refused += 1
        except Exception as error:
            kept = tmp_path / f"damaged-{seed}-{Path(name).name}"
            kept.write_bytes(content)
            raise AssertionError(f"seed {seed}, kept as {kept}: {error!r}") from error
        shutil.rmtree(folder)
    assert refused > 0
