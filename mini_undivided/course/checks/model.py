"""Checks of 1 to 3: attention, the FFN and the block, parameters and FLOPs."""

from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided.course.assignments import Wrong, check, compare, distinct, normal, require
from mini_undivided.support.config import BertConfig

SDPA = F.scaled_dot_product_attention


# 1: attention with its mask.

def attention_inputs(rng):
    """q (B, H, M, D), k and v (B, H, T, D)."""
    B, H, M, T, D = distinct(rng, 5, 2, 9)
    return normal(rng, B, H, M, D), normal(rng, B, H, T, D), normal(rng, B, H, T, D)


def written_out(model, *arguments):
    """The student's attention, with the fused kernel out of reach."""
    refusal = Wrong("attend calls PyTorch's fused kernel: write it out, with matmul and softmax")
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=refusal):
        return model.attend(*arguments)


@check(1, points=5)
def attention_without_a_mask(model, rng):
    """Without a mask the output is softmax(Q Kᵀ / √D) V."""
    q, k, v = attention_inputs(rng)
    D, T = q.size(-1), k.size(2)
    over_queries = SDPA(k, q, torch.eye(q.size(2), dtype=q.dtype)).mT @ v
    compare("the output", written_out(model, q, k, v), SDPA(q, k, v), {
        "without the division by √D: the scores are √D too large": SDPA(q, k, v, scale=1),
        "when scores are divided by D instead of √D": SDPA(q, k, v, scale=1 / D),
        "when scores are multiplied by √D, not divided": SDPA(q, k, v, scale=D**0.5),
        "with √T in place of √D: D is the last size of q": SDPA(q, k, v, scale=T**-0.5),
        "when the softmax runs over the queries: it belongs on the last axis": over_queries,
        "without the softmax": q @ k.mT / D**0.5 @ v})


@check(1, points=4)
def attention_with_a_mask(model, rng):
    """No token looks where the mask is False."""
    q, k, v = attention_inputs(rng)
    mask = torch.from_numpy(rng.random((len(q), 1, 1, k.size(2))) < 0.5)
    mask[..., 0], mask[..., 1] = True, False
    column = mask.mT  # (B, 1, T, 1)
    compare("the output with a mask", written_out(model, q, k, v, mask), SDPA(q, k, v, mask), {
        "when the mask is inverted, or −∞ has the wrong sign: True is where one may look":
            SDPA(q, k, v, ~mask),
        "when the mask is not used": SDPA(q, k, v),
        "when masked scores become 0, which e⁰ = 1 lets through: they need −∞":
            SDPA(q, k * column, v),
        "when the mask zeroes the weights after the softmax: then rows no longer sum to 1":
            SDPA(q, k, v * column),
        "when 0 and 1 are added to the scores: a forbidden one needs −∞":
            SDPA(q, k, v, mask.double())})


@check(1, points=1)
def attention_with_dropout(model, rng):
    """Dropout sets weights to 0 and divides the others by 1 - p."""
    q, k, _ = attention_inputs(rng)
    twice, p = torch.eye(k.size(2), dtype=q.dtype).repeat(1, 2), rng.uniform(0.3, 0.6)
    answer, weights = written_out(model, q, k, twice, None, p), SDPA(q, k, twice)
    require(torch.equal(*answer.chunk(2, -1)), "dropout acts on the output: use it on the weights")
    kept = answer != 0
    require(not kept.all(), "no weight is 0 after dropout: is the argument dropout unused?")
    compare("a weight that dropout keeps", answer[kept], weights[kept] / (1 - p), {
        "without the division by 1 - p": weights[kept],
        "when p is the share that is kept": weights[kept] / p})


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
        parts = [getattr(each, name) for each in (ours.query, ours.key, ours.value)]
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
    """FeedForward is LayerNorm(x + W_down gelu(W_up x)), gelu_down the part after W_up."""
    block, x = random_block(model, rng)
    ffn, (right, before) = block.ffn, library_ffn(block, x)
    activations = {"without the GELU": lambda y: y, "with a ReLU for the GELU": F.relu,
                   "with the tanh approximation of GELU: BERT's is the exact one":
                       lambda y: F.gelu(y, approximate="tanh")}
    compare("gelu_down's output", ffn.gelu_down(ffn.up(x)), before - x, {
        cause: library_ffn(block, x, each)[1] - x for cause, each in activations.items()})
    compare("FeedForward's output", ffn(x), right, {
        "when the residual is forgotten: x + … is missing": ffn.norm(before - x),
        "when the residual comes after the norm: BERT's LayerNorm is last":
            x + ffn.norm(before - x),
        "with the norm first (pre-norm): BERT's LayerNorm is last":
            library_ffn(block, x, F.gelu, True)[0],
        "without the LayerNorm": before})
    ffn.gelu_down = lambda y: 0 * x
    require(torch.allclose(ffn(x), ffn.norm(x)), "FeedForward.forward does not call "
            "self.gelu_down, which support/cpu.py replaces")


