"""From token files to masked batches."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import unmasked

from mini_undivided import data
from mini_undivided.tokenizer import special_ids


def test_sequences_are_packed_full(greek):
    """Sequence i is [CLS], the file's i-th 19 tokens and [SEP].

    Nothing is lost between two sequences, and nothing is padded.
    """
    _, tokenizer, tokens = greek
    sequences = data.Sequences(tokens.train, 21, tokenizer)
    ids = sequences.read(np.arange(len(sequences)))
    assert ids.shape == (len(tokens.train) // 19, 21)
    assert set(ids[:, 0]) == {tokenizer.token_to_id("[CLS]")}
    assert set(ids[:, -1]) == {tokenizer.token_to_id("[SEP]")}
    assert ids[:, 1:-1].ravel().tolist() == tokens.train[: len(sequences) * 19].tolist()


@pytest.mark.parametrize("probability", [0.15, 0.9])
def test_masking_shares_and_special_tokens(greek, probability):
    """Of the masked tokens 80 % become [MASK], 10 % a random word, and 10 % are kept.

    Counted over 100,000 of them. Exactly round(p n) of a sequence's n ordinary tokens are masked,
    and special tokens are neither masked nor drawn, however many are.
    """
    _, tokenizer, tokens = greek
    sequences = data.Sequences(tokens.train, 37, tokenizer, probability)
    mask, special = tokenizer.token_to_id("[MASK]"), special_ids(tokenizer)
    count = to_mask = kept = 0
    drawn = []
    for visit in range(60):
        rng = np.random.default_rng(visit)
        original = sequences.read(rng.integers(len(sequences), size=353))
        batch = sequences.mask(original.copy(), rng)
        assert all(tensor.is_contiguous() for tensor in batch)  # so that memory can be pinned
        rows = np.arange(353)[:, None]
        masked = (batch.labels != data.IGNORE_INDEX).numpy()
        before = original[rows, batch.positions]
        after = batch.input_ids.numpy()[rows, batch.positions]
        ordinary = (~np.isin(original, special)).sum(1)
        assert (masked.sum(1) == np.rint(probability * ordinary)).all()
        assert (batch.labels.numpy()[masked] == before[masked]).all()
        assert not np.isin(before[masked], special).any()
        for positions, those in zip(batch.positions.numpy(), masked, strict=True):
            assert len(set(positions[those])) == those.sum()
        untouched = np.ones_like(original, dtype=bool)
        untouched[np.broadcast_to(rows, masked.shape)[masked], batch.positions[masked]] = False
        assert (batch.input_ids.numpy()[untouched] == original[untouched]).all()
        count += masked.sum()
        to_mask += (after[masked] == mask).sum()
        kept += (after[masked] == before[masked]).sum()
        drawn += after[masked & (after != mask) & (after != before)].tolist()
    assert count > 100_000
    assert abs(to_mask / count - 0.8) < 0.005
    words = tokenizer.get_vocab_size() - 5
    assert abs(kept / count - (0.1 + 0.1 / words)) < 0.005  # a random word may be the same one
    assert not set(drawn) & set(special) and len(set(drawn)) == words  # every one may come


@pytest.fixture(scope="module")
def visits(greek):
    """{seed: (sequences, their masked positions)} of every visit in four epochs, in order."""
    _, tokenizer, tokens = greek
    sequences, seen = data.Sequences(tokens.train[: 41 * 17], 19, tokenizer, 0.4), {}
    for seed in (0, 1):
        batches = data.TrainingBatches(sequences, 6, seed)
        batch = data.MaskedBatch(
            *map(torch.cat, zip(*map(batches.batch, range(29)), strict=True)))
        masked = [set(row[labels != data.IGNORE_INDEX].tolist())
                  for row, labels in zip(batch.positions, batch.labels, strict=True)]
        seen[seed] = [tuple(row) for row in unmasked(batch).tolist()], masked
    return seen


def test_each_epoch_has_an_order_of_its_own(visits):
    """Every epoch visits each sequence once, in an order that depends on epoch and seed.

    Two random orders of N sequences agree in one place on average, whatever N.
    """
    orders = [sequences[first : first + 41]
              for sequences, _ in visits.values() for first in (0, 41, 82, 123)]
    assert all(set(order) == set(orders[0]) and len(set(order)) == 41 for order in orders)
    for a, b in combinations(orders, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 8


def agreement(pairs):
    """The masked positions that the two of each pair share, relative to what chance gives."""
    width = 17  # the tokens between [CLS] and [SEP]
    shared = sum(len(a & b) for a, b in pairs)
    return shared / sum(len(a) * len(b) / width for a, b in pairs)


def test_masks_are_drawn_at_each_visit(visits):
    """Masks are drawn at each visit: no two visits have more positions in common than by chance.

    That holds for two visits of one sequence, for the same row of two batches, for neighbours in a
    batch, and for the same visit under another seed.
    """
    of_sequence = {}
    for sequence, masked in zip(*visits[0], strict=True):
        of_sequence.setdefault(sequence, []).append(masked)
    positions, others = visits[0][1], visits[1][1]
    kinds = {
        "sequence": [pair for each in of_sequence.values() for pair in pairwise(each)],
        "row": list(zip(positions, positions[6:], strict=False)),
        "batch": list(pairwise(positions)),
        "seed": list(zip(positions, others, strict=True))}
    for kind, pairs in kinds.items():
        assert len(pairs) > 100 and 0.6 < agreement(pairs) < 1.4, kind


def test_processes_share_the_batch_of_one(greek):
    """The rows of 3 processes, put together, are the batch of one process, masks included."""
    _, tokenizer, tokens = greek
    batches = data.TrainingBatches(data.Sequences(tokens.train, 21, tokenizer), 9, 3)
    whole = batches.batch(4)
    for local in ([batches.batch(4, rank, 3) for rank in range(3)], [*data.split(whole, 4)]):
        for together, tensor in zip(zip(*local, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(together), tensor)
    assert [len(part.input_ids) for part in data.split(whole, 4)] == [4, 4, 1]


@pytest.mark.parametrize("limit", [150, 301, 10_000])
def test_validation_masks_never_change(greek, limit):
    """Validation batches are the same each time, of sequences spread evenly over the file.

    Their masks are not those of a step of training. Two processes, which take turns, have all
    batches.
    """
    _, tokenizer, tokens = greek
    sequences = data.Sequences(tokens.train, 11, tokenizer)
    N, batches = len(sequences), list(data.validation_batches(sequences, limit))
    count = min(limit, N)
    assert 301 < N < 10_000
    ids = torch.cat([unmasked(batch) for batch in batches])
    assert ids.tolist() == sequences.read([i * N // count for i in range(count)]).tolist()
    training = data.TrainingBatches(sequences, data.VALIDATION_BATCH, 0).batch(0)
    assert (batches[0].positions == training.positions).float().mean() < 0.3
    halves = [list(data.validation_batches(sequences, limit, rank, 2)) for rank in range(2)]
    for number, batch in enumerate(batches):
        assert all(map(torch.equal, batch, halves[number % 2][number // 2]))
    assert len(batches) == len(halves[0]) + len(halves[1])


def test_the_baseline_without_context_is_exact():
    """Loss and accuracy are those of the joint distribution of what is shown and what was there.

    The entropy of the ordinary tokens, special ones left out, is what scipy says.
    """
    is_special = np.zeros(13, dtype=bool)
    is_special[:5] = True
    tokens = np.random.default_rng(0).choice(12, p=np.arange(1, 13) / 78, size=501)
    counts = np.bincount(tokens[tokens >= 5], minlength=13)[5:]
    p, V = counts / counts.sum(), 8
    baseline = data.context_free_baseline(tokens, is_special)
    assert baseline["unigram_entropy"] == pytest.approx(scipy.stats.entropy(counts))
    joint = np.zeros((V + 1, V))  # P(shown, original); the last row is [MASK]
    joint[V] = 0.8 * p
    joint[:V] += 0.1 * p / V
    joint[range(V), range(V)] += 0.1 * p
    posterior = joint / joint.sum(1, keepdims=True)
    loss = -(joint * np.log(np.where(joint > 0, posterior, 1))).sum()
    assert baseline["loss"] == pytest.approx(loss) and loss < baseline["unigram_entropy"]
    assert baseline["accuracy"] == pytest.approx(joint.max(1).sum())
    assert baseline["accuracy_at_mask"] == pytest.approx(p.max())


def test_no_two_random_streams_meet():
    """Order, masks and validation masks differ for every seed, epoch and step, large ones too."""
    numbers = [0, 1, 2, 3, 2**31 - 1]
    firsts = [data.stream(purpose, seed, number).integers(2**63)
              for purpose in (data.ORDER, data.MASKS, data.VALIDATION)
              for seed in numbers for number in numbers]
    assert len(set(firsts)) == len(firsts) == 75
