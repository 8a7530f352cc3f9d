"""Checks of 4: masking."""

import numpy as np
import torch

from mini_undivided.course.assignments import check, compare, require
from mini_undivided.course.student import remote


@remote
def hidden(made, ids, seed):
    """What the student's mask makes of ids: three arrays."""
    from mini_undivided.data import MaskedBatch

    batch = made.mask(ids.copy(), np.random.default_rng(seed))
    require(isinstance(batch, MaskedBatch) and all(map(torch.is_tensor, batch[:3])),
            "mask does not return a MaskedBatch of three tensors")
    return [part.numpy() for part in batch[:3]]


def masked(data, rng):
    """Mask 3,000 sequences, special tokens inside the first 500 → Sequences, ids before, batch.

    Few words are frequent, so that those drawn from the text are not those drawn evenly.
    """
    from mini_undivided.tokenizer import SPECIAL, assemble, finish, word_pieces

    entries = rng.permutation([*SPECIAL, *(f"w{i}" for i in range(80))])
    tokenizer = finish(assemble(word_pieces({str(w): i for i, w in enumerate(entries)})), "a check")
    T = int(rng.integers(30, 50))
    made = data.Sequences(np.zeros(T, int), T, tokenizer, rng.uniform(0.2, 0.45))
    common = 1 / np.arange(3, 83)
    made.rows = rng.choice(made.ordinary, (3000, T - 2), p=common / common.sum())
    special = rng.choice(np.flatnonzero(made.is_special), (500, T - 2))
    made.rows[:500] = np.where(rng.random(special.shape) < 0.2, special, made.rows[:500])
    ids = made.read(np.arange(3000))
    batch = hidden(made, ids, int(rng.integers(2**31)))
    shapes = [part.shape for part in batch]
    right = [(3000, T), (3000, made.num_masked), (3000, made.num_masked)]
    require(shapes == right, f"the batch has the shapes {shapes}, but should have {right}")
    return made, ids, batch


@check(4, points=4)
def what_is_chosen(data, rng):
    """Each sequence hides round(mlm_probability n) of its n ordinary tokens, all equally often."""
    made, ids, (after, positions, labels) = masked(data, rng)
    original, used = np.take_along_axis(ids, positions, 1), labels != data.IGNORE_INDEX
    changed = np.take_along_axis(after, positions, 1) != original
    special, n = made.is_special[original], (~made.is_special[ids]).sum(1)
    require(not (special & used).any(), "special tokens are among those to be predicted")
    require(not (special & changed).any(), "special tokens are masked: they have to stay")
    require((labels == original)[used].all(),
            "labels are not the original tokens at positions: are they read after the change?")
    require(all(len(np.unique(p[u])) == u.sum() for p, u in zip(positions, used, strict=True)),
            "a position is chosen twice in one sequence")
    p, M, found = made.mlm_probability, made.num_masked, used.sum(1)
    require(found.sum() > 0.95 * np.rint(p * n).sum() or changed[used].mean() < 0.97,
            "is there no label where the token stays? It is predicted, too")
    compare("the number of labels of each sequence", found, np.rint(p * n), {
        "when all tokens count, not only ordinary ones": M + 0 * n,
        "when it is cut off, not rounded": np.floor(p * n),
        "when it is rounded up": np.ceil(p * n).clip(max=M)})
    whole = positions[500:]  # of the sequences without special tokens inside
    require(len(np.unique(np.sort(whole, 1), axis=0)) > 1900,
            "all sequences hide the same positions")
    for some in (slice(500), slice(500, None)):  # with fewer to predict than positions, and not
        counts = np.bincount(positions[some][used[some]], minlength=ids.shape[1])
        expected = ((found / n)[some, None] * ~made.is_special[ids[some]]).sum(0)
        require(even(counts[1:-1], expected[1:-1]),
                "some positions of a sequence are chosen more often than others")


@check(4, points=4)
def what_becomes_of_it(data, rng):
    """Of the chosen, 80 % become [MASK], 10 % a random ordinary token, 10 % stay."""
    made, ids, (after, positions, labels) = masked(data, rng)
    used, touched = labels != data.IGNORE_INDEX, np.zeros_like(ids, dtype=bool)
    np.put_along_axis(touched, positions, used, 1)
    require((after == ids)[~touched].all(), "input_ids change where no label asks for it")
    shown, original = np.take_along_axis(after, positions, 1)[used], labels[used]
    is_random = (shown != original) & (shown != made.mask_id)
    others, rows = shown[is_random], np.nonzero(used)[0][is_random]
    require(not made.is_special[others].any(),
            "special tokens are among the random words: draw from self.ordinary")
    front = positions[used] < ids.shape[1] / 2
    first, last = (np.mean(shown[side] == made.mask_id) for side in (front, ~front))
    require(abs(first - last) < 0.03, f"{first:.0%} become [MASK] in the front half of sequences, "
            f"{last:.0%} in the back half: what a token becomes may not depend on its position")
    gone, stay = np.mean(shown == made.mask_id), np.mean(shown == original)
    chance, deviation = 0.1 / len(made.ordinary), 3 / len(shown) ** 0.5
    say = f"{gone:.1%} become [MASK], {stay:.1%} stay, {1 - gone - stay:.1%} are random: "
    require(gone < 0.99, say + "is everything chosen replaced by [MASK]?")
    require(abs(gone - 0.8) < deviation, say + "of ten, eight should become [MASK]")
    require(abs(stay - 0.1 - chance) < deviation,
            say + "of ten, one should stay, and one become a random word")
    spread = np.bincount(np.nonzero(used)[0], shown == made.mask_id) / used.sum(1)
    require(spread[500:].std() < 0.25, "all that is chosen of a sequence becomes the same: there "
            "is one draw for all")
    alike = (others[1:] == others[:-1])[rows[1:] == rows[:-1]]
    require(alike.mean() < 0.5, "the random words of a sequence are all the same")
    size, drawn = len(made.is_special), np.bincount(original, minlength=len(made.is_special))
    require(even(np.bincount(others, minlength=size)[made.ordinary],
                 1 - drawn[made.ordinary] / len(original)), "some random words are drawn far more "
            "often than others: draw evenly from all of self.ordinary, not from the text")


def even(counts, weights=1.0):
    """Whether counts are as equal as those of even draws, or as draws of some weights."""
    expected = counts.sum() * weights / np.sum(weights * np.ones(len(counts)))
    return (np.abs(counts - expected) < 5.5 * expected**0.5 + 1).all()


@check(4, points=2)
def draws_come_from_rng(data, rng):
    """The same generator gives the same masks, another one gives others."""
    made, ids, _ = masked(data, rng)
    seed, few = int(rng.integers(2**31)), ids[:12]
    whole = hidden(made, few, seed)
    require(all(map(np.array_equal, whole, hidden(made, few, seed))),
            "the same rng gives other masks: draw from rng and nothing else")
    require(not all(map(np.array_equal, whole, hidden(made, few, seed + 1))),
            "another rng gives the same masks: draw from rng and nothing else")
