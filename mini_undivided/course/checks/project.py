"""Checks of 10: one FFN for all layers."""

from unittest import mock

import torch

from mini_undivided.course.assignments import check, compare, normal, require
from mini_undivided.course.checks.model import SDPA, some_sizes, weights_of
from mini_undivided.support.config import BertConfig


@check(10, points=10)
def shared_ffn(project, rng):
    """All layers of shared_ffn(config), an Encoder, have one and the same FFN."""
    from mini_undivided import model

    sizes = {**some_sizes(rng), "ffn_layers": None, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0}
    encoder = project.shared_ffn(BertConfig(**sizes))
    require(isinstance(encoder, model.Encoder), "shared_ffn does not return a model.Encoder")
    require(all(layer.ffn is not None for layer in encoder.layers),
            "some layer has no FFN: all of them should use the one there is")
    compare("the number of parameters", sum(p.numel() for p in encoder.parameters()),
            weights_of(model.Encoder, sizes, ffn_layers=[0]), {
        "when every layer has its own copy: the same module has to stand in all":
            weights_of(model.Encoder, sizes)})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * normal(rng, *parameter.shape))
    full = model.Encoder(BertConfig(**sizes))
    full.load_state_dict(encoder.state_dict())
    ids = torch.from_numpy(rng.integers(sizes["vocab_size"], size=(3, 7)))
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        compare("the encoder's output", encoder(ids), full(ids), {})
