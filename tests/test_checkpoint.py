"""Hugging Face checkpoints: `transformers` opens ours, we open theirs, and nothing runs code."""

import logging
from pathlib import Path

import pytest
import torch
import transformers
from helpers import (
    LABELS, C, L, Trap, V, assert_close, change_tensors, config, saved_by_them, scatter, theirs)
from safetensors.torch import load_file, save_file

from mini_undivided.model import Encoder, MaskedLM, SequenceClassifier
from mini_undivided.report.training import fill
from mini_undivided.support import checkpoint
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json, write_json
from mini_undivided.support.glue_files import read_tsv
from mini_undivided.support.text_files import read_pieces
from mini_undivided.tokenizer import load_tokenizer

CLASSES = {Encoder: "BertModel", MaskedLM: "BertForMaskedLM",
           SequenceClassifier: "BertForSequenceClassification"}


def opened_by_them(folder, model_class):
    """The model that transformers opens a folder of ours as; every tensor has its place."""
    more = {"add_pooling_layer": False} if model_class is Encoder else {}
    opened, info = getattr(transformers, CLASSES[model_class]).from_pretrained(
        folder, output_loading_info=True, **more)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return opened.eval()


def outputs(model, inputs):
    """States or logits, of a model of ours or of theirs."""
    given = model(*inputs)
    return given[0] if isinstance(given, transformers.utils.ModelOutput) else given


@torch.no_grad()
@pytest.mark.parametrize("model_class", CLASSES)
def test_transformers_opens_ours(tmp_path, inputs, model_class):
    """The class of transformers, which AutoModel finds, opens ours and gives the same output."""
    labels = {"num_labels": LABELS} if model_class is SequenceClassifier else {}
    model = scatter(model_class(config(), **labels))
    model.save_pretrained(tmp_path)
    opened = opened_by_them(tmp_path, model_class)
    real = None if labels else inputs[1]
    assert_close(model(*inputs), outputs(opened, inputs), real)
    assert transformers.AutoConfig.from_pretrained(tmp_path).architectures == [CLASSES[model_class]]
    assert opened.config.num_labels == LABELS or not labels


@pytest.mark.parametrize("ffn_layers", [None, [], [0, 2]])
@pytest.mark.parametrize("model_class", CLASSES)
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


# Other people's checkpoints: each field of the config, each form of the weights


# A field of `transformers`' BertConfig: another value, and whether it is refused.
FIELDS = {
    "vocab_size": (98, False), "hidden_size": (24, False), "num_hidden_layers": (3, False),
    "num_attention_heads": (4, False), "intermediate_size": (43, False),
    "hidden_dropout_prob": (0.3, False), "attention_probs_dropout_prob": (0.2, False),
    "classifier_dropout": (0.7, False), "max_position_embeddings": (35, False),
    "type_vocab_size": (7, False), "initializer_range": (0.05, False),
    "layer_norm_eps": (0.1, False), "pad_token_id": (None, False), "use_cache": (False, False),
    "bos_token_id": (5, False), "eos_token_id": (7, False), "chunk_size_feed_forward": (1, False),
    "is_encoder_decoder": (True, False), "dtype": ("float64", False),
    "problem_type": ("regression", False), "output_hidden_states": (False, False),
    "hidden_act": ("gelu_new", True), "is_decoder": (True, True),
    "tie_word_embeddings": (False, True), "add_cross_attention": (True, True),
    # of earlier versions
    "position_embedding_type": ("relative_key", True), "pruned_heads": ({"1": [0]}, True)}
OF_NO_MODEL = {"transformers_version", "architectures", "model_type", "return_dict", "id2label",
               "label2id", "_name_or_path", "output_attentions"}


def test_every_field_is_known():
    """The table has every field of transformers' config: a new one does not slip through."""
    assert transformers.BertConfig().to_dict().keys() <= FIELDS.keys() | OF_NO_MODEL


def dropouts(model):
    """The probabilities of a model's dropouts, of the attention's weights too."""
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


