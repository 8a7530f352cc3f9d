"""Hugging Face checkpoints: config.json and weights under Hugging Face's names."""

import logging
import pickle
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from mini_undivided.support.config import BertConfig
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, is_whole, read_json, reading, sealed, write_json
from mini_undivided.support.run_directory import count_rows, resolve, truncate_log

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
    ("next.", "cls.seq_relationship.")]
FFN = re.compile(r"encoder\.layer\.\d+\.(intermediate|output)\.")
HEADS = ("cls.predictions.", "cls.seq_relationship.", "pooler.", "classifier.", "qa_outputs.")
PREFIX = re.compile(r"^((module|_orig_mod|model|bert)\.)*")
WRAPPERS = ("model", "state_dict", "model_state_dict")  # under which trainers save the weights
TABLES = ("embeddings.position_ids", "embeddings.token_type_ids")  # any model can compute them
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias"}


class Pretrained(nn.Module):
    """What the three models share: they are opened from, and saved as, Hugging Face checkpoints."""

    architecture = None  # the class of `transformers` that reads the same file

    @classmethod
    def from_pretrained(cls, directory, ffn_layers="as saved", **kwargs):
        """Open a run or a Hugging Face BERT (folder, or id on the hub).

        ffn_layers: as in BertConfig, to cut FFNs out of a trained model. Loading is strict:
        UserError names a tensor that is missing or surplus. A head that the checkpoint lacks is
        newly initialised, and a warning says so.
        """
        folder = resolve(directory)
        config = BertConfig.from_hugging_face(folder)
        cut = ffn_layers != "as saved"
        if cut:
            full, config = config, replace(config, ffn_layers=ffn_layers)
            lacking = set(config.ffn_layers) - set(full.ffn_layers)
            if lacking:
                raise UserError(f"{directory} has no FFN in layer {min(lacking)}: "
                                "only FFNs that it has can be kept")
        tensors = read_weights(folder)
        with torch.device("meta"):  # shapes only: what does not fit is refused before taking memory
            matched = match_tensors(cls(config, **kwargs), tensors, str(directory), cut)
        model = cls(config, **kwargs)
        model.load_state_dict(matched, strict=False)  # a head may be new
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
    numbers = {name: i for i, name in enumerate(names)}
    return {"id2label": dict(enumerate(names)), "label2id": numbers}


def hugging_face_name(name):
    """The name of one of our tensors in a Hugging Face checkpoint."""
    if name.startswith("encoder."):
        name = "bert." + name.removeprefix("encoder.")
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def plain_name(name):
    """A checkpoint's name without what differs with class and age: "bert.", gamma and beta.

    Nor with what trainers put before it: "module." of DDP, "_orig_mod." of torch.compile, "model."
    of many. Other prefixes stay: they may be another model's.
    """
    name = PREFIX.sub("", name).replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def match_tensors(model, tensors, source, cut):
    """A checkpoint's tensors by the model's names, checked; `cut` allows FFNs that it lacks."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = {plain_name(hugging_face_name(name)): name for name in shapes}
    saved = {plain_name(name): tensor for name, tensor in tensors.items()}
    if len(saved) < len(tensors):
        raise UserError(f"{source} holds a tensor twice, under two forms of its name")
    new = [head for head in HEADS if not any(n.startswith(head) for n in saved)]
    known = (*names, *TIED, *TABLES)
    surplus = [n for n in saved if n not in known and not n.startswith(HEADS)]
    surplus = [n for n in surplus if not (cut and FFN.match(n))]
    if surplus:
        raise UserError(f"{source}: the tensor {surplus[0]} "
                        f"has no place in the model ({len(surplus)} in all)")
    saved = {n: tensor for n, tensor in saved.items() if n in names or n in TIED}
    check_numbers(source, saved)
    for copy, original in TIED.items():
        if copy in saved and not torch.equal(saved[copy], saved.setdefault(original, saved[copy])):
            raise UserError(f"{source}: {copy} is not tied to {original}; "
                            "only models with tied embeddings can be opened")
    missing = [n for n in names if n not in saved and not n.startswith(tuple(new))]
    if missing:
        raise UserError(f"{source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    matched = {}
    for n, name in names.items():
        if n in saved and saved[n].shape != shapes[name]:
            raise UserError(f"{source}: the tensor {n} has the shape "
                            f"{tuple(saved[n].shape)} but the model's is {tuple(shapes[name])}")
        if n in saved:
            matched[name] = saved[n]
    new = [head.rstrip(".") for head in new if any(n.startswith(head) for n in names)]
    if new:
        log.warning("%s has no weights for %s: newly initialised.", source, " and ".join(new))
    return matched


def read_pooler(folder, config):
    """The weights of a checkpoint's pooler, {"weight", "bias"}, or None if it has none."""
    saved = {plain_name(name): tensor for name, tensor in read_weights(folder).items()}
    pooler = {kind: saved.get(f"pooler.dense.{kind}") for kind in ("weight", "bias")}
    if any(tensor is None for tensor in pooler.values()):
        return None
    check_numbers(folder, pooler)
    C = config.hidden_size
    return pooler if pooler["weight"].shape == (C, C) and pooler["bias"].shape == (C,) else None


