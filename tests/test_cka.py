"""CKA: against a second formula, on planted cases, and on the encoders' real tokens only."""

import numpy as np
import pytest
import torch

from mini_undivided import cka
from mini_undivided.model import BertConfig, Encoder
from mini_undivided.support.errors import UserError


def gaussian(n, width, seed=0):
    """Rows of independent normal numbers, in float64."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def biased(a, b):
    """The plain linear CKA: centred features, Frobenius norms."""
    a, b = a - a.mean(0), b - b.mean(0)
    return ((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())).item()


def hsic_of_features(a, b):
    """The unbiased HSIC written with features only, without any n × n matrix.

    Song et al. 2012, eq. 5, expanded.
    """
    n = len(a)
    a2, b2 = a.square().sum(1), b.square().sum(1)  # the diagonals of both Gram matrices
    trace = (a.T @ b).square().sum() - a2 @ b2
    sum_a, sum_b = a.sum(0).square().sum() - a2.sum(), b.sum(0).square().sum() - b2.sum()
    rows_a, rows_b = a @ a.sum(0) - a2, b @ b.sum(0) - b2
    total = trace + sum_a * sum_b / ((n - 1) * (n - 2)) - 2 * (rows_a @ rows_b) / (n - 2)
    return total / (n * (n - 3))


def encoder(layers=3, width=24, seed=0, **kwargs):
    """A small encoder with fresh weights, large enough that its layers differ."""
    torch.manual_seed(seed)
    model = Encoder(BertConfig(97, width, layers, 3, 41, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def batches(count=23, seed=0):
    """Batches of 5 texts of 3 to 13 tokens, padded: (ids, mask, segments)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        lengths = torch.from_numpy(rng.integers(3, 14, 5))
        ids = torch.from_numpy(rng.integers(5, 97, (5, 13)))
        yield ids, torch.arange(13) < lengths[:, None], torch.zeros_like(ids)


@pytest.mark.parametrize(("n", "widths"), [(7, (3, 11)), (61, (29, 17)), (256, (768, 5))])
def test_gram_form_equals_feature_form(n, widths):
    """Centred Gram matrices and the formula on features alone give the same HSIC, to 1e-10."""
    a, b = gaussian(n, widths[0]), gaussian(n, widths[1], 1)
    b[:, 0] += 2 * a[:, 0] + 3
    for x, y in ((a, b), (a, a)):
        ours = cka.hsic(cka.centre(x[None]), cka.centre(y[None])).item()
        assert ours == pytest.approx(hsic_of_features(x, y).item(), rel=1e-10, abs=1e-10)


def test_a_constant_layer_has_no_cka():
    """With a layer of equal rows CKA is not a number, whatever rounding makes of the means."""
    for n in (7, 61, 256):
        constant = gaussian(1, 13).expand(n, 13)
        assert np.isnan(cka.cka(constant, gaussian(n, 5)))
        assert np.isnan(cka.cka(gaussian(n, 5), constant))


def test_what_changes_cka_and_what_does_not():
    """CKA ignores rotation, scaling and shift, but not a stretch of one direction.

    It is 1 for a layer with itself, and symmetric.
    """
    a, b = gaussian(83, 13), gaussian(83, 13) + 0.7 * gaussian(83, 13, 1)
    turn, _ = torch.linalg.qr(gaussian(13, 13, 2))
    assert cka.cka(a, a) == pytest.approx(1, abs=1e-12)
    assert cka.cka(a @ turn * 31 + 2, b) == pytest.approx(cka.cka(a, b), abs=1e-10)
    assert cka.cka(a, a @ turn) == pytest.approx(1, abs=1e-10)
    stretch = torch.ones(13, dtype=torch.float64)
    stretch[0] = 9
    assert cka.cka(a, a * stretch) < 0.6
    assert cka.cka(a, b) == pytest.approx(cka.cka(b, a))


def test_unrelated_layers_give_zero_where_the_plain_form_gives_much():
    """Unrelated features of width 768 at n = 256 give 0 ± 0.02, while the biased form gives 0.7."""
    for seed in range(3):
        a, b = gaussian(256, 768, 2 * seed), gaussian(256, 768, 2 * seed + 1)
        assert abs(cka.cka(a, b)) < 0.02
        assert 0.65 < biased(a, b) < 0.8


def test_minibatches_do_not_drift():
    """The mean over minibatches of any size is close to the value on all rows."""
    a = gaussian(4096, 31) * torch.linspace(0.2, 3, 31)
    b = a[:, 14:] + 1.5 * gaussian(4096, 17, 1)
    whole = cka.cka(a, b)
    for n in (16, 64, 512):
        estimate = cka.CKA()
        for x, y in zip(a.split(n), b.split(n), strict=True):
            estimate.add(cka.centre(x[None]), cka.centre(y[None]))
        assert estimate.rows == 4096
        assert estimate.value().item() == pytest.approx(whole, abs=0.03)
    assert 0.2 < whole < 0.8