@torch.no_grad()
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_counts_or_is_refused(tmp_path, inputs, field):
    """A model of transformers with another value of a field opens here, and computes the same.

    So it does when ours is saved and opened again, by both. Else the error names the field.
    """
    value, refused = FIELDS[field]
    ids = (inputs[0].clamp(max=97), *inputs[1:])
    reference = theirs(CLASSES[SequenceClassifier], **({} if refused else {field: value}))
    reference = reference.to(torch.float64 if field == "dtype" else torch.float32)
    reference.save_pretrained(tmp_path)
    change_config(tmp_path, **{field: value})
    if refused:
        with pytest.raises(UserError, match=f"{field} is .* only .* is supported"):
            SequenceClassifier.from_pretrained(tmp_path)
        return
    ours = SequenceClassifier.from_pretrained(tmp_path)
    expected = reference.float()(*ids, output_hidden_states=True)
    _, states = ours.encoder(*ids, output_hidden_states=True)
    for a, b in zip(states, expected.hidden_states, strict=True):
        assert_close(a, b, ids[1])
    assert dropouts(ours) == dropouts(reference)
    ours.save_pretrained(tmp_path / "saved")
    for model in (ours, SequenceClassifier.from_pretrained(tmp_path / "saved"),
                  opened_by_them(tmp_path / "saved", SequenceClassifier)):
        assert_close(outputs(model, ids), expected.logits)


def change_config(folder, **changes):
    """Write other values of some fields to a saved config.json."""
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})


def rename(folder, change):
    """Rename all tensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file({change(n): t for n, t in tensors.items()}, folder / "model.safetensors")


def as_pickle(folder, change=dict):
    """Replace model.safetensors by pytorch_model.bin, with the tensors changed."""
    torch.save(change(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_in_2018(tensors):
    """LayerNorm's gamma and beta, a table of position numbers, decoder and next-sentence head."""
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): t for n, t in tensors.items()}
    old["bert.embeddings.position_ids"] = torch.arange(37)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    return old | {"cls.seq_relationship.weight": torch.randn(2, C),
                  "cls.seq_relationship.bias": torch.randn(2)}


def decoder_alone(tensors):
    """The tied matrix and bias under their second names only."""
    tensors["cls.predictions.decoder.weight"] = tensors.pop(
        "bert.embeddings.word_embeddings.weight")
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")


