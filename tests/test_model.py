"""The model against `transformers`: the same numbers at every layer, and FFNs really gone."""

import math
from dataclasses import fields

import pytest
import torch
import transformers
from helpers import (
    LENGTHS, SIZES, B, C, H, L, T, V, assert_close, config, saved_by_them, scatter, theirs)
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided.costs import count_parameters, flops_per_token
from mini_undivided.model import BertConfig, Encoder, MaskedLM, SequenceClassifier, attention
from mini_undivided.pairs import PairedMaskedLM
from mini_undivided.support import checkpoint
from mini_undivided.support.errors import UserError

# The forward pass


@torch.no_grad()
def test_hidden_states_are_transformers_at_every_layer(tmp_path, inputs):
    """Every layer's states equal BertModel's at every real token, with padding and segments.

    If they are left out, the mask is all ones and the segments all zeros, as in transformers.
    """
    reference, folder = saved_by_them(tmp_path, "BertModel")
    encoder = Encoder.from_pretrained(folder)
    final, layers = encoder(*inputs, output_hidden_states=True)
    expected = reference(*inputs, output_hidden_states=True)
    assert len(layers) == L + 1
    for ours, states in zip(layers, expected.hidden_states, strict=True):
        assert_close(ours, states, inputs[1])
    assert_close(final, expected.last_hidden_state, inputs[1])
    assert_close(encoder(inputs[0]), reference(inputs[0]).last_hidden_state)


def test_gradients_are_transformers(tmp_path, inputs):
    """One backward pass gives every tensor the gradient that it gets in BertForMaskedLM.

    So that of the word vectors is the sum of the two of lookup and head.
    """
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    ours = MaskedLM.from_pretrained(folder)
    for output in (ours(*inputs), reference(*inputs).logits):
        torch.logsumexp(output[inputs[1].bool()], -1).mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[checkpoint.hugging_face_name(name)].grad)


def test_positions_gather_from_the_full_logits(inputs):
    """`positions` gives the full logits there, repeated or in any order, and the same gradients."""
    mlm = scatter(MaskedLM(config(ffn_layers=[1, L - 1])))
    # (B, 6), real tokens
    positions = torch.stack([torch.randperm(T)[:6] % LENGTHS[i] for i in range(B)])
    some, full = mlm(*inputs, positions=positions), mlm(*inputs)
    gathered = full.gather(1, positions[:, :, None].expand(-1, -1, V))
    assert_close(some, gathered)
    weights = list(mlm.parameters())
    gradients = (torch.autograd.grad(x.square().mean(), weights) for x in (some, gathered))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@torch.no_grad()
def test_padding_is_never_seen(inputs):
    """What the padding holds changes nothing at the real tokens.

    A boolean mask does the same as one of numbers.
    """
    encoder = scatter(Encoder(config()))
    input_ids, mask, segments = inputs
    other = torch.where(mask.bool(), input_ids, (input_ids + 1) % V)
    expected = encoder(input_ids, mask, segments)
    assert torch.equal(encoder(other, mask.bool(), segments)[mask.bool()], expected[mask.bool()])
    assert torch.equal(encoder(input_ids, mask.float(), segments), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [None, LENGTHS, torch.tensor([13, 0, 8, 12, 9])])
def test_fused_attention_is_the_written_out_one(dropout, lengths):
    """Both are softmax(QKᵀ/√D)V, with padding too, and drop the same weights for the same seed.

    The output of a row that is all padding is 0, and no gradient is NaN.
    """
    M, D = 4, 12
    q, k, v = (torch.randn(B, H, n, D, requires_grad=True) for n in (M, T, T))
    mask = None if lengths is None else (torch.arange(T) < lengths[:, None])[:, None, None, :]
    results = []
    for function in (attention, F.scaled_dot_product_attention):
        torch.manual_seed(5)
        output = function(q, k, v, mask, dropout)
        results.append([output, *torch.autograd.grad(output.square().sum(), (q, k, v))])
    assert results[0][0].shape == (B, H, M, D)
    for ours, fused in zip(*results, strict=True):
        torch.testing.assert_close(ours, fused, atol=1e-5, rtol=1e-5)
        assert lengths is None or lengths[1] or torch.all(ours[1] == 0)


