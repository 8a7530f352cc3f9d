"""Hugging Face checkpoints: `transformers` opens ours, we open theirs, and nothing runs code."""

import json
import logging

import pytest
import torch
import transformers
from helpers import (
    LABELS,
    C,
    L,
    Trap,
    V,
    assert_close,
    change_tensors,
    config,
    saved_by_them,
    scatter,
)
from safetensors.torch import load_file

from mini_undivided.model import (
    Encoder,
    MaskedLM,
    SequenceClassifier,
)
from mini_undivided.support import checkpoint
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json


def test_no_ffn_tensors_are_saved(tmp_path):
    """A removed FFN leaves no tensor in the checkpoint; a kept one leaves its three pairs."""
    MaskedLM(config(ffn_layers=[2])).save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    ffn = {
        n for n in names if ".intermediate." in n or (".output." in n and ".attention." not in n)
    }
    parts = ("intermediate.dense", "output.dense", "output.LayerNorm")
    assert ffn == {
        f"bert.encoder.layer.2.{part}.{kind}" for part in parts for kind in ("weight", "bias")
    }
    assert json.loads((tmp_path / "config.json").read_text())["ffn_layers"] == [2]


@torch.no_grad()
def test_transformers_opens_ours(tmp_path, inputs):
    """AutoModelForMaskedLM opens a saved MaskedLM and gives the same logits.

    No key is missing and none is left over.
    """
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path)
    opened, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(opened, transformers.BertForMaskedLM)
    assert_close(mlm(*inputs), opened(*inputs).logits, inputs[1])


@torch.no_grad()
def test_transformers_opens_our_classifier(tmp_path, inputs):
    """AutoModelForSequenceClassification opens a saved classifier and gives the same logits."""
    clf = scatter(SequenceClassifier(config(), num_labels=LABELS))
    clf.save_pretrained(tmp_path)
    opened, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.config.num_labels == LABELS
    assert_close(clf(*inputs), opened(*inputs).logits)


@torch.no_grad()
def test_transformers_opens_our_encoder(tmp_path, inputs):
    """BertModel opens a saved encoder and gives the same states."""
    encoder = scatter(Encoder(config()))
    encoder.save_pretrained(tmp_path)
    opened, info = transformers.BertModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(encoder(*inputs), opened(*inputs).last_hidden_state, inputs[1])


@pytest.mark.parametrize("ffn_layers", [None, [], [0, 2]])
@pytest.mark.parametrize("model_class", [Encoder, MaskedLM, SequenceClassifier])
def test_saved_and_opened_is_the_same(tmp_path, inputs, model_class, ffn_layers):
    """Every tensor and the whole config come back, with and without FFNs.

    The opened model is in eval mode.
    """
    model = scatter(model_class(config(ffn_layers=ffn_layers)))
    model.save_pretrained(tmp_path / "new" / "run")
    opened = model_class.from_pretrained(tmp_path / "new" / "run")
    assert opened.config == model.config and not opened.training
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in opened.state_dict().items())
    assert torch.equal(opened(*inputs), model(*inputs))


def test_config_json_is_as_hugging_face_writes_it(tmp_path):
    """transformers reads every field of config.json with the value that ours has."""
    ours = config(
        hidden_dropout_prob=0.25,
        attention_probs_dropout_prob=0.15,
        layer_norm_eps=1e-7,
        ffn_layers=[3],
    )
    MaskedLM(ours).save_pretrained(tmp_path)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert read.model_type == "bert"
    assert read.architectures == ["BertForMaskedLM"]
    assert read.hidden_act == "gelu"
    assert {name: getattr(read, name) for name in vars(ours)} == vars(ours)


def as_old_checkpoint(folder):
    """Rewrite a checkpoint in the form of 2018.

    A pickle, with LayerNorm's gamma and beta, a table of position numbers, and the next-sentence
    head.
    """
    tensors = load_file(folder / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(37)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old["cls.seq_relationship.weight"], old["cls.seq_relationship.bias"] = (
        torch.randn(2, C),
        torch.randn(2),
    )
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@torch.no_grad()
def test_old_checkpoints_open(tmp_path, inputs):
    """A checkpoint in the form of 2018 opens.

    pytorch_model.bin, gamma and beta, position_ids, the tied decoder and the next-sentence head are
    understood.
    """
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    as_old_checkpoint(folder)
    assert_close(MaskedLM.from_pretrained(folder)(*inputs), reference(*inputs).logits, inputs[1])


def test_half_precision_checkpoints_open_in_float32(tmp_path):
    """A checkpoint in half precision opens in float32, with the same weights."""
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path)
    change_tensors(
        tmp_path, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()})
    )
    opened = MaskedLM.from_pretrained(tmp_path)
    assert {p.dtype for p in opened.parameters()} == {torch.float32}
    torch.testing.assert_close(opened.head.dense.weight, mlm.head.dense.weight, atol=1e-3, rtol=0)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.pop(QUERY), "layer.1.attention.self.query.weight is missing"),
        (
            lambda t: t.pop("bert.encoder.layer.2.output.dense.bias"),
            "layer.2.output.dense.bias is missing",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.1.adapter": torch.ones(2)}),
            "layer.1.adapter has no place",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.4.output.dense.bias": torch.ones(2)}),
            "layer.4.output.dense.bias",
        ),
        (
            lambda t: t.update({QUERY: torch.ones(C, C + 1)}),
            r"query.weight has the shape \(36, 37\).*\(36, 36\)",
        ),
        (
            lambda t: t.pop("cls.predictions.transform.dense.bias"),
            "cls.predictions.transform.dense.bias is missing",
        ),
        (lambda t: t.pop("cls.predictions.bias"), "cls.predictions.bias is missing"),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": torch.ones(V, C)}),
            "decoder.weight is not tied",
        ),
    ],
)
def test_loading_is_strict(tmp_path, change, said):
    """A tensor that is missing, left over or of the wrong shape is an error that names it.

    So is half a head.
    """
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
    """A head that the checkpoint lacks entirely is new, with a warning that names it.

    What the checkpoint does have is taken from it.
    """
    reference, folder = saved_by_them(tmp_path, saved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = opened.from_pretrained(folder)
    said = [
        record.getMessage() for record in caplog.records if record.name.startswith("mini_undivided")
    ]
    assert len(said) == bool(new) and all(head in said[0] for head in new)
    encoder = model if opened is Encoder else model.encoder
    keys = encoder.layers[2].attention.key, reference.base_model.encoder.layer[2].attention.self.key
    assert torch.equal(keys[0].weight, keys[1].weight)
    if saved == "BertModel" and opened is SequenceClassifier:
        assert torch.equal(model.pooler.weight, reference.pooler.dense.weight)


def test_a_classifier_for_other_labels_is_an_error(tmp_path):
    """A classifier that was saved for another number of labels is an error that names it."""
    SequenceClassifier(config(), num_labels=LABELS).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="classifier"):
        SequenceClassifier.from_pretrained(tmp_path, num_labels=2)


