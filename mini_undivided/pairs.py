"""BERT's second objective, next sentence prediction: does the second segment follow the first?

Shapes: B pairs in a batch, T tokens in a pair, M of them masked, V words.

A sequence becomes [CLS] A [SEP] B [SEP]; in half of the training pairs B comes from another
sequence, and a second head, which reads [CLS] as classifiers do, predicts in which (Devlin et al.
2019, 1810.04805, section 3.1, task 2). For those who want it (`--next-sentence`): everything else
works without this file.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mini_undivided.data import IGNORE_INDEX, VALIDATION_BATCH, TrainingBatches
from mini_undivided.model import MaskedLM, initialise


class PairBatch(NamedTuple):
    """A MaskedBatch of pairs, with token_type_ids (B, T) and is_random (B,), 0 where B follows."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    token_type_ids: torch.Tensor
    is_random: torch.Tensor


class PairedMaskedLM(MaskedLM):
    """MaskedLM with a second head, for pairs."""

    architecture = "BertForPreTraining"

    def __init__(self, config):
        super().__init__(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.next = nn.Linear(config.hidden_size, 2)
        initialise(self)

    def both_heads(self, batch):
        """→ logits of the masked positions (B, M, V), and of the pairs, (B, 2): follows, random."""
        queries = F.pad(batch.positions, (1, 0))  # (B, M) → (B, 1 + M), [CLS] first
        states = self.encoder(
            batch.input_ids, token_type_ids=batch.token_type_ids, positions=queries)
        pooled = torch.tanh(self.pooler(states[:, 0]))  # (B, C)
        return self.lm_head(states[:, 1:]), self.next(pooled)


def mask_pairs(sequences, ids, rng, random_ratio=0.5):
    """Sequences (B, T) → masked pairs; a `random_ratio` of them gets a random second segment.

    A token in the middle half becomes the [SEP] between the segments. A random second
    segment comes from the sequence before it in the batch, from the same positions there.
    """
    (B, T), own = ids.shape, rng.spawn(1)[0]  # masks are drawn as without pairs
    cuts = own.integers(T // 4, T - T // 4, size=(B, 1))
    is_random = (own.random(B) < random_ratio * (B > 1)).astype(np.int64)
    second = np.arange(T) > cuts  # (B, T)
    ids = np.where(second & (is_random[:, None] == 1), np.roll(ids, 1, axis=0), ids)
    np.put_along_axis(ids, cuts, sequences.sep_id, axis=1)
    masked = sequences.mask(ids, rng)
    return PairBatch(*masked, torch.from_numpy(second.astype(np.int64)),
                     torch.from_numpy(is_random))


def paired_logits(model, batch):
    """The logits of the masked positions alone, (B, M, V)."""
    return model(batch.input_ids, token_type_ids=batch.token_type_ids, positions=batch.positions)


def paired_loss(model, batch):
    """The summed cross entropy of masked positions, plus each pair's times its masked positions.

    Divided by the number of masked positions it is the mean over masked positions plus the mean
    over pairs: BERT's loss, except that a pair counts by how many of its positions are masked.
    """
    logits, pairs = model.both_heads(batch)
    labels = batch.labels.flatten()  # (B, M) → (B M)
    words = F.cross_entropy(
        logits.float().flatten(0, 1), labels, ignore_index=IGNORE_INDEX, reduction="sum")
    pair_losses = F.cross_entropy(pairs.float(), batch.is_random, reduction="none")  # (B,)
    return words + ((batch.labels != IGNORE_INDEX).sum(1) * pair_losses).sum()


@torch.inference_mode()
def pair_accuracy(model, valid_set, limit, machine):
    """How many of the validation split's pairs, half of them random, are classified correctly.

    limit: the number of sequences to make them of, at most.
    """
    model.eval()
    size = min(VALIDATION_BATCH, len(valid_set))
    batches = TrainingBatches(valid_set, size, 0, mask_pairs)
    steps = max(1, min(len(valid_set), limit) // size)
    correct = torch.zeros((), dtype=torch.float64)
    for step in range(machine.rank, steps, machine.world_size):
        batch = machine.batch_to_device(batches.batch(step))
        with machine.autocast():
            _, logits = model.both_heads(batch)
        correct += (logits.argmax(1) == batch.is_random).sum().cpu()
    model.train()
    return machine.all_reduce(correct).item() / (steps * size)
