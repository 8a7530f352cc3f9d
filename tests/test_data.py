"""The path from documents to masked batches."""

import json

import numpy as np
import pytest
import scipy.stats
import torch

from mini_undivided import corpus, data
from mini_undivided.support import token_files
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import cache_dir
from mini_undivided.tokenizer import same_tokenizer, special_ids, train_tokenizer

WORDS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa "
    "lambda mu nu xi omicron pi rho sigma tau"
).split()


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """170 documents of random names of Greek letters.

    Here and there is an emoji, an unknown word.
    """
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("text") / "greek.jsonl"
    rows = [" ".join(rng.choice([*WORDS, "\U0001f600"], size=97)) for _ in range(170)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def parts(text_file):
    """(corpus, tokenizer, tokens) of that file."""
    source = corpus.open_corpus([str(text_file)])
    tokenizer = train_tokenizer((WORDS * 3 for _ in range(3)), 150)
    return source, tokenizer, token_files.tokenize(source, tokenizer)


def test_tokens_are_the_documents_in_order_with_separators(parts):
    """The token files hold each document's ids and a [SEP], in order.

    Every twentieth document is in the validation file.
    """
    source, tokenizer, tokens = parts
    sep = tokenizer.token_to_id("[SEP]")
    expected = {True: [], False: []}
    for i, piece in enumerate(source.pieces()):
        expected[i % 20 == 10] += [*tokenizer.encode(piece.text, add_special_tokens=False).ids, sep]
    assert tokens.train.tolist() == expected[False]
    assert tokens.valid.tolist() == expected[True]
    assert (tokens.documents, tokens.words, tokens.train.dtype) == (170, 170 * 97, np.dtype("<u2"))


def test_a_mask_that_a_document_spells_out_is_not_a_mask(tmp_path, parts):
    """A document that spells out special tokens brings the id of none into the token file.

    The only special ids are its unknown words' [UNK] and the [SEP] at its end. Elsewhere the
    tokenizer still takes "[MASK]" for the mask.
    """
    (tmp_path / "a.txt").write_text("alpha [MASK] beta [CLS] [SEP] [PAD] " * 7)
    tokens = token_files.tokenize(corpus.open_corpus([str(tmp_path / "a.txt")]), parts[1])
    pad, unknown, cls, sep, mask = special_ids(parts[1])
    assert tokens.train[-1] == sep
    assert not set(tokens.train[:-1].tolist()) & {pad, cls, sep, mask}
    assert parts[1].encode("[MASK]", add_special_tokens=False).ids == [mask]


def test_token_files_are_cached_by_content(tmp_path, parts, monkeypatch):
    """The same bytes under another name are not tokenised again; other bytes are."""
    source, tokenizer, tokens = parts
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.files[0].read_bytes())
    monkeypatch.setattr(token_files, "write_token_files", lambda *_: pytest.fail("tokenised again"))
    again = token_files.tokenize(corpus.open_corpus([str(copy)]), tokenizer)
    assert np.array_equal(again.train, tokens.train)
    copy.write_text(json.dumps({"text": "alpha"}))
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        token_files.tokenize(corpus.open_corpus([str(copy)]), tokenizer)


def test_sequences_are_packed_full(parts):
    """Sequence i is [CLS], the file's i-th 19 tokens and [SEP].

    Nothing is lost between two sequences, and nothing is padded.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 21, tokenizer)
    ids = sequences.read(np.arange(len(sequences)))
    assert ids.shape == (len(tokens.train) // 19, 21)
    assert set(ids[:, 0]) == {tokenizer.token_to_id("[CLS]")}
    assert set(ids[:, -1]) == {tokenizer.token_to_id("[SEP]")}
    assert ids[:, 1:-1].ravel().tolist() == tokens.train[: len(sequences) * 19].tolist()


def test_masking_shares_and_special_tokens(parts):
    """Of the picked tokens 80 % become [MASK], 10 % a random word, and 10 % are kept.

    Counted over 100,000 picks. Exactly round(0.15 n) of a sequence's n ordinary tokens are picked,
    and special tokens are neither picked nor drawn.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 37, tokenizer)
    mask, special = tokenizer.token_to_id("[MASK]"), special_ids(tokenizer)
    picks = to_mask = kept = 0
    drawn = []
    for visit in range(60):
        rng = np.random.default_rng(visit)
        original = sequences.read(rng.integers(len(sequences), size=353))
        batch = sequences.mask(original.copy(), rng)
        rows = np.arange(353)[:, None]
        used = (batch.labels != data.IGNORE).numpy()
        before, after = (
            original[rows, batch.positions], batch.input_ids.numpy()[rows, batch.positions])
        ordinary = (~np.isin(original, special)).sum(1)
        assert (used.sum(1) == np.rint(0.15 * ordinary)).all()
        assert (batch.labels.numpy()[used] == before[used]).all()
        assert not np.isin(before[used], special).any()
        assert all(
            len(set(p[u])) == u.sum() for p, u in zip(batch.positions.numpy(), used, strict=True))
        untouched = np.ones_like(original, dtype=bool)
        untouched[np.broadcast_to(rows, used.shape)[used], batch.positions.numpy()[used]] = False
        assert (batch.input_ids.numpy()[untouched] == original[untouched]).all()
        picks += used.sum()
        to_mask += (after[used] == mask).sum()
        kept += (after[used] == before[used]).sum()
        drawn += after[used & (after != mask) & (after != before)].tolist()
    assert picks > 100_000
    assert abs(to_mask / picks - 0.8) < 0.005
    ordinary_words = tokenizer.get_vocab_size() - 5
    # a random word is sometimes the same one
    assert abs(kept / picks - (0.1 + 0.1 / ordinary_words)) < 0.005
    # every ordinary word may come
    assert not set(drawn) & set(special) and len(set(drawn)) == ordinary_words


