"""Attention weights against `transformers`; statistics and rank collapse against definitions."""

import math

import pytest
import torch
import transformers
from helpers import run_script

from mini_undivided.attention import STATISTICS, attention_sums, attention_weights, collapse
from mini_undivided.model import BertConfig, Encoder


def test_weights_are_those_of_transformers(tmp_path):
    """With padding and segments, the weights of all heads equal those of a BertModel to 1e-5."""
    sizes = {"vocab_size": 57, "hidden_size": 33, "num_hidden_layers": 2, "num_attention_heads": 3,
             "intermediate_size": 41, "max_position_embeddings": 19}
    theirs = transformers.BertModel(
        transformers.BertConfig(**sizes, initializer_range=0.5, attn_implementation="eager")).eval()
    theirs.save_pretrained(tmp_path)
    ids, segments = torch.randint(5, 57, (3, 11)), torch.randint(0, 2, (3, 11))
    mask = torch.arange(11) < torch.tensor([11, 4, 7])[:, None]
    ours = attention_weights(Encoder.from_pretrained(tmp_path), ids, mask, segments)
    wanted = theirs(ids, mask.long(), segments, output_attentions=True).attentions
    assert ours.shape == (2, 3, 3, 11, 11)
    assert torch.allclose(ours, torch.stack(wanted), atol=1e-5)


def test_statistics_of_planted_weights():
    """A head that looks at its left neighbour, one that looks everywhere, one at [SEP] alone.

    Padding neither looks nor counts.
    """
    T, real = 5, torch.tensor([[True] * 4 + [False]])
    weights = torch.zeros(1, 1, 3, T, T)
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


def test_sums_do_not_depend_on_padding_or_batches():
    """Sums over a padded batch are the sums over its texts one by one."""
    encoder = Encoder(BertConfig(57, 33, 2, 3, 41, 19, initializer_range=0.3)).eval()
    ids, lengths = torch.randint(5, 57, (3, 11)), (11, 4, 7)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    together = attention_sums(attention_weights(encoder, ids, mask), mask, ids == 9)
    alone = 0
    for row, length in zip(ids, lengths, strict=True):
        row = row[None, :length]
        weights = attention_weights(encoder, row)
        alone = alone + attention_sums(weights, torch.ones_like(row).bool(), row == 9)
    assert torch.allclose(together, alone, atol=1e-4) and together.shape == (5, 2, 3)


def test_collapse_of_planted_tokens():
    """Equal tokens have distance 0, cosine 1; orthogonal ones √(1 - 1/T), 0; padding is left out."""
    mask = torch.tensor([[True] * 4 + [False] * 2])
    same, orthogonal = torch.ones(1, 6, 7), torch.eye(6, 7)[None].clone()
    orthogonal[0, 4:] = 99
    distance, cosine = collapse([same, orthogonal], mask)[..., 0].unbind(1)
    assert distance.tolist() == pytest.approx([0, math.sqrt(3 / 4)], abs=1e-6)
    assert cosine.tolist() == pytest.approx([1, 0], abs=1e-6)


def test_collapse_equals_its_definition():
    """Rank collapse equals its definition, written as loops over texts and pairs of tokens."""
    x, lengths = torch.randn(3, 11, 5) + 0.4, (11, 2, 6)
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    measures = collapse([x], mask)[0]  # (2, B)
    for i, length in enumerate(lengths):
        tokens = x[i, :length]
        distance = (tokens - tokens.mean(0)).norm() / tokens.norm()
        assert measures[0, i].item() == pytest.approx(distance.item(), rel=1e-5)
        pairs = [torch.cosine_similarity(a, b, dim=0)
                 for j, a in enumerate(tokens) for b in tokens[j + 1 :]]
        assert measures[1, i].item() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)


def test_a_sentence_is_drawn(three, tmp_path):
    """The command writes attention.png into the run's folder; too long a sentence is refused."""
    done = run_script("analyze.py", "attention", three / "noffn", "the fox and the hen .")
    assert done.returncode == 0, done.stderr
    path = three / "noffn" / "attention.png"
    assert done.stdout == f"written to {path}\n"
    from matplotlib import image

    assert image.imread(path).std() > 0.02
    path.unlink()
    refused = run_script("analyze.py", "attention", three / "noffn", "the fox " * 20)
    assert refused.returncode == 2 and "no more than 33 were seen in training" in refused.stderr
    assert not path.exists()
