"""The BERT encoder (Devlin et al. 2019, 1810.04805), with an FFN in the layers that you choose.

Letters: B sequences in a batch, T tokens in a sequence, C hidden size, H heads, D = C / H the
width of a head, V words in the vocabulary, K labels. M positions are asked for: pretraining needs
the last layer's output at the masked places only, so that queries are computed there alone; else M
= T.

A block is two sublayers, each followed by a residual and a LayerNorm ("post-norm"):

    x = LayerNorm(x + Attention(x))      tokens exchange information
    x = LayerNorm(x + FFN(x))            each token by itself, by a feed-forward network

The paper calls the FFN the intermediate layer. Without it a block is the first line alone: the
second is gone whole, with its residual and its LayerNorm. What is left keeps each token's own
vector (the residual) and mixes in the others'.

Post-norm is BERT's choice. It keeps every layer's output at the same scale, but in an untrained
model the gradients near the output are large, which is why training needs a warm-up (Xiong et al.
2020, 2002.04745).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mini_undivided.support.checkpoint import Pretrained
from mini_undivided.support.config import BertConfig  # noqa: F401 (users import it from here)
from mini_undivided.support.errors import UserError


def attend(q, k, v, mask=None, dropout=0.0):
    """softmax(Q Kᵀ / √D) V, written out (Vaswani et al. 2017, 1706.03762).

    q (B, H, M, D); k, v (B, H, T, D); mask (B, 1, 1, T), True where a token may be looked at →
    (B, H, M, D). The dot product of two vectors of D independent numbers of variance 1 has variance
    D: divided by √D the scores keep a variance of 1, and softmax is not yet so sharp that its
    gradient vanishes.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, M, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)  # 0 where the score is the least number
    if mask is not None:
        weights = weights * mask  # for a row that is all padding
    return F.dropout(weights, dropout) @ v


def attend_fast(q, k, v, mask=None, dropout=0.0):
    """The same as `attend`, by PyTorch's fused kernel, which never stores the (M, T) weights."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def pick(x, positions):
    """The vectors of x (B, T, C) at positions (B, M) → (B, M, C)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.size(-1)))


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
        """One vector a token → one a token and head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, C) → (B, H, T, D)

    def forward(self, x, mask=None, positions=None):
        """x (B, T, C), mask (B, 1, 1, T) → (B, T, C); at `positions` (B, M) alone → (B, M, C)."""
        asked = x if positions is None else pick(x, positions)
        q, k, v = self.split(self.query(asked)), self.split(self.key(x)), self.split(self.value(x))
        dropout = self.attention_dropout if self.training else 0.0
        # The fused kernel has no fast dropout on a CPU; on Apple's GPUs it errs with few queries in
        # some versions of PyTorch (https://github.com/pytorch/pytorch/issues/181133).
        plain = x.device.type == "mps" or (dropout and x.device.type == "cpu")
        form = attend if plain else attend_fast
        y = form(q, k, v, mask, dropout).transpose(1, 2).flatten(2)  # (B, H, M, D) → (B, M, C)
        return self.norm(asked + self.dropout(self.output(y)))


class FeedForward(nn.Module):
    """The feed-forward sublayer of each token: LayerNorm(x + Dropout(W_down · gelu(W_up · x)))."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x):
        """x (B, T, C) → (B, T, C)."""
        return self.norm(x + self.dropout(self.gelu_down(self.up(x))))

    def gelu_down(self, y):
        """The activation and the second linear map: (B, T, intermediate_size) → (B, T, C)."""
        return self.down(F.gelu(y))


class Block(nn.Module):
    """A layer of BERT: attention, then the FFN if the layer has one; else attention alone."""

    def __init__(self, config, has_ffn):
        super().__init__()
        self.attention = Attention(config)
        self.ffn = FeedForward(config) if has_ffn else None

    def forward(self, x, mask=None, positions=None):
        """As Attention.forward."""
        x = self.attention(x, mask, positions)
        return x if self.ffn is None else self.ffn(x)


