"""Hugging Face checkpoints: config.json and weights under Hugging Face's names, read and written."""

import logging
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from mini_undivided.support.config import BertConfig
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, write_json
from mini_undivided.support.run_directory import resolve

log = logging.getLogger(__name__)

# Our names on the left, Hugging Face's on the right.
NAMES = [
    ("layers.", "encoder.layer."),
    (".attention.query.", ".attention.self.query."),
    (".attention.key.", ".attention.self.key."),
    (".attention.value.", ".attention.self.value."),
    (".attention.output.", ".attention.output.dense."),
    (".attention.norm.", ".attention.output.LayerNorm."),
    (".ffn.up.", ".intermediate.dense."),
    (".ffn.down.", ".output.dense."),
    (".ffn.norm.", ".output.LayerNorm."),
    ("embeddings.word.", "embeddings.word_embeddings."),
    ("embeddings.position.", "embeddings.position_embeddings."),
    ("embeddings.token_type.", "embeddings.token_type_embeddings."),
    ("embeddings.norm.", "embeddings.LayerNorm."),
    ("head.dense.", "cls.predictions.transform.dense."),
    ("head.norm.", "cls.predictions.transform.LayerNorm."),
    ("head.bias", "cls.predictions.bias"),
    ("pooler.", "bert.pooler.dense."),
]
HEADS = ("cls.predictions.", "cls.seq_relationship.", "pooler.", "classifier.")
# Copies of other tensors, or tables that any model can compute: nothing is lost without them.
COPIES = {
    "embeddings.position_ids": None,
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class Pretrained(nn.Module):
    """What the three models share: they are opened from, and saved as, Hugging Face checkpoints."""

    architecture = None  # the class of `transformers` that reads the same file

    @classmethod
    def from_pretrained(cls, directory, ffn_layers="as saved", **kwargs):
        """Open a run or a Hugging Face BERT (folder, or id on the hub).

        ffn_layers: as in BertConfig, to cut FFNs out of a trained model.
        Loading is strict: UserError names a tensor that is missing or surplus. A head that the checkpoint lacks is
        newly initialised, and a warning says so.
        """
        folder = resolve(directory)
        config = BertConfig.from_hugging_face(folder)
        cut = ffn_layers != "as saved"
        if cut:
            config = replace(config, ffn_layers=ffn_layers)
        model = cls(config, **kwargs)
        load_tensors(model, read_weights(folder), str(directory), cut)
        return model.eval()

    def save_pretrained(self, directory):
        """Write config.json and model.safetensors, whole or not at all."""
        write_weights(directory, {hugging_face_name(n): t for n, t in self.state_dict().items()})
        settings = self.config.to_hugging_face(self.architecture)
        if hasattr(self, "num_labels"):
            settings |= label_names([f"LABEL_{i}" for i in range(self.num_labels)])
        write_json(Path(directory) / "config.json", settings)


def label_names(names):
    """The part of config.json that names a classifier's labels."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }


def hugging_face_name(name):
    """The name of one of our tensors in a Hugging Face checkpoint."""
    if name.startswith("encoder."):
        name = "bert." + name.removeprefix("encoder.")
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def plain_name(name):
    """A checkpoint's name without what differs between classes and ages: "bert.", LayerNorm's gamma and beta."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def load_tensors(model, tensors, source, cut):
    """Copy a checkpoint's tensors into `model`, strictly; `cut` allows FFNs of layers that have none in the model."""
    saved = {plain_name(name): t for name, t in tensors.items()}
    for name, original in COPIES.items():
        copy = saved.pop(name, None)
        if copy is not None and original in saved and not torch.equal(copy, saved[original]):
            raise UserError(
                f"{source}: {name} is not tied to {original}; only models with tied embeddings can be opened"
            )
    wanted = {plain_name(hugging_face_name(name)): p for name, p in model.state_dict().items()}
    absent = [head for head in HEADS if not any(n.startswith(head) for n in saved)]
    missing = [n for n in wanted if n not in saved and not n.startswith(tuple(absent))]
    surplus = [
        n for n in saved if n not in wanted and not n.startswith(HEADS) and not (cut and is_ffn(n))
    ]
    if missing:
        raise UserError(f"{source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    if surplus:
        raise UserError(
            f"{source}: the tensor {surplus[0]} has no place in the model ({len(surplus)} in all)"
        )
    for name in wanted.keys() & saved.keys():
        if wanted[name].shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} but the model's is {tuple(wanted[name].shape)}"
            raise UserError(f"{source}: the tensor {name} has the shape {shapes}")
        with torch.no_grad():
            wanted[name].copy_(saved[name])
    new = [head.rstrip(".") for head in absent if any(n.startswith(head) for n in wanted)]
    if new:
        log.warning("%s has no weights for %s: newly initialised.", source, " and ".join(new))


def is_ffn(name):
    """Whether a checkpoint's tensor belongs to a feed-forward sublayer."""
    return name.startswith("encoder.layer.") and (
        ".intermediate." in name or name.split(".")[3] == "output"
    )


def read_weights(folder):
    """All tensors of a checkpoint by name: model.safetensors, else pytorch_model.bin (never executing its pickle)."""
    folder = Path(folder)
    try:
        if (folder / "model.safetensors").exists():
            return safetensors.torch.load_file(folder / "model.safetensors")
        if (folder / "pytorch_model.bin").exists():
            return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors have no common parent
        raise UserError(
            f"the weights in {folder} cannot be read ({error}); the file may be cut short"
        ) from None
    raise UserError(
        f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin is there"
    )


def write_weights(folder, tensors):
    """Write tensors by name as model.safetensors, whole or not at all."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic(Path(folder) / "model.safetensors") as temporary:
        safetensors.torch.save_file(tensors, temporary, {"format": "pt"})
