"""Who attends to whom: attention weights, five numbers that sum them up, and rank collapse.

Shapes: B texts in a batch, T tokens in the longest, C hidden size, L layers, H heads.

Each token i spreads a weight of 1 over the tokens j of its text; row i of a head's (T, T) weights
says how. Without FFNs, softmax and LayerNorm are a layer's only nonlinear parts, so these weights
are where to look for what FFNs were doing. (A weight says what a head attends to, not what that
changes: the value there may be small.)

What attention does to a text's tokens is to average them. Averaged often enough, they become equal:
rank collapse (Dong et al. 2021, 2103.03404), which residual connections and FFNs work against.
"""

import torch
from torch.nn import functional as F

from mini_undivided.model import attention, key_mask

STATISTICS = {
    "entropy": "entropy of a token's weights (nats)",
    "distance": "mean distance attended to (tokens)",
    "self": "weight on the token itself",
    "[CLS]": "weight on [CLS]",
    "[SEP]": "weight on [SEP]"}


@torch.inference_mode()
def attention_weights(encoder, input_ids, attention_mask=None, token_type_ids=None):
    """One forward pass → the weights of all heads (L, B, H, T, T), rows summing to 1.

    The arguments are the encoder's. What attention gives for the identity matrix in place of the
    values is the weights themselves.
    """
    _, states = encoder(input_ids, attention_mask, token_type_ids, output_hidden_states=True)
    mask, weights = key_mask(attention_mask), []
    eye = torch.eye(input_ids.size(1), dtype=states[0].dtype, device=input_ids.device)
    for x, block in zip(states[:-1], encoder.layers, strict=True):  # each layer's input (B, T, C)
        sublayer = block.attention
        q, k = (sublayer.split_heads(linear(x)) for linear in (sublayer.query, sublayer.key))
        weights.append(attention(q, k, eye, mask))  # (B, H, T, T)
    return torch.stack(weights)


def attention_sums(weights, real, is_sep):
    """Sums of the STATISTICS over the real tokens of all texts → (5, L, H); divide by their number.

    weights (L, B, H, T, T); real, is_sep (B, T): True for tokens that are not padding, for [SEP].
    """
    T = weights.size(-1)
    position = torch.arange(T, device=weights.device)
    distance = (position[:, None] - position).abs().to(weights.dtype)  # (T, T)
    rows = torch.stack((
        torch.special.entr(weights).sum(-1),  # - Σ w log w, and 0 for w = 0
        (weights * distance).sum(-1),
        weights.diagonal(dim1=-2, dim2=-1),
        weights[..., 0],
        torch.einsum("lbhij,bj->lbhi", weights, is_sep.to(weights.dtype))))  # (5, L, B, H, T)
    return torch.einsum("slbhi,bi->slh", rows, real.to(rows.dtype))


def collapse(layers, mask):
    """How similar attention has made the tokens of a text, layer by layer.

    layers: a list of (B, T, C); mask (B, T) → (L, 2, B): the distance of the token vectors from
    their mean, relative to their norm, and the mean cosine of two different tokens ([CLS] and [SEP]
    count). Fully collapsed: distance 0, cosine 1.
    """
    x = torch.stack(layers) * mask[..., None]  # (L, B, T, C), padding 0
    count = mask.sum(1)  # (B,)
    mean = x.sum(2) / count[:, None]  # (L, B, C)
    deviation = (x - mean[:, :, None]) * mask[..., None]  # (L, B, T, C)
    distance = (deviation.square().sum((2, 3)) / x.square().sum((2, 3))).sqrt()  # (L, B)
    unit = F.normalize(x, dim=-1).sum(2)  # (L, B, C)
    cosine = (unit.square().sum(-1) - count) / (count * (count - 1)).clamp(min=1)  # pairs i ≠ j
    return torch.stack([distance, cosine], dim=1)
