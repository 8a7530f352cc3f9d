"""The checks: answers against libraries, definitions and properties; a likely cause for each miss.

Each takes a chapter's module and a random generator. What it compares with is not a solution: it
is a library's layer, automatic differentiation, a count, or a definition by brute force.
"""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided.course.assignments import (
    Wrong, array, check, compare, distinct, equal, normal, require)
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


@check(1, "model", 5)
def attention_without_a_mask(model, rng):
    """Without a mask the output is softmax(Q Kᵀ / √D) V."""
    q, k, v = attention_inputs(rng)
    D, T, scores = q.size(-1), k.size(2), q @ k.mT
    over_queries = SDPA(k, q, torch.eye(q.size(2), dtype=q.dtype)).mT @ v
    compare("the output", written_out(model, q, k, v), SDPA(q, k, v), {
        "without the division by √D: the scores are √D too large": SDPA(q, k, v, scale=1),
        "when scores are divided by D instead of √D": SDPA(q, k, v, scale=1 / D),
        "when scores are multiplied by √D, not divided": SDPA(q, k, v, scale=D**0.5),
        "with √T in place of √D: D is the last size of q": SDPA(q, k, v, scale=T**-0.5),
        "when the softmax runs over the queries: it belongs on the last axis": over_queries,
        "without the softmax": scores / D**0.5 @ v})


@check(1, "model", 4)
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


@check(1, "model", 1)
def attention_with_dropout(model, rng):
    """Dropout sets weights to 0 and divides the others by 1 - p."""
    q, k, _ = attention_inputs(rng)
    eye, p = torch.eye(k.size(2), dtype=q.dtype), rng.uniform(0.3, 0.6)
    answer, weights = written_out(model, q, k, eye, None, p), SDPA(q, k, eye)
    kept = answer != 0
    require(not kept.all(), "no weight is 0 after dropout: is the argument dropout unused?")
    compare("a weight that dropout keeps", answer[kept], weights[kept] / (1 - p), {
        "without the division by 1 - p": weights[kept],
        "when p is the share that is kept": weights[kept] / p})


# 2: the FFN and the block.

def scattered_block(model, rng, has_ffn=True, dropout=0.0):
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
    """PyTorch's encoder layer with the weights of a block; without an FFN its own stay."""
    ours = block.attention
    layer = nn.TransformerEncoderLayer(
        ours.query.in_features, ours.heads, block.ffn.up.out_features if block.ffn else 1, 0.0,
        activation, ours.norm.eps, batch_first=True, norm_first=norm_first, dtype=torch.float64)
    for name in ("weight", "bias"):
        parts = [getattr(each, name) for each in (ours.query, ours.key, ours.value)]
        getattr(layer.self_attn, f"in_proj_{name}").data = torch.cat(parts)
    pairs = {layer.self_attn.out_proj: ours.output, layer.norm1: ours.norm}
    if block.ffn:
        pairs |= {layer.linear1: block.ffn.up, layer.linear2: block.ffn.down,
                  layer.norm2: block.ffn.norm}
    for theirs, own in pairs.items():
        theirs.load_state_dict(own.state_dict())
    return layer


def library_ffn(block, x, *variant):
    """The feed-forward sublayer alone of PyTorch's layer → its output, and what the norm sees."""
    layer, seen = library_layer(block, *variant), []
    layer.norm1 = nn.Identity()
    nn.init.zeros_(layer.self_attn.out_proj.weight)
    nn.init.zeros_(layer.self_attn.out_proj.bias)
    layer.norm2.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    return layer(x), seen[0]


@check(2, "model", 3)
def feed_forward_sublayer(model, rng):
    """FeedForward is LayerNorm(x + W_down gelu(W_up x))."""
    block, x = scattered_block(model, rng)
    right, before = library_ffn(block, x)
    norm, plain = block.ffn.norm, lambda y: y
    compare("FeedForward's output", block.ffn(x), right, {
        "when the residual is forgotten: x + … is missing": norm(before - x),
        "when the residual comes after the norm: BERT's LayerNorm is last": x + norm(before - x),
        "with the norm first (pre-norm): BERT's LayerNorm is last":
            library_ffn(block, x, F.gelu, True)[0],
        "without the LayerNorm": before,
        "without the GELU": library_ffn(block, x, plain)[0],
        "with a ReLU for the GELU": library_ffn(block, x, F.relu)[0],
        "with the tanh approximation of GELU: BERT's is the exact one":
            library_ffn(block, x, lambda y: F.gelu(y, approximate="tanh"))[0]})


@check(2, "model", 2)
def gelu_and_second_map(model, rng):
    """gelu_down is the activation and the second linear map, and nothing else."""
    block, x = scattered_block(model, rng)
    ffn, before = block.ffn, library_ffn(block, x)[1]
    inner = ffn.up(x)
    compare("gelu_down's output", ffn.gelu_down(inner), before - x, {
        "without the GELU": library_ffn(block, x, lambda y: y)[1] - x,
        "with a ReLU for the GELU": library_ffn(block, x, F.relu)[1] - x,
        "with the norm, which belongs into forward": ffn.norm(before - x)})


