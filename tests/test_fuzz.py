"""Damaged and hostile files: whatever stands in them, they load or end in one sentence.

`python -m pytest tests/test_fuzz.py --fuzz 10000` tries so many mutations of each kind of file.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mini_undivided.corpus import open_corpus
from mini_undivided.model import MaskedLM
from mini_undivided.optim import adamw
from mini_undivided.pretrain import State
from mini_undivided.report import tables
from mini_undivided.report.analysis import Run
from mini_undivided.report.results import make_results
from mini_undivided.support import run_directory
from mini_undivided.support.checkpoint import read_weights, restore_state
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json
from mini_undivided.support.options import resume_options
from mini_undivided.support.token_files import COUNTS, TokenWriter, read_tokens
from mini_undivided.tokenizer import load_tokenizer

RUN = Path(__file__).parent / "run_0.1.0"
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
def run(tmp_path):
    """A run directory with one file of each kind."""
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder)
    (folder / "glue").mkdir()
    scores = {"accuracy": {"mean": 0.5, "std": None, "values": [0.5]}}
    result = {"task": "rte", "name": "RTE", "from_scratch": False, "scores": scores,
              "majority": {"accuracy": 0.5}}
    (folder / "glue" / "rte.json").write_text(json.dumps(result))
    record = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps({**record, "status": "finished"}))
    torch.save(read_weights(folder), folder / "pytorch_model.bin")
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
    writer = TokenWriter(folder / "train.npy", 120)
    writer.write(np.random.default_rng(0).integers(120, size=500))
    writer.close()
    (folder / "about.json").write_text(json.dumps(dict.fromkeys(COUNTS, 7)))
    return folder


def load_model(folder):
    """Open the weights; without model.safetensors those of pytorch_model.bin."""
    MaskedLM.from_pretrained(folder)


def load_weights(folder):
    """Open pytorch_model.bin."""
    (folder / "model.safetensors").unlink()
    MaskedLM.from_pretrained(folder)


def load_state(folder):
    """Load training_state.pt into the model that it belongs to, and take a step."""
    model = MaskedLM.from_pretrained(RUN)
    optimizers = [adamw(model.parameters(), 1e-3)]
    restore_state(folder, model, optimizers, State)
    model(torch.tensor([[2, 7, 3]])).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def load_words(folder):
    """Open vocab.txt with the tokenizer_config.json beside it."""
    (folder / "tokenizer.json").unlink()
    load_tokenizer(folder).encode("The cat [MASK] the dog.")


def load_results(folder):
    """Read what a report says of a run."""
    rows = make_results(Run(folder, "run").facts())
    tables.runs_table(rows), tables.glue_table(rows), tables.cost_sentence(rows, "run", "run")


KINDS = {
    "config.json": (mutate_json, load_model),
    "model.safetensors": (mutate_bytes, load_model),
    "pytorch_model.bin": (mutate_bytes, load_weights),
    "training_state.pt": (mutate_bytes, load_state),
    "tokenizer.json": (
        mutate_json, lambda folder: load_tokenizer(folder).encode("The cat [MASK] the dog.")),
    "tokenizer_config.json": (mutate_json, load_words),
    "vocab.txt": (mutate_bytes, load_words),
    "train.json": (
        mutate_json, lambda folder: (load_results(folder), resume_options({"out": str(folder)}))),
    "log.jsonl": (mutate_bytes, lambda folder: run_directory.read_log(folder)),
    "glue/rte.json": (mutate_json, load_results),
    "about.json": (mutate_json, lambda folder: read_json(folder / "about.json", COUNTS)),
    "train.npy": (mutate_bytes, lambda folder: read_tokens(folder / "train.npy", 120).sum()),
    "text.jsonl": (
        mutate_bytes, lambda folder: list(open_corpus(str(folder / "text.jsonl")).pieces())),
}


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
        shutil.copytree(run, folder)
        content = mutate(whole, np.random.default_rng(seed))
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
