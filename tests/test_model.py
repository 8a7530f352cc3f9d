"""The model against `transformers`: the same numbers at every layer, and FFNs really gone."""

import math

import pytest
import torch
import transformers
from helpers import (
    LABELS, LENGTHS, B, C, H, L, T, V, assert_close, config, saved_by_them, scatter, theirs)
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided import model as model_module
from mini_undivided.model import (
    Attention, BertConfig, Block, Encoder, MaskedLM, PairedMaskedLM, SequenceClassifier, attention,
    fused_attention, count_parameters, flops_per_token)
from mini_undivided.support import checkpoint
from mini_undivided.support.errors import UserError

# The forward pass


@torch.no_grad()
def test_hidden_states_are_transformers_at_every_layer(tmp_path, inputs):
    """Every layer's states equal BertModel's at every real token.

    The batch has padding and segments.
    """
    reference, folder = saved_by_them(tmp_path, "BertModel")
    final, layers = Encoder.from_pretrained(folder)(*inputs, output_hidden_states=True)
    expected = reference(*inputs, output_hidden_states=True)
    assert len(layers) == L + 1
    for ours, states in zip(layers, expected.hidden_states, strict=True):
        assert_close(ours, states, inputs[1])
    assert_close(final, expected.last_hidden_state, inputs[1])


@torch.no_grad()
def test_without_mask_and_segments(tmp_path, inputs):
    """If they are left out, the mask is all ones and the segments all zeros.

    That is as in transformers.
    """
    reference, folder = saved_by_them(tmp_path, "BertModel")
    assert_close(Encoder.from_pretrained(folder)(inputs[0]), reference(inputs[0]).last_hidden_state)


@torch.no_grad()
def test_masked_lm_logits_are_transformers(tmp_path, inputs):
    """MaskedLM gives the logits of BertForMaskedLM."""
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    assert_close(MaskedLM.from_pretrained(folder)(*inputs), reference(*inputs).logits, inputs[1])


@torch.no_grad()
def test_logits_of_pairs_are_transformers(tmp_path, inputs):
    """PairedMaskedLM gives both logits of BertForPreTraining, those of words where they are asked.

    Saved by us, the model is opened by transformers, and as a MaskedLM of ours.
    """
    reference, folder = saved_by_them(tmp_path, "BertForPreTraining")
    ours, positions = PairedMaskedLM.from_pretrained(folder), torch.tensor([[7, 3]] * B)
    words, pairs = ours(*inputs, positions=positions)
    wanted = reference(*inputs)
    assert_close(pairs, wanted.seq_relationship_logits)
    long = inputs[1][:, 7] == 1  # the others have padding at 7
    assert_close(words[long], wanted.prediction_logits[long][:, [7, 3]])
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours").eval()
    assert_close(again(*inputs).seq_relationship_logits, pairs)
    alone = MaskedLM.from_pretrained(tmp_path / "ours")(*inputs)
    assert_close(alone[long][:, [7, 3]], words[long])


@torch.no_grad()
def test_classifier_logits_are_transformers(tmp_path, inputs):
    """SequenceClassifier gives the logits of BertForSequenceClassification."""
    reference, folder = saved_by_them(tmp_path, "BertForSequenceClassification", num_labels=LABELS)
    assert_close(
        SequenceClassifier.from_pretrained(folder, num_labels=LABELS)(*inputs),
        reference(*inputs).logits)


def test_gradients_are_transformers(tmp_path, inputs):
    """One backward pass gives every tensor the gradient that it gets in BertForMaskedLM."""
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    ours = MaskedLM.from_pretrained(folder)
    for output in (ours(*inputs), reference(*inputs).logits):
        torch.logsumexp(output[inputs[1].bool()], -1).mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[checkpoint.hugging_face_name(name)].grad)


def test_the_head_and_the_lookup_share_one_matrix(inputs):
    """The word vectors' gradient is that of the lookup plus that of the head's output.

    Each of the two is taken alone.
    """
    mlm = scatter(MaskedLM(config()))
    word = mlm.encoder.embeddings.word.weight
    (total,) = torch.autograd.grad(mlm(*inputs).square().mean(), word)
    apart = [word.detach().clone().requires_grad_() for _ in range(2)]
    states = torch.func.functional_call(
        mlm.encoder, {**dict(mlm.encoder.named_parameters()), "embeddings.word.weight": apart[0]},
        inputs)
    x = mlm.head.norm(F.gelu(mlm.head.dense(states)))
    logits = F.linear(x, apart[1], mlm.head.bias)
    assert_close(sum(torch.autograd.grad(logits.square().mean(), apart)), total)


def test_positions_pick_from_the_full_logits(inputs):
    """`positions` gives the full logits at these places, and the same gradients.

    Places may be repeated and in any order.
    """
    mlm = scatter(MaskedLM(config(ffn_layers=[1, L - 1])))
    # (B, 6), real tokens
    positions = torch.stack([torch.randperm(T)[:6] % LENGTHS[i] for i in range(B)])
    some, full = mlm(*inputs, positions=positions), mlm(*inputs)
    picked = full.gather(1, positions[:, :, None].expand(-1, -1, V))
    assert_close(some, picked)
    weights = list(mlm.parameters())
    gradients = (torch.autograd.grad(logits.square().mean(), weights) for logits in (some, picked))
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
@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_is_the_written_out_one(dropout, padded):
    """`fused_attention` equals softmax(QKᵀ/√D)V, with padding too.

    For the same seed, it drops the same weights.
    """
    M, D = 4, 12
    q, k, v = torch.randn(B, H, M, D), torch.randn(B, H, T, D), torch.randn(B, H, T, D)
    mask = (torch.arange(T) < LENGTHS[:, None])[:, None, None, :] if padded else None
    results = []
    for form in (attention, fused_attention):
        torch.manual_seed(5)
        results.append(form(q, k, v, mask, dropout))
    assert results[0].shape == (B, H, M, D)
    assert_close(*results)


