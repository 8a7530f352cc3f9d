"""The BERT encoder (Devlin et al. 2019, 1810.04805), with an FFN in the layers that you choose.

Shapes: B sequences in a batch, T tokens in a sequence, C hidden size, H heads, D = C / H the width
of a head, V words in the vocabulary, K labels; M query positions: all T, except in the last layer
of pretraining, which computes the masked ones only, since no others are needed.

A block is two sublayers, each inside a residual connection with a LayerNorm after it ("post-norm"):

    x = LayerNorm(x + Attention(x))      tokens exchange information
    x = LayerNorm(x + FFN(x))            each token by itself, by a feed-forward network

The paper calls the FFN the intermediate layer. Without it a block is the first line alone: the
second is gone whole, with its residual and its LayerNorm. Post-norm is BERT's choice; it is why
training needs a warm-up (`optim.py`).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from mini_undivided.support.checkpoint import Pretrained  # a Module that can be saved and opened
from mini_undivided.support.config import BertConfig  # noqa: F401 (users import it from here)
from mini_undivided.support.errors import UserError


def attention(q, k, v, mask=None, dropout=0.0):
    """softmax(Q Kᵀ / √D) V, written out (Vaswani et al. 2017, 1706.03762).

    q (B, H, M, D); k, v (B, H, T, D); mask (B, 1, 1, T), True at real tokens → (B, H, M, D).

    The dot product of two vectors of D independent numbers, of mean 0 and variance 1, has variance
    D. Divided by √D, scores have a variance of 1, and softmax is not so sharp that its gradient
    vanishes.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, M, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)  # 0 for padding
    if mask is not None:
        weights = weights * mask  # a text that is all padding gets 0, not a mean
    return F.dropout(weights, dropout) @ v  # in evaluation the caller passes 0


def key_mask(attention_mask):
    """A mask of tokens (B, T), True or 1 where they are real, or None → `attention`'s mask."""
    return None if attention_mask is None else attention_mask.bool()[:, None, None, :]


class Attention(nn.Module):
    """The attention sublayer: LayerNorm(x + Dropout(W_o · attention(x)))."""

    def __init__(self, config):
        super().__init__()
        C = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)  # only for its p
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.output = nn.Linear(C, C)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(C, eps=config.layer_norm_eps)

    def split_heads(self, x):
        """One vector per token → one per token and head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, C) → (B, H, T, D)

    def forward(self, x, mask=None, positions=None):
        """x (B, T, C), mask (B, 1, 1, T) → (B, T, C); at `positions` (B, M) alone → (B, M, C)."""
        queries = x  # (B, M, C), with M = T
        if positions is not None:
            queries = x.gather(1, positions[:, :, None].expand(-1, -1, x.size(-1)))
        q = self.split_heads(self.query(queries))  # (B, H, M, D)
        k, v = self.split_heads(self.key(x)), self.split_heads(self.value(x))  # (B, H, T, D)
        dropout = self.attention_dropout.p if self.training else 0.0
        # PyTorch's fused kernel computes the same and never stores the (M, T) weights. It is used
        # where it is faster, not on a CPU with dropout or in bfloat16; nor on Apple's GPUs, where
        # some versions are wrong (https://github.com/pytorch/pytorch/issues/181133).
        fused = x.device.type == "cuda" or (
            x.device.type == "cpu" and q.dtype == torch.float32 and not dropout)
        attend = F.scaled_dot_product_attention if fused else attention
        y = attend(q, k, v, mask, dropout).transpose(1, 2).flatten(2)  # (B, H, M, D) → (B, M, C)
        return self.norm(queries + self.dropout(self.output(y)))


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
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


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
    """Word, position and segment embeddings: their sum, normalised, with dropout."""

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
            raise UserError(f"{T} tokens are more than the model's {limit} positions")
        segment = self.token_type.weight[0]  # (C,)
        if token_type_ids is not None:
            segment = self.token_type(token_type_ids)  # (B, T, C)
        x = self.word(input_ids) + (self.position.weight[:T] + segment)  # (B, T, C)
        return self.dropout(self.norm(x))


@torch.no_grad()
def initialise(model):
    """Normal weights of standard deviation `initializer_range`, biases of 0, with two exceptions.

    Position embeddings begin as sines and cosines (Vaswani et al. 2017, section 3.5), 2.5 times as
    large as word embeddings, so that neighbouring positions have similar vectors. W_k begins equal
    to W_q, both of variance 1 / C, so that entries of q have variance 1, as those of x do (in the
    spirit of Trockman & Kolter 2023, 2305.09828): a token's score with itself, |q|² / √D, is then
    about √D, so that from the start it attends most to itself and its neighbours, which it would
    otherwise have to learn to find, position by position.
    """
    std = model.config.initializer_range
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    for module in model.modules():  # apart: the loop above visits parts last and would redraw them
        if isinstance(module, Embeddings):
            T, C = module.position.weight.shape
            angles = torch.arange(T)[:, None] * 10_000 ** (-torch.arange(0, C, 2) / C)
            waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :C]  # (T, C)
            module.position.weight.copy_(2.5 * std * math.sqrt(2) * waves)  # waves: RMS 1 / √2
        if isinstance(module, Attention):
            nn.init.normal_(module.query.weight, std=module.query.in_features**-0.5)
            module.key.weight.copy_(module.query.weight)


class Encoder(Pretrained):
    """Token ids → one vector per token. `transformers`' BertModel without pooler."""

    architecture = "BertModel"  # of `transformers`, for config.json

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
        positions (B, M): the last layer's states there only, (B, M, C); it computes no others.
        """
        x, mask = self.embeddings(input_ids, token_type_ids), key_mask(attention_mask)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, positions if i == len(self.layers) - 1 else None)
            if output_hidden_states:
                states.append(x)
        return (x, states) if output_hidden_states else x


class MaskedLM(Pretrained):
    """The encoder and a head that predicts the masked words.

    The head's output matrix is that of the word vectors again ("tied"). A layer (dense, GELU, norm)
    comes before it, so that the encoder's last states need not be word vectors themselves.
    """

    architecture = "BertForMaskedLM"

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head = nn.Module()  # a name only: optim.py and checkpoints go by "head."
        self.head.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.head.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self)  # draws the encoder's weights again, too

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """→ logits (B, T, V); with `positions` (B, M), of these positions only, (B, M, V)."""
        x = self.encoder(input_ids, attention_mask, token_type_ids, positions=positions)
        return self.lm_head(x)

    def lm_head(self, states):
        """The encoder's states (B, M, C) → logits (B, M, V)."""
        x = self.head.norm(F.gelu(self.head.dense(states)))
        return F.linear(x, self.encoder.embeddings.word.weight, self.head.bias)


class SequenceClassifier(Pretrained):
    """The encoder, BERT's pooler and a linear layer; with `num_labels` = 1, a regression.

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