@check(2, "model", 1)
def dropout_in_the_ffn(model, rng):
    """In training, dropout acts on what is added to x, and not on x."""
    block, x = scattered_block(model, rng, dropout=0.5)
    block.ffn.norm = nn.Identity()
    added = block.ffn(x) - x
    lost = torch.isclose(added, -x).double().mean()
    require(lost < 0.2, "dropout acts on x as well: put it on the FFN's part alone")
    require((added == 0).any(),
            "nothing is dropped in FeedForward while it trains: is self.dropout unused?")


@check(2, "model", 2)
def block_with_ffn(model, rng):
    """A block with an FFN is PyTorch's TransformerEncoderLayer, with padding too."""
    block, x = scattered_block(model, rng)
    real = torch.from_numpy(rng.random(x.shape[:2]) < 0.6)
    real[:, 0] = True
    layer, mask = library_layer(block), real[:, None, None]
    attended = layer.norm1(x + layer.self_attn(x, x, x, ~real, need_weights=False)[0])
    right = layer(x, src_key_padding_mask=~real)
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        compare("the output of a block with an FFN", block(x, mask), right, {
            "when the FFN is left out": attended,
            "when the FFN reads x instead of attention's output": block.ffn(x),
            "when the FFN's output is added to attention's once more":
                attended + block.ffn(attended),
            "when the mask does not reach attention": layer(x),
            "when the FFN comes first": block.attention(block.ffn(x), mask)})
        asked = torch.from_numpy(rng.integers(x.size(1), size=(len(x), 2)))
        compare("the output at positions", block(x, mask, asked), model.pick(right, asked), {
            "when positions does not reach attention": right})


@check(2, "model", 2)
def block_without_ffn(model, rng):
    """A block without an FFN is its attention sublayer, and nothing else."""
    block, x = scattered_block(model, rng, has_ffn=False)
    layer = library_layer(block)
    right = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    C, eps = x.size(-1), layer.norm1.eps
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        try:
            answer = block(x)
        except TypeError as error:
            raise Wrong(f"a block whose ffn is None fails ({error}): is the FFN always called?")
    compare("the output of a block without an FFN", answer, right, {
        "when its input is returned: attention is missing": x,
        "with a second residual: it has to go with the FFN": x + right,
        "with LayerNorm(2x): an FFN that is an identity is not an absent one":
            F.layer_norm(2 * right, (C,), eps=eps)})


# 3: parameters and FLOPs.

def some_config(rng, **changes):
    """A small config with FFNs in some of its layers, but not in its last or not in its first."""
    H, D, inner, L, V = distinct(rng, 5, 3, 9)
    ffn_layers = [[0, 1], [1, L - 1]][rng.integers(2)]
    sizes = dict(vocab_size=90 + V, hidden_size=H * D, num_hidden_layers=L, num_attention_heads=H,
                 intermediate_size=40 + inner, max_position_embeddings=37, ffn_layers=ffn_layers)
    return sizes | changes