def test_masks_are_new_at_each_visit_but_reproducible(parts):
    """Two visits of a sequence have different masks.

    The same step of the same seed has the same masks.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train[: 19 * 7], 21, tokenizer)
    first, again, other_seed = (data.TrainingData(sequences, 7, seed) for seed in (0, 0, 1))
    a, b = first.batch(0), first.batch(1)
    assert torch.equal(a.labels, again.batch(0).labels)
    assert torch.equal(a.input_ids, again.batch(0).input_ids)
    assert not torch.equal(a.labels, b.labels)
    assert not torch.equal(a.labels, other_seed.batch(0).labels)


def test_each_epoch_visits_every_sequence_once(parts):
    """Every epoch visits every sequence once, in another order than the epoch before.

    In batches of 5 over 23 sequences, the first 23 visits are a permutation, and so are the next
    23.
    """
    _, tokenizer, tokens = parts
    training = data.TrainingData(data.Sequences(tokens.train[: 19 * 23], 21, tokenizer), 5, 3)
    visits = np.concatenate([training.indices(np.arange(i, i + 5)) for i in range(0, 46, 5)])[:46]
    assert sorted(visits[:23]) == sorted(visits[23:]) == list(range(23))
    assert visits[:23].tolist() != visits[23:].tolist()


def test_processes_share_the_batch_of_one(parts):
    """The parts of 3 processes, put together, are the batch of one process, masks included."""
    _, tokenizer, tokens = parts
    training = data.TrainingData(data.Sequences(tokens.train, 21, tokenizer), 9, 3)
    whole = training.batch(4)
    shares = [training.batch(4, rank, 3) for rank in range(3)]
    assert whole[3:] == (None, None)
    for i, tensor in enumerate(whole[:3]):
        assert torch.equal(torch.cat([share[i] for share in shares]), tensor)
    assert [part.input_ids.shape for part in whole.micro_batches(4)] == [(4, 21), (4, 21), (1, 21)]


def test_pairs_are_of_neighbours_or_of_two_sequences(parts):
    """A pair is [CLS] A [SEP] B [SEP]; half of the B's are the sequence's own.

    The others are the same places of the sequence before it in the batch, and are called random. A
    has at least a quarter of the sequence, B a quarter less its [SEP]s.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 21, tokenizer)
    ids = sequences.read(np.arange(400))
    before = ids.copy()
    paired, segments, is_random = sequences.pair(ids, np.random.default_rng(0))
    assert np.array_equal(ids, before)
    cuts = 20 - segments.sum(1)
    assert set(cuts) == set(range(5, 16)) and 160 < is_random.sum() < 240
    for i, (row, cut) in enumerate(zip(paired, cuts, strict=True)):
        source = before[i - 1 if is_random[i] else i]
        assert row[cut] == sequences.sep_id and segments[i, : cut + 1].sum() == 0
        assert row[:cut].tolist() == before[i, :cut].tolist()
        assert row[cut + 1 :].tolist() == source[cut + 1 :].tolist()
    *_, alone = sequences.pair(before[:1], np.random.default_rng(0))
    assert alone.tolist() == [0]


