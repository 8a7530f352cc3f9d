"""Optimizers and schedule: AdamW's and Muon's steps are those of the libraries."""

import numpy as np
import pytest
import torch
from helpers import config

from mini_undivided.model import MaskedLM
from mini_undivided.optim import (
    Muon, adamw, muon_and_adamw, orthogonalise, scale_learning_rates, warmup_decay)
from mini_undivided.pairs import PairedMaskedLM


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
    """Every parameter is in exactly one group; those with decay are all the matrices."""
    mlm = MaskedLM(config(ffn_layers=ffn_layers))
    groups = adamw(mlm.parameters(), lr=0.1, weight_decay=0.3).param_groups
    decayed, kept = ({id(p) for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    for name, p in mlm.named_parameters():
        plain = name.endswith("bias") or ".norm." in name
        assert (id(p) in kept, id(p) in decayed) == (plain, not plain), name
    assert len(decayed) + len(kept) == len(list(mlm.parameters()))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_step_is_adamws(scale):
    """Three steps move a weight exactly as torch.optim.AdamW moves it, decay included.

    So they do where gradients are as small as BERT's epsilon of 1e-6. A frozen weight stays.
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
            (scale * layer(x).square().mean()).backward()
            by.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, frozen)


def test_the_learning_rate_reaches_every_group():
    """Each group gets the factor times its own initial_lr."""
    optimizers = muon_and_adamw(MaskedLM(config()), muon_lr=0.3, lr=0.1)
    scale_learning_rates(optimizers, 0.25)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates == [[0.075] * 3, [0.025, 0.025]]  # Muon's groups: of one shape each


@pytest.mark.parametrize("ffn_layers, count", [(None, 4 * 6 + 2), ([], 4 * 4 + 2)])
def test_muon_has_the_matrices_inside_and_adamw_the_rest(ffn_layers, count):
    """Muon moves the weights of the layers, of the head's dense layer and of the pooler.

    Embeddings, biases, LayerNorms and the matrix onto two classes are AdamW's; each moves once.
    Where a gradient is 0, both take lr × 0.01 of each matrix away, and nothing of a vector.
    """
    model = PairedMaskedLM(config(ffn_layers=ffn_layers))
    optimizers = muon_and_adamw(model, 0.2, 0.1)
    muon, other = ([p for group in each.param_groups for p in group["params"]]
                   for each in optimizers)
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(muon) == count and len(muon) + len(other) == len(names)
    assert {id(p) for p in [*muon, *other]} == names.keys()
    assert {names[id(p)] for p in muon} >= {"head.dense.weight", "pooler.weight"}
    assert {names[id(p)] for p in other if p.dim() == 2} == {"next.weight", *(
        f"encoder.embeddings.{table}.weight" for table in ("word", "position", "token_type"))}
    before = [p.detach().clone() for p in [*muon, *other]]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for i, (old, new) in enumerate(zip(before, [*muon, *other], strict=True)):
        decay = 0.01 * (0.2 if i < count else 0.1) * (new.dim() == 2)
        torch.testing.assert_close(new.detach(), old * (1 - decay))


@pytest.mark.parametrize("shape", [(29, 13), (13, 29), (17, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_keeps_directions_and_evens_out_their_lengths(shape, dtype):
    """Singular values from 0.05 to 1 end between 0.6 and 1.3, and U and V stay, as an SVD says.

    So they do for each matrix of a group, however much larger another one is.
    """
    rows, columns = shape
    U, _, Vh = torch.linalg.svd(torch.randn(rows, columns), full_matrices=False)
    S = torch.linspace(0.05, 1, min(shape))
    x = U * S @ Vh
    for y in orthogonalise(torch.stack([x, 1000 * x, 0.001 * x]).to(dtype)).float():
        inside = U.T @ y @ Vh.T  # diagonal, if the directions are those of x
        diagonal = inside.diagonal()
        assert 0.6 < diagonal.min() and diagonal.max() < 1.3
        error = (inside - torch.diag(diagonal)).abs().max()
        assert error < (0.05 if dtype == torch.bfloat16 else 1e-4)


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