@check(3, "model", 4)
def number_of_parameters(model, rng):
    """count_parameters counts each weight of a model once."""
    sizes = some_config(rng)
    for model_class in (model.MaskedLM, model.Encoder):
        def count(**changes):
            built = model_class(BertConfig(**sizes | changes))
            return sum(p.numel() for p in built.parameters())

        C, I, L, V = (sizes[name] for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
        absent, right = L - len(sizes["ffn_layers"]), count()
        biases = sum(p.numel() for name, p in model_class(
            BertConfig(**sizes)).named_parameters() if name.endswith("bias") and "head" not in name)
        answer = model.count_parameters(BertConfig(**sizes), model_class)
        compare(f"the number of parameters of {model_class.__name__}", answer, right, {
            "with an FFN in every layer": count(ffn_layers=None),
            "without any FFN": count(ffn_layers=[]),
            "when the LayerNorm of an absent FFN is counted: it goes too": right + absent * 2 * C,
            "when the output matrix is counted beside the word vectors: they are one (tied)":
                right + V * C,
            "without the biases": right - biases,
            "without the position vectors": right - 37 * C,
            "without the FFNs' LayerNorms": right - len(sizes["ffn_layers"]) * 2 * C,
            "when a MaskedLM is counted whatever model_class says":
                count() if model_class is model.MaskedLM else sum(
                    p.numel() for p in model.MaskedLM(BertConfig(**sizes)).parameters())})


def library_flops(sizes, T, asked=None):
    """What PyTorch's counter says of PyTorch's layers, forward and twice that backward, a token."""
    C, L = sizes["hidden_size"], sizes["num_hidden_layers"]
    attention = nn.MultiheadAttention(C, sizes["num_attention_heads"], batch_first=True)
    ffn = nn.Sequential(
        nn.Linear(C, sizes["intermediate_size"]), nn.Linear(sizes["intermediate_size"], C))
    head = nn.Sequential(nn.Linear(C, C), nn.Linear(C, sizes["vocab_size"]))
    x = torch.zeros(1, T, C)
    last = x[:, : asked or T]
    with FlopCounterMode(display=False) as counter:
        for i in range(L):
            query = last if i == L - 1 else x
            attention(query, x, x)
            if i in (range(L) if sizes["ffn_layers"] is None else sizes["ffn_layers"]):
                ffn(query)
        head(last)
    return 3 * counter.get_total_flops() / T


@check(3, "model", 6)
def number_of_flops(model, rng):
    """flops_per_token is what PyTorch's FlopCounterMode counts."""
    sizes = some_config(rng)
    T = int(rng.integers(11, 37))
    for asked in (None, int(rng.integers(2, 9))):
        right = library_flops(sizes, T, asked)
        C, L, V = (sizes[n] for n in ("hidden_size", "num_hidden_layers", "vocab_size"))
        share = 1 if asked is None else asked / T
        scores = 6 * 2 * T * C * (L - 1 + share)
        what = "flops_per_token" + (f" with asked={asked} of {T}" if asked else "")
        compare(what, model.flops_per_token(BertConfig(**sizes), T, asked), right, {
            "for the forward pass alone: backward costs twice as much again": right / 3,
            "when a multiply-add counts as one operation: it is two": right / 2,
            "when backward counts like forward, once: it is twice": right * 2 / 3,
            "for a whole sequence, not for each of its tokens": right * T,
            "with an FFN in every layer": library_flops(sizes | {"ffn_layers": None}, T, asked),
            "without the FFNs": library_flops(sizes | {"ffn_layers": []}, T, asked),
            "without Q Kᵀ and the product with V, which grow with T": right - scores,
            "with only one of Q Kᵀ and the product with V": right - scores / 2,
            "without the head's output matrix": right - 6 * share * V * C,
            "without the head": right - 6 * share * (V * C + C * C),
            "when looking up word vectors counts: no product is computed there": right + 6 * V * C,
            "when asked is not used": library_flops(sizes, T),
            "when every layer, not only the last, is computed at the asked positions alone":
                library_flops(sizes, T) * share})


# 4: masking.

def sequences(data, rng, T, share):
    """Sequences without text, whose tokenizer has its special tokens at random numbers."""
    from mini_undivided.tokenizer import SPECIAL, assemble, finish, word_pieces

    entries = rng.permutation([*SPECIAL, *(f"w{i}" for i in range(80))])
    vocabulary = {str(entry): i for i, entry in enumerate(entries)}
    tokenizer = finish(assemble(word_pieces(vocabulary)), "the check")
    made = data.Sequences(np.zeros(T, int), T, tokenizer, share)
    return made, made.ordinary


def mask_many(data, rng, holes=0.1):
    """Mask 1,500 sequences, special tokens inside some → Sequences, ids before, batch after."""
    share, T = rng.uniform(0.2, 0.45), int(rng.integers(30, 50))
    made, ordinary = sequences(data, rng, T, share)
    made.rows = rng.choice(ordinary, (1500, T - 2))
    made.rows[:500][rng.random((500, T - 2)) < holes * rng.integers(1, 4)] = made.sep_id
    ids = made.read(np.arange(1500))
    batch = made.mask(ids.copy(), np.random.default_rng(int(rng.integers(2**31))))
    require(batch is not None, "mask returns nothing: is a return missing?")
    shapes = [tuple(part.shape) for part in batch]
    right = [(1500, T), (1500, made.num_masked), (1500, made.num_masked)]
    require(shapes == right, f"the batch has the shapes {shapes}, but should have {right}")
    return made, ids, data.MaskedBatch(*(np.asarray(part) for part in batch))


@check(4, "data", 4)
def what_is_chosen(data, rng):
    """Each sequence hides round(mask_share n) of its n ordinary tokens, each place equally often."""
    made, ids, (after, positions, labels) = mask_many(data, rng)
    original = np.take_along_axis(ids, positions, 1)
    used = labels != data.IGNORE
    require(not (made.is_special[original] & used).any(),
            "special tokens are among those to be named: only ordinary ones may be")
    require(not (made.is_special[original] & (np.take_along_axis(after, positions, 1)
                                              != original)).any(),
            "special tokens are masked: [CLS], [SEP] and [UNK] have to stay")
    require((labels == original)[used].all(),
            "labels are not the original tokens at positions: are they read after the change?")
    require(all(len(np.unique(p[u])) == u.sum() for p, u in zip(positions, used, strict=True)),
            "a place is chosen twice in one sequence")
    n = (~made.is_special[ids]).sum(1)
    wanted, found = np.rint(made.mask_share * n), used.sum(1)
    places = np.minimum(np.rint(made.mask_share * ids.shape[1]), made.num_masked)
    require(not (found == places).all() or (wanted == places).all(),
            "the share is taken of all tokens: n counts the ordinary tokens of a sequence")
    require(not (found == np.floor(made.mask_share * n)).all() or equal(wanted, 1.0 * found),
            "the number of masked places is cut off: it should be rounded")
    wrong = np.flatnonzero(wanted != found)
    require(not len(wrong), "" if not len(wrong) else (
        f"a sequence with {n[wrong[0]]} ordinary tokens has {found[wrong[0]]} labels, but should "
        f"have round({made.mask_share:.3f} n) = {wanted[wrong[0]]:.0f}"))
    whole = positions[500:]  # the sequences without special tokens inside
    require(len(np.unique(np.sort(whole, 1), axis=0)) > 900, "all sequences hide the same places")
    counts = np.bincount(whole.ravel(), minlength=ids.shape[1])[1:-1]
    expected = counts.sum() / len(counts)
    require((np.abs(counts - expected) < 6 * expected**0.5).all(),
            "some places of a sequence are chosen more often than others")


@check(4, "data", 4)
def what_becomes_of_it(data, rng):
    """Of the chosen, 80 % become [MASK], 10 % a random ordinary token, 10 % stay."""
    made, ids, (after, positions, labels) = mask_many(data, rng)
    used = labels != data.IGNORE
    touched = np.zeros_like(ids, dtype=bool)
    np.put_along_axis(touched, positions, used, 1)
    require((after == ids)[~touched].all(), "input_ids change where no label asks for it")
    shown, original = np.take_along_axis(after, positions, 1)[used], labels[used]
    others = shown[(shown != original) & (shown != made.mask_id)]
    require(not made.is_special[others].any(),
            "special tokens are among the random words: draw from self.ordinary")
    V, total = len(made.ordinary), len(shown)
    masked, stay = np.mean(shown == made.mask_id), np.mean(shown == original)
    chance, deviation = 0.1 / V, 6 * (0.25 / total) ** 0.5
    say = f"{masked:.1%} become [MASK], {stay:.1%} stay, {1 - masked - stay:.1%} are random: "
    require(abs(masked - 0.8) < deviation or masked < 0.99,
            say + "is everything chosen replaced by [MASK]?")
    require(abs(masked - 0.8) < deviation, say + "of ten, eight should become [MASK]")
    require(abs(stay - 0.1 - chance) < deviation / 2,
            say + "of ten, one should stay, and one become a random word")
    counts = np.bincount(others, minlength=len(made.is_special))[made.ordinary]
    expected = len(others) / V
    require((np.abs(counts - expected) < 6 * expected**0.5 + 3).all(),
            "some random words are drawn far more often than others: draw evenly from all")


@check(4, "data", 2)
def draws_belong_to_rows(data, rng):
    """The same generator gives the same masks, and `mine` gives rows of what all would have."""
    made, ordinary = sequences(data, rng, 24, 0.3)
    made.rows = rng.choice(ordinary, (12, 22))
    ids, seed = made.read(np.arange(12)), int(rng.integers(2**31))

    def mask(*mine):
        return made.mask(ids.copy(), np.random.default_rng(seed), *mine)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    whole = mask()
    require(same(whole, mask()), "the same rng gives other masks: draw from rng and nothing else")
    part, rows = mask(slice(4, 8)), data.MaskedBatch(*(each[4:8] for each in whole))
    require(len(part.input_ids) == 4, "mine is not used: only its rows are to be returned")
    require(same(part, rows), "rows 4 to 8 get other masks alone than among all 12: draw for all "
            "rows first, and take mine afterwards")


# 5: the training step.

class Tiny(nn.Module):
    """A stand-in for MaskedLM: word vectors and a linear map."""

    def __init__(self, rng, V):
        super().__init__()
        self.word, self.out = nn.Embedding(V, 5).double(), nn.Linear(5, V).double()
        self.word.weight.data, self.out.weight.data = 10 * normal(rng, V, 5), normal(rng, V, 5)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """As MaskedLM.forward."""
        x = self.word(input_ids)
        return self.out(x if positions is None else x.take_along_dim(positions[..., None], 1))

    def surprise(self, batch):
        """-log p of each masked place of a batch, by definition."""
        logits = self(batch.input_ids, positions=batch.positions)
        used = batch.labels != -100
        return -torch.distributions.Categorical(logits=logits[used]).log_prob(batch.labels[used])

    def gradient(self, loss):
        """The gradient of a loss, as one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.parameters()))])


def tiny_batches(rng):
    """A tiny model, and three micro-batches with unequal numbers of masked places."""
    from mini_undivided.data import MaskedBatch

    V, T, M, B = distinct(rng, 4, 4, 11)
    model = Tiny(rng, V)
    labels = rng.integers(V, size=(3 * B, M))
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[0], labels[B - 1], labels[-1], labels[-1, 0] = -100, 1, -100, 0
    drawn = rng.integers(V, size=(3 * B, T)), rng.integers(T, size=(3 * B, M)), labels
    return model, list(MaskedBatch(*map(torch.from_numpy, drawn)).micro_batches(B))


@check(5, "pretrain", 3)
def loss_of_a_batch(pretrain, rng):
    """masked_loss is the cross entropy in nats, summed over the masked places."""
    model, (batch, *_) = tiny_batches(rng)
    each = model.surprise(batch)
    right, size = each.sum(), batch.labels.numel()
    compare("masked_loss", pretrain.masked_loss(model, batch), right, {
        "when the mean is taken: train_step divides, once": each.mean(),
        "when the sum is divided by all places, the unused ones too": right / size,
        "with the opposite sign": -right,
        "in bits, not in nats": right / np.log(2)})


def clipped(gradient):
    """A gradient of norm 1 at most."""
    return gradient / gradient.norm().clamp(min=1)


def take_step(pretrain, model, batches, num_masked, world):
    """Take a step of gradient descent at rate 1 → what it subtracts, and the loss returned."""
    steps = []

    class Descent(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(self)
            return super().step(closure)

    optimizers = [Descent(part.parameters(), lr=1.0) for part in (model.word, model.out)]
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    machine = SimpleNamespace(device=torch.device("cpu"), world=world, autocast=nullcontext,
                              synchronise=lambda model, now: nullcontext())
    loss = pretrain.train_step(model, optimizers, batches, num_masked, machine)
    require(len(steps) < 3, "the optimizers step after each micro-batch: they should once, at last")
    require(len(set(map(id, steps))) == 2, "not all optimizers take a step")
    return before - nn.utils.parameters_to_vector(model.parameters()).detach(), loss


@check(5, "pretrain", 7)
def step_over_micro_batches(pretrain, rng):
    """A step over micro-batches is the step over the whole batch, clipped to norm 1."""
    model, batches = tiny_batches(rng)
    world = int(rng.integers(2, 5))
    n, left = sum(int((batch.labels != -100).sum()) for batch in batches), 0.0
    for number in (1, 2):
        losses = [model.surprise(batch) for batch in batches]
        parts = [model.gradient(loss.sum()) for loss in losses]
        total, loss = sum(parts), sum(loss.sum() for loss in losses)
        means = sum(p / len(loss) for p, loss in zip(parts, losses, strict=True)) / len(parts)
        # The first step needs no clipping, the second one does.
        num = int(world * (2 * total.norm().item() + n)) if number == 1 else 1 + world * n // 2
        scale = world / num
        if number == 2 and (scale * total).norm() < 1.2:
            num, scale = 1, world
        within = 0.0
        for part in parts:
            within = clipped(within + scale * part)
        taken, answer = take_step(pretrain, model, batches, num, world)
        compare(f"the update of step {number}", taken, clipped(scale * total), {
            "when the first step's gradient is still there: is zero_grad missing?":
                clipped(left + scale * total),
            "without clipping": scale * total,
            "with the mean of micro-batch means: divide the sum of all losses by num_masked":
                clipped(means),
            "without division by num_masked": clipped(total),
            "without the factor machine.world, which undoes DDP's average":
                clipped(total / num),
            "when the process's own places are counted, instead of num_masked": clipped(total / n),
            "when the gradient is clipped after each micro-batch: do it once, at the end": within,
            "when each micro-batch's gradient is clipped by itself: do it once, at the end":
                sum(clipped(scale * part) for part in parts),
            "from the last micro-batch alone: gradients have to add up":
                clipped(scale * parts[-1]),
            "from the first micro-batch alone": clipped(scale * parts[0]),
            "without the last micro-batch": clipped(scale * (total - parts[-1])),
            "when the sum is also divided by the number of micro-batches":
                clipped(scale * total / len(parts)),
            "with each entry clipped (clip_grad_value_): the norm of the whole is meant":
                (scale * total).clamp(-1, 1),
            "with the opposite sign": -clipped(scale * total)})
        compare("the loss returned", answer, loss, {
            "when it is divided by num_masked": loss / num,
            "when it carries the factor of the gradient": loss * scale,
            "for the last micro-batch alone": losses[-1].sum()})
        require(not answer.requires_grad, "the loss returned keeps the graph alive: detach it")
        left = scale * total


# 6: the schedule.

@check(6, "optim", 6)
def schedule(optim, rng):
    """The factor goes from 0 in a line to 1 at `warmup`, in a line to 0 at 1, and stays there."""
    warmup = rng.uniform(0.05, 0.4)
    at = {x: optim.warmup_decay(x, warmup) for x in (0.0, warmup, 1.0, 1.2)}
    require(None not in at.values(), "warmup_decay returns None: is a return missing?")
    require(abs(at[0.0]) < 1e-9, f"the factor is {at[0.0]:.4g} at the start, but should be 0: "
            "the warm-up begins from nothing")
    decays = abs(at[warmup] - (1 - warmup)) < 1e-6
    require(not decays, "the factor is 1 - warmup at the peak: the decay begins at warmup, not at "
            "the start of the run")
    require(abs(at[warmup] - 1) < 1e-6, f"the factor is {at[warmup]:.4g} at the end of the "
            "warm-up, but should be 1: is progress divided by warmup?")
    require(abs(at[1.0]) < 1e-9, f"the factor is {at[1.0]:.4g} at the end of the run, but should "
            "be 0: is what is left divided by 1 - warmup?")
    require(at[1.2] > -1e-9, "the factor is negative after the end: keep it at 0")
    require(abs(at[1.2]) < 1e-9, "the factor is not 0 after the end of the run")
    for name, least, most in (("warm-up", 0, warmup), ("decay", warmup, 1)):
        x = np.linspace(least, most, 9)[1:-1]
        middle = np.array([optim.warmup_decay(each, warmup) for each in x])
        require(np.abs(np.diff(middle, 2)).max() < 1e-6, f"the {name} is not a straight line")
        require(abs(middle[3] - 0.5) < 1e-6, f"the factor is {middle[3]:.4g} in the middle of the "
                f"{name}, but should be 0.5: is progress divided by its length?")
    try:
        none = optim.warmup_decay(0.0, 0.0)
    except ZeroDivisionError:
        raise Wrong("without a warm-up (warmup=0) progress is divided by 0") from None
    require(abs(none - 1) < 1e-9, f"without a warm-up (warmup=0) the factor at the start is {none}")


@check(6, "optim", 4)
def scaled_rates(optim, rng):
    """Every group's rate is the factor times its own peak, however often it is set."""
    peaks = [[0.3, 0.7], [1.1]]
    made = [torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "peak": peak}
                             for peak in each], lr=peaks[0][0]) for each in peaks]
    first, second = rng.uniform(0.2, 0.9, size=2)
    optim.scale_learning_rates(made, first)
    optim.scale_learning_rates(made, second)
    rates = [group["lr"] for optimizer in made for group in optimizer.param_groups]
    flat = np.array(sum(peaks, []))
    compare("the learning rates after two calls", rates, second * flat, {
        "when factors add up over calls: multiply the peak, not the last rate":
            first * second * np.full(3, 0.3),
        "when every group is set to the first group's peak": second * np.full(3, 0.3),
        "when peak is lost: it is overwritten by the first call": first * second * flat,
        "when only the first optimizer is set": [*(second * flat[:2]), 0.3],
        "when only the first group of each is set": [second * 0.3, 0.3, second * 1.1],
        "when the factor itself is set": np.full(3, second)})


