"""The BERT encoder (Devlin et al. 2019, 1810.04805), with a feed-forward network in the layers that you choose.

Letters: B sequences in a batch, T tokens in a sequence, C hidden size, H heads, D = C / H the width of a head,
M positions that are asked for in a sequence, V words in the vocabulary.

A block is two sublayers, each with a residual and a LayerNorm after it (BERT is "post-norm"):

    x = LayerNorm(x + Attention(x))      tokens exchange information
    x = LayerNorm(x + FFN(x))            each token on its own; the paper calls it the intermediate layer

Without its FFN a block is the first line alone: the second is gone whole, with its residual and its LayerNorm.
"""

import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mini_undivided import runs
from mini_undivided.runtime import UserError

log = logging.getLogger(__name__)


@dataclass
class BertConfig:
    """The sizes of a model, under Hugging Face's names, and `ffn_layers`: which layers have an FFN.

    ffn_layers: None for all (BERT), [] for none, or layer numbers from 0. Raises UserError where sizes do not fit.
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
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{self.num_attention_heads} heads do not divide the hidden size {self.hidden_size}; "
                "choose a number of heads that does"
            )
        if self.ffn_layers is not None:
            wrong = [i for i in self.ffn_layers if not 0 <= i < self.num_hidden_layers]
            if wrong:
                raise UserError(
                    f"FFN layer {wrong[0]} is out of range: the {self.num_hidden_layers} layers are numbered from 0 "
                    f"to {self.num_hidden_layers - 1}"
                )
            self.ffn_layers = sorted(set(self.ffn_layers))

    def has_ffn(self, layer):
        """Whether block number `layer` has a feed-forward network."""
        return self.ffn_layers is None or layer in self.ffn_layers

    def to_hugging_face(self, architecture):
        """The dictionary that goes into config.json."""
        fixed = {"architectures": [architecture], "model_type": "bert", "hidden_act": "gelu"}
        return {**fixed, "position_embedding_type": "absolute", "tie_word_embeddings": True, **asdict(self)}

    @classmethod
    def from_hugging_face(cls, directory):
        """Read config.json. Raises UserError for another architecture than BERT's."""
        path = Path(directory) / "config.json"
        found = runs.read_json(path)
        ours = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for name, value in ours.items():
            if found.get(name, value) != value:
                raise UserError(f'{path}: {name} is "{found[name]}", but only "{value}" is supported')
        return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})


def every_kth(layers, k):
    """The layers that keep their FFN with --ffn-every K: every K-th, counted so that the last is one. 12, 4 → 3, 7, 11."""
    return list(range(layers - 1, -1, -k))[::-1]


def attend(q, k, v, mask=None, dropout=0.0):
    """softmax(Q Kᵀ / √D) V, written out (Vaswani et al. 2017, 1706.03762).

    q (B, H, M, D); k, v (B, H, T, D); mask (B, 1, 1, T), True where a token may be looked at → (B, H, M, D).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, M, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights @ v


def attend_fast(q, k, v, mask=None, dropout=0.0):
    """The same as `attend`, by PyTorch's fused kernel, which never stores the (T, T) weights."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class Attention(nn.Module):
    """The attention sublayer: LayerNorm(x + Dropout(W_o · attention(x)))."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.output = nn.Linear(C, C)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(C, eps=config.layer_norm_eps)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, C) → (B, H, T, D)

    def forward(self, x, mask=None, positions=None):
        """x (B, T, C), mask (B, 1, 1, T) → (B, T, C); with `positions` (B, M), only there → (B, M, C)."""
        asked = x if positions is None else pick(x, positions)
        q, k, v = self.split(self.query(asked)), self.split(self.key(x)), self.split(self.value(x))
        dropout = self.attention_dropout if self.training else 0.0
        # The fused kernel has no fast dropout on a CPU; there the written-out form is quicker.
        form = attend if dropout and x.device.type == "cpu" else attend_fast
        y = form(q, k, v, mask, dropout).transpose(1, 2).flatten(2)  # (B, H, M, D) → (B, M, C)
        return self.norm(asked + self.dropout(self.output(y)))


class FeedForward(nn.Module):
    """The feed-forward sublayer: LayerNorm(x + Dropout(W_down · gelu(W_up · x))), on each token alone."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x):
        y = self.up(x)
        # On a CPU the backward pass computes the GELU anew: that is cheap, and its output would be a quarter of what a
        # layer stores. On a GPU, torch.compile chooses what to compute anew.
        if x.device.type == "cpu":
            y = checkpoint(self.gelu_down, y, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self.gelu_down(y)
        return self.norm(x + self.dropout(y))

    def gelu_down(self, y):
        return self.down(F.gelu(y))


class Block(nn.Module):
    """A layer of BERT: attention, then the FFN where the layer has one. Without it, exactly its attention sublayer."""

    def __init__(self, config, has_ffn):
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config) if has_ffn else None

    def forward(self, x, mask=None, positions=None):
        x = self.attention(x, mask, positions)
        return x if self.ffn is None else self.ffn(x)


