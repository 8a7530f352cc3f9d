"""The model against `transformers`: the same numbers at every layer, the same files, and FFNs that are really gone."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mini_undivided import model as model_module
from mini_undivided import runs
from mini_undivided.model import (
    Attention, BertConfig, Block, Encoder, LookUp, MaskedLM, SequenceClassifier,
    attend, attend_fast, count_parameters, every_kth, flops_per_token,
)  # fmt: skip
from mini_undivided.runtime import UserError

# Odd and mutually distinct, so that a transposed axis or a mistaken size cannot pass.
B, T, C, H, L, V, LABELS = 5, 13, 36, 3, 4, 99, 7
SIZES = {
    "vocab_size": V, "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H, "intermediate_size": 41,
    "max_position_embeddings": 37, "type_vocab_size": 6,
}  # fmt: skip
LENGTHS = torch.tensor([13, 1, 8, 12, 9])


def config(**changes):
    return BertConfig(**{**SIZES, **changes})


@pytest.fixture
def inputs():
    """(input_ids, attention_mask, token_type_ids), each (B, T), with padding at the end of four of five sequences."""
    generator = torch.Generator().manual_seed(11)
    input_ids = torch.randint(V, (B, T), generator=generator)
    segments = torch.randint(SIZES["type_vocab_size"], (B, T), generator=generator)
    return input_ids, (torch.arange(T) < LENGTHS[:, None]).long(), segments


def scatter(module):
    """Weights large enough that every part of the model shows in its output; biases and norms too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def theirs(class_name, **changes):
    return scatter(getattr(transformers, class_name)(transformers.BertConfig(**{**SIZES, **changes})))


def saved_by_them(tmp_path, class_name, **changes):
    """A model of `transformers` and the folder where it was saved."""
    model = theirs(class_name, **changes)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def change_tensors(folder, change):
    """Apply `change` to the dictionary of tensors in a saved checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def assert_close(ours, reference, real=None):
    """Equal to 1e-5 in float32; with `real` (B, T), at the real tokens only."""
    assert ours.shape == reference.shape and ours.dtype == torch.float32
    if real is not None:
        ours, reference = ours[real.bool()], reference[real.bool()]
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


# The forward pass


@torch.no_grad()
def test_hidden_states_are_transformers_at_every_layer(tmp_path, inputs):
    """Every layer's states equal BertModel's at every real token, with padding and segments."""
    reference, folder = saved_by_them(tmp_path, "BertModel")
    final, layers = Encoder.from_pretrained(folder)(*inputs, output_hidden_states=True)
    expected = reference(*inputs, output_hidden_states=True)
    assert len(layers) == L + 1
    for ours, states in zip(layers, expected.hidden_states, strict=True):
        assert_close(ours, states, inputs[1])
    assert_close(final, expected.last_hidden_state, inputs[1])


@torch.no_grad()
def test_without_mask_and_segments(tmp_path, inputs):
    """Left out, the mask is all ones and the segments all zeros, as in transformers."""
    reference, folder = saved_by_them(tmp_path, "BertModel")
    assert_close(Encoder.from_pretrained(folder)(inputs[0]), reference(inputs[0]).last_hidden_state)


@torch.no_grad()
def test_masked_lm_logits_are_transformers(tmp_path, inputs):
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    assert_close(MaskedLM.from_pretrained(folder)(*inputs), reference(*inputs).logits, inputs[1])


@torch.no_grad()
def test_classifier_logits_are_transformers(tmp_path, inputs):
    reference, folder = saved_by_them(tmp_path, "BertForSequenceClassification", num_labels=LABELS)
    assert_close(SequenceClassifier.from_pretrained(folder, num_labels=LABELS)(*inputs), reference(*inputs).logits)


def test_gradients_are_transformers(tmp_path, inputs):
    """One backward pass gives every tensor the gradient that it gets in BertForMaskedLM."""
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    ours = MaskedLM.from_pretrained(folder)
    for output in (ours(*inputs), reference(*inputs).logits):
        torch.logsumexp(output[inputs[1].bool()], -1).mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, expected[model_module.hugging_face_name(name)].grad)


def test_the_ffn_stores_its_inner_vectors_once(inputs):
    """What the backward pass needs of a layer's FFN is kept before the GELU, and not after it too."""
    inner, stored = SIZES["intermediate_size"], []

    def keep(tensor):
        stored.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Encoder(config()).train()(*inputs)
    assert stored.count((B, T, inner)) == L and (B * T, inner) not in stored


