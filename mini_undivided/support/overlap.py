"""How much of the held-out text stands in the training text, too: common runs of 13 words."""

import numpy as np

from mini_undivided.support.docs import RUN_LENGTH

CHUNK = 1 << 22  # tokens of the training text compared at once
WORD, STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)  # odd, with mixed bits
FILTER = 22  # least number of bits of a hash that the table of held-out runs is indexed by


def powers(base, count):
    """base⁰, base¹, … modulo 2⁶⁴."""
    return np.cumprod(np.concatenate([[np.uint64(1)], np.full(count - 1, base)]), dtype=np.uint64)


def word_hashes(tokens, opens_word, sep):
    """A hash of each word's pieces. tokens (N,); opens_word (V,): ids that do not begin with "##".

    A `sep` between two pieces of text gets a number that no other has: no shared run crosses it.
    """
    ids = np.asarray(tokens)
    starts = np.flatnonzero(opens_word[ids])
    if len(starts) == 0:
        return np.zeros(0, np.uint64)
    ids = ids[starts[0] :].astype(np.uint64) + np.uint64(1)
    starts = starts - starts[0]
    lengths = np.diff(np.append(starts, len(ids)))
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)  # of a piece in its word
    mixed = ids * WORD
    mixed = (mixed ^ (mixed >> np.uint64(29))) * powers(STEP, lengths.max())[positions]
    hashes, between = np.add.reduceat(mixed, starts), ids[starts] == sep + 1
    hashes[between] = np.random.default_rng().integers(2**64, size=between.sum(), dtype=np.uint64)
    return hashes


def run_hashes(words, run=RUN_LENGTH):
    """A hash of each run of `run` words: words (N,) → (N - run + 1,), empty if there is none."""
    count = max(0, len(words) - run + 1)
    total = np.zeros(count, np.uint64)
    for i, power in enumerate(powers(WORD, run)):
        total += words[i : i + count] * power
    return total ^ (total >> np.uint64(31))


def shared_words(train, valid, opens_word, sep, run=RUN_LENGTH):
    """Which words of the held-out tokens lie in a run that training has too → array of bool."""
    words = word_hashes(valid, opens_word, sep)
    runs, inverse = np.unique(run_hashes(words, run), return_inverse=True)  # runs[inverse]: all
    bits = max(FILTER, 3 + len(runs).bit_length())
    table = np.zeros(1 << bits, bool)  # most runs of the training text are sorted out by it
    shift = np.uint64(64 - bits)
    table[runs >> shift] = True
    shared = np.zeros(len(runs), bool)
    rest = np.zeros(0, np.uint64)  # words at the end of a chunk, with which runs begin
    start = 0
    while start < len(train):
        end = min(start + CHUNK, len(train))
        while end < len(train) and not opens_word[train[end]]:
            end += 1  # a word is not cut
        chunk = np.concatenate([rest, word_hashes(train[start:end], opens_word, sep)])
        start = end
        candidates = run_hashes(chunk, run)
        candidates = candidates[table[candidates >> shift]]
        nearest = np.searchsorted(runs, candidates).clip(max=len(runs) - 1)
        shared[nearest[runs[nearest] == candidates]] = True
        rest = chunk[len(chunk) - run + 1 :] if run > 1 else rest
    marks = np.zeros(len(words) + 1, np.int64)  # +1 where a shared run begins, -1 behind its end
    hits = np.flatnonzero(shared[inverse])
    np.add.at(marks, hits, 1)
    np.add.at(marks, hits + run, -1)
    return np.cumsum(marks)[:-1] > 0