class LookUp(torch.autograd.Function):
    """Looks words up in a matrix that the head uses too: the two gradients of it meet here.

    input_ids (B, T), weight (V, C) → their vectors (B, T, C), and `weight` for the head. Autograd alone would take a
    second matrix of (V, C) for the lookup's gradient, which is 0 but in a few rows; here they are added to the head's.
    """

    @staticmethod
    def forward(ctx, input_ids, weight):
        ctx.save_for_backward(input_ids)
        return F.embedding(input_ids, weight), weight

    @staticmethod
    def backward(ctx, gradient, whole):
        (input_ids,) = ctx.saved_tensors
        # In place: `whole` was computed for this call alone. (B, T) → (B T,), (B, T, C) → (B T, C)
        return None, whole.index_add_(0, input_ids.flatten(), gradient.flatten(0, 1))


class Embeddings(nn.Module):
    """Word, position and segment vectors, summed, normalised, dropped out."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, C)
        self.position = nn.Embedding(config.max_position_embeddings, C)
        self.token_type = nn.Embedding(config.type_vocab_size, C)
        self.norm = nn.LayerNorm(C, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids=None, words=None):
        T, limit = input_ids.size(1), self.position.num_embeddings
        if T > limit:
            raise UserError(f"a sequence of {T} tokens is longer than the model's {limit} positions")
        segment = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        words = self.word(input_ids) if words is None else words
        x = words + (self.position.weight[:T] + segment)  # (B, T, C)
        return self.dropout(self.norm(x))


class Pretrained(nn.Module):
    """What the three models share: initialisation, and reading and writing Hugging Face checkpoints."""

    architecture = None  # the class of `transformers` that reads the same file

    def initialise(self):
        """Weights from a plain normal distribution of deviation 0.02 (as `transformers` does it), biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, directory, ffn_layers="as saved", **kwargs):
        """Open a run or a Hugging Face BERT (folder, or id on the hub).

        ffn_layers: as in BertConfig, to cut FFNs out of a trained model. Loading is strict: UserError names a tensor
        that is missing or too many. A head that the checkpoint lacks is newly initialised, and a warning says so.
        """
        folder = runs.resolve(directory)
        config = BertConfig.from_hugging_face(folder)
        cut = ffn_layers != "as saved"
        if cut:
            config = replace(config, ffn_layers=ffn_layers)
        model = cls(config, **kwargs)
        load_tensors(model, runs.read_weights(folder), str(directory), cut)
        return model.eval()

    def save_pretrained(self, directory):
        """Write config.json and model.safetensors, whole or not at all."""
        runs.write_weights(directory, {hugging_face_name(n): t for n, t in self.state_dict().items()})
        runs.write_json(Path(directory) / "config.json", self.hugging_face_config())

    def hugging_face_config(self):
        return self.config.to_hugging_face(self.architecture)


class Encoder(Pretrained):
    """Token ids → one vector a token. `transformers`' BertModel without pooler."""

    architecture = "BertModel"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config, config.has_ffn(i)) for i in range(config.num_hidden_layers))
        self.initialise()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, output_hidden_states=False, positions=None,
                words=None):  # fmt: skip
        """input_ids, token_type_ids (B, T); attention_mask (B, T), 1 or True for real tokens → states (B, T, C).

        output_hidden_states: also the list of the embeddings' output and each layer's, (B, T, C) each.
        positions (B, M): the states at these positions only, (B, M, C); the last layer then computes no others.
        words (B, T, C): the vectors of input_ids, where they are looked up already.
        """
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        x = self.embeddings(input_ids, token_type_ids, words)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, positions if i == len(self.layers) - 1 else None)
            if output_hidden_states:
                states.append(x)
        return (x, states) if output_hidden_states else x