def test_pairs_of_processes_are_those_of_one(parts):
    """A batch of pairs is split over processes and micro-batches like any other, and masked.

    No separator is masked, and micro-batches keep what belongs to a pair.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 21, tokenizer, 0.4)
    training = data.TrainingData(sequences, 9, 3, pairs=True)
    whole, shares = training.batch(4), [training.batch(4, rank, 3) for rank in range(3)]
    parts = list(whole.micro_batches(4))
    for i, tensor in enumerate(whole):
        assert torch.equal(torch.cat([share[i] for share in shares]), tensor)
        assert torch.equal(torch.cat([part[i] for part in parts]), tensor)
    ends = (whole.input_ids == sequences.sep_id).sum(1)
    assert ends.min() >= 2 and whole.token_type_ids.shape == (9, 21) and len(whole) == 5
    assert not (whole.labels == sequences.sep_id).any()


def test_a_model_of_pairs_is_validated_on_pairs_that_follow(parts):
    """The text is the same but for one [SEP] a sequence, and so are nearly all masks."""
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 41, tokenizer)
    (plain,), (paired,), (again,) = (
        data.validation_batches(sequences, 50, pairs=pairs) for pairs in (False, True, True))
    assert torch.equal(paired.input_ids, again.input_ids) and paired.is_random is None
    differ = (plain.input_ids != paired.input_ids).sum(1)
    assert 1 <= differ.float().mean() < 4 and paired.token_type_ids.sum(1).unique().numel() > 5
    assert plain.token_type_ids is None
    assert (plain.positions == paired.positions).float().mean() > 0.8


def test_validation_masks_never_change(parts):
    """Validation batches are the same each time, of sequences spread evenly over the file.

    Two processes, which take turns, have all of them.
    """
    _, tokenizer, tokens = parts
    sequences = data.Sequences(tokens.train, 11, tokenizer)
    one = list(data.validation_batches(sequences, 150))
    two = list(data.validation_batches(sequences, 150))
    assert all(
        torch.equal(x, y) for a, b in zip(one, two, strict=True)
        for x, y in zip(a[:3], b[:3], strict=True))
    ids, positions, labels = (torch.cat(parts) for parts in list(zip(*one, strict=True))[:3])
    ids.scatter_(1, positions, torch.where(labels == data.IGNORE, ids.gather(1, positions), labels))
    chosen = [i * len(sequences) // 150 for i in range(150)]
    assert len(sequences) > 300 and ids.tolist() == sequences.read(chosen).tolist()
    halves = [list(data.validation_batches(sequences, 150, rank, 2)) for rank in range(2)]
    assert [len(half) for half in halves] == [2, 1]
    for batch, half in zip(one, (halves[0][0], halves[1][0], halves[0][1]), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(batch[:3], half[:3], strict=True))


def test_the_baseline_without_context_is_exact():
    """Loss and accuracy are those of the joint distribution of what is shown and what was there.

    The entropy of the ordinary tokens, special ones left out, is what scipy says; and a simulation
    of the masking agrees.
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
    rng = np.random.default_rng(1)
    original, fate = rng.choice(V, p=p, size=200_000), rng.random(200_000)
    shown = np.where(fate < 0.8, V, np.where(fate < 0.9, rng.integers(V, size=200_000), original))
    assert -np.log(posterior[shown, original]).mean() == pytest.approx(loss, abs=0.02)
    right = (joint.argmax(1)[shown] == original).mean()
    assert right == pytest.approx(baseline["accuracy"], abs=0.01)


def test_no_two_random_streams_meet():
    """Order, masks and validation masks differ for every seed, epoch and step, large ones too."""
    numbers = [0, 1, 2, 3, 2**31 - 1]
    firsts = [
        data.stream(purpose, seed, number).integers(2**63)
        for purpose in (data.ORDER, data.MASKS, data.VALIDATION)
        for seed in numbers
        for number in numbers]
    assert len(set(firsts)) == len(firsts) == 75


def test_trained_tokenizer_is_cached_and_ignores_held_out_text(tmp_path, monkeypatch):
    """The second time the same tokenizer is read, not trained; a cased one is another.

    A word that only the held-out document has is not learned.
    """
    trained = []
    monkeypatch.setattr(
        token_files, "train_tokenizer",
        lambda *args: trained.append(args) or train_tokenizer(*args))
    path = tmp_path / "a.jsonl"
    texts = ["plain words here again"] * 30
    texts[10] = "zyzzyva " * 50  # document 10 is held out
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = corpus.open_corpus([str(path)])
    tokenizer = token_files.cached_tokenizer(source, 60)
    assert same_tokenizer(tokenizer, token_files.cached_tokenizer(source, 60))
    assert len(trained) == 1
    assert tokenizer.token_to_id("plain") and tokenizer.token_to_id("zyzzyva") is None
    assert not same_tokenizer(tokenizer, token_files.cached_tokenizer(source, 60, cased=True))
    assert len(trained) == 2


def test_a_failed_tokenisation_leaves_nothing_behind(tmp_path, parts):
    """An error on the way leaves no file, whole or temporary, and the next try ends as the first.

    So no later run takes what was written for complete.
    """
    (tmp_path / "bad.txt").write_bytes(b"alpha beta \xff\xfe gamma")
    source = corpus.open_corpus([str(tmp_path / "bad.txt")])
    before = {path for path in cache_dir().rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(UserError, match="bad.txt is not UTF-8"):
            token_files.tokenize(source, parts[1])
        assert {path for path in cache_dir().rglob("*") if path.is_file()} == before
