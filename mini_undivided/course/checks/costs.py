"""Checks of 3: parameters and FLOPs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided.course.assignments import check, compare
from mini_undivided.course.student import pure
from mini_undivided.model import Encoder, MaskedLM
from mini_undivided.support.config import BertConfig

EXACT = 1e-6  # relative: numbers are below a million, or computed in float64


def some_sizes(rng, last=True):
    """The sizes of a small model with FFNs in two of its layers, of which one may be the last.

    Being odd, the large ones primes, they let no two of the usual mistakes give the same number.
    """
    (H, D), L = rng.permutation([7, 9, 11])[:2].tolist(), int(rng.choice([3, 5]))
    inner, V = int(rng.choice([151, 157, 163])), int(rng.choice([211, 233, 257, 271]))
    return dict(vocab_size=V, hidden_size=H * D, num_hidden_layers=L, num_attention_heads=H,
                intermediate_size=inner, max_position_embeddings=37, type_vocab_size=3,
                ffn_layers=[1, L - 1] if last else [0, 1])


def weights_of(model_class, sizes, **changes):
    """The number of weights of a model that is built."""
    return sum(p.numel() for p in model_class(BertConfig(**sizes | changes)).parameters())


@check(3, points=4)
def number_of_parameters(costs, rng):
    """count_parameters counts each weight of a model once."""
    for model_class, last in ((MaskedLM, True), (Encoder, False)):
        sizes = some_sizes(rng, last)
        V, C, L, _, inner, *_ = sizes.values()
        right, ffn = weights_of(model_class, sizes), 2 * C * inner + inner + 3 * C
        head = {"the head": C * C + 3 * C + V, "the head's bias": V,
                "the head's dense layer": C * C + C} if model_class is MaskedLM else {}
        compare(f"the number of parameters of {model_class.__name__}",
                pure("costs", "count_parameters", BertConfig(**sizes), model_class), right, {
            "with an FFN in every layer": right + (L - 2) * ffn,
            "when the LayerNorm of an absent FFN is counted: it goes too": right + (L - 2) * 2 * C,
            "when the output matrix, which is tied, is counted as well": right + V * C,
            "with two segment vectors: their number is type_vocab_size": right - C,
            "for a MaskedLM, whatever model_class says": weights_of(MaskedLM, sizes),
            **{f"without {name}": right - size for name, size in {
                "any FFN": 2 * ffn, "one of the FFNs: only one is counted": ffn,
                "the position vectors": 37 * C, "the segment vectors (token_type)": 3 * C,
                "the LayerNorm of the embeddings, or of the head": 2 * C,
                "the FFNs' LayerNorms": 4 * C, "attention's LayerNorms": L * 2 * C,
                "the biases of attention": L * 4 * C, "the biases of FFNs": 2 * (inner + C),
                "one of an FFN's two matrices": 2 * inner * C,
                "attention's output map": L * (C * C + C), **head}.items()}}, rounding=EXACT)


def library_flops(sizes, T, num_masked=None):
    """What PyTorch's counter says of PyTorch's layers, forward and twice that backward, a token."""
    V, C, L, H, inner, *_ = sizes.values()
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        attention = nn.MultiheadAttention(C, H, batch_first=True)
        ffn = nn.Sequential(nn.Linear(C, inner), nn.Linear(inner, C))
        head = nn.Sequential(nn.Linear(C, C), nn.Linear(C, V))
        x = torch.zeros(1, T, C)
        last = x[:, : num_masked or T]
        for i in range(L):
            query = last if i == L - 1 else x
            attention(query, x, x)
            if i in sizes["ffn_layers"]:
                ffn(query)
        head(last)
    return 3 * counter.get_total_flops() / T


@check(3, points=6)
def number_of_flops(costs, rng):
    """flops_per_token is what PyTorch's FlopCounterMode counts."""
    for last, num_masked in ((1, None), (0, None), (1, int(rng.integers(2, 9))), (0, 5)):
        sizes, T = some_sizes(rng, last), int(rng.choice([13, 17, 19, 23]))
        V, C, L, H, inner, *_ = sizes.values()
        right, share = library_flops(sizes, T, num_masked), (num_masked or T) / T
        whole = library_flops(sizes, T) if num_masked else right
        word, dense, ffn = 6 * V * C, 6 * C * C, 12 * C * inner
        ffns, absent = (1 + share if last else 2) * ffn, (L - 2 if last else L - 3 + share) * ffn
        queries, scores, less = L - 1 + share, 12 * T * C, 1 - share
        compare(f"flops_per_token(config, {T}{f', {num_masked}' if num_masked else ''})",
                pure("costs", "flops_per_token", BertConfig(**sizes), T, num_masked), right, {
            "for the forward pass alone: backward costs twice as much again": right / 3,
            "when a multiply-add counts as one operation: it is two": right / 2,
            "when backward counts like forward, once: it is twice": right * 2 / 3,
            "for a whole sequence, not for each of its tokens": right * T,
            "for each masked position: divide by seq_len": right / share,
            "with an FFN in every layer": right + absent,
            "when Q Kᵀ and ·V have width C for each head": right + scores * queries * (H - 1),
            "when looking up word vectors counts: no product is computed there": right + word,
            "when num_masked is not used": whole,
            "when num_masked is not used in the last layer": whole - less * (word + dense),
            "when num_masked is not used in the head": right + less * (word + dense),
            "when num_masked is not used in the last layer's FFN": right + less * ffn * last,
            "when num_masked is not used in Q Kᵀ and ·V": right + less * scores,
            "when num_masked is used in every layer, not only in the last": whole * share,
            **{f"without {name}": right - flops for name, flops in {
                "the FFNs": ffns, "one of the FFN's two products": ffns / 2,
                "Q Kᵀ and ·V, which grow with T": scores * queries,
                "one of Q Kᵀ and ·V": scores * queries / 2,
                "the attention's output map": dense * queries,
                "the head's output matrix": share * word, "the head's dense layer": share * dense,
                "the head": share * (word + dense),
                "the last layer's other keys: only queries are fewer": share * less * scores,
                "the last layer's keys and values elsewhere": less * 2 * dense}.items()}},
                rounding=EXACT)