class MaskedLM(Pretrained):
    """The encoder and a head that names the masked words; its output matrix is the word embeddings again."""

    architecture = "BertForMaskedLM"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = nn.Module()
        self.head.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.head.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.initialise()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """→ logits (B, T, V); with `positions` (B, M), of these positions only, (B, M, V)."""
        words, weight = LookUp.apply(input_ids, self.encoder.embeddings.word.weight)
        x = self.encoder(input_ids, attention_mask, token_type_ids, positions=positions, words=words)
        x = self.head.norm(F.gelu(self.head.dense(x)))
        return F.linear(x, weight, self.head.bias)


class SequenceClassifier(Pretrained):
    """The encoder, BERT's pooler (dense and tanh on [CLS]) and a linear layer: one of `num_labels`, or a number."""

    architecture = "BertForSequenceClassification"

    def __init__(self, config, num_labels=2):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        self.initialise()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """→ logits (B, num_labels); for a regression (num_labels 1) the number itself."""
        states = self.encoder(input_ids, attention_mask, token_type_ids)
        pooled = torch.tanh(self.pooler(states[:, 0]))  # (B, C)
        return self.classifier(self.dropout(pooled))

    def hugging_face_config(self):
        names = {i: f"LABEL_{i}" for i in range(self.classifier.out_features)}
        label_names = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        return {**super().hugging_face_config(), **label_names}


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


def hugging_face_name(name):
    """The name under which a tensor of ours stands in a Hugging Face checkpoint."""
    if name.startswith("encoder."):
        name = "bert." + name.removeprefix("encoder.")
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def plain_name(name):
    """A checkpoint's name without what differs between classes and ages: the prefix "bert.", LayerNorm's gamma, beta."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def load_tensors(model, tensors, source, cut):
    """Copy a checkpoint's tensors into `model`, strictly; `cut` allows FFNs of layers that the model has without."""
    found = {plain_name(name): t for name, t in tensors.items()}
    # Copies of other tensors, or tables that any model can compute: nothing is lost without them.
    for name in ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        copy, twin = found.pop(name, None), {"weight": "embeddings.word_embeddings.weight", "bias": "cls.predictions.bias"}
        original = found.get(twin.get(name.rpartition(".")[2]))
        if copy is not None and original is not None and not torch.equal(copy, original):
            raise UserError(f"{source}: {name} is not tied to its twin; only models with tied embeddings can be opened")
    wanted = {plain_name(hugging_face_name(name)): p for name, p in model.state_dict().items()}
    absent = [head for head in HEADS if not any(n.startswith(head) for n in found)]
    missing = [n for n in wanted if n not in found and not n.startswith(tuple(absent))]
    surplus = [n for n in found if n not in wanted and not n.startswith(HEADS) and not (cut and is_ffn(n))]
    if missing:
        raise UserError(f"{source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    if surplus:
        raise UserError(f"{source}: the tensor {surplus[0]} has no place in the model ({len(surplus)} in all)")
    for name in wanted.keys() & found.keys():
        if wanted[name].shape != found[name].shape:
            shapes = f"{tuple(found[name].shape)} but the model's is {tuple(wanted[name].shape)}"
            raise UserError(f"{source}: the tensor {name} has the shape {shapes}")
        with torch.no_grad():
            wanted[name].copy_(found[name])
    new = [head.rstrip(".") for head in absent if any(n.startswith(head) for n in wanted)]
    if new:
        log.warning("%s has no weights for %s: initialised anew.", source, " and ".join(new))


def is_ffn(name):
    """Whether a checkpoint's tensor belongs to a feed-forward sublayer."""
    return name.startswith("encoder.layer.") and (".intermediate." in name or name.split(".")[3] == "output")


def pick(x, positions):
    """The vectors of x (B, T, C) at positions (B, M) → (B, M, C)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.size(-1)))


def count_parameters(config, model_class=MaskedLM):
    """The number of parameters of a model, without making one (a "meta" tensor has a shape and no memory)."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


def flops_per_token(config, seq_len, asked=None):
    """FLOPs of one training step for each of its tokens: two a multiply-add, forward once and backward twice.

    asked: the masked positions of a sequence, where alone the last layer's queries and FFN and the head are computed.
    Matrix products only; the embeddings, norms and activations are lookups and sums.
    """
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    share = 1.0 if asked is None else asked / seq_len
    total = 0.0
    for i in range(L):
        here = share if i == L - 1 else 1.0
        total += 2 * C * C + here * (2 * C * C + 2 * seq_len * C)  # keys and values; queries, output, QKᵀ and ·V
        total += here * 2 * C * config.intermediate_size if config.has_ffn(i) else 0.0
    total += share * (C * C + V * C)  # the head
    return 6 * total