# 7: F1, Matthews, Spearman.

@check(7, "glue", 3)
def f1_score(glue, rng):
    """f1 is scikit-learn's f1_score of label 1."""
    from sklearn import metrics

    labels = (rng.random(60) < 0.35).astype(int)
    predicted = np.where(rng.random(60) < 0.3, 1 - labels, labels)
    predicted[labels.argmax()] = labels[labels.argmin()] = 0
    precision = metrics.precision_score(labels, predicted)
    recall = metrics.recall_score(labels, predicted)
    compare("f1", glue.f1(predicted, labels), metrics.f1_score(labels, predicted), {
        "for label 0: label 1 is the positive one":
            metrics.f1_score(labels, predicted, pos_label=0),
        "for the mean over both labels (macro)":
            metrics.f1_score(labels, predicted, average="macro"),
        "for accuracy": metrics.accuracy_score(labels, predicted),
        "for precision alone": precision, "for recall alone": recall,
        "for the arithmetic mean of precision and recall: it is the harmonic one":
            (precision + recall) / 2,
        "for the geometric mean of precision and recall": (precision * recall) ** 0.5,
        "when the 2 of 2 TP is missing below": 2 * metrics.jaccard_score(labels, predicted),
        "for TP / (TP + FP + FN), which is Jaccard's index":
            metrics.jaccard_score(labels, predicted)})
    with np.errstate(all="ignore"):
        try:
            empty = glue.f1(np.zeros(5, int), np.zeros(5, int))
        except ZeroDivisionError:
            empty = np.nan
    require(empty == 0, "without a true positive f1 should be 0: is there a division by 0?")


