"""The sizes of a model, under Hugging Face's names."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import KINDS, is_kind, read_json

MOST = {"num_hidden_layers": 1000, "vocab_size": 2**24, "max_position_embeddings": 2**20}
MOST_OTHERS = 2**18  # of any other size: more is a mistake
# Fields of `transformers` with the only value that is computed here.
FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute",
         "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True,
         "pruned_heads": {}}


@dataclass
class BertConfig:
    """The sizes of a model, under Hugging Face's names, and `ffn_layers`: which layers have an FFN.

    ffn_layers: layer numbers from 0. None, the default, stands for all of them (BERT) and [] for
    none; in a config that is built it is always a list. Raises UserError if the sizes do not fit
    together.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    ffn_layers: list[int] | None = None

    def __post_init__(self):
        for field in fields(self)[:-1]:
            value, kinds = getattr(self, field.name), get_args(field.type) or (field.type,)
            if not any(is_kind(value, kind) for kind in kinds):
                wanted = " or ".join(KINDS[kind] for kind in kinds)
                raise UserError(f"{field.name} is {str(value)[:40]}; it must be {wanted}")
            if int in kinds:
                least, most = int(field.name != "pad_token_id"), MOST.get(field.name, MOST_OTHERS)
            else:
                least, most = 0, 1
            if value is not None and not least <= value <= most:
                raise UserError(f"{field.name} is {value}; it must be from {least:,} to {most:,}")
        dropouts = self.hidden_dropout_prob, self.attention_probs_dropout_prob
        if self.layer_norm_eps == 0 or 1 in (*dropouts, self.classifier_dropout):
            raise UserError("layer_norm_eps must be above 0, and a dropout below 1")
        heads, layers = self.num_attention_heads, range(self.num_hidden_layers)
        if self.hidden_size % heads:
            raise UserError(f"{heads} heads do not divide the hidden size {self.hidden_size}; "
                            "choose a number of heads that does")
        chosen = list(layers) if self.ffn_layers is None else self.ffn_layers
        if not isinstance(chosen, list) or not all(is_kind(i, int) for i in chosen):
            raise UserError(f"ffn_layers is {str(chosen)[:40]}; it must be a list of layer numbers")
        wrong = [i for i in chosen if i not in layers]
        if wrong:
            raise UserError(f"FFN layer {wrong[0]} is out of range: "
                            f"the {len(layers)} layers are numbered from 0 to {len(layers) - 1}")
        self.ffn_layers = sorted(set(chosen))

    def check_pairs(self, source):
        """Raise UserError if the model has no second segment vector, which pairs of texts need."""
        if self.type_vocab_size < 2:
            raise UserError(f"{source} has type_vocab_size {self.type_vocab_size}: it takes single "
                            "texts, no pairs, whose second text needs a segment vector of its own")

    def to_hugging_face(self, architecture):
        """The dictionary that config.json holds; `architecture`: the class of `transformers`."""
        return {"architectures": [architecture], **FIXED, **asdict(self)}

    @classmethod
    def from_hugging_face(cls, folder):
        """Read config.json. Raises UserError if it describes another architecture than BERT's."""
        path = Path(folder) / "config.json"
        saved = read_json(path)
        for name, value in FIXED.items():
            if saved.get(name) not in (None, value):
                shown, known = (json.dumps(setting)[:40] for setting in (saved[name], value))
                raise UserError(f"{path}: {name} is {shown}, but only {known} is supported")
        names = [field.name for field in fields(cls)]
        try:
            return cls(**{name: saved[name] for name in names if name in saved})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
