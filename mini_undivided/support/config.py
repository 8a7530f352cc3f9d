"""The sizes of a model, under Hugging Face's names."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import read_json

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclass
class BertConfig:
    """The sizes of a model, under Hugging Face's names, and `ffn_layers`: which layers have an FFN.

    ffn_layers: layer numbers from 0. None, the default, stands for all of them (BERT) and [] for none; in a config
    that is built it is always a list. Raises UserError if the sizes do not fit together.
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
    pad_token_id: int = 0
    ffn_layers: list[int] | None = None

    def __post_init__(self):
        for name in SIZES:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{self.num_attention_heads} heads do not divide the hidden size {self.hidden_size}; "
                "choose a number of heads that does"
            )
        layers = range(self.num_hidden_layers)
        chosen = layers if self.ffn_layers is None else self.ffn_layers
        wrong = [i for i in chosen if i not in layers]
        if wrong:
            raise UserError(
                f"FFN layer {wrong[0]} is out of range: the {len(layers)} layers are numbered from 0 "
                f"to {len(layers) - 1}"
            )
        self.ffn_layers = sorted(set(chosen))

    def to_hugging_face(self, architecture):
        """The dictionary that config.json holds; `architecture` is the class of `transformers` that reads it."""
        fixed = {"architectures": [architecture], **FIXED, "tie_word_embeddings": True}
        return {**fixed, **asdict(self)}

    @classmethod
    def from_hugging_face(cls, folder):
        """Read config.json. Raises UserError if it describes another architecture than BERT's."""
        path = Path(folder) / "config.json"
        saved = read_json(path)
        for name, value in FIXED.items():
            if saved.get(name, value) != value:
                raise UserError(
                    f'{path}: {name} is "{saved[name]}", but only "{value}" is supported'
                )
        return cls(
            **{field.name: saved[field.name] for field in fields(cls) if field.name in saved}
        )