def in_shards(folder):
    """Cut pytorch_model.bin into two files and an index."""
    as_pickle(folder)
    tensors = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    where = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(tensors)}
    for file in set(where.values()):
        torch.save({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": where})


FORMS = {
    "pickle": as_pickle,
    "pickle of 2018": lambda folder: as_pickle(folder, as_in_2018),
    "pickle in two files": in_shards,
    **{f"pickle of {{{name}: …}}": lambda folder, name=name: as_pickle(
        folder, lambda tensors: {name: tensors, "epoch": 3, "optimizer": {"state": {}}})
       for name in ("model", "state_dict", "model_state_dict")},
    "another tied name": lambda folder: change_tensors(folder, decoder_alone),
    **{f"prefix {prefix}": lambda folder, prefix=prefix: rename(folder, lambda n: prefix + n)
       for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.")},
    "half precision": lambda folder: change_tensors(
        folder, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))}


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_weights_opens(tmp_path, inputs, form):
    """Whatever file, wrapper or prefix they come in, float32 logits are those of transformers."""
    reference, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    FORMS[form](folder)
    opened = MaskedLM.from_pretrained(folder)
    assert {p.dtype for p in opened.parameters()} == {torch.float32}
    if form == "half precision":
        reference = reference.half().float()
    assert_close(opened(*inputs), reference(*inputs).logits, inputs[1])


@torch.no_grad()
@pytest.mark.parametrize("name", [
    "BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction",
    "BertForQuestionAnswering", "BertForTokenClassification", "BertForMultipleChoice",
    "BertForSequenceClassification"])
def test_the_encoder_of_every_model_opens(tmp_path, inputs, name):
    """Whatever head a model of transformers has, in several files, its encoder opens."""
    reference = theirs(name)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    states = reference.base_model(*inputs).last_hidden_state
    assert_close(Encoder.from_pretrained(tmp_path)(*inputs), states, inputs[1])


@pytest.mark.parametrize(("saved", "opened", "new"), [
    ("BertModel", MaskedLM, ["cls.predictions"]),
    ("BertModel", SequenceClassifier, ["classifier"]),
    ("BertForMaskedLM", SequenceClassifier, ["pooler", "classifier"]),
    ("BertForSequenceClassification", MaskedLM, ["cls.predictions"]),
    ("BertForQuestionAnswering", MaskedLM, ["cls.predictions"]),
    ("BertForMaskedLM", Encoder, [])])
def test_an_absent_head_is_initialised_and_said(tmp_path, caplog, saved, opened, new):
    """A head that the checkpoint lacks entirely is new, with a warning that names it.

    What the checkpoint does have is taken from it.
    """
    reference, folder = saved_by_them(tmp_path, saved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = opened.from_pretrained(folder)
    said = [record.getMessage() for record in caplog.records
            if record.name.startswith("mini_undivided")]
    assert len(said) == bool(new) and all(head in said[0] for head in new)
    encoder = model if opened is Encoder else model.encoder
    keys = encoder.layers[2].attention.key, reference.base_model.encoder.layer[2].attention.self.key
    assert torch.equal(keys[0].weight, keys[1].weight)
    if saved == "BertModel" and opened is SequenceClassifier:
        assert torch.equal(model.pooler.weight, reference.pooler.dense.weight)


# What is refused


QUERY, BIAS = "bert.encoder.layer.1.attention.self.query.weight", "cls.predictions.bias"


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop(QUERY), "layer.1.attention.self.query.weight is missing"),
    (lambda t: t.pop("bert.encoder.layer.2.output.dense.bias"), "2.output.dense.bias is missing"),
    (lambda t: t.update({"bert.encoder.layer.1.adapter": torch.ones(2)}), "adapter has no place"),
    (lambda t: t.update({"bert.encoder.layer.4.output.dense.bias": torch.ones(2)}),
     "layer.4.output.dense.bias has no place"),
    (lambda t: t.update({QUERY: torch.ones(C, C + 1)}),
     r"query.weight has the shape \(36, 37\).*\(36, 36\)"),
    (lambda t: t.pop("cls.predictions.transform.dense.bias"), "transform.dense.bias is missing"),
    (lambda t: t.pop(BIAS), "cls.predictions.bias is missing"),
    (lambda t: t.update({BIAS: torch.full((V,), torch.nan)}), "bias has a value that is NaN"),
    (lambda t: t.update({BIAS: torch.ones(V, dtype=torch.int8)}), "bias is int8, not of floating"),
    (lambda t: t.update({QUERY.removeprefix("bert."): t[QUERY].clone()}), "holds a tensor twice"),
    (lambda t: t.update({f"teacher.{QUERY}": t.pop(QUERY)}), "tensor teacher.bert.*has no place"),
    (lambda t: t.update({"cls.predictions.decoder.weight": torch.ones(V, C)}),
     "decoder.weight is not tied")])
def test_loading_is_strict(tmp_path, change, said):
    """A tensor that is missing, left over, twice there or of another form is an error that says so.

    So is half a head.
    """
    MaskedLM(config()).save_pretrained(tmp_path)
    MaskedLM.from_pretrained(tmp_path)
    change_tensors(tmp_path, change)
    with pytest.raises(UserError, match=said):
        MaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [[], [1]])
def test_ffns_are_cut_out_of_a_trained_model(tmp_path, kept):
    """ffn_layers=... drops the other FFNs and keeps every other tensor.

    When the model is saved again, they are gone from the file, and a kept one has its three pairs.
    Any other tensor that is left over or missing is still an error.
    """
    mlm = scatter(MaskedLM(config()))
    mlm.save_pretrained(tmp_path / "full")
    cut = MaskedLM.from_pretrained(tmp_path / "full", ffn_layers=kept)
    assert [block.ffn is not None for block in cut.encoder.layers] == [i in kept for i in range(L)]
    assert all(torch.equal(t, mlm.state_dict()[name]) for name, t in cut.state_dict().items())
    cut.save_pretrained(tmp_path / "cut")
    assert read_json(tmp_path / "cut" / "config.json")["ffn_layers"] == kept
    ffns = {name for name in load_file(tmp_path / "cut" / "model.safetensors")
            if ".intermediate." in name or (".output." in name and ".attention." not in name)}
    parts = ("intermediate.dense", "output.dense", "output.LayerNorm")
    assert ffns == {f"bert.encoder.layer.{i}.{part}.{kind}"
                    for i in kept for part in parts for kind in ("weight", "bias")}
    adapter = "bert.encoder.layer.1.adapter"
    for change, said in ((lambda t: t.update({adapter: torch.ones(2)}), "adapter has no place"),
                         (lambda t: (t.pop(adapter), t.pop(QUERY)), "query.weight is missing")):
        change_tensors(tmp_path / "full", change)
        with pytest.raises(UserError, match=said):
            MaskedLM.from_pretrained(tmp_path / "full", ffn_layers=kept)