@check(7, "glue", 3)
def matthews_and_pearson(glue, rng):
    """matthews is scikit-learn's matthews_corrcoef, pearson SciPy's pearsonr."""
    import scipy.stats
    from sklearn import metrics

    x = rng.normal(size=40) + 2
    y = x + rng.normal(size=40) + 3
    right = scipy.stats.pearsonr(x, y)[0]
    compare("pearson", glue.pearson(x, y), right, {
        "when means are not subtracted": 1 - scipy.spatial.distance.cosine(x, y),
        "for its square": right**2, "for the covariance": np.cov(x, y, bias=True)[0, 1],
        "when n - 1 meets n: one of covariance and deviation has the other": right * 40 / 39,
        "when n - 1 meets n: one of deviation and covariance has the other": right * 39 / 40})
    labels = (rng.random(60) < 0.4).astype(int)
    predicted = np.where(rng.random(60) < 0.3, 1 - labels, labels)
    right = metrics.matthews_corrcoef(labels, predicted)
    compare("matthews", glue.matthews(predicted, labels), right, {
        "for accuracy": metrics.accuracy_score(labels, predicted), "for its square": right**2,
        "for 2 · accuracy - 1": 2 * metrics.accuracy_score(labels, predicted) - 1,
        "for Cohen's kappa": metrics.cohen_kappa_score(labels, predicted)})
    with np.errstate(all="ignore"):
        for name in ("pearson", "matthews"):
            constant = getattr(glue, name)(np.ones(5, int), np.array([1, 0, 1, 1, 0]))
            require(constant == 0, f"{name} of a constant should be 0: is there a division by 0?")


