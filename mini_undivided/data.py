"""Documents → token file → shuffled sequences → masked batches.

Shapes: N sequences in a file, B in a batch, T tokens in a sequence, M of them masked.

A token is masked if the model has to predict it, whatever then stands in its place: mostly [MASK].
(An attention mask is something else: it says which tokens are not padding.)

Documents are tokenised once, in pieces of text (`corpus.py`), and strung together, a [SEP] after
each piece; a sequence is the next T - 2 tokens between [CLS] and [SEP]. So it is full, nothing is
padding, and it may begin in the middle of a document and run on into the next.

Every draw of training data is a function of the seed and of the step (masks) or the epoch (order),
and of nothing else. So a run resumes without having stored its position in the data, and splitting
a batch over micro-batches or processes changes no token of it.
"""

from typing import NamedTuple

import numpy as np
import torch

from mini_undivided.tokenizer import ordinary_ids, special_ids

IGNORE_INDEX = -100  # the label of a position that does not count; cross entropy leaves it out
MLM_PROBABILITY, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1  # BERT's; the last tenth stays as it is
VALIDATION_BATCH = 64  # sequences
ORDER, MASKS, VALIDATION = 1, 2, 3  # what a stream of random numbers is for


def stream(purpose, seed, number):
    """A random generator for a purpose; `number` is that of the epoch, the step or the batch.

    NumPy hashes the list into one seed, so that the streams are independent of one another.
    """
    return np.random.default_rng([purpose, seed, number])


class MaskedBatch(NamedTuple):
    """Masked sequences: input_ids (B, T), positions (B, M) of the masked tokens, labels (B, M).

    A sequence with fewer than M masked tokens has further positions, labelled IGNORE_INDEX.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor


def split(batch, size):
    """Yield micro-batches of `size` sequences, of the batch's type (pairs.py has another)."""
    for tensors in zip(*(tensor.split(size) for tensor in batch), strict=True):
        yield type(batch)(*tensors)


