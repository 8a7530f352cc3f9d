"""Documents → token file → shuffled sequences → masked batches.

Letters: N sequences in a file, B in a batch, T tokens in a sequence, M of them to mask.

Documents are tokenised once, in the pieces of `corpus.py`, and strung together, a [SEP] after each
piece; a sequence is the next T - 2 tokens between [CLS] and [SEP]. So sequences are full, nothing
is padding, and a sequence may begin in the middle of a document and run on into the next.

Every random draw is a function of the seed and of the step (masks) or the epoch (order), and of
nothing else. So a run resumes without having stored its place, and splitting a batch over
micro-batches or processes changes no token of it.
"""

from typing import NamedTuple

import numpy as np
import torch

from mini_undivided.tokenizer import ordinary_ids, special_ids

IGNORE = -100  # the label of a place that does not count; PyTorch's cross entropy leaves it out
MASK_SHARE, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1  # BERT's; the remaining tenth stays as it is
VALIDATION_BATCH = 64  # sequences
ORDER, MASKS, VALIDATION = 1, 2, 3  # what a stream of random numbers is for


def stream(purpose, seed, number):
    """Random numbers for a purpose (ORDER, MASKS, VALIDATION), a seed, and an epoch, step or batch.

    The three stand at fixed places, so that no two streams meet.
    """
    return np.random.default_rng([purpose, seed, number])


class MaskedBatch(NamedTuple):
    """Masked sequences: input_ids (B, T); the masks' positions (B, M); labels (B, M).

    The label of a position that does not count is IGNORE.

    If they are pairs, also: token_type_ids (B, T); is_random (B,), 1 where the second part does not
    follow the first, else 0.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    is_random: torch.Tensor | None = None

    def micro_batches(self, size):
        """Yield micro-batches of `size` sequences."""
        tensors = (tensor.split(size) for tensor in self if tensor is not None)
        for parts in zip(*tensors, strict=True):
            yield MaskedBatch(*parts)

    def move(self, machine):
        """The batch on the machine's device."""
        return MaskedBatch(*(machine.move(tensor) for tensor in self if tensor is not None))

    def num_masked(self):
        """How many places have to be named."""
        return int((self.labels != IGNORE).sum())


