"""Damaged and hostile files: whatever stands in them, they load or end in one sentence.

`python -m pytest tests/test_fuzz.py --fuzz 10000` tries so many mutations of each kind of file.
"""

import gzip
import json
import lzma
import shutil

import numpy as np
import pytest
import torch
from helpers import write_lines, write_treebank

from mini_undivided.corpus import open_corpus
from mini_undivided.model import MaskedLM
from mini_undivided.report import tables
from mini_undivided.report.analysis import SavedRun
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


def make_files(folder, run):
    """Write files of each kind that somebody else may have written, those of a run among them."""
    scores = {"accuracy": {"mean": 0.5, "std": None, "values": [0.5]}}
    result = {"task": "rte", "name": "RTE", "from_scratch": False, "scores": scores,
              "majority": {"accuracy": 0.5}}
    shutil.copytree(run, folder / "run")
    for name in ("glue", "pickle", "shards", "words", "maps", "text"):
        (folder / name).mkdir()
    (folder / "run/glue").mkdir()
    write_json(folder / "run/glue/rte.json", result)

    tensors = read_weights(run)
    for name in ("pickle/pytorch_model.bin", "shards/part.bin"):
        shutil.copy(run / "config.json", (folder / name).parent)
        torch.save(tensors, folder / name)
    write_json(folder / "shards/pytorch_model.bin.index.json",
               {"weight_map": dict.fromkeys(tensors, "part.bin")})

    for name in ("tokenizer.json", "config.json"):
        shutil.copy(run / name, folder / "maps")
    words = json.loads((run / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "words/vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n")
    token = {"content": "[MASK]", "lstrip": True, "rstrip": False, "special": True}
    write_json(folder / "words/tokenizer_config.json", {
        "do_lower_case": True, "strip_accents": None, "mask_token": "[MASK]",
        "added_tokens_decoder": {"4": token}, "extra_special_tokens": ["[E1]"]})
    write_json(folder / "maps/special_tokens_map.json", {"mask_token": token, "bos_token": "[E0]"})
    write_json(folder / "maps/added_tokens.json", {"[E1]": len(words)})

    rows = [json.dumps({"text": f"Line {i} of the text.", "held_out": i}) for i in range(30)]
    text = "\n".join(rows).encode()
    packed = {"a.jsonl": text, "a.txt.gz": gzip.compress(text), "a.jsonl.xz": lzma.compress(text)}
    for name, content in packed.items():
        (folder / "text" / name).write_bytes(content)
    write_treebank(folder / "text", 3)
    write_lines(folder, "glue/a.tsv", "sentence\tlabel", *(f"red {i}\t1" for i in range(9)))


def read_tokenizer(path):
    """Open the tokenizer of a file's folder and use it."""
    load_tokenizer(path.parent).encode("The cat [MASK] the dog.")


def read_results(path):
    """Read what a report says of the run in "run"."""
    rows = make_results(SavedRun(path.parents[path.parent.name == "glue"], "run").facts())
    tables.runs_table(rows), tables.glue_table(rows), tables.cost_sentence(rows, "run", "run")


def read_record(path):
    """Read what a report and --resume say of a run."""
    read_results(path)
    resume_options({"out": str(path.parent)})


def read_model(path):
    """Open the weights of a file's folder."""
    MaskedLM.from_pretrained(path.parent)


def read_text(path):
    """Read all of a corpus file."""
    list(open_corpus(str(path)).pieces())


KINDS = {
    "run/config.json": (mutate_json, read_model),
    "run/model.safetensors": (mutate_bytes, read_model),
    "pickle/pytorch_model.bin": (mutate_bytes, read_model),
    "shards/pytorch_model.bin.index.json": (mutate_json, read_model),
    "run/tokenizer.json": (mutate_json, read_tokenizer),
    "words/tokenizer_config.json": (mutate_json, read_tokenizer),
    "words/vocab.txt": (mutate_bytes, read_tokenizer),
    "maps/special_tokens_map.json": (mutate_json, read_tokenizer),
    "maps/added_tokens.json": (mutate_json, read_tokenizer),
    "run/train.json": (mutate_json, read_record),
    "run/log.jsonl": (mutate_bytes, lambda path: run_directory.read_log(path.parent)),
    "run/glue/rte.json": (mutate_json, read_results),
    "glue/a.tsv": (mutate_bytes, lambda path: read_split(path, GLUE["sst2"], labelled=True)),
    "text/xx-ud-dev.conllu": (mutate_bytes, lambda path: read_treebank(path.parent)),
    "text/a.txt.gz": (mutate_bytes, read_text),
    "text/a.jsonl.xz": (mutate_bytes, read_text),
    "text/a.jsonl": (mutate_bytes, read_text)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_loads_or_is_an_error(three, name, request, tmp_path):
    """A mutated file of any kind is opened, or refused by a UserError; nothing else happens."""
    make_files(tmp_path, three / "full")
    (mutate, read), path = KINDS[name], tmp_path / name
    whole, refused = path.read_bytes(), 0
    read(path)  # undamaged, it loads
    for seed in range(request.config.getoption("--fuzz")):
        content = mutate(whole, np.random.default_rng(seed))
        path.write_bytes(content)
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, (seed, str(error))
            refused += 1
        except Exception as error:  # pytest keeps the damaged file
            raise AssertionError(f"seed {seed}, {path}: {error!r}") from error
    assert refused > 0