class Sequences:
    """A token array cut into N sequences, [CLS] and T - 2 tokens and [SEP], which can be masked.

    mlm_probability: the fraction of the ordinary (not special) tokens to mask: BERT's 15 % in
    validation, 40 % in training by default. The more are masked, the more a sequence teaches and
    the less context is left; 40 % was better here, and for large models in 2202.08005.
    """

    def __init__(self, tokens, seq_len, tokenizer, mlm_probability=MLM_PROBABILITY):
        self.seq_len, self.mlm_probability = seq_len, mlm_probability
        width = seq_len - 2
        self.rows = tokens[: len(tokens) // width * width].reshape(-1, width)  # (N, T - 2), no copy
        self.num_masked = int(np.rint(mlm_probability * width))  # M
        _, _, self.cls_id, self.sep_id, self.mask_id = special_ids(tokenizer)
        self.ordinary = ordinary_ids(tokenizer)
        self.is_special = np.ones(tokenizer.get_vocab_size(), dtype=bool)
        self.is_special[self.ordinary] = False

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        """The sequences of these numbers → (B, T) int64."""
        ids = np.empty((len(indices), self.seq_len), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = self.cls_id, self.rows[indices], self.sep_id
        return ids

    def mask(self, ids, rng):
        """Mask round(mlm_probability n) of the n ordinary tokens of each sequence → a batch.

        Of the masked tokens, 80 % become [MASK], 10 % a random ordinary token, 10 % stay (Devlin et
        al. 2019, section 3.1). With T = 16 and M = 2, a batch of one sequence may become:

            ids          [CLS] the cat sat on the mat and looked at the dog for a while [SEP]
            masked                     sat                      dog
            input_ids    [CLS] the cat [MASK] on the mat and looked at the dog for a while [SEP]
            positions                  3                        11
            labels                     sat                      dog      ("dog" is one that stays)

        The positions of a sequence are in random order. If every masked token showed [MASK], only
        there would the model need good vectors, and fine-tuning has no [MASK]; since any token may
        be one to predict, it needs them everywhere.

        ids (B, T) are changed in place.
        """
        scores = rng.random(ids.shape, dtype=np.float32)  # (B, T): the lowest are masked
        draws = rng.random((len(ids), self.num_masked), dtype=np.float32)  # (B, M): what it becomes
        random = self.ordinary[rng.integers(len(self.ordinary), size=draws.shape)]  # (B, M)

        special = self.is_special[ids]
        scores[special] = 2.0  # above every random number: special tokens come last
        positions = np.argsort(scores, axis=1)[:, : self.num_masked]  # (B, M)
        num_to_mask = np.rint(self.mlm_probability * (~special).sum(axis=1, keepdims=True))
        # With a [SEP] or [UNK] inside there is less to mask: the last positions do not count.
        is_masked = np.arange(self.num_masked) < num_to_mask  # (B, M)
        original = np.take_along_axis(ids, positions, axis=1)
        changed = np.where(draws < TO_MASK + TO_RANDOM, random, original)
        changed = np.where(draws < TO_MASK, self.mask_id, changed)
        np.put_along_axis(ids, positions, np.where(is_masked, changed, original), axis=1)
        labels = np.where(is_masked, original, IGNORE_INDEX)
        # copy() makes it contiguous: to copy other memory to a GPU, the CPU would have to wait.
        return MaskedBatch(*map(torch.from_numpy, (ids, positions.copy(), labels)))


class TrainingBatches:
    """The batches of a run: `size` sequences a step, each epoch in a new order with new masks.

    mask: called as mask(sequences, ids, rng) to make a batch; `pairs.py` has another one.
    """

    def __init__(self, sequences, size, seed, mask=Sequences.mask):
        self.sequences, self.size, self.seed, self.mask = sequences, size, seed, mask
        self.epoch, self.order = None, None

    def batch(self, step, rank=0, world_size=1):
        """Process `rank`'s part of a step's batch: size / world_size sequences.

        Every process masks the whole batch, so that no mask depends on the number of processes.
        """
        ids = self.sequences.read(self.indices(np.arange(step * self.size, (step + 1) * self.size)))
        batch = self.mask(self.sequences, ids, stream(MASKS, self.seed, step))
        local = self.size // world_size
        return type(batch)(*(t[rank * local : (rank + 1) * local] for t in batch))

    def indices(self, numbers):
        """Samples, numbered from the run's start → their sequences; an epoch is a permutation."""
        epochs, offsets = np.divmod(numbers, len(self.sequences))
        indices = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            if epoch != self.epoch:
                rng = stream(ORDER, self.seed, int(epoch))
                self.epoch, self.order = epoch, rng.permutation(len(self.sequences))
            indices[epochs == epoch] = self.order[offsets[epochs == epoch]]
        return indices


def validation_batches(sequences, limit, rank=0, world_size=1, mask=Sequences.mask):
    """Yield process `rank`'s of the batches of `limit` sequences at most, spread over the file.

    Their masks are the same in every run and at every validation.
    """
    count = min(limit, len(sequences))
    chosen = np.arange(count) * len(sequences) // count
    for number, first in enumerate(range(0, count, VALIDATION_BATCH)):
        if number % world_size == rank:
            ids = sequences.read(chosen[first : first + VALIDATION_BATCH])
            yield mask(sequences, ids, stream(VALIDATION, 0, number))


# Not needed at first reading: what a loss is compared with.

def context_free_baseline(tokens, is_special):
    """Loss and accuracy of the best model that sees a masked position and no other, exactly.

    It knows how common each of the V ordinary words is (p, from `tokens`, the validation split) and
    how positions are masked. At a [MASK] it has to say p: its loss is the (unigram) entropy
    -Σ p log p. But one position in five shows a word w: itself, kept, or a random one. By Bayes'
    rule

        P(original = w | shown = w) = (p_w keep + p_w random / V) / (p_w keep + random / V),

    with p_v random / V in the numerator for every other original v.
    → {"loss", "accuracy", "accuracy_at_mask", "unigram_entropy"}, losses in nats.
    """
    counts = np.bincount(tokens, minlength=len(is_special))[~is_special]
    p, V, keep = counts / counts.sum(), len(counts), 1 - TO_MASK - TO_RANDOM

    def xlogx(x):
        return x * np.log(np.where(x > 0, x, 1))

    entropy, one = -xlogx(p).sum(), TO_RANDOM / V  # one: P(a certain random word is shown)
    shown, own = keep * p + one, (keep + one) * p  # P(w is shown), P(w is shown and original)
    others = one * (np.log(one) * (1 - p) - entropy - xlogx(p))  # Σ x log x of the others
    loss = TO_MASK * entropy + (xlogx(shown) - xlogx(own) - others).sum()
    # Shown w, it is best to say w or the commonest word (w itself wins if it is that one).
    accuracy = TO_MASK * p.max() + np.maximum(own, one * p.max()).sum()
    scores = {"loss": loss, "accuracy": accuracy, "accuracy_at_mask": p.max()}
    return {name: float(x) for name, x in {**scores, "unigram_entropy": entropy}.items()}