@check(7, "glue", 4)
def ranks_and_spearman(glue, rng):
    """ranks is SciPy's rankdata, ties sharing their mean; spearman its spearmanr."""
    from scipy import stats

    x, y = rng.integers(6, size=(2, 30)) / 2.0
    x = x + np.where(rng.random(30) < 0.3, y, 0)
    answer, right = glue.ranks(x), stats.rankdata(x)
    compare("ranks", answer, right, {
        "when ties are broken by their order: equal values share the mean of their ranks":
            stats.rankdata(x, "ordinal"),
        "when ties get the least of their ranks: it is the mean": stats.rankdata(x, "min"),
        "when ties get the greatest of their ranks: it is the mean": stats.rankdata(x, "max"),
        "when different values are numbered: ties take up several ranks":
            stats.rankdata(x, "dense"),
        "when ranks begin at 0": right - 1, "when the greatest comes first": 31 - right,
        "when ties are numbered at random (argsort), from 0 on": x.argsort().argsort(),
        "when ties are numbered at random (argsort)": 1 + x.argsort().argsort(),
        "from argsort once: it says where to find the values, not their ranks":
            1 + x.argsort()})
    compare("spearman", glue.spearman(x, y), stats.spearmanr(x, y)[0], {
        "from the values: take their ranks first": stats.pearsonr(x, y)[0],
        "for Kendall's tau": stats.kendalltau(x, y)[0],
        "from 1 - 6 Σ d² / (n (n² - 1)), which holds without ties only":
            1 - 6 * np.sum((stats.rankdata(x) - stats.rankdata(y)) ** 2) / (30 * (30**2 - 1))})


# 8: CKA without bias.

def brute_hsic(K, G):
    """Unbiased HSIC by its definition: a mean over all four different rows (Song et al. 2012)."""
    i, j, q, r = torch.tensor(list(itertools.permutations(range(len(K)), 4))).T
    return (K[i, j] * (G[i, j] + G[q, r] - 2 * G[i, q])).mean()


