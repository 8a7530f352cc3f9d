"""Checks of 1 and 2: attention, the FFN and the block."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from mini_undivided.course.assignments import (
    SDPA, check, compare, distinct, equal, normal, require)
from mini_undivided.course.student import pure
from mini_undivided.support.config import BertConfig


# 1: attention with its mask.

attention = partial(pure, "model", "attention")  # the student's


def attention_inputs(rng):
    """q (B, H, M, D), k and v (B, H, T, D)."""
    B, H, M, T, D = distinct(rng, 5, 4, 9)
    return normal(rng, B, H, M, D), normal(rng, B, H, T, D), normal(rng, B, H, T, D)


def with_large_scores(q, k, v, mask=None):
    """Raise Wrong unless attention is right where scores are about ±200,000."""
    q, k = 1e5 * q[:1, :1], k[:1, :1].clone()
    if mask is not None:  # far below 0
        q[..., 0], k[..., 0] = -2e5, 5
    answer = attention(q, k, v, mask)
    require(answer.isfinite().all(), "with scores of ±200,000 the output is not finite: "
            "use softmax, or subtract a row's largest score before exp")
    require(equal(answer, SDPA(q, k, v, mask)), "with scores of ±200,000 the output "
            "is wrong: masked ones need −∞ or a type's least number, far below all others")


@check(1, points=5)
def attention_without_a_mask(model, rng):
    """Without a mask the output is softmax(Q Kᵀ / √D) V."""
    q, k, v = attention_inputs(rng)
    D, eye = q.size(-1), torch.eye(k.size(2), dtype=q.dtype)
    scores = q @ k.mT / D**0.5
    for what, v in {"the output": v, "the output with the identity (T, T) as v": eye}.items():
        compare(what, attention(q, k, v), SDPA(q, k, v), {
            "without the division by √D: the scores are √D too large": SDPA(q, k, v, scale=1),
            "when scores are divided by D instead of √D": SDPA(q, k, v, scale=1 / D),
            "when scores are multiplied by √D, not divided": SDPA(q, k, v, scale=D**0.5),
            "with √T, or the last size of v, not of q": SDPA(q, k, v, scale=len(eye)**-0.5),
            "with √C, where C = H D, not √D": SDPA(q, k, v, scale=(D * q.size(1))**-0.5),
            "when the softmax runs over the queries: not the last axis": scores.softmax(2) @ v,
            "when the softmax runs over the heads: not the last axis": scores.softmax(1) @ v,
            "without the softmax": scores @ v,
            "when the weights are divided by √D as well": SDPA(q, k, v) / D**0.5})
    with_large_scores(q, k, eye)


@check(1, points=4)
def attention_with_a_mask(model, rng):
    """No token looks where the mask is False."""
    q, k, v = attention_inputs(rng)
    mask = torch.from_numpy(rng.random((len(q), 1, 1, k.size(2))) < 0.5)
    mask[..., :2], mask[..., 2:4], mask[:1, ..., 1] = True, False, False
    column = mask.mT  # (B, 1, T, 1)
    compare("the output with a mask", attention(q, k, v, mask), SDPA(q, k, v, mask), {
        "when the mask is inverted, or −∞ has the wrong sign": SDPA(q, k, v, ~mask),
        "when the mask is not used": SDPA(q, k, v),
        "when masked scores become 0, and e⁰ = 1: they need −∞": SDPA(q, k * column, v),
        "when the mask acts after the softmax: rows no longer sum to 1": SDPA(q, k, v * column),
        "when 0 and 1 are added to scores: False needs −∞": SDPA(q, k, v, mask.double()),
        "when all sequences have the first one's mask": SDPA(q, k, v, mask[:1])})
    with_large_scores(q, k, v[:1, :1], mask[:1])


@check(1, points=1)
def attention_with_dropout(model, rng):
    """Dropout sets weights to 0 and divides the others by 1 - p."""
    q, k = normal(rng, 4, 7, 9, 5), normal(rng, 4, 7, 12, 5)
    twice, p = torch.eye(12, dtype=q.dtype).repeat(1, 2), rng.uniform(0.2, 0.4)
    answer, weights = attention(q, k, twice, None, p), SDPA(q, k, twice)
    require(torch.equal(*answer.chunk(2, -1)), "dropout acts on the output: use it on the weights")
    kept = answer != 0
    require(not kept.all(), "no weight is 0 after dropout: is the argument dropout unused?")
    compare("the matrix of weights after dropout", answer, weights * kept / (1 - p), {
        "without the division by 1 - p": weights * kept,
        "when p is the share that is kept": weights * kept / p,
        "when divided by their sum": 2 * weights * kept / (weights * kept).sum(-1, keepdim=True)})
    require(abs(kept.double().mean() - 1 + p) < 0.06, f"dropout with p = {p:.2f} keeps "
            f"{kept.double().mean():.0%} of the weights: p is the share that becomes 0")


# 2: the FFN and the block.

def random_block(model, rng, has_ffn=True, dropout=0.0):
    """A block in float64 with large random weights, and an input x (B, T, C)."""
    B, T, H, D, inner = distinct(rng, 5, 2, 9)
    config = BertConfig(hidden_size=H * D, num_attention_heads=H, intermediate_size=9 + inner,
                        hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0)
    block = model.Block(config, has_ffn).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(normal(rng, *parameter.shape))
    return block, normal(rng, B, T, H * D)


def library_layer(block, activation=F.gelu, norm_first=False):
    """PyTorch's encoder layer with the weights of a block."""
    ours, ffn = block.attention, block.ffn
    layer = nn.TransformerEncoderLayer(
        ours.query.in_features, ours.heads, ffn.up.out_features if ffn else 1, 0.0, activation,
        ours.norm.eps, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    for name in ("weight", "bias"):
        parts = [getattr(linear, name) for linear in (ours.query, ours.key, ours.value)]
        getattr(layer.self_attn, f"in_proj_{name}").data = torch.cat(parts)
    pairs = [(layer.self_attn.out_proj, ours.output), (layer.norm1, ours.norm)]
    if ffn:
        pairs += [(layer.linear1, ffn.up), (layer.linear2, ffn.down), (layer.norm2, ffn.norm)]
    for theirs, own in pairs:
        theirs.load_state_dict(own.state_dict())
    return layer


def library_ffn(block, x, *variant):
    """The feed-forward sublayer alone of PyTorch's layer → its output, and what its norm sees."""
    layer, seen = library_layer(block, *variant), []
    layer.norm1 = nn.Identity()
    for parameter in layer.self_attn.out_proj.parameters():
        nn.init.zeros_(parameter)
    layer.norm2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    return layer(x), seen[0]


@check(2, points=5)
def feed_forward_sublayer(model, rng):
    """FeedForward is LayerNorm(x + W_down gelu(W_up x))."""
    block, x = random_block(model, rng, dropout=0.5)
    ffn, (right, before) = block.eval().ffn, library_ffn(block, x)
    answer = pure("model", "FeedForward.forward", ffn, x)
    again = pure("model", "FeedForward.forward", ffn, x)
    require(equal(answer, again), "dropout acts in evaluation, too: use self.dropout")
    compare("FeedForward's output", answer, right, {
        "without the GELU": library_ffn(block, x, lambda y: y)[0],
        "with a ReLU for the GELU": library_ffn(block, x, F.relu)[0],
        "with the tanh approximation of GELU": library_ffn(block, x, nn.GELU("tanh"))[0],
        "with the sigmoid approximation of GELU":
            library_ffn(block, x, lambda y: y * (1.702 * y).sigmoid())[0],
        "when the GELU is not between the two": ffn.norm(x + F.gelu(ffn.down(ffn.up(x)))),
        "when the residual is forgotten": ffn.norm(before - x),
        "when x is added twice": ffn.norm(before + x),
        "when the residual comes after the norm, which is last": x + ffn.norm(before - x),
        "with the norm first (pre-norm), not last": library_ffn(block, x, F.gelu, True)[0],
        "with a second LayerNorm": ffn.norm(right),
        "when x is normalised as well": ffn.norm(x + ffn.down(F.gelu(ffn.up(ffn.norm(x))))),
        "without the LayerNorm": before})


@check(2, points=1)
def dropout_in_the_ffn(model, rng):
    """In training, dropout acts on what is added to x, and not on x."""
    block, x = random_block(model, rng, dropout=0.5)
    whole, block.ffn.norm = library_ffn(block, x)[1] - x, nn.Identity()
    added = block.ffn(x) - x
    require(torch.isclose(added, -x).double().mean() < 0.2, "dropout acts on x as well")
    require(not equal(added, whole), "nothing is dropped in training: is self.dropout unused?")
    require((added == 0).any(), "dropout acts before W_down: put it on what W_down returns")
    compare("what the FFN adds under dropout", added, 2 * whole * (added != 0), {})


@check(2, points=2)
def block_with_ffn(model, rng):
    """A block with an FFN is PyTorch's TransformerEncoderLayer, with padding too."""
    compare_block(*random_block(model, rng), rng)


@check(2, points=2)
def block_without_ffn(model, rng):
    """A block without an FFN is its attention sublayer, and nothing else."""
    compare_block(*random_block(model, rng, has_ffn=False), rng)


def compare_block(block, x, rng):
    """Raise Wrong unless a block's output is PyTorch's, and that at two positions of each text."""
    layer, padding = library_layer(block), torch.from_numpy(rng.random(x.shape[:2]) < 0.4)
    padding[:, 0] = False
    mask = ~padding[:, None, None]

    def attend(x, padding):
        return layer.norm1(x + layer.self_attn(x, x, x, padding, need_weights=False)[0])

    attended = attend(x, padding)
    if block.ffn is None:
        right, wrong = attended, {
            "when its input is returned: attention is missing": x,
            "with a second residual: it has to go with the FFN": x + attended,
            "with LayerNorm(2x): an FFN that is an identity is not an absent one":
                F.layer_norm(2 * attended, x.shape[-1:], eps=layer.norm1.eps),
            "when the mask does not reach attention": attend(x, None)}
    else:
        right, through = layer(x, src_key_padding_mask=padding), library_ffn(block, x)[0]
        wrong = {
            "when the FFN is left out": attended,
            "when the FFN reads x instead of attention's output": through,
            "when the FFN comes before attention": attend(through, padding),
            "when x is added: attention has its residual": library_ffn(block, x + attended)[0],
            "when attention's output is added: the FFN has its residual": right + attended,
            "when attention and FFN stand side by side": attended + through,
            "when the mask does not reach attention": layer(x)}
    compare("the output of the block", block(x, mask), right, wrong)
    positions = torch.from_numpy(rng.integers(x.size(1), size=(len(x), 2)))
    there = right.take_along_dim(positions[..., None], 1)
    compare("the output at positions", block(x, mask, positions), there, {
        "when positions does not reach attention": right})