def test_the_gradients_of_the_word_vectors_meet(inputs, monkeypatch):
    """What autograd adds up for the lookup and the head of one matrix, in the memory of the head's gradient.

    Without the head, too, the gradient is dense.
    """
    mlm = scatter(MaskedLM(config()))
    word, backward, places = mlm.encoder.embeddings.word.weight, LookUp.backward, []

    def watched(ctx, gradient, whole):
        places.append(whole.data_ptr())
        return backward(ctx, gradient, whole)

    monkeypatch.setattr(LookUp, "backward", staticmethod(watched))
    mlm(*inputs).square().mean().backward()
    assert places == [word.grad.data_ptr()]
    found, word.grad = word.grad, None
    x = mlm.head.norm(F.gelu(mlm.head.dense(mlm.encoder(*inputs))))
    F.linear(x, word, mlm.head.bias).square().mean().backward()
    torch.testing.assert_close(found, word.grad)
    for encoder in (mlm.encoder, scatter(Encoder(config()))):  # without the head
        encoder.zero_grad()
        encoder(*inputs).square().mean().backward()
        assert encoder.embeddings.word.weight.grad.layout == torch.strided


def test_positions_pick_from_the_full_logits(inputs):
    """`positions` gives the full logits at these places, repeated and unordered ones too, and the same gradients."""
    mlm = scatter(MaskedLM(config(ffn_layers=[1, L - 1])))
    positions = torch.stack([torch.randperm(T)[:6] % LENGTHS[i] for i in range(B)])  # (B, 6), real tokens
    some, full = mlm(*inputs, positions=positions), mlm(*inputs)
    picked = full.gather(1, positions[:, :, None].expand(-1, -1, V))
    assert_close(some, picked)
    weights = list(mlm.parameters())
    gradients = (torch.autograd.grad(logits.square().mean(), weights) for logits in (some, picked))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


@torch.no_grad()
def test_padding_is_never_seen(inputs):
    """What stands in the padding changes nothing at the real tokens; a boolean mask is the same as one of numbers."""
    encoder = scatter(Encoder(config()))
    input_ids, mask, segments = inputs
    other = torch.where(mask.bool(), input_ids, (input_ids + 1) % V)
    expected = encoder(input_ids, mask, segments)
    assert torch.equal(encoder(other, mask.bool(), segments)[mask.bool()], expected[mask.bool()])
    assert torch.equal(encoder(input_ids, mask.float(), segments), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_is_the_written_out_one(dropout, padded):
    """`attend_fast` equals softmax(QKᵀ/√D)V, with padding and with the same dropped weights for the same seed."""
    M, D = 4, 12
    q, k, v = torch.randn(B, H, M, D), torch.randn(B, H, T, D), torch.randn(B, H, T, D)
    mask = (torch.arange(T) < LENGTHS[:, None])[:, None, None, :] if padded else None
    results = []
    for form in (attend, attend_fast):
        torch.manual_seed(5)
        results.append(form(q, k, v, mask, dropout))
    assert results[0].shape == (B, H, M, D)
    assert_close(*results)


def test_dropout_only_in_training(inputs):
    """Each of the two dropouts acts in train() and not in eval(); with both at 0 the two modes are equal."""
    for hidden, attention in ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0)):
        encoder = scatter(Encoder(config(hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)))
        still = encoder(*inputs)
        assert torch.equal(still, encoder(*inputs))
        assert torch.allclose(encoder.train()(*inputs), still, atol=1e-5) == (hidden == attention == 0.0)