def test_a_sequence_longer_than_the_positions_is_an_error():
    """A sequence with more tokens than positions is an error that names both numbers."""
    encoder = Encoder(config(max_position_embeddings=T))
    assert encoder(torch.zeros(1, T, dtype=torch.long)).shape == (1, T, C)
    with pytest.raises(UserError, match=f"{T + 1} tokens .* {T} positions"):
        encoder(torch.zeros(1, T + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(MaskedLM, "BertForMaskedLM"), (SequenceClassifier, "BertForSequenceClassification")])
def test_dropout_acts_where_transformers_has_it(inputs, monkeypatch, ours, theirs):
    """In training the same dropouts act in the same order, and none in evaluation.

    They follow the embeddings, the attention weights, the attention's output, the FFN, and in a
    classifier the pooler, each with the config's probability.
    """
    seen, dropout = [], F.dropout

    def spy(input, p=0.5, training=True, inplace=False):
        if training and p > 0:
            seen.append((tuple(input.shape), p))
        return dropout(input, p, training, inplace)

    monkeypatch.setattr(F, "dropout", spy)
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    reference = transformers.BertConfig(**SIZES, **rates, attn_implementation="eager")
    input_ids, mask, segments = inputs
    getattr(transformers, theirs)(reference).train()(input_ids, mask, segments)
    wanted = seen.copy()
    assert len(wanted) == 1 + 3 * L + (ours is SequenceClassifier)
    for ffn_layers, count in ((None, len(wanted)), ([2], len(wanted) - (L - 1))):
        seen.clear()
        model = ours(config(**rates, ffn_layers=ffn_layers)).train()
        model(input_ids, mask, segments)
        assert len(seen) == count and (ffn_layers or seen == wanted)
    seen.clear()
    model.eval()(input_ids, mask, segments)
    assert seen == []


def test_the_default_config_is_transformers():
    """A BertConfig without arguments is BERT-Base: every field has transformers' default."""
    ours, theirs = BertConfig(), transformers.BertConfig()
    names = {field.name for field in fields(BertConfig)} - {"ffn_layers"}
    assert {name: getattr(ours, name) for name in names} == {
        name: getattr(theirs, name) for name in names}
    assert ours.ffn_layers == list(range(theirs.num_hidden_layers))
    saved = ours.to_hugging_face("BertForMaskedLM")
    assert saved["hidden_act"] == theirs.hidden_act and saved["model_type"] == theirs.model_type


# Without FFNs


@torch.no_grad()
@pytest.mark.parametrize("kept", [[], [1], [0, 3]])
def test_a_layer_without_ffn_is_its_attention_sublayer(tmp_path, inputs, kept):
    """A layer without its FFN equals transformers' attention sublayer alone.

    No residual and no norm is left over.
    """
    reference, folder = saved_by_them(tmp_path, "BertModel", attn_implementation="eager")
    _, layers = Encoder.from_pretrained(folder, ffn_layers=kept)(*inputs, output_hidden_states=True)
    x = reference.embeddings(inputs[0], inputs[2])
    hidden = (1.0 - inputs[1][:, None, None, :].float()) * torch.finfo(torch.float32).min
    assert_close(layers[0], x)
    for i, layer in enumerate(reference.encoder.layer):
        attention = layer.attention(x, hidden)[0]
        x = layer.output(layer.intermediate(attention), attention) if i in kept else attention
        assert_close(layers[i + 1], x, inputs[1])


def test_parameters_of_bert_base():
    """The parameters of BERT-Base are exact with all FFNs, some or none, its pooler's included.

    36 layers without FFNs have as many as BERT-Base, to 0.1 percent.
    """
    for kept, expected in ((12, 109_482_240), (4, 71_690_496), (0, 52_794_624)):
        base = BertConfig(ffn_layers=list(range(kept)))
        assert count_parameters(base, Encoder) + 768 * 768 + 768 == expected
    deep = count_parameters(BertConfig(num_hidden_layers=36, ffn_layers=[]))
    assert deep == pytest.approx(count_parameters(BertConfig()), rel=0.001)