def check_numbers(source, tensors):
    """Raise UserError if a tensor holds something else than finite floating-point numbers."""
    for name, tensor in tensors.items():
        if not torch.is_tensor(tensor) or not tensor.is_floating_point():
            kind = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
            raise UserError(f"{source}: the tensor {name} is {kind}, not of floating-point numbers")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise UserError(f"{source}: the tensor {name} is sparse or has no data: save it dense")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source}: the tensor {name} has a value that is NaN or infinite")


def read_weights(folder):
    """All tensors by name, of model.safetensors or else pytorch_model.bin, in one file or several.

    A pickle is read as weights only, so that it cannot run code.
    """
    for name, read in (("model.safetensors", safetensors.torch.load_file),
                       ("pytorch_model.bin", read_pickle)):
        path, index = Path(folder) / name, Path(folder) / f"{name}.index.json"
        paths = [path] if path.exists() else shards(index) if index.exists() else []
        if paths:
            tensors = {}
            for path in paths:
                with reading(path):
                    tensors |= read(path)
            return tensors
    raise UserError(f"{folder} holds no weights: "
                    "neither model.safetensors nor pytorch_model.bin is there")


def shards(index):
    """The files that an index names, beside it."""
    files = read_json(index, {"weight_map": dict})["weight_map"].values()
    odd = [file for file in files if not isinstance(file, str) or Path(file).name != file]
    if odd or not files:
        raise UserError(f"{index}: its weight_map does not name files of its folder")
    return [index.parent / file for file in sorted(set(files))]


def read_pickle(path):
    """The tensors of a file of torch.save, by name."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its text advises to load it without this safety
        raise UserError(f"{path} holds something else than tensors: it was not opened") from None
    for name in WRAPPERS:
        if isinstance(tensors, dict) and isinstance(tensors.get(name), dict):
            tensors = tensors[name]
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise UserError(f"{path} holds no tensors by name")
    return tensors


def write_weights(folder, tensors):
    """Write tensors by name as model.safetensors, whole or not at all."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with atomic(Path(folder) / "model.safetensors") as temporary:
        safetensors.torch.save_file(tensors, temporary, {"format": "pt"})


def write_state(folder, state):
    """Write training_state.pt, a dictionary of tensors and plain numbers, with its checksum."""
    with sealed(Path(folder) / "training_state.pt") as temporary:
        torch.save(state, temporary)


def read_state(folder):
    """Read training_state.pt, never executing its pickle. UserError if it is missing or damaged."""
    path = Path(folder) / "training_state.pt"
    if not is_whole(path):
        raise UserError(f"{path} is damaged: it is not what {path.name}.sum is the checksum of")
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def save_trainer(trainer):
    """Write a run's checkpoint: what --resume reads first, then the weights that others read."""
    random = trainer.machine.gather_objects(trainer.machine.random_state())
    if trainer.machine.is_main:
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        state = {"model": trainer.model.state_dict(), "optimizer": optimizers, "random": random,
                 "rows": count_rows(trainer.out), **asdict(trainer.state)}
        write_state(trainer.out, state)
        trainer.model.save_pretrained(trainer.out)


def load_trainer(trainer):
    """Go on from training_state.pt, as if there had been no interruption.

    Raises UserError if the file is damaged, or is not the state of this model.
    """
    machine, counts, saved = trainer.machine, type(trainer.state), read_state(trainer.out)
    with reading(Path(trainer.out) / "training_state.pt"):
        trainer.model.load_state_dict(saved["model"])
        for optimizer, state in zip(trainer.optimizers, saved["optimizer"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # rates: the options say them
            optimizer.load_state_dict({**state, "param_groups": groups})
        trainer.state = counts(**{field.name: saved[field.name] for field in fields(counts)})
    machine.set_random_state(saved["random"][machine.rank % len(saved["random"])])
    if machine.is_main:
        truncate_log(trainer.out, saved["rows"])
