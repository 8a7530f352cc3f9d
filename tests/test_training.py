"""The words that fill a [MASK] after a short pretraining run."""

from dataclasses import replace

import pytest

from mini_undivided import pretrain
from mini_undivided.model import MaskedLM
from mini_undivided.report.training import fill
from mini_undivided.support.errors import UserError
from mini_undivided.tokenizer import load_tokenizer


def test_fill_names_the_likeliest_words(options):
    """After training, the word all around a [MASK] comes first, and probabilities fall.

    A sentence without a [MASK] is refused.
    """
    pretrain.pretrain(replace(options, steps=400))
    model, tokenizer = MaskedLM.from_pretrained(options.out), load_tokenizer(options.out)
    first, second = fill(model, tokenizer, "cat cat [MASK] cat cat [MASK] cat", top=3)
    assert first[0][0] == second[0][0] == "cat"
    assert [p for _, p in first] == sorted((p for _, p in first), reverse=True) and len(first) == 3
    with pytest.raises(UserError, match="there is no \\[MASK\\]"):
        fill(model, tokenizer, "ant bee")
