"""Checks of 10: one FFN for all layers."""

import torch

from mini_undivided.course.assignments import check, compare, require
from mini_undivided.course.checks.costs import EXACT, some_sizes, weights_of
from mini_undivided.course.student import remote
from mini_undivided.support.config import BertConfig


@remote
def shared(sizes, ids):
    """What the student's encoder is like: parameters, weights, the states of ids (B, T)."""
    import project
    from mini_undivided import model

    encoder = project.shared_ffn(BertConfig(**sizes))
    require(encoder is not None, "shared_ffn returns None: is a return missing?")
    require(isinstance(encoder, model.Encoder), "shared_ffn does not return a model.Encoder")
    require(all(layer.ffn is not None for layer in encoder.layers),
            "some layer has no FFN: all of them should use the one there is")
    ffn, std = encoder.layers[0].ffn, encoder.config.initializer_range
    require(abs(ffn.up.weight.std() / std - 1) < 0.1 and not ffn.up.bias.any(),
            f"the FFN does not begin as `initialise` begins it, with a deviation of {std:g}")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sum(p.numel() for p in encoder.parameters()), encoder.state_dict(), encoder(ids)


@check(10, points=10)
def shared_ffn(model, rng):
    """All layers of shared_ffn(config), an Encoder, have one and the same FFN."""
    sizes = {**some_sizes(rng), "ffn_layers": None, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0}
    ids = torch.from_numpy(rng.integers(sizes["vocab_size"], size=(3, 7)))
    count, state, states = shared(sizes, ids)
    right, L = weights_of(model.Encoder, sizes, ffn_layers=[0]), sizes["num_hidden_layers"]
    compare("the number of parameters", count, right, {
        "when the layers themselves are one":
            weights_of(model.Encoder, {**sizes, "num_hidden_layers": 1}),
        "when each layer has an FFN's LayerNorm of its own":
            right + (L - 1) * 2 * sizes["hidden_size"],
        "when every layer has its own copy: the same module has to stand in all":
            weights_of(model.Encoder, sizes),
        "when one layer has an FFN of its own, and the others share":
            weights_of(model.Encoder, sizes, ffn_layers=[0, 1])}, rounding=EXACT)
    full = model.Encoder(BertConfig(**sizes))
    full.load_state_dict(state)
    compare("the encoder's output", states, full(ids), {})