@check(2, points=1)
def dropout_in_the_ffn(model, rng):
    """In training, dropout acts on what is added to x, and not on x."""
    block, x = random_block(model, rng, dropout=0.5)
    block.ffn.norm = nn.Identity()
    added = block.ffn(x) - x
    require(torch.isclose(added, -x).double().mean() < 0.2,
            "dropout acts on x as well: put it on the FFN's part alone")
    require((added == 0).any(),
            "nothing is dropped in FeedForward while it trains: is self.dropout unused?")


@check(2, points=2)
def block_with_ffn(model, rng):
    """A block with an FFN is PyTorch's TransformerEncoderLayer, with padding too."""
    block, x = random_block(model, rng)
    real = torch.from_numpy(rng.random(x.shape[:2]) < 0.6)
    real[:, 0] = True
    layer, mask, given = library_layer(block), real[:, None, None], []
    right = layer(x, src_key_padding_mask=~real)
    attended = layer.norm1(x + layer.self_attn(x, x, x, ~real, need_weights=False)[0])
    asked = torch.from_numpy(rng.integers(x.size(1), size=(len(x), 2)))
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        compare("the output of a block with an FFN", block(x, mask), right, {
            "when the FFN is left out": attended,
            "when the FFN reads x instead of attention's output": block.ffn(x),
            "when the mask does not reach attention": layer(x)})
        block.attention.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
        compare("the output at positions", block(x, mask, asked), model.pick(right, asked), {
            "when positions does not reach attention": right})
    require(len(given[0]) == 3, "x, mask and positions reach attention by name: pass them by "
            "place, as attention.py expects")


@check(2, points=2)
def block_without_ffn(model, rng):
    """A block without an FFN is its attention sublayer, and nothing else."""
    block, x = random_block(model, rng, has_ffn=False)
    layer = library_layer(block)
    right = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        try:
            answer = block(x)
        except TypeError as error:
            raise Wrong(f"a block whose ffn is None fails ({error}): is the FFN always called?")
    compare("the output of a block without an FFN", answer, right, {
        "when its input is returned: attention is missing": x,
        "with a second residual: it has to go with the FFN": x + right,
        "with LayerNorm(2x): an FFN that is an identity is not an absent one":
            F.layer_norm(2 * right, x.shape[-1:], eps=layer.norm1.eps)})


# 3: parameters and FLOPs.

def some_sizes(rng):
    """The sizes of a small model with FFNs in two of its layers, one of them first or last."""
    H, D, inner, L, V = distinct(rng, 5, 3, 9)
    return dict(vocab_size=90 + V, hidden_size=H * D, num_hidden_layers=L, num_attention_heads=H,
                intermediate_size=40 + inner, max_position_embeddings=37,
                ffn_layers=[[0, 1], [1, L - 1]][rng.integers(2)])


