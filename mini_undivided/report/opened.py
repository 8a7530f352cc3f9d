"""A run, opened: what analysis and fine-tuning need of its folder, and what it is called."""

from functools import cached_property
from pathlib import Path

import torch

from mini_undivided.costs import count_parameters
from mini_undivided.model import BertConfig, Encoder
from mini_undivided.report.replicates import what_replicates_share
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_form, read_json
from mini_undivided.support.run_directory import check_finished, read_record, resolve
from mini_undivided.tokenizer import check_fits, load_tokenizer

RESULT = {"task?": str, "name": str, "from_scratch": bool, "scores": dict, "majority": dict}


class SavedRun:
    """A run directory or Hugging Face checkpoint, read: config, encoder, tokenizer, records.

    kind: the name of the replicates that it is one of.
    """

    def __init__(self, directory, name=None):
        check_finished(directory)
        self.folder, self.name = resolve(directory), name or Path(directory).name
        self.kind = self.name
        self.config = BertConfig.from_hugging_face(self.folder)
        self.tokenizer = load_tokenizer(self.folder)
        check_fits(self.tokenizer, self.config.vocab_size, directory)
        known = (self.folder / "train.json").exists()
        self.record = read_record(self.folder) if known else {}
        self.fingerprint = self.record["corpus"]["fingerprint"] if known else None
        self.options = self.record.get("options", {})

    @cached_property
    def encoder(self):
        """The trained encoder."""
        return Encoder.from_pretrained(self.folder)

    def untrained(self, seed):
        """The same architecture with fresh weights."""
        torch.manual_seed(seed)
        return Encoder(self.config).eval()

    @property
    def longest(self):
        """The most tokens of a sequence that the run was trained on."""
        positions = self.config.max_position_embeddings
        return min(positions, self.options.get("seq_len", positions))

    @property
    def replicates(self):
        """What it shares with its replicates, as text; with nothing, if it has no record."""
        if not self.options:
            return self.name
        half = "bfloat16" in str(self.record.get("machine"))  # the option may say "auto"
        return what_replicates_share(self.options, self.fingerprint, half)

    @property
    def start(self):
        """The first columns of its rows of results."""
        return {"kind": self.kind, "run": self.name, "seed": self.options.get("seed")}

    def facts(self):
        """Rows of what training gave, and of what finetune.py left."""
        result, flops = self.record.get("result", {}), self.record.get("flops_per_token")
        numbers = {
            "layers": self.config.num_hidden_layers, "FFNs": len(self.config.ffn_layers),
            "parameters": count_parameters(self.config), "MFLOPs per token": flops and flops / 1e6,
            "tokens seen": result.get("tokens"), "tokens/s": result.get("tokens_per_second"),
            "validation loss": result.get("validation_loss"),
            "masked accuracy": result.get("validation_accuracy")}
        for measure, value in numbers.items():
            if value is not None:
                yield {**self.start, "measure": measure, "value": value}
        for path in sorted((self.folder / "glue").glob("*.json")):
            yield from fine_tuned(path, self.start)


def fine_tuned(path, start):
    """Rows of what finetune.py wrote of a task; start: the first columns of the run's rows."""
    result = read_json(path, RESULT)
    for metric, score in result["scores"].items():
        check_form(score, {"mean": float, "std": float | None}, path, f'"{metric}"')
        check_form(result["majority"], {metric: float}, path)
        scratch = " from scratch" if result["from_scratch"] else ""
        measure = f"fine-tuned{scratch}: {result['name']} {metric}"
        yield {**start, "measure": measure, "value": score["mean"], "spread": score["std"]}
        yield {"kind": "majority", "measure": measure, "value": result["majority"][metric]}


def short_names(paths):
    """The runs' folder names, or if these are not all different, their paths."""
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UserError(f"a run is given twice: {' '.join(map(str, paths))}")
    names = [Path(path).resolve().name if Path(path).is_dir() else Path(path).name
             for path in paths]
    return names if len(set(names)) == len(names) else [str(Path(path)) for path in paths]
