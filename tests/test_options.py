"""Options: every one has an effect, and the README shows the presets as they are."""

from dataclasses import fields

import pytest
from helpers import ROOT, train_options

from mini_undivided.support.errors import UserError
from mini_undivided.support.options import (
    PRESETS, FinetuneOptions, PretrainOptions, TrainShortcuts, dashed)


@pytest.mark.parametrize("name", PRESETS)
def test_the_readme_shows_the_presets(name):
    """Each row of the README's table has the preset's own numbers."""
    preset = PRESETS[name]
    others = (preset[key] for key in ("vocab_size", "seq_len", "batch_tokens", "steps"))
    numbers = [f"{preset['layers']} × {preset['hidden_size']}", str(preset["heads"]),
               *(f"{n:,}" for n in others), f"{preset['lr']:f}".rstrip("0")]
    assert f"| {name} | {' | '.join(numbers)} |" in (ROOT / "README.md").read_text()


def test_presets_are_the_sizes_of_the_miniatures():
    """The presets from tiny to base have the sizes of BERT's miniatures (1908.08962).

    tiny 2/128, mini 4/256, small 4/512, medium 8/512 and base 12/768; heads of 64, and an FFN of 4
    × the width. Their vocabularies are multiples of 8, which a GPU multiplies faster.
    """
    sizes = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512),
             "base": (12, 768)}
    for name, (layers, width) in sizes.items():
        options = train_options("--preset", name)
        assert (options.layers, options.hidden_size) == (layers, width)
        assert (options.heads, options.ffn_size) == (width // 64, 4 * width)
        assert options.vocab_size % 8 == 0


def test_ffn_options():
    """The FFN options say which layers keep an FFN, and what the run is called.

    Every k-th is counted back from the last layer, which is always one of them.
    """
    cases = {
        (): (None, "runs/full"),
        ("--no-ffn",): ([], "runs/noffn"),
        ("--ffn-every", 3, "--layers", 7): ([0, 3, 6], "runs/ffn-0-3-6"),
        ("--ffn-every", 2, "--layers", 5): ([0, 2, 4], "runs/ffn-0-2-4"),
        ("--ffn-every", 9): ([3], "runs/ffn-3"),
        ("--ffn-every", 4, "--preset", "base"): ([3, 7, 11], "runs/base-ffn-3-7-11"),
        ("--ffn-layers", "0,2", "--seed", 5): ([0, 2], "runs/ffn-0-2-seed5")}
    for arguments, (ffn_layers, out) in cases.items():
        options = train_options(*arguments)
        assert (options.ffn_layers, options.out) == (ffn_layers, out)


CHANGES = (
    "preset=mini layers=5 hidden-size=64 heads=2 ffn-size=77 corpus=a.txt "
    "tokenizer=vocab.txt vocab-size=999 cased seq-len=33 batch-tokens=999 micro-batch=3 steps=7 "
    "minutes=2.5 flops=1e12 lr=0.1 optimizer=adamw muon-lr=0.1 mlm-probability=0.3 "
    "next-sentence dropout=0.2 seed=3 device=cpu dtype=bfloat16 compile out=x no-ffn ffn-every=2 "
    "ffn-layers=1").split()


def test_every_option_changes_the_options_of_the_run():
    """Each flag reaches PretrainOptions, but for those that say where to start, or how often."""
    for change in CHANGES:
        assert train_options(f"--{change}") != train_options(), change
    names = {dashed(field.name) for field in (*fields(PretrainOptions), *fields(TrainShortcuts))}
    assert names - {f"--{change.split('=')[0]}" for change in CHANGES} == {
        "--init", "--resume", "--seeds"}


@pytest.mark.parametrize("wrong", [
    {"optimizer": "Muon"}, {"optimizer": None}, {"device": "gpu"}, {"lr": None}, {"corpus": "docs"},
    {"mlm_probability": None}, {"steps": 0}, {"dropout": 1.0},
    {"ffn_layers": 3}], ids=str)
def test_a_notebook_is_told_what_an_option_takes(wrong):
    """A value that the command line would refuse is an error in Python, too, and named."""
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} is .*, but should be "):
        PretrainOptions(**wrong)


def test_init_takes_sizes_from_the_run(three):
    """--init brings the sizes and the tokenizer; --ffn-every counts the run's own layers."""
    options = train_options("--init", three / "full")
    assert (options.layers, options.hidden_size, options.heads) == (2, 24, 3)
    assert options.ffn_layers is None
    assert train_options("--init", three / "full", "--ffn-every", 2).ffn_layers == [1]


def test_the_options_work_without_a_command_line():
    """A notebook gets a preset with changes, and the same bounds as the command line.

    The FFN's width follows the model's.
    """
    options = PretrainOptions.preset("mini", ffn_layers=[], hidden_size=64, seed=3)
    assert (options.layers, options.heads, options.ffn_size, options.vocab_size) == (
        4, 4, 256, 8192)
    assert options.out == "runs/mini-noffn-seed3"
    assert PretrainOptions.preset("laptop", minutes=2.0).steps is None
    with pytest.raises(UserError, match="seeds is 0, but should be a whole number from 1 to 1,000"):
        FinetuneOptions("runs/a", "cola", seeds=0)