def test_outputs_are_the_layers_of_one_forward_pass():
    """Block outputs are the encoder's hidden states.

    Attention outputs are what the FFN is given; without an FFN, they are the block's output.
    """
    model = encoder(ffn_layers=[1])
    ids, mask, segments = next(batches())
    outputs = cka.layer_outputs(model, ids, mask, segments)
    _, layers = model(ids, mask, segments, output_hidden_states=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs["block"], layers, strict=True))
    assert len(outputs["attention"]) == 3
    for i, layer in enumerate(model.layers):
        after = layer.ffn(outputs["attention"][i]) if i == 1 else outputs["attention"][i]
        assert torch.allclose(after, layers[i + 1], atol=1e-6)
    assert not any(layer.attention._forward_hooks for layer in model.layers)


def test_padding_changes_nothing_in_the_end():
    """The same texts, padded once to 13 and once to 29 tokens, give the same CKA."""
    models = {"a": encoder(), "b": encoder(seed=1)}
    pad = torch.nn.functional.pad
    wide = [(pad(i, (0, 16), value=55), pad(m, (0, 16)), pad(s, (0, 16))) for i, m, s in batches()]
    one, collapses, rows = cka.compare(models, batches(), [("a", "b")], n=64)
    two, others, _ = cka.compare(models, wide, [("a", "b")], n=64)
    assert torch.allclose(one["a", "b"]["block"], two["a", "b"]["block"], atol=1e-4)
    assert torch.allclose(collapses["a"], others["a"], atol=1e-4)
    real = sum(int(mask.sum()) for _, mask, _ in batches())
    assert rows == real // 64 * 64


def test_compare_gives_every_layer_against_every_layer():
    """Models of different depth and width: all pairs of layers, 1 for a copy, else as cka()."""
    first, deep = encoder(), encoder(layers=5, width=36, seed=1)
    models = {"a": first, "copy": first, "deep": deep}
    pairs = [("a", "copy"), ("a", "deep"), ("deep", "copy")]
    values, collapses, rows = cka.compare(models, batches(), pairs, n=32)
    assert list(values) == pairs
    wide, tall = values["a", "deep"], values["deep", "copy"]
    assert wide["block"].shape == (4, 6) and wide["attention"].shape == (3, 5)
    assert torch.allclose(tall["block"], wide["block"].T, atol=1e-9)
    same = values["a", "copy"]["block"]
    assert torch.allclose(same.diagonal(), torch.ones(4).double(), atol=1e-6)
    assert collapses["deep"].shape == (6, 2)
    ids, mask, segments = next(batches())
    n = int(mask.sum())
    values, _, rows = cka.compare(models, [(ids, mask, segments)], pairs, n=n)
    assert rows == n
    a, b = (cka.layer_outputs(m, ids, mask, segments)["block"] for m in (first, deep))
    alone = cka.cka(a[2][mask], b[4][mask])  # real tokens only
    assert values["a", "deep"]["block"][2, 4].item() == pytest.approx(alone, abs=1e-6)


def test_one_forward_pass_of_each(monkeypatch):
    """Each encoder reads each batch once, and all of them the same rows in the same order."""
    seen, forward = [], Encoder.forward

    def spy(self, ids, *args, **kwargs):
        seen.append((id(self), ids.sum().item()))
        return forward(self, ids, *args, **kwargs)

    monkeypatch.setattr(Encoder, "forward", spy)
    models = {"a": encoder(), "b": encoder(seed=1), "c": encoder(seed=2)}
    cka.compare(models, batches(7), [("a", "b"), ("b", "c")], n=16)
    assert len(seen) == 7 * 3 and len(set(seen)) == 7 * 3
    assert [key for key, _ in seen[:3]] == [id(model) for model in models.values()]


def test_the_buffer_is_bounded_and_mixes_batches():
    """Never more rows wait than BUFFERED minibatches and a batch, however many batches there are.

    Minibatches are in float64, have the same rows of all encoders, and are no single text's tokens.
    """
    buffer, most = cka.ShuffleBuffer(8), 0
    for i in range(200):
        buffer.add("a", torch.full((2, 13, 3), float(i)))
        buffer.add("b", torch.full((2, 13, 5), float(i)))
        for minibatch in buffer.take(64):
            assert minibatch["a"].shape == (2, 8, 3) and minibatch["a"].dtype == torch.float64
            assert torch.equal(minibatch["a"][0, :, 0], minibatch["b"][1, :, 4])
            assert len(set(minibatch["a"].flatten().tolist())) >= 3
        most = max(most, buffer.size)
    assert most < 64 + 13


def test_too_few_rows():
    """Fewer rows than one minibatch are an error, and a minibatch too small for the estimator."""
    models = {"a": encoder(), "b": encoder(seed=1)}
    rows = sum(int(mask.sum()) for _, mask, _ in batches(2))
    with pytest.raises(UserError, match=f"needs 256 tokens at least, but there are {rows}"):
        cka.compare(models, batches(2), [("a", "b")])
    with pytest.raises(UserError, match="at least 4 rows"):
        cka.compare(models, batches(2), [("a", "b")], n=3)