def test_dropout_only_in_training(inputs):
    """Each of the two dropouts acts in train() and not in eval().

    With both at 0 the two modes are equal.
    """
    for hidden, attention in ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        encoder = scatter(
            Encoder(config(hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)))
        still = encoder(*inputs)
        assert torch.equal(still, encoder(*inputs))
        assert torch.allclose(encoder.train()(*inputs), still, atol=1e-5) == (
            hidden == attention == 0.0)


def test_a_sequence_longer_than_the_positions_is_an_error():
    """A sequence with more tokens than positions is an error that names both numbers."""
    encoder = Encoder(config(max_position_embeddings=T))
    assert encoder(torch.zeros(1, T, dtype=torch.long)).shape == (1, T, C)
    with pytest.raises(UserError, match=f"{T + 1} tokens .* {T} positions"):
        encoder(torch.zeros(1, T + 1, dtype=torch.long))


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


@torch.no_grad()
def test_a_block_without_ffn_has_no_parameters_but_its_attentions():
    """A block without an FFN does what its attention does, and has no other parameters."""
    block = scatter(Block(config(), has_ffn=False))
    x = torch.randn(B, T, C)
    assert torch.equal(block(x), block.attention(x))
    assert set(block.state_dict()) == {
        f"attention.{name}" for name in Attention(config()).state_dict()}


@pytest.mark.parametrize(
    "kept, expected",
    [
        (12, 109_482_240), (6, 81_138_432), (4, 71_690_496), (3, 66_966_528), (1, 57_518_592),
        (0, 52_794_624)])
def test_parameters_of_bert_base(kept, expected):
    """The parameters of BERT-Base are exact for each number of FFNs kept.

    The pooler (C * C + C) is counted too.
    """
    base = BertConfig(ffn_layers=list(range(kept)))
    assert count_parameters(base, Encoder) + 768 * 768 + 768 == expected


def test_36_layers_without_ffns_weigh_about_bert_base():
    """36 layers without FFNs have as many parameters as BERT-Base, to 0.1 percent."""
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


@pytest.mark.parametrize("asked", [None, pytest.param(2, marks=pytest.mark.performance)])
@pytest.mark.parametrize("ffn_layers", [None, [], [1], [L - 1]])
def test_flops_per_token_are_those_of_a_real_step(monkeypatch, ffn_layers, asked):
    """The formula exactly equals PyTorch's own count of a forward and backward pass.

    Attention is written out here, since the counter does not know the CPU's fused kernel.
    """
    monkeypatch.setattr(model_module, "fused_attention", attention)
    mlm = MaskedLM(config(ffn_layers=ffn_layers))
    positions = None if asked is None else torch.randint(T, (B, asked))
    with FlopCounterMode(display=False) as counter:
        mlm(torch.randint(V, (B, T)), positions=positions).logsumexp(-1).sum().backward()
    assert flops_per_token(mlm.config, T, asked) * B * T == pytest.approx(
        counter.get_total_flops(), rel=1e-9)


# Initialisation


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_the_loss_of_an_untrained_model_is_ln_v(ffn_layers):
    """Before training, every word is about as likely as any other, so the loss is ln V."""
    torch.manual_seed(0)
    words = 2999
    mlm = MaskedLM(config(vocab_size=words, hidden_size=48, ffn_layers=ffn_layers)).eval()
    ids = torch.randint(words, (16, T))
    loss = torch.nn.functional.cross_entropy(
        mlm(ids).flatten(0, 1), torch.randint(words, (16 * T,)))
    assert loss.item() == pytest.approx(math.log(words), abs=0.1)


def test_initialisation_is_berts():
    """Weights have deviation 0.02 around 0, biases are 0 and norms 1.

    The same seed gives the same weights, and another draw gives others.
    """
    torch.manual_seed(3)
    mlm = MaskedLM(config(hidden_size=120, vocab_size=997))
    for name, parameter in mlm.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.12), name
            assert abs(parameter.mean().item()) < 0.003, name
        else:
            assert torch.all(parameter == (1.0 if name.endswith("norm.weight") else 0.0)), name
    torch.manual_seed(3)
    again, other = (
        MaskedLM(config(hidden_size=120, vocab_size=997)).state_dict() for _ in range(2))
    assert all(torch.equal(t, again[name]) for name, t in mlm.state_dict().items())
    assert not torch.equal(again["head.dense.weight"], other["head.dense.weight"])


@pytest.mark.parametrize("form", [attention, fused_attention])
def test_a_row_that_is_all_padding_harms_nobody(form):
    """Its output is 0, and no gradient is NaN, in the written-out form as in the fused one."""
    q, k, v = (torch.randn(B, H, T, 12, requires_grad=True) for _ in range(3))
    mask = (torch.arange(T) < torch.tensor([13, 0, 8, 12, 9])[:, None])[:, None, None, :]
    output = form(q, k, v, mask)
    assert torch.all(output[1] == 0)
    for gradient in torch.autograd.grad(output.square().sum(), (q, k, v)):
        assert torch.isfinite(gradient).all() and torch.all(gradient[1] == 0)
