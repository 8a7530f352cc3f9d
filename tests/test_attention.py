"""Attention weights against `transformers`; statistics and rank collapse against definitions."""

import math

import pytest
import torch
from helpers import (
    LENGTHS, B, H, L, T, assert_close, config, run_script, saved_by_them, scatter)
from matplotlib import image

from mini_undivided.attention import STATISTICS, attention_sums, attention_weights, collapse
from mini_undivided.model import Encoder


def test_weights_are_those_of_transformers(tmp_path, inputs):
    """With padding and segments, the weights of all heads equal those of a BertModel to 1e-5."""
    reference, folder = saved_by_them(tmp_path, "BertModel", attn_implementation="eager")
    input_ids, mask, segments = inputs
    ours = attention_weights(Encoder.from_pretrained(folder), input_ids, mask.bool(), segments)
    assert ours.shape == (L, B, H, T, T)
    assert_close(ours, torch.stack(reference(*inputs, output_attentions=True).attentions))


def test_statistics_of_planted_weights():
    """A head that looks at its left neighbour, one that looks everywhere, one at [SEP] alone.

    Padding neither looks nor counts.
    """
    real = torch.tensor([[True] * 4 + [False]])
    weights = torch.zeros(1, 1, 3, 5, 5)
    for i in range(4):
        weights[0, 0, 0, i, max(0, i - 1)] = 1
        weights[0, 0, 1, i, :4] = 0.25
        weights[0, 0, 2, i, 3] = 1
    weights[..., 4, :] = 1 / 3  # what a row of padding says
    is_sep = torch.tensor([[False, False, False, True, True]])
    left, even, sep = (attention_sums(weights, real, is_sep)[:, 0] / 4).T.tolist()
    assert list(STATISTICS) == ["entropy", "distance", "self", "[CLS]", "[SEP]"]
    assert left == pytest.approx([0, 3 / 4, 1 / 4, 2 / 4, 0])
    assert even == pytest.approx([math.log(4), (6 + 4 + 4 + 6) / 16, 1 / 4, 1 / 4, 1 / 4])
    assert sep == pytest.approx([0, (3 + 2 + 1) / 4, 1 / 4, 0, 1])


def test_sums_do_not_depend_on_padding_or_batches(inputs):
    """Sums over a padded batch are the sums over its texts one by one."""
    encoder, (ids, mask, _) = scatter(Encoder(config())), inputs
    weights = attention_weights(encoder, ids, mask.bool())
    together = attention_sums(weights, mask.bool(), ids % 7 == 2)
    alone = 0
    for row, length in zip(ids, LENGTHS, strict=True):
        row = row[None, :length]
        weights = attention_weights(encoder, row)
        alone = alone + attention_sums(weights, torch.ones_like(row).bool(), row % 7 == 2)
    assert torch.allclose(together, alone, atol=1e-4) and together.shape == (5, L, H)


def test_collapse_equals_its_definition():
    """Rank collapse equals its definition, written as loops over texts and pairs of tokens.

    Equal tokens have distance 0 and cosine 1.
    """
    x, lengths = torch.randn(3, 11, 5) + 0.4, (11, 2, 6)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    equal, measures = collapse([torch.ones_like(x), x], mask)  # (2, B) each
    assert torch.allclose(equal, torch.tensor([[0.0], [1.0]]), atol=1e-6)
    for i, length in enumerate(lengths):
        tokens = x[i, :length]
        distance = (tokens - tokens.mean(0)).norm() / tokens.norm()
        assert measures[0, i].item() == pytest.approx(distance.item(), rel=1e-5)
        pairs = [torch.cosine_similarity(a, b, dim=0)
                 for j, a in enumerate(tokens) for b in tokens[j + 1 :]]
        assert measures[1, i].item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)


def test_a_sentence_is_drawn(three, tmp_path):
    """The command writes attention.png into the run's folder."""
    done = run_script("analyze.py", "attention", three / "noffn", "the fox and the hen .")
    assert done.returncode == 0, done.stderr
    path = three / "noffn" / "attention.png"
    assert done.stdout == f"written to {path}\n"
    assert image.imread(path).std() > 0.02