def test_a_sequence_longer_than_the_positions_is_an_error():
    encoder = Encoder(config(max_position_embeddings=T))
    assert encoder(torch.zeros(1, T, dtype=torch.long)).shape == (1, T, C)
    with pytest.raises(UserError, match=f"{T + 1} tokens .* {T} positions"):
        encoder(torch.zeros(1, T + 1, dtype=torch.long))


# Without FFNs


@torch.no_grad()
@pytest.mark.parametrize("kept", [[], [1], [0, 3]])
def test_a_layer_without_ffn_is_its_attention_sublayer(tmp_path, inputs, kept):
    """With FFNs cut, each layer equals transformers' attention sublayer alone: no residual and no norm is left over."""
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
    block = scatter(Block(config(), has_ffn=False))
    x = torch.randn(B, T, C)
    assert torch.equal(block(x), block.attention(x))
    assert set(block.state_dict()) == {f"attention.{name}" for name in Attention(config()).state_dict()}


def test_no_ffn_tensors_are_saved(tmp_path):
    """A removed FFN leaves no tensor in the checkpoint; a kept one leaves its three pairs."""
    MaskedLM(config(ffn_layers=[2])).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    ffn = {n for n in names if ".intermediate." in n or (".output." in n and ".attention." not in n)}
    parts = ("intermediate.dense", "output.dense", "output.LayerNorm")
    assert ffn == {f"bert.encoder.layer.2.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert json.loads((tmp_path / "config.json").read_text())["ffn_layers"] == [2]


@pytest.mark.parametrize(
    "kept, expected",
    [(12, 109_482_240), (6, 81_138_432), (4, 71_690_496), (3, 66_966_528), (1, 57_518_592), (0, 52_794_624)],
)
def test_parameters_of_bert_base(kept, expected):
    """BERT-Base with its pooler (C * C + C), by the number of FFNs kept, to the unit."""
    base = BertConfig(ffn_layers=list(range(kept)))
    assert count_parameters(base, Encoder) + 768 * 768 + 768 == expected


def test_36_layers_without_ffns_weigh_about_bert_base():
    deep = count_parameters(BertConfig(num_hidden_layers=36, ffn_layers=[]))
    assert deep == pytest.approx(count_parameters(BertConfig()), rel=0.001)


@pytest.mark.parametrize("ffn_layers", [None, [], [1]])
@pytest.mark.parametrize("model_class", [Encoder, MaskedLM, SequenceClassifier])
def test_count_parameters_is_the_real_count(model_class, ffn_layers):
    """Counted without memory equals counted on a real model, and transformers' own count for a whole BERT."""
    real = sum(p.numel() for p in model_class(config(ffn_layers=ffn_layers)).parameters())
    assert count_parameters(config(ffn_layers=ffn_layers), model_class) == real
    if ffn_layers is None and model_class is not Encoder:
        assert theirs(model_class.architecture).num_parameters() == real


@pytest.mark.parametrize("asked", [None, 2])
@pytest.mark.parametrize("ffn_layers", [None, [], [1], [L - 1]])
def test_flops_per_token_are_those_of_a_real_step(monkeypatch, ffn_layers, asked):
    """The formula equals PyTorch's own count of a forward and backward pass, exactly.

    Attention is written out here: the counter does not know the CPU's fused kernel.
    """
    monkeypatch.setattr(model_module, "attend_fast", attend)
    mlm = MaskedLM(config(ffn_layers=ffn_layers))
    positions = None if asked is None else torch.randint(T, (B, asked))
    with FlopCounterMode(display=False) as counter:
        mlm(torch.randint(V, (B, T)), positions=positions).logsumexp(-1).sum().backward()
    assert flops_per_token(mlm.config, T, asked) * B * T == pytest.approx(counter.get_total_flops(), rel=1e-9)


# Initialisation


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_the_loss_of_an_untrained_model_is_ln_v(ffn_layers):
    """Before training every word is about as likely as any other."""
    torch.manual_seed(0)
    words = 2999
    mlm = MaskedLM(config(vocab_size=words, hidden_size=48, ffn_layers=ffn_layers)).eval()
    ids = torch.randint(words, (16, T))
    loss = torch.nn.functional.cross_entropy(mlm(ids).flatten(0, 1), torch.randint(words, (16 * T,)))
    assert loss.item() == pytest.approx(math.log(words), abs=0.1)


def test_initialisation_is_berts():
    """Weights of deviation 0.02 around 0, biases 0, norms 1; the seed decides, and differs where it differs."""
    torch.manual_seed(3)
    mlm = MaskedLM(config(hidden_size=120, vocab_size=997))
    for name, parameter in mlm.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.12), name
            assert abs(parameter.mean().item()) < 0.003, name
        else:
            assert torch.all(parameter == (1.0 if name.endswith("norm.weight") else 0.0)), name
    torch.manual_seed(3)
    again, other = (MaskedLM(config(hidden_size=120, vocab_size=997)).state_dict() for _ in range(2))
    assert all(torch.equal(t, again[name]) for name, t in mlm.state_dict().items())
    assert not torch.equal(again["head.dense.weight"], other["head.dense.weight"])