@pytest.mark.parametrize("saved, asked", [([], None), ([], [0]), ([1], [0, 1]), ([1, 2], None)])
def test_ffns_that_the_checkpoint_lacks_are_an_error(tmp_path, saved, asked):
    """Asking for an FFN that the checkpoint does not have is an error that names its layer."""
    MaskedLM(config(ffn_layers=saved)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no FFN in layer \d: only FFNs that it has"):
        MaskedLM.from_pretrained(tmp_path, ffn_layers=asked)


def test_a_pickle_with_code_is_refused(tmp_path):
    """pytorch_model.bin with code in it is an error, and the code does not run."""
    MaskedLM(config()).save_pretrained(tmp_path)
    as_pickle(tmp_path, lambda _: {"bert.pooler.dense.weight": Trap(tmp_path / "sprung")})
    with pytest.raises(UserError, match="holds something else than tensors"):
        MaskedLM.from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_without_config_or_weights_is_an_error(tmp_path):
    """A folder without config.json or weights, a wrong index, or no folder at all, is an error."""
    with pytest.raises(UserError, match="config.json"):
        MaskedLM.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", config().to_hugging_face("BertForMaskedLM"))
    with pytest.raises(UserError, match="holds no weights"):
        MaskedLM.from_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for content, said in (({"a": "gone.safetensors"}, "gone.safetensors does not exist"),
                          ({"a": "../config.json"}, "does not name files of its folder"),
                          ({}, "does not name files"), ([], "weight_map.* should be an object")):
        write_json(index, {"weight_map": content})
        with pytest.raises(UserError, match=said):
            MaskedLM.from_pretrained(tmp_path)
    change_config(tmp_path, model_type="roberta")
    with pytest.raises(UserError, match="model_type"):
        MaskedLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        MaskedLM.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [
    "config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
    "tokenizer.json", "vocab.txt", "tokenizer_config.json", "0.txt", "1.txt.gz", "train.tsv"])
def test_a_pointer_of_git_lfs_is_said(tmp_path, name):
    """A file that git-lfs has not fetched is an error that says how to fetch it."""
    write_json(tmp_path / "config.json", config().to_hugging_face("BertForMaskedLM"))
    Path(tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    Path(tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    load = load_tokenizer if name[0] in "tv" else MaskedLM.from_pretrained
    other = {"0.txt": read_pieces, "1.txt.gz": read_pieces, "train.tsv": read_tsv}
    with pytest.raises(UserError, match=f"{name} is a pointer of git-lfs: .*git lfs pull"):
        list(other[name](tmp_path / name)) if name in other else load(tmp_path)


def test_only_words_that_the_tokenizer_knows_fill_a_mask(tmp_path):
    """A model with room for more words than the tokenizer has answers with those that there are."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nfox\n")
    model = scatter(MaskedLM(config()))
    (words,) = fill(model, load_tokenizer(tmp_path / "vocab.txt"), "the [MASK]", top=2)
    assert {word for word, _ in words} == {"the", "fox"}
    assert sum(share for _, share in words) == pytest.approx(1)


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
        torch.equal(t, read[name]) and t.dtype == read[name].dtype for name, t in tensors.items())


@pytest.mark.parametrize("change", [
    lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: None, lambda t: "x", lambda t: {}],
    ids=["sparse", "meta", "None", "text", "object"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_pickle_with_something_else_than_dense_tensors_is_an_error(tmp_path, change, tied):
    """What is no dense tensor is refused by its name, beside a copy of it, too."""
    model, folder = saved_by_them(tmp_path, "BertForMaskedLM")
    tensors, words = dict(model.state_dict()), "bert.embeddings.word_embeddings.weight"
    if not tied:
        tensors = {n: t for n, t in tensors.items() if "decoder" not in n}
    tensors[words] = change(tensors[words].detach())
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="tensor embeddings.word_embeddings.weight is"):
        MaskedLM.from_pretrained(folder)
