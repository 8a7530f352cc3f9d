"""Optimizers and schedule: AdamW's and Muon's steps are those of the libraries."""

import numpy as np
import pytest
import torch

from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.optim import (
    Muon, adamw, muon_and_adamw, orthogonalise, scale_learning_rates, warmup_decay)


def test_the_learning_rate_rises_and_falls_in_lines():
    """The rate is 0 at the start, 1 where the warm-up ends, and 0 at the end and after.

    It is straight in between, and never negative.
    """
    warmup = 0.2
    points, factors = [0.0, 0.1, 0.2, 0.6, 1.0, 1.3], [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert [warmup_decay(p, warmup) for p in points] == pytest.approx(factors)
    many = [warmup_decay(p, warmup) for p in np.linspace(0, 1, 101)]
    assert many == pytest.approx(np.interp(np.linspace(0, 1, 101), points[:5], factors[:5]))
    assert warmup_decay(0.0, 0.0) == 1.0 and warmup_decay(0.75, 0.0) == pytest.approx(0.25)


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_no_decay_on_biases_and_norms(ffn_layers):
    """Every parameter is in exactly one group.

    The ones with decay are the matrices, and all of them.
    """
    sizes = {"vocab_size": 99, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3}
    mlm = MaskedLM(BertConfig(**sizes, ffn_layers=ffn_layers))
    groups = adamw(mlm.parameters(), lr=0.1, weight_decay=0.3).param_groups
    decayed, kept = ({id(p) for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    for name, p in mlm.named_parameters():
        plain = name.endswith("bias") or ".norm." in name
        assert (id(p) in kept, id(p) in decayed) == (plain, not plain), name
    assert len(decayed) + len(kept) == len(list(mlm.parameters()))


def test_a_step_is_adamws():
    """Three steps move a weight exactly as torch.optim.AdamW moves it, decay included.

    A frozen weight does not move at all.
    """
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    frozen = ours.bias.detach().clone()
    ours.bias.requires_grad_(False)
    optimizer = adamw(ours.parameters(), lr=0.5, weight_decay=0.1)
    reference = torch.optim.AdamW(
        [theirs.weight], lr=0.05, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1)
    scale_learning_rates([optimizer], 0.1)
    for i in range(3):
        x = torch.full((7, 5), float(i + 1))
        for layer, by in ((ours, optimizer), (theirs, reference)):
            by.zero_grad()
            layer(x).square().mean().backward()
            by.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, frozen)


def model(ffn_layers=None):
    """A small model whose width, FFN and vocabulary differ."""
    sizes = {"vocab_size": 99, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3}
    return MaskedLM(BertConfig(**sizes, intermediate_size=41, ffn_layers=ffn_layers))


def test_the_learning_rate_reaches_every_group():
    """Each group gets the factor times its own peak."""
    optimizers = muon_and_adamw(model(), muon_lr=0.3, lr=0.1)
    scale_learning_rates(optimizers, 0.25)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates == [[0.075] * 3, [0.025, 0.025]]  # Muon's groups: of one shape each


@pytest.mark.parametrize("ffn_layers, matrices", [(None, 3 * 6 + 1), ([], 3 * 4 + 1)])
def test_muon_has_the_matrices_inside_and_adamw_the_rest(ffn_layers, matrices):
    """Muon moves the linear layers' weights, the head's dense layer included; each moves once.

    Embeddings, biases and LayerNorms are AdamW's.
    """
    mlm = model(ffn_layers)
    muon, other = ([p for group in each.param_groups for p in group["params"]]
                   for each in muon_and_adamw(mlm, 0.02, 2e-3))
    names = {id(p): name for name, p in mlm.named_parameters()}
    assert len(muon) == matrices and len(muon) + len(other) == len(names)
    assert {id(p) for p in [*muon, *other]} == names.keys()
    assert all(p.dim() == 1 or "embeddings" in names[id(p)] for p in other)


@pytest.mark.parametrize("shape", [(29, 13), (13, 29), (17, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_keeps_directions_and_evens_out_their_lengths(shape, dtype):
    """Singular values from 0.05 to 1 end between 0.6 and 1.3, and U and V stay, as an SVD says."""
    rows, columns = shape
    U, _, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    S = torch.linspace(0.05, 1, min(shape))
    y = orthogonalise((U * S @ Vh)[None].to(dtype))[0].float()
    inside = U.T @ y @ Vh.T  # diagonal, if the directions are those of x
    diagonal = inside.diagonal()
    assert 0.6 < diagonal.min() and diagonal.max() < 1.3
    assert (inside - torch.diag(diagonal)).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
@pytest.mark.parametrize("shape", [(29, 13), (13, 29)])
def test_a_step_is_muons(shape):
    """Four steps move a matrix as torch.optim.Muon moves it, which computes in bfloat16."""
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = [Muon([ours], lr=0.3, dtype=torch.bfloat16, weight_decay=0.1),
                  torch.optim.Muon([theirs], lr=0.3, weight_decay=0.1, momentum=0.95)]
    start = ours.detach().clone()
    for _ in range(4):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - start).abs().max() > 0.3
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
