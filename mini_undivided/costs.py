"""What a model costs: its parameters, and the FLOPs of a training step.

Shapes: L layers, C hidden size, V words in the vocabulary.
"""

import torch

from mini_undivided.model import MaskedLM


def count_parameters(config, model_class=MaskedLM):
    """The number of parameters of a model; "meta" tensors have a shape, but take no memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in model_class(config).parameters())


def flops_per_token(config, seq_len, num_masked=None):
    """FLOPs of a training step for each of its tokens, matrix multiplications only.

    Two for each multiply-add, once forward and twice backward. num_masked: the masked positions
    of a sequence, where alone the head, and all of the last layer but its keys and values, are
    computed.
    """
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    ratio = 1.0 if num_masked is None else num_masked / seq_len
    total = 0.0
    for i in range(L):
        queries = ratio if i == L - 1 else 1.0
        # Keys and values; queries, output, QKᵀ and ·V.
        total += 2 * C * C + queries * (2 * C * C + 2 * seq_len * C)
        total += queries * 2 * C * config.intermediate_size if i in config.ffn_layers else 0.0
    total += ratio * (C * C + V * C)  # the head
    return 6 * total