def cycles(rng, count, n):
    """Symmetric matrices (count, n, n) with no diagonal, whose rows sum to 0: sums of 4-cycles."""
    made = torch.zeros(count, n, n, dtype=torch.float64)
    for matrix in made:
        for _ in range(4 * n):
            around, weight = rng.permutation(n)[:4], rng.normal()
            for side in range(4):
                a, b = around[side], around[side - 1]
                matrix[a, b] += weight * (-1) ** side
                matrix[b, a] += weight * (-1) ** side
    return made


@check(8, "cka", 5)
def centred_gram(cka, rng):
    """centre has a diagonal and row sums of 0, and differs from K = X Xᵀ by u_i + u_j."""
    L, n, C = int(rng.integers(2, 4)), int(rng.integers(7, 10)), int(rng.integers(4, 7))
    x = normal(rng, L, n, C) + 1
    kept = x.clone()
    answer, gram = cka.centre(x), x @ x.mT
    require(answer is not None, "centre returns None: is a return missing?")
    require(torch.equal(x, kept), "centre changes its input x: work on a new tensor")
    require(answer.shape == gram.shape, f"centre has the shape {tuple(answer.shape)}, but should "
            f"have {tuple(gram.shape)}: a matrix for each layer")
    biased = gram - gram.mean(1, True)
    biased = biased - biased.mean(2, True)
    require(not equal(array(answer), array(gram)), "centre is X Xᵀ itself: nothing is subtracted")
    require(not equal(array(answer), array(biased)), "centre is H K H, the biased form: leave the "
            "diagonal out before and after, and divide by n - 2")
    off = ~torch.eye(n, dtype=torch.bool)
    half = biased.masked_fill(~off, 0)
    require(not equal(array(answer), array(half)), "the diagonal is set to 0 only at the end: "
            "K's own diagonal counts as 0 in the sums too")
    scale = gram.abs().max()
    sums = answer.sum(2) / scale
    require(answer.diagonal(dim1=1, dim2=2).abs().max() < 1e-5 * scale,
            "the diagonal of the result is not 0: set it to 0 once more at the end")
    require(sums.abs().max() < 1e-5, f"rows sum to {sums[0, 0] * scale:.4g}, not to 0: "
            "is it n - 2 and (n - 1) (n - 2), and does K's diagonal count as 0 in the sums?")
    require(equal(array(answer), array(answer.mT)), "the result is not symmetric")
    d = answer - gram
    i, j, q, r = torch.tensor(list(itertools.permutations(range(n), 4))).T
    require((d[:, i, j] + d[:, q, r] - d[:, i, r] - d[:, q, j]).abs().max() < 1e-5 * scale,
            "more than row, column and total sums is subtracted, or the entries are scaled")


@check(8, "cka", 5)
def hsic_of_pairs(cka, rng):
    """hsic is the unbiased estimate for each pair of layers, as its definition has it."""
    A, B, n = *distinct(rng, 2, 2, 4), int(rng.integers(6, 9))
    a, b = cycles(rng, A, n), cycles(rng, B, n)
    right = torch.stack([torch.stack([brute_hsic(K, G) for G in b]) for K in a])
    compare("hsic", cka.hsic(a, b), right, {
        "with (n - 1)² below, the biased form's": right * n * (n - 3) / (n - 1) ** 2,
        "with n² for n (n - 3)": right * (n - 3) / n,
        "with (n - 2) for (n - 3)": right * (n - 3) / (n - 2),
        "with (n - 1) for (n - 3)": right * (n - 3) / (n - 1),
        "with (n - 1) (n - 2) for n (n - 3)": right * n * (n - 3) / (n - 1) / (n - 2),
        "without the division by n (n - 3)": right * n * (n - 3),
        "with the sum over one half: i < j and j < i both count": right / 2,
        "from the trace of K̃ G̃ counted twice": 2 * right})


# 9: a probe and its control task.

def gradient_of(x, y, W, b, classes, strength, on_b):
    """The largest part of the objective's gradient at one layer's W and b."""
    W, b = (each.detach().double().requires_grad_() for each in (W, b))
    logits = x.double() @ W + b
    loss = F.cross_entropy(logits, y) if classes else (logits[:, 0] - y).square().mean() / 2
    loss = loss + strength / 2 * (W.square().sum() + on_b * b.square().sum())
    return max(g.abs().max().item() for g in torch.autograd.grad(loss, (W, b)))