@pytest.mark.parametrize("ffn_layers", [None, [], [1]])
@pytest.mark.parametrize("model_class", [Encoder, MaskedLM, PairedMaskedLM, SequenceClassifier])
def test_count_parameters_is_the_real_count(model_class, ffn_layers):
    """Parameters are counted without memory for them, and are as many as a real model has.

    For a whole BERT with a head, transformers counts the same.
    """
    real = sum(p.numel() for p in model_class(config(ffn_layers=ffn_layers)).parameters())
    models = []
    make = lambda config: models.append(model_class(config)) or models[-1]  # noqa: E731
    assert count_parameters(config(ffn_layers=ffn_layers), make) == real
    assert all(parameter.is_meta for parameter in models[0].parameters())
    if ffn_layers is None and model_class is not Encoder:
        assert theirs(model_class.architecture).num_parameters() == real


@pytest.mark.parametrize("masked", [None, pytest.param(2, marks=pytest.mark.performance)])
@pytest.mark.parametrize("ffn_layers", [None, [], [1], [L - 1]])
def test_flops_per_token_are_those_of_a_real_step(monkeypatch, ffn_layers, masked):
    """The formula exactly equals PyTorch's own count of a forward and backward pass.

    Attention is written out here, since the counter does not know the CPU's fused kernel.
    """
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    mlm = MaskedLM(config(ffn_layers=ffn_layers))
    positions = None if masked is None else torch.randint(T, (B, masked))
    with FlopCounterMode(display=False) as counter:
        mlm(torch.randint(V, (B, T)), positions=positions).logsumexp(-1).sum().backward()
    flops = flops_per_token(mlm.config, T, masked) * B * T
    assert flops == pytest.approx(counter.get_total_flops(), rel=1e-9)


# Initialisation


def test_initialisation_is_berts_but_for_positions():
    """Weights have deviation 0.02 around 0, biases are 0 and norms 1; waves say positions.

    The same seed gives the same weights, and another draw gives others.
    """
    torch.manual_seed(3)
    attention_layer = Encoder(config(hidden_size=120)).layers[0].attention
    assert torch.equal(attention_layer.query.weight, attention_layer.key.weight)
    torch.manual_seed(3)
    mlm = MaskedLM(config(hidden_size=120, vocab_size=997))
    for name, parameter in mlm.named_parameters():
        if "position" in name:
            continue
        if parameter.dim() == 2:
            queries_and_keys = name.endswith(("query.weight", "key.weight"))  # of variance 1
            std = 120**-0.5 if queries_and_keys else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.12), name
            assert abs(parameter.mean().item()) < 0.15 * std, name
        else:
            assert torch.all(parameter == (1.0 if name.endswith("norm.weight") else 0.0)), name
    torch.manual_seed(3)
    again, other = (
        MaskedLM(config(hidden_size=120, vocab_size=997)).state_dict() for _ in range(2))
    assert all(torch.equal(t, again[name]) for name, t in mlm.state_dict().items())
    assert not torch.equal(again["head.dense.weight"], other["head.dense.weight"])


@pytest.mark.parametrize("model_class", [Encoder, MaskedLM, PairedMaskedLM, SequenceClassifier])
def test_position_vectors_begin_as_sines_and_cosines(model_class, inputs):
    """As in 1706.03762, with 2.5 × initializer_range as root mean square, whatever the seed.

    Unlike those of that paper they are trained.
    """
    model = model_class(config(initializer_range=0.03))
    encoder = getattr(model, "encoder", model)
    weight = encoder.embeddings.position.weight
    assert weight.square().mean().sqrt().item() == pytest.approx(2.5 * 0.03, rel=1e-5)
    waves = weight.detach() / weight[0, 1].item()  # cos 0 = 1
    for position in (0, 1, 7, 36):
        for i in range(C // 2):
            angle = position / 10_000 ** (2 * i / C)
            wave = [math.sin(angle), math.cos(angle)]
            assert waves[position, 2 * i : 2 * i + 2].tolist() == pytest.approx(wave, abs=1e-5)
    model(inputs[0]).square().sum().backward()
    assert (weight.grad[:T].abs().sum(1) > 0).all()