class Embeddings(nn.Module):
    """Word, position and segment vectors: their sum, normalised, with dropout."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, C)
        self.position = nn.Embedding(config.max_position_embeddings, C)
        self.token_type = nn.Embedding(config.type_vocab_size, C)
        self.norm = nn.LayerNorm(C, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids=None):
        """input_ids, token_type_ids (B, T) → (B, T, C)."""
        T, limit = input_ids.size(1), self.position.num_embeddings
        if T > limit:
            length = f"a sequence of {T} tokens"
            raise UserError(f"{length} is longer than the model's {limit} positions")
        segment = self.token_type.weight[0]
        if token_type_ids is not None:
            segment = self.token_type(token_type_ids)
        x = self.word(input_ids) + (self.position.weight[:T] + segment)  # (B, T, C)
        return self.dropout(self.norm(x))


def initialise(model):
    """Normal weights of standard deviation `initializer_range`; biases 0, norms 1.

    As in `transformers`, except that there the vector of [PAD] is 0 (no token attends to it).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=model.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class Encoder(Pretrained):
    """Token ids → one vector a token. `transformers`' BertModel without pooler."""

    architecture = "BertModel"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Block(config, i in config.ffn_layers) for i in layers)
        initialise(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None,
                output_hidden_states=False, positions=None):
        """Token ids, mask (1 or True for real tokens) and segment ids, (B, T) → states (B, T, C).

        output_hidden_states: also a list, the embeddings' output and each layer's, (B, T, C) each.
        positions (B, M): the states there only, (B, M, C); the last layer computes no others.
        """
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None, :]  # (B, T) → (B, 1, 1, T)
        x = self.embeddings(input_ids, token_type_ids)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, positions if i == len(self.layers) - 1 else None)
            if output_hidden_states:
                states.append(x)
        return (x, states) if output_hidden_states else x


class MaskedLM(Pretrained):
    """The encoder and a head that names the masked words.

    The head's output matrix is the matrix of word vectors again ("tied"): a word is likely where
    the head's vector points in the direction of the word's. A layer (dense, GELU, norm) comes
    before it, so that the encoder's last states need not be word vectors themselves.
    """

    architecture = "BertForMaskedLM"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = nn.Module()
        self.head.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.head.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """→ logits (B, T, V); with `positions` (B, M), of these positions only, (B, M, V)."""
        x = self.encoder(input_ids, attention_mask, token_type_ids, positions=positions)
        return self.name_tokens(x)

    def name_tokens(self, states):
        """The encoder's states (B, M, C) → logits (B, M, V)."""
        x = self.head.norm(F.gelu(self.head.dense(states)))
        return F.linear(x, self.encoder.embeddings.word.weight, self.head.bias)


class PairedMaskedLM(MaskedLM):
    """MaskedLM with BERT's other head: is the second part of a sequence from somewhere else?

    It reads [CLS] through a pooler, as classifiers do (Devlin et al. 2019, section 3.1, task 2).
    """

    architecture = "BertForPreTraining"

    def __init__(self, config):
        super().__init__(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.next = nn.Linear(config.hidden_size, 2)
        initialise(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, *, positions):
        """→ logits of the masked places (B, M, V), and of the pairs, (B, 2): follows, is random."""
        asked = F.pad(positions, (1, 0))  # (B, M) → (B, 1 + M), [CLS] first
        states = self.encoder(input_ids, attention_mask, token_type_ids, positions=asked)
        pooled = torch.tanh(self.pooler(states[:, 0]))  # (B, C)
        return self.name_tokens(states[:, 1:]), self.next(pooled)


class SequenceClassifier(Pretrained):
    """The encoder, BERT's pooler and a linear layer: `num_labels` classes, or for 1 a number.

    The pooler is a linear map and tanh on [CLS], the token at the front that stands for no word:
    fine-tuning teaches it to gather from the others what the task needs.
    """

    architecture = "BertForSequenceClassification"

    def __init__(self, config, num_labels=2):
        super().__init__()
        self.config, self.num_labels = config, num_labels
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        initialise(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """→ logits (B, K)."""
        states = self.encoder(input_ids, attention_mask, token_type_ids)
        pooled = torch.tanh(self.pooler(states[:, 0]))  # (B, C)
        return self.classifier(self.dropout(pooled))


def count_parameters(config, model_class=MaskedLM):
    """The number of parameters of a model; "meta" tensors have a shape, but take no memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


def flops_per_token(config, seq_len, asked=None):
    """FLOPs of a training step for each of its tokens, matrix multiplications only.

    Two for each multiply-add, once forward and twice backward. asked: the number of masked
    positions in a sequence, where alone the head and the last layer's queries and FFN are computed.
    """
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    share = 1.0 if asked is None else asked / seq_len
    total = 0.0
    for i in range(L):
        here = share if i == L - 1 else 1.0
        # Keys and values; queries, output, QKᵀ and ·V.
        total += 2 * C * C + here * (2 * C * C + 2 * seq_len * C)
        total += here * 2 * C * config.intermediate_size if i in config.ffn_layers else 0.0
    total += share * (C * C + V * C)  # the head
    return 6 * total