# Files


@torch.no_grad()
def test_transformers_opens_ours(tmp_path, inputs):
    """AutoModelForMaskedLM opens a saved MaskedLM with no key missing or to spare, and says the same."""
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path)
    opened, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(opened, transformers.BertForMaskedLM)
    assert_close(mlm(*inputs), opened(*inputs).logits, inputs[1])


@torch.no_grad()
def test_transformers_opens_our_classifier(tmp_path, inputs):
    clf = scatter(SequenceClassifier(config(), num_labels=LABELS))
    clf.save_pretrained(tmp_path)
    opened, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.config.num_labels == LABELS
    assert_close(clf(*inputs), opened(*inputs).logits)


@torch.no_grad()
def test_transformers_opens_our_encoder(tmp_path, inputs):
    encoder = scatter(Encoder(config()))
    encoder.save_pretrained(tmp_path)
    opened, info = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(encoder(*inputs), opened(*inputs).last_hidden_state, inputs[1])


@pytest.mark.parametrize("ffn_layers", [None, [], [0, 2]])
@pytest.mark.parametrize("model_class", [Encoder, MaskedLM, SequenceClassifier])
def test_saved_and_opened_is_the_same(tmp_path, inputs, model_class, ffn_layers):
    """Every tensor and the whole config come back, with and without FFNs; the opened model is in eval mode."""
    model = scatter(model_class(config(ffn_layers=ffn_layers)))
    model.save_pretrained(tmp_path / "new" / "run")
    opened = model_class.from_pretrained(tmp_path / "new" / "run")
    assert opened.config == model.config and not opened.training
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in opened.state_dict().items())
    assert torch.equal(opened(*inputs), model(*inputs))