@pytest.mark.parametrize("kept", [[], [1]])
def test_ffns_are_cut_out_of_a_trained_model(tmp_path, kept):
    """ffn_layers=... drops the other FFNs and keeps every other tensor.

    When the model is saved again, they are gone from the file.
    """
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path / "full")
    cut = MaskedLM.from_pretrained(tmp_path / "full", ffn_layers=kept)
    assert [block.ffn is not None for block in cut.encoder.layers] == [i in kept for i in range(L)]
    assert all(torch.equal(t, mlm.state_dict()[name]) for name, t in cut.state_dict().items())
    cut.save_pretrained(tmp_path / "cut")
    assert MaskedLM.from_pretrained(tmp_path / "cut").config.ffn_layers == kept


def test_cutting_ffns_is_strict_too(tmp_path):
    """With FFNs cut, any other tensor that is left over or missing is still an error."""
    MaskedLM(config()).save_pretrained(tmp_path)
    change_tensors(
        tmp_path, lambda tensors: tensors.update({"bert.encoder.layer.1.adapter": torch.ones(2)})
    )
    with pytest.raises(UserError, match="layer.1.adapter has no place"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=[])
    change_tensors(
        tmp_path, lambda tensors: (tensors.pop("bert.encoder.layer.1.adapter"), tensors.pop(QUERY))
    )
    with pytest.raises(UserError, match="layer.1.attention.self.query.weight is missing"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=[])


@pytest.mark.parametrize("saved, asked", [([], None), ([], [0]), ([1], [0, 1]), ([1, 2], None)])
def test_ffns_that_the_checkpoint_lacks_are_an_error(tmp_path, saved, asked):
    """Asking for an FFN that the checkpoint does not have is an error that names its layer."""
    MaskedLM(config(ffn_layers=saved)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no FFN in layer \d: only FFNs that it has"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=asked)


def test_a_pickle_with_code_is_refused(tmp_path):
    """pytorch_model.bin with code in it is an error, and the code does not run."""
    MaskedLM(config()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(
        {"bert.pooler.dense.weight": Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(UserError, match="holds something else than tensors"):
        MaskedLM.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("length", [0, 5, 1000, -4])
def test_truncated_weights_are_an_error(tmp_path, name, length):
    """A weights file that was cut short is an error that names its folder."""
    MaskedLM(config()).save_pretrained(tmp_path)
    if name == "pytorch_model.bin":
        as_old_checkpoint(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=str(tmp_path)):
        MaskedLM.from_pretrained(tmp_path)


def test_a_folder_without_config_or_weights_is_an_error(tmp_path):
    """A folder without config.json or without weights, or no folder at all, is an error."""
    with pytest.raises(UserError, match="config.json"):
        MaskedLM.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config().to_hugging_face("BertForMaskedLM"))
    with pytest.raises(UserError, match="holds no weights"):
        MaskedLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        MaskedLM.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
    ],
)
def test_other_architectures_are_an_error(tmp_path, change):
    """A checkpoint that would open but compute something else is refused.

    The error names the field that differs.
    """
    MaskedLM(config()).save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), **change})
    with pytest.raises(UserError, match=next(iter(change))):
        MaskedLM.from_pretrained(tmp_path)


def test_weights_come_back(tmp_path):
    """Tensors that are not contiguous or need gradients come back as they were written.

    The folder is created.
    """
    weight = torch.nn.Parameter(torch.ones(3))
    tensors = {"a": torch.arange(35.0).reshape(5, 7).T, "b": weight, "c": torch.ones(2).half()}
    checkpoint.write_weights(tmp_path / "new" / "run", tensors)
    read = checkpoint.read_weights(tmp_path / "new" / "run")
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(t, read[name]) and t.dtype == read[name].dtype for name, t in tensors.items()
    )
