"""What a run needs before its loop: what does not fit is refused before training."""

from dataclasses import replace
from pathlib import Path

import pytest

from mini_undivided import pretrain
from mini_undivided.support.errors import UserError


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seq_len": 7}, "seq_len is 7, but should be a whole number from 8"),
        ({"seq_len": 513}, "--seq-len 513 is longer than the model's 512 positions"),
        ({"heads": 5}, "5 heads do not divide the hidden size 24"),
        ({"ffn_layers": [2]}, "FFN layer 2 is out of range"),
        ({"batch_tokens": 18}, "--batch-tokens 18 is less than one sequence of 19 tokens"),
        ({"micro_batch": 4}, "--micro-batch 4 does not divide the 6 sequences"),
        ({"seq_len": 500, "batch_tokens": 500}, "too small for its validation part"),
        ({"corpus": ["nowhere.txt"]}, "nothing to read at nowhere.txt"),
        ({"init": "nowhere/at/all"}, "nowhere/at/all is not a folder"),
        ({"tokenizer": "nowhere/at/all"}, "nowhere/at/all is not a folder"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(options, change, sentence):
    """Options that do not fit together are a UserError that says so.

    No run directory is left behind.
    """
    with pytest.raises(UserError, match=sentence):
        pretrain.pretrain(replace(options, **change))
    assert not Path(options.out).exists()


def test_a_run_is_not_overwritten(options):
    """A second run into the same folder is refused."""
    pretrain.pretrain(replace(options, steps=1))
    with pytest.raises(UserError, match="already holds a run: resume it with --resume"):
        pretrain.pretrain(options)