def test_config_json_is_as_hugging_face_writes_it(tmp_path):
    """transformers reads every field of config.json as ours has it."""
    ours = config(hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.15, layer_norm_eps=1e-7, ffn_layers=[3])
    MaskedLM(ours).save_pretrained(tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read.model_type == "bert" and read.architectures == ["BertForMaskedLM"] and read.hidden_act == "gelu"
    assert {name: getattr(read, name) for name in vars(ours)} == vars(ours)


def as_old_checkpoint(folder):
    """Rewrite a checkpoint as they were in 2018: a pickle, LayerNorm's gamma and beta, a table of position numbers."""
    tensors = load_file(folder / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in tensors.items()}  # fmt: skip
    old["bert.embeddings.position_ids"] = torch.arange(37)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.seq_relationship.weight"], old["cls.seq_relationship.bias"] = torch.randn(2, C), torch.randn(2)
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@torch.no_grad()
def test_old_checkpoints_open(tmp_path, inputs):
    """pytorch_model.bin, gamma and beta, position_ids, the tied decoder and the next-sentence head are understood."""
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    as_old_checkpoint(folder)
    assert_close(MaskedLM.from_pretrained(folder)(*inputs), reference(*inputs).logits, inputs[1])


def test_half_precision_checkpoints_open_in_float32(tmp_path):
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    opened = MaskedLM.from_pretrained(tmp_path)
    assert {p.dtype for p in opened.parameters()} == {torch.float32}
    torch.testing.assert_close(opened.head.dense.weight, mlm.head.dense.weight, atol=1e-3, rtol=0)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(QUERY), "layer.1.attention.self.query.weight is missing"),
        (lambda t: t.pop("bert.encoder.layer.2.output.dense.bias"), "layer.2.output.dense.bias is missing"),
        (lambda t: t.update({"bert.encoder.layer.1.adapter": torch.ones(2)}), "layer.1.adapter has no place"),
        (lambda t: t.update({"bert.encoder.layer.4.output.dense.bias": torch.ones(2)}), "layer.4.output.dense.bias"),
        (lambda t: t.update({QUERY: torch.ones(C, C + 1)}), r"query.weight has the shape \(36, 37\).*\(36, 36\)"),
        (lambda t: t.pop("cls.predictions.transform.dense.bias"), "cls.predictions.transform.dense.bias is missing"),
        (lambda t: t.pop("cls.predictions.bias"), "cls.predictions.bias is missing"),
        (lambda t: t.update({"cls.predictions.decoder.weight": torch.ones(V, C)}), "decoder.weight is not tied"),
    ],
)  # fmt: skip
def test_loading_is_strict(tmp_path, change, said):
    """A tensor that is missing, too many or of the wrong shape is an error that names it; half a head is one too."""
    MaskedLM(config()).save_pretrained(tmp_path)
    MaskedLM.from_pretrained(tmp_path)
    change_tensors(tmp_path, change)
    with pytest.raises(UserError, match=said):
        MaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "saved, opened, new",
    [
        ("BertModel", MaskedLM, ["cls.predictions"]),
        ("BertModel", SequenceClassifier, ["classifier"]),
        ("BertForMaskedLM", SequenceClassifier, ["pooler", "classifier"]),
        ("BertForSequenceClassification", MaskedLM, ["cls.predictions"]),
        ("BertForMaskedLM", Encoder, []),
    ],
)
def test_an_absent_head_is_initialised_and_said(tmp_path, caplog, saved, opened, new):
    """A head that the checkpoint lacks wholly is new, with a warning that names it; what it has is taken from it."""
    reference, folder = saved_by_them(tmp_path, saved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = opened.from_pretrained(folder)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("mini_undivided")]
    assert len(said) == bool(new) and all(head in said[0] for head in new)
    encoder = model if opened is Encoder else model.encoder
    keys = encoder.layers[2].attention.key, reference.base_model.encoder.layer[2].attention.self.key
    assert torch.equal(keys[0].weight, keys[1].weight)
    if saved == "BertModel" and opened is SequenceClassifier:
        assert torch.equal(model.pooler.weight, reference.pooler.dense.weight)


def test_a_classifier_for_other_labels_is_an_error(tmp_path):
    SequenceClassifier(config(), num_labels=LABELS).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="classifier"):
        SequenceClassifier.from_pretrained(tmp_path, num_labels=2)


