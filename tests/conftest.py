"""What all tests share: a cache of their own, a fixed seed, and small corpora and runs."""

import os
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    GREEK, LENGTHS, NOUNS, SIZES, SMALL, WORDS, B, T, V, coloured_sentences, write_corpus,
    write_lines)

from mini_undivided.corpus import open_corpus
from mini_undivided.pretrain import train_step
from mini_undivided.run import pretrain
from mini_undivided.support.options import PretrainOptions
from mini_undivided.tokenizer import train_tokenizer
from mini_undivided.tokens import tokenize


def pytest_addoption(parser):
    """How thorough the slow checks are (10,000 and 200 take an hour), and --gpu."""
    parser.addoption("--gpu", action="store_true", help="also the tests that need a CUDA GPU")
    parser.addoption("--fuzz", type=int, default=60, help="mutations of each kind of file")
    parser.addoption("--kills", type=int, default=3, help="kills of a run of train.py")


def pytest_configure(config):
    """The tests and what they start compute on the CPU, whatever the machine has."""
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU (run with --gpu)")
    config.visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu are skipped without --gpu."""
    for item in items:
        if item.get_closest_marker("gpu") and not config.getoption("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: run with --gpu"))


@pytest.fixture
def gpu_environment(pytestconfig):
    """The environment of a process that may use the GPUs."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": pytestconfig.visible_gpus}
    return {name: value for name, value in environment.items() if value is not None}


@pytest.fixture(scope="session", autouse=True)
def own_cache():
    """The session's gathered text and token files go to a folder that is deleted at its end."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINI_UNDIVIDED_CACHE"] = folder
        os.environ["HF_HUB_OFFLINE"] = "1"
        yield folder


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def before_train_step(monkeypatch):
    """Register a function that is called with the arguments of each `train_step` of a run."""

    def register(function):
        def spied(*arguments):
            function(*arguments)
            return train_step(*arguments)

        monkeypatch.setattr("mini_undivided.pretrain.train_step", spied)

    return register


@pytest.fixture
def inputs():
    """(input_ids, attention_mask, token_type_ids), each (B, T).

    Four of the five sequences have padding at their end.
    """
    generator = torch.Generator().manual_seed(11)
    input_ids = torch.randint(V, (B, T), generator=generator)
    segments = torch.randint(SIZES["type_vocab_size"], (B, T), generator=generator)
    return input_ids, (torch.arange(T) < LENGTHS[:, None]).long(), segments


@pytest.fixture(scope="session")
def tale(tmp_path_factory):
    """A small corpus of sentences."""
    sentence = "The {} walked slowly to the old {} and found nothing there but rain. "
    rows = [sentence.format(a, b) * 3 for a in NOUNS for b in NOUNS]
    return write_corpus(tmp_path_factory.mktemp("text"), "tale.jsonl", rows)


@pytest.fixture(scope="session")
def farm(tmp_path_factory):
    """A corpus of different sentences, one document per file."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    verbs = "sees hears meets likes".split()
    for i in range(260):
        sentences = [
            f"The {rng.choice(NOUNS)} {rng.choice(verbs)} the {rng.choice(NOUNS)} "
            f"and number {rng.integers(99)} of them" + " again" * int(rng.integers(7)) + "."
            for _ in range(20)]
        (folder / f"{i}.txt").write_text(" ".join(sentences))
    return str(folder)


@pytest.fixture(scope="session")
def three(farm, tmp_path_factory):
    """Three finished runs of a second each: full, without FFNs, and full with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    base = PretrainOptions(
        out="", corpus=[farm], **SMALL, seq_len=33, batch_tokens=33 * 6, steps=9, lr=1e-2)
    for name, changed in {"full": {}, "noffn": {"ffn_layers": []}, "twin": {"seed": 1}}.items():
        pretrain(replace(base, out=str(folder / name), **changed))
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A corpus with something to learn at once: a document says one of 13 words again and again."""
    rng = np.random.default_rng(0)
    rows = [" ".join([WORDS[rng.integers(13)]] * 61) for _ in range(160)]
    return write_corpus(tmp_path_factory.mktemp("text"), "zoo.jsonl", rows)


@pytest.fixture(scope="session")
def greek(tmp_path_factory):
    """(corpus, tokenizer, tokens) of 170 documents of random words, some of them unknown."""
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice([*GREEK, "\U0001f600"], size=97)) for _ in range(170)]
    source = open_corpus([write_corpus(tmp_path_factory.mktemp("text"), "greek.jsonl", texts)])
    tokenizer = train_tokenizer((GREEK * 3 for _ in range(3)), 150)
    return source, tokenizer, tokenize(source, tokenizer)


@pytest.fixture
def options(zoo, tmp_path):
    """A run of a second: 2 layers, 3 heads, width 24, and an FFN in the last layer only."""
    return PretrainOptions(
        out=str(tmp_path / "run"), corpus=[zoo], **SMALL, ffn_layers=[1], seq_len=19,
        batch_tokens=19 * 6, steps=12, lr=1e-2)


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory):
    """SST-2, STS-B and MNLI in the official layout, small and learnable."""
    folder = tmp_path_factory.mktemp("glue")

    def write(name, columns, rows):
        lines = ("\t".join(map(str, row)) for row in (columns.split(), *rows))
        write_lines(folder, f"{name}.tsv", *lines)

    for part, count in (("train", 211), ("dev", 53)):
        rows = coloured_sentences(count, seed=count)
        write(f"SST-2/{part}", "sentence label", rows)
        write(f"STS-B/{part}", "sentence1 sentence2 score",
              ((text, "the fox", 4.5 if label else 0.5) for text, label in rows))
    write("SST-2/test", "index sentence",
          ((i, text) for i, (text, _) in enumerate(coloured_sentences(31))))
    write("STS-B/test", "index sentence1 sentence2",
          ((0, "red .", "the fox"), (1, "blue .", "the fox")))
    rows = [(text, "the fox", ("contradiction", "entailment")[label])
            for text, label in coloured_sentences(41)]
    write("MNLI/train", "sentence1 sentence2 gold_label", rows)
    filler = [f"c{i}" for i in range(13)]
    for variant, count in (("matched", 7), ("mismatched", 5)):
        write(f"MNLI/dev_{variant}", " ".join([*filler, "sentence1", "sentence2", "gold_label"]),
              ((*filler, *row) for row in rows[:count]))
        write(f"MNLI/test_{variant}", "index sentence1 sentence2",
              ((i, *row[:2]) for i, row in enumerate(rows[:count])))
    write("AX/diagnostic", "index sentence1 sentence2", [(0, "red .", "the fox")])
    return folder