class Sequences:
    """A token array cut into N sequences, [CLS] and T - 2 tokens and [SEP], which can be masked.

    mask_share: of the ordinary tokens. The more a sequence hides, the more it teaches and the less
    context is left; 40 % were better than BERT's 15 % here, and for large models in 2202.08005.
    """

    def __init__(self, tokens, seq_len, tokenizer, mask_share=MASK_SHARE):
        self.seq_len, self.mask_share = seq_len, mask_share
        width = seq_len - 2
        self.rows = tokens[: len(tokens) // width * width].reshape(-1, width)  # (N, T - 2), no copy
        self.num_masked = int(np.rint(mask_share * width))  # M
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

    def mask(self, ids, rng, mine=slice(None)):
        """Choose and hide round(mask_share n) of the n ordinary tokens of each sequence → a batch.

        Of the chosen, 80 % become [MASK], 10 % a random ordinary token, 10 % stay (Devlin et al.
        2019, section 3.1). With T = 16 and two places, a batch of one sequence may become:

            ids          [CLS] the cat sat on the mat and looked at the dog for a while [SEP]
            chosen                     sat                      dog
            input_ids    [CLS] the cat [MASK] on the mat and looked at the dog for a while [SEP]
            positions                  3                        11
            labels                     sat                      dog      ("dog" is one that stays)

        The model has to name both. A [MASK] never occurs in fine-tuning: if it stood at
        every place to name, the model would need a good vector there alone; as any token may be one
        to name, it needs one everywhere.

        ids (B, T) are changed in place. `mine`: the rows of this process. Draws are made for all
        rows, so that a row's draws do not depend on which rows are mine.
        """
        scores = rng.random(ids.shape, dtype=np.float32)[mine]  # (B, T): the lowest are chosen
        fate = rng.random((len(ids), self.num_masked), dtype=np.float32)[mine]  # (B, M)
        random = rng.integers(len(self.ordinary), size=(len(ids), self.num_masked))
        words = self.ordinary[random[mine]]  # (B, M)
        ids = ids[mine]

        special = self.is_special[ids]
        scores[special] = 2.0  # above every random number: special tokens come last
        positions = np.argsort(scores, axis=1)[:, : self.num_masked]  # (B, M)
        wanted = np.rint(self.mask_share * (~special).sum(axis=1, keepdims=True))  # (B, 1)
        used = np.arange(self.num_masked) < wanted  # (B, M): fewer where special tokens lie inside
        original = np.take_along_axis(ids, positions, axis=1)
        changed = np.where(fate < TO_MASK + TO_RANDOM, words, original)
        changed = np.where(fate < TO_MASK, self.mask_id, changed)
        np.put_along_axis(ids, positions, np.where(used, changed, original), axis=1)
        labels = np.where(used, original, IGNORE)
        return MaskedBatch(*map(torch.from_numpy, (ids, positions, labels)))

    def pair(self, ids, rng, share=0.5):
        """[CLS] A [SEP] B [SEP] from sequences (B, T): a share of the B's are another sequence's.

        A token in the middle half becomes the [SEP] between the parts. A random B comes from the
        sequence before it in the batch, and from the same places there. → ids and token_type_ids
        (B, T), is_random (B,).
        """
        B, T = ids.shape
        cuts = rng.integers(T // 4, T - T // 4, size=(B, 1))
        is_random = (rng.random(B) < share * (B > 1)).astype(np.int64)
        second = np.arange(T) > cuts  # (B, T)
        ids = np.where(second & (is_random[:, None] == 1), np.roll(ids, 1, axis=0), ids)
        np.put_along_axis(ids, cuts, self.sep_id, axis=1)
        return ids, second.astype(np.int64), is_random


class TrainingData:
    """The batches of a run: `size` sequences a step, each epoch in a new order with new masks.

    pairs: they are pairs, as `Sequences.pair` makes them.
    """

    def __init__(self, sequences, size, seed, pairs=False):
        self.sequences, self.size, self.seed, self.pairs = sequences, size, seed, pairs
        self.epoch, self.order = None, None

    def batch(self, step, rank=0, world=1):
        """The share of process `rank` in a step's batch: size / world sequences → MaskedBatch."""
        visits = np.arange(step * self.size, (step + 1) * self.size)
        ids = self.sequences.read(self.indices(visits))
        share = self.size // world
        rng, mine = stream(MASKS, self.seed, step), slice(rank * share, (rank + 1) * share)
        if not self.pairs:
            return self.sequences.mask(ids, rng, mine)
        ids, *rest = self.sequences.pair(ids, rng)
        segments, is_random = (torch.from_numpy(each[mine]) for each in rest)
        batch = self.sequences.mask(ids, rng, mine)
        return batch._replace(token_type_ids=segments, is_random=is_random)

    def indices(self, visits):
        """Which sequences are visited: in each epoch a permutation, drawn from seed and epoch."""
        epochs, places = np.divmod(visits, len(self.sequences))
        indices = np.empty_like(visits)
        for epoch in np.unique(epochs):
            if epoch != self.epoch:
                rng = stream(ORDER, self.seed, int(epoch))
                self.epoch, self.order = epoch, rng.permutation(len(self.sequences))
            indices[epochs == epoch] = self.order[places[epochs == epoch]]
        return indices


def validation_batches(sequences, limit, rank=0, world=1, pairs=False):
    """Yield masked batches of at most `limit` sequences, spread over the file, the masks fixed.

    pairs: for a model that has only seen pairs. In all of them the second part follows the first,
    so that losses are comparable with those of other runs.
    """
    count = min(limit, len(sequences))
    chosen = np.arange(count) * len(sequences) // count
    for number, first in enumerate(range(0, count, VALIDATION_BATCH)):
        if number % world == rank:
            rng = stream(VALIDATION, 0, number)  # the same in every run and at every validation
            ids, segments = sequences.read(chosen[first : first + VALIDATION_BATCH]), None
            if pairs:
                ids, segments, _ = sequences.pair(ids, stream(VALIDATION, 1, number), share=0)
                segments = torch.from_numpy(segments)
            yield sequences.mask(ids, rng)._replace(token_type_ids=segments)


def context_free_baseline(tokens, is_special):
    """Loss and accuracy of the best model that looks at a masked place and at no other, exactly.

    It knows how common each of the V ordinary words is (p, from `tokens`, the validation part) and
    how places are masked. At a [MASK] it has to say p: its loss is the (unigram) entropy
    -Σ p log p. But one place in five shows a word w: itself, kept, or a random one. By Bayes' rule

        P(original = w | shown = w) = (p_w keep + p_w random / V) / (p_w keep + random / V),

    with p_v random / V in the numerator for every other original v.
    → {"loss", "accuracy", "accuracy_at_mask", "unigram_entropy"}, losses in nats.
    """
    counts = np.bincount(tokens, minlength=len(is_special))[~is_special]
    p, V, keep = counts / counts.sum(), len(counts), 1 - TO_MASK - TO_RANDOM

    def xlogx(x):
        return x * np.log(np.where(x > 0, x, 1))

    entropy, each = -xlogx(p).sum(), TO_RANDOM / V  # each: P(a certain random word is shown)
    shown, own = keep * p + each, (keep + each) * p  # P(w is shown), P(w is shown and original)
    others = each * (np.log(each) * (1 - p) - entropy - xlogx(p))  # Σ x log x of the others
    loss = TO_MASK * entropy + (xlogx(shown) - xlogx(own) - others).sum()
    rival = np.full(V, p.max())  # the commonest other word
    rival[p.argmax()] = np.sort(p)[-2:][0]
    accuracy = TO_MASK * p.max() + np.maximum(own, each * rival).sum()
    scores = {"loss": loss, "accuracy": accuracy, "accuracy_at_mask": p.max()}
    return {name: float(x) for name, x in {**scores, "unigram_entropy": entropy}.items()}