@pytest.mark.parametrize("kept", [[], [1]])
def test_ffns_are_cut_out_of_a_trained_model(tmp_path, kept):
    """ffn_layers=... drops the other FFNs and keeps every other tensor; saved again, they are gone from the file."""
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path / "full")
    cut = MaskedLM.from_pretrained(tmp_path / "full", ffn_layers=kept)
    assert [block.ffn is not None for block in cut.encoder.layers] == [i in kept for i in range(L)]
    assert all(torch.equal(t, mlm.state_dict()[name]) for name, t in cut.state_dict().items())
    cut.save_pretrained(tmp_path / "cut")
    assert MaskedLM.from_pretrained(tmp_path / "cut").config.ffn_layers == kept


def test_cutting_ffns_is_strict_too(tmp_path):
    """With FFNs cut, any other tensor that is too many or missing is still an error."""
    MaskedLM(config()).save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({"bert.encoder.layer.1.adapter": torch.ones(2)}))
    with pytest.raises(UserError, match="layer.1.adapter has no place"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=[])
    change_tensors(tmp_path, lambda tensors: (tensors.pop("bert.encoder.layer.1.adapter"), tensors.pop(QUERY)))
    with pytest.raises(UserError, match="layer.1.attention.self.query.weight is missing"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=[])


@pytest.mark.parametrize("saved, asked", [([], None), ([], [0]), ([1], [0, 1]), ([1, 2], None)])
def test_ffns_that_the_checkpoint_lacks_are_an_error(tmp_path, saved, asked):
    MaskedLM(config(ffn_layers=saved)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layer\.\d\.(intermediate|output)\.\S+ is missing"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=asked)


class Trap:
    """A pickle that creates a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused(tmp_path):
    """pytorch_model.bin with code in it is an error, and the code does not run."""
    MaskedLM(config()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.weight": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        MaskedLM.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("length", [0, 5, 1000, -4])
def test_truncated_weights_are_an_error(tmp_path, name, length):
    MaskedLM(config()).save_pretrained(tmp_path)
    if name == "pytorch_model.bin":
        as_old_checkpoint(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=str(tmp_path)):
        MaskedLM.from_pretrained(tmp_path)


def test_a_folder_without_config_or_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        MaskedLM.from_pretrained(tmp_path)
    runs.write_json(tmp_path / "config.json", config().to_hugging_face("BertForMaskedLM"))
    with pytest.raises(UserError, match="holds no weights"):
        MaskedLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        MaskedLM.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change", [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}]
)
def test_other_architectures_are_an_error(tmp_path, change):
    """A checkpoint that would open but compute something else is refused, by the field that differs."""
    MaskedLM(config()).save_pretrained(tmp_path)
    runs.write_json(tmp_path / "config.json", {**runs.read_json(tmp_path / "config.json"), **change})
    with pytest.raises(UserError, match=next(iter(change))):
        MaskedLM.from_pretrained(tmp_path)


# The config


@pytest.mark.parametrize(
    "change, said",
    [
        ({"num_attention_heads": 5}, "5 heads do not divide the hidden size 36"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"ffn_layers": [0, L]}, f"layer {L} is out of range.*0 to {L - 1}"),
        ({"ffn_layers": [-1]}, "layer -1 is out of range"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(change, said):
    with pytest.raises(UserError, match=said):
        config(**change)


def test_ffn_layers_are_sorted_and_single():
    assert config(ffn_layers=[3, 1, 3]).ffn_layers == [1, 3]
    assert [config(ffn_layers=[1]).has_ffn(i) for i in range(L)] == [False, True, False, False]
    assert all(config().has_ffn(i) for i in range(L)) and not any(config(ffn_layers=[]).has_ffn(i) for i in range(L))


@pytest.mark.parametrize(
    "layers, k, expected",
    [(12, 4, [3, 7, 11]), (12, 1, list(range(12))), (5, 2, [0, 2, 4]), (4, 9, [3]), (7, 3, [0, 3, 6])],
)
def test_every_kth_ends_at_the_last_layer(layers, k, expected):
    assert every_kth(layers, k) == expected