@check(9, "probe", 6)
def fitted_probe(probe, rng):
    """fit minimises mean loss + λ/2 |W|² for each layer and λ: the gradient there is 0."""
    L, N, C, K = distinct(rng, 3, 3, 6)[0], 70, 6, int(rng.integers(3, 5))
    strengths = (1.0, 0.1, 0.02)
    for classes in (K, 0):
        x = normal(rng, L, N, C).float()
        score = x[0] @ normal(rng, C, K).float() + normal(rng, N, K).float() + torch.arange(K) / 2
        y = score.argmax(1) if classes else score[:, 0] + 1
        kind = "classification" if classes else "regression"
        fits = probe.fit(x, y, classes, strengths)
        require(fits is not None, "fit returns None: is a return missing?")
        shapes = [(tuple(W.shape), tuple(b.shape)) for W, b in fits]
        wanted = [((L, C, classes or 1), (L, 1, classes or 1))] * len(strengths)
        require(shapes == wanted, f"W and b have the shapes {shapes}, but should have {wanted}")
        same = all(torch.equal(fits[0][0], W) for W, _ in fits[1:])
        require(not same, "all λ have the same W: keep a copy of each (detach().clone())")
        for i, ((W, b), strength) in enumerate(zip(fits, strengths, strict=True)):
            def largest(strength, on_b=0.0, W=W, b=b):
                return max(gradient_of(*each, classes, strength, on_b)
                           for each in zip(x, [y] * L, W, b, strict=True))

            found, limit = largest(strength), 2e-3
            if found < limit:
                continue
            causes = {
                "λ |W|² is not halved": 2 * strength,
                "λ is halved twice, or the squared error not at all": strength / 2,
                "the loss is averaged over layers: each layer has its own mean": strength * L,
                "the loss is summed over examples: it is their mean": strength / N,
                "λ multiplies |W|² of no layer: the penalty is missing": 0.0}
            causes |= {f"the fits are not in the order of strengths: this is λ = {other:g}'s": other
                       for other in strengths if other != strength}
            for cause, other in causes.items():
                require(largest(other) > limit, f"{kind}, λ = {strength:g}: {cause}")
            require(largest(strength, 1.0) > limit, f"{kind}, λ = {strength:g}: "
                    "b is penalised as well: only W is")
            zero = torch.zeros(L, C, classes or 1), torch.zeros(L, 1, classes or 1)
            start = largest(strength, W=zero[0], b=zero[1])
            raise Wrong(f"{kind}, λ = {strength:g}: the gradient is {found:.2g} at the end and was "
                        f"{start:.2g} at the start: take more steps until it is below 1e-4")


@check(9, "probe", 4)
def control_task(probe, rng):
    """A word has one random tag wherever it occurs, drawn as often as tags occur in training."""
    words = [f"w{i}" for i in range(900)]
    order = rng.permutation(words)
    texts = {part: [list(rng.choice(order, 9)) for _ in range(300)] for part in probe.PARTS}
    share = np.array([0.6, 0.3, 0.1])
    labels = {part: rng.choice(3, 2700, p=share) for part in probe.PARTS}
    task = probe.ProbeTask("tags", texts, labels, per_word=True)
    control, again, other = task.control(5), task.control(5), task.control(6)
    require(control is not None, "control returns None: is a return missing?")
    require(list(control) == list(texts), f"control has the parts {list(control)}")
    tags, wrong = {}, {}
    for part, tagged in control.items():
        each = [word for text in texts[part] for word in text]
        require(len(tagged) == len(each), f"{part} has {len(tagged)} tags for {len(each)} words")
        here = {}
        for word, tag in zip(each, tagged, strict=True):
            require(here.setdefault(word, tag) == tag, "a word has different tags within one part: "
                    "draw one for each word, not one for each token")
        wrong[part] = [word for word in here if tags.get(word, here[word]) != here[word]]
        tags |= here
    require(not any(wrong.values()), "a word has one tag in training and another in test: "
            "draw once, for the words of all parts")
    require(all(np.array_equal(control[p], again[p]) for p in texts),
            "the same seed gives other tags")
    require(not all(np.array_equal(control[p], other[p]) for p in texts),
            "another seed gives the same tags: use the seed")
    found = np.bincount(np.array(list(tags.values()), dtype=int), minlength=3) / len(tags)
    deviation = 6 * (share * (1 - share) / len(tags)) ** 0.5
    require(not (np.abs(found - 1 / 3) < deviation.max()).all(), "tags are drawn evenly: "
            "they should occur as often as in training, 60 %, 30 % and 10 % here")
    require(len(found) == 3 and (np.abs(found - share) < deviation + 0.03).all(),
            f"the tags occur in {' '.join(f'{s:.0%}' for s in found)} of the words, but in training "
            "in 60 %, 30 % and 10 %")


# 10: one FFN for all layers.

@check(10, "project", 10)
def shared_ffn(project, rng):
    """All layers of shared_ffn(config), an Encoder, have one and the same FFN."""
    from mini_undivided import model

    sizes = some_config(rng, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    H, V, L = (sizes[n] for n in ("num_attention_heads", "vocab_size", "num_hidden_layers"))
    sizes["ffn_layers"] = None

    def count(ffn_layers):
        built = model.Encoder(BertConfig(**sizes | {"ffn_layers": ffn_layers}))
        return sum(p.numel() for p in built.parameters())

    encoder = project.shared_ffn(BertConfig(**sizes))
    require(isinstance(encoder, model.Encoder), "shared_ffn does not return a model.Encoder")
    compare("the number of parameters", sum(p.numel() for p in encoder.parameters()), count([0]), {
        "when every layer has its own copy: the same module has to stand in all": count(None),
        "without an FFN": count([]), "when half of it is copied": (count(None) + count([0])) / 2})
    require(all(layer.ffn is not None for layer in encoder.layers),
            "some layer has no FFN: all of them should use the one there is")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * normal(rng, *parameter.shape))
    full = model.Encoder(BertConfig(**sizes))
    full.load_state_dict(encoder.state_dict())
    ids = torch.from_numpy(rng.integers(V, size=(3, 7)))
    with mock.patch.multiple(model, attend=SDPA, attend_fast=SDPA):
        compare("the encoder's output", encoder(ids), full(ids), {})