def weights_of(model_class, sizes, **changes):
    """The number of weights of a model that is built."""
    return sum(p.numel() for p in model_class(BertConfig(**sizes | changes)).parameters())


@check(3, points=4)
def number_of_parameters(model, rng):
    """count_parameters counts each weight of a model once."""
    sizes = some_sizes(rng)
    C, L, V = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["vocab_size"]
    for model_class in (model.MaskedLM, model.Encoder):
        right = weights_of(model_class, sizes)
        compare(f"the number of parameters of {model_class.__name__}",
                model.count_parameters(BertConfig(**sizes), model_class), right, {
            "with an FFN in every layer": weights_of(model_class, sizes, ffn_layers=None),
            "without any FFN": weights_of(model_class, sizes, ffn_layers=[]),
            "when the LayerNorm of an absent FFN is counted: it goes too": right + (L - 2) * 2 * C,
            "when the output matrix is counted beside the word vectors: they are one (tied)":
                right + V * C,
            "without the position vectors": right - 37 * C,
            "without the FFNs' LayerNorms": right - 4 * C,
            "for a MaskedLM, whatever model_class says": weights_of(model.MaskedLM, sizes)})


def library_flops(sizes, T, asked=None):
    """What PyTorch's counter says of PyTorch's layers, forward and twice that backward, a token."""
    C, L, inner = (sizes[n] for n in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    attention = nn.MultiheadAttention(C, sizes["num_attention_heads"], batch_first=True)
    ffn = nn.Sequential(nn.Linear(C, inner), nn.Linear(inner, C))
    head = nn.Sequential(nn.Linear(C, C), nn.Linear(C, sizes["vocab_size"]))
    x = torch.zeros(1, T, C)
    last = x[:, : asked or T]
    with FlopCounterMode(display=False) as counter:
        for i in range(L):
            query = last if i == L - 1 else x
            attention(query, x, x)
            if i in sizes["ffn_layers"]:
                ffn(query)
        head(last)
    return 3 * counter.get_total_flops() / T


@check(3, points=6)
def number_of_flops(model, rng):
    """flops_per_token is what PyTorch's FlopCounterMode counts."""
    sizes, T = some_sizes(rng), int(rng.integers(11, 37))
    C, L, V = sizes["hidden_size"], sizes["num_hidden_layers"], sizes["vocab_size"]
    for asked in (None, int(rng.integers(2, 9))):
        right, share = library_flops(sizes, T, asked), (asked or T) / T
        scores = 6 * 2 * T * C * (L - 1 + share)
        every, none = ({**sizes, "ffn_layers": layers} for layers in (range(L), []))
        what = "flops_per_token" + (f" with asked={asked} of {T}" if asked else "")
        compare(what, model.flops_per_token(BertConfig(**sizes), T, asked), right, {
            "for the forward pass alone: backward costs twice as much again": right / 3,
            "when a multiply-add counts as one operation: it is two": right / 2,
            "when backward counts like forward, once: it is twice": right * 2 / 3,
            "for a whole sequence, not for each of its tokens": right * T,
            "with an FFN in every layer": library_flops(every, T, asked),
            "without the FFNs": library_flops(none, T, asked),
            "without Q Kᵀ and the product with V, which grow with T": right - scores,
            "with only one of Q Kᵀ and the product with V": right - scores / 2,
            "without the head's output matrix": right - 6 * share * V * C,
            "without the head's dense layer": right - 6 * share * C * C,
            "without the head": right - 6 * share * (V * C + C * C),
            "when looking up word vectors counts: no product is computed there": right + 6 * V * C,
            "when asked is not used": library_flops(sizes, T),
            "when asked is not used in the last layer":
                library_flops(sizes, T) - 6 * (1 - share) * (V * C + C * C),
            "with the last layer's keys and values at the asked positions alone: they are computed "
            "everywhere": right - 6 * (1 - share) * 2 * C * C,
            "when every layer, not only the last, is computed at the asked positions alone":
                library_flops(sizes, T) * share})
