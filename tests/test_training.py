"""The words that fill a [MASK] after a short pretraining run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mini_undivided import pretrain
from mini_undivided.model import MaskedLM
from mini_undivided.report.training import fill
from mini_undivided.support.errors import UserError
from mini_undivided.support.options import PretrainOptions
from mini_undivided.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus with something to learn at once.

    A document says one of 13 words again and again.
    """
    words = "ant bee cat dog eel fox gnu hen ibis jay kiwi lynx mole".split()
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "zoo.jsonl"
    rows = [" ".join([words[rng.integers(13)]] * 61) for _ in range(160)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def options(text, tmp_path):
    """The options of a run of a second.

    2 layers, 3 heads, width 24, and an FFN in the last layer only.
    """
    return PretrainOptions(
        out=str(tmp_path / "run"),
        corpus=[text],
        vocab_size=120,
        layers=2,
        hidden_size=24,
        heads=3,
        ffn_size=41,
        ffn_layers=[1],
        seq_len=19,
        batch_tokens=19 * 6,
        steps=12,
        lr=1e-2,
        device="cpu",
    )


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
