"""Documents → token file → shuffled sequences → masked batches.

Letters: N sequences in a file, B sequences in a batch, T tokens in a sequence, M places to mask in a sequence.

Every draw is a function of the seed and of the number of the visit (how many sequences were drawn before), and of
nothing else. So a run goes on where it stopped without having stored its place, and splitting a batch over
micro-batches or processes changes no token of it.
"""

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from mini_undivided import corpus as corpora
from mini_undivided import runs
from mini_undivided import tokenizer as wordpiece
from mini_undivided.runtime import UserError

HEADER = struct.Struct("<8sIIQ")  # magic, bytes a token, size of the vocabulary, number of tokens
MAGIC = b"UNDIVID1"
BATCH_CHARACTERS = 1 << 21  # tokenised at once: enough for all cores, small enough for any memory
TOKENIZER_CHARACTERS = 10**8  # more text does not change which pieces are frequent
IGNORE = -100  # the label of a place that does not count; what PyTorch's cross entropy leaves out

MASK_SHARE, TO_MASK, TO_RANDOM = 0.15, 0.8, 0.1  # BERT's; the remaining tenth stays as it is
VALIDATION_BATCH = 64  # sequences
VALIDATION_SEED = 2**32  # no training seed: these masks are drawn once, and are the same for every run


class TokenWriter:
    """Writes a token file: the header, then token ids, two bytes each where the vocabulary allows it, else four."""

    def __init__(self, path, vocab_size):
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.vocab_size, self.count = vocab_size, 0
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self.file.write(HEADER.pack(MAGIC, self.dtype.itemsize, vocab_size, 0))

    def write(self, ids):
        """Append an array of token ids."""
        self.count += len(ids)
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())

    def close(self):
        """Complete the header and close the file."""
        self.file.seek(0)
        self.file.write(HEADER.pack(MAGIC, self.dtype.itemsize, self.vocab_size, self.count))
        self.file.close()


def read_tokens(path):
    """Map a token file into memory, without reading it → array of ids. Raises UserError where it is no whole one."""
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{path} is not a token file of this version; delete it and it will be made anew")
    _, itemsize, _, count = HEADER.unpack(head)
    if path.stat().st_size != HEADER.size + itemsize * count:
        raise UserError(f"{path} was cut short; delete it and it will be made anew")
    if count == 0:
        return np.zeros(0, dtype="<u2")
    return np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER.size, shape=(count,))


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus: two arrays of ids, and how many documents, words and tokens it has."""

    train: np.ndarray
    valid: np.ndarray
    documents: int
    words: int

    @property
    def count(self):
        return len(self.train) + len(self.valid)


def train_tokenizer(corpus, vocab_size, cased=False):
    """A WordPiece tokenizer for a corpus, trained at the first call and found in the cache later.

    It sees the training documents only, and of a corpus above TOKENIZER_CHARACTERS an even sample of them.
    """
    key = hashlib.blake2b(f"{corpus.fingerprint} {vocab_size} {cased}".encode(), digest_size=12).hexdigest()
    folder = corpora.cache_dir() / f"tokenizer-{key}"
    if not (folder / "tokenizer_config.json").exists():
        wordpiece.save(wordpiece.train(sample(corpus), vocab_size, cased), folder)
    return wordpiece.load(folder)


def sample(corpus):
    """Yield at most TOKENIZER_CHARACTERS characters of a corpus' training documents, spread over its length."""
    every, taken = 1 + corpus.size // TOKENIZER_CHARACTERS, 0
    limit = min(corpus.size, TOKENIZER_CHARACTERS) or TOKENIZER_CHARACTERS
    with tqdm(total=limit, desc="tokenizer", unit="B", unit_scale=True, leave=False, mininterval=0.5) as bar:
        for i, text in enumerate(corpus):
            if i % every == 0 and not corpora.is_held_out(i):
                yield text
                bar.update(len(text))
                taken += len(text)
                if taken > TOKENIZER_CHARACTERS:
                    return


def tokenize(corpus, tokenizer):
    """The token files of a corpus, made at the first call and found in the cache later → Tokens."""
    key = hashlib.blake2b((corpus.fingerprint + tokenizer.to_str()).encode(), digest_size=12).hexdigest()
    folder = corpora.cache_dir() / f"tokens-{key}"
    about = folder / "about.json"
    if not about.exists():
        folder.mkdir(exist_ok=True)
        with runs.atomic(folder / "train.tokens") as train, runs.atomic(folder / "valid.tokens") as valid:
            counts = write_token_files(corpus, tokenizer, train, valid)
        runs.write_json(about, counts)  # last: its presence says that the token files are whole
    counts = runs.read_json(about)
    return Tokens(read_tokens(folder / "train.tokens"), read_tokens(folder / "valid.tokens"), **counts)


def write_token_files(corpus, tokenizer, train, valid):
    """Tokenise a corpus into two files, a batch of documents in memory at a time → its documents and words."""
    vocab_size, sep = tokenizer.get_vocab_size(), tokenizer.token_to_id("[SEP]")
    writers = TokenWriter(train, vocab_size), TokenWriter(valid, vocab_size)
    documents = words = 0
    bar = tqdm(total=corpus.size or None, desc="tokenising", unit="B", unit_scale=True, leave=False, mininterval=0.5)
    tokenizer.encode_special_tokens = True  # a [MASK] that a document spells out is text, not a place to fill
    with bar:
        for texts, encodings in encode_ahead(tokenizer, batches(corpus)):
            for text, encoding in zip(texts, encodings, strict=True):
                writers[corpora.is_held_out(documents)].write([*encoding.ids, sep])
                documents, words = documents + 1, words + len(text.split())
            bar.update(sum(map(len, texts)))
    tokenizer.encode_special_tokens = False
    for writer in writers:
        writer.close()
    return {"documents": documents, "words": words}


def batches(documents):
    """Group documents into lists of about BATCH_CHARACTERS characters."""
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_ahead(tokenizer, text_batches):
    """Yield (texts, encodings); the library tokenises a batch on all cores while the caller handles the one before."""
    with ThreadPoolExecutor(1) as pool:
        ready = None
        for texts in text_batches:
            job = pool.submit(tokenizer.encode_batch_fast, texts, add_special_tokens=False)
            if ready:
                yield ready[0], ready[1].result()
            ready = texts, job
        if ready:
            yield ready[0], ready[1].result()


class MaskedBatch(NamedTuple):
    """Sequences with holes. input_ids (B, T); positions (B, M) of the holes; labels (B, M), IGNORE where unused."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor

    def split(self, size):
        """Yield micro-batches of `size` sequences."""
        for parts in zip(*(tensor.split(size) for tensor in self), strict=True):
            yield MaskedBatch(*parts)

    def masked(self):
        """How many places count."""
        return int((self.labels != IGNORE).sum())


class Sequences:
    """A token array cut into N full sequences, [CLS] and T - 2 tokens and [SEP], and drawn from with masks."""

    def __init__(self, tokens, seq_len, tokenizer):
        self.seq_len = seq_len
        self.width = seq_len - 2
        self.rows = tokens[: len(tokens) // self.width * self.width].reshape(-1, self.width)  # (N, T - 2), no copy
        self.places = int(np.rint(MASK_SHARE * self.width))  # M
        _, _, self.cls, self.sep, self.mask = wordpiece.special_ids(tokenizer)
        self.ordinary = wordpiece.ordinary_ids(tokenizer)
        self.is_special = np.ones(tokenizer.get_vocab_size(), dtype=bool)
        self.is_special[self.ordinary] = False

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        """The sequences of these numbers → (B, T) int64."""
        ids = np.empty((len(indices), self.seq_len), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = self.cls, self.rows[indices], self.sep
        return ids

    def masked(self, ids, rng, mine=slice(None)):
        """Mask exactly round(0.15 n) of the n ordinary tokens of each sequence → MaskedBatch of the rows `mine`.

        Of the masked, 80 % become [MASK], 10 % a random ordinary token, 10 % stay (Devlin et al. 2019).
        Draws are made for all rows, so that they do not depend on which are mine.
        """
        scores = rng.random(ids.shape, dtype=np.float32)[mine]  # (B, T): the lowest are masked
        fate = rng.random((len(ids), self.places), dtype=np.float32)[mine]  # (B, M)
        replacement = self.ordinary[rng.integers(len(self.ordinary), size=(len(ids), self.places))[mine]]  # (B, M)
        ids = ids[mine]

        special = self.is_special[ids]
        scores[special] = 2.0
        positions = np.argsort(scores, axis=1)[:, : self.places]  # (B, M), ordinary tokens first
        wanted = np.rint(MASK_SHARE * (~special).sum(axis=1, keepdims=True))  # (B, 1)
        used = np.arange(self.places) < wanted  # (B, M): a sequence with special tokens inside has fewer
        original = np.take_along_axis(ids, positions, axis=1)
        replacement = np.where(fate < TO_MASK, self.mask, np.where(fate < TO_MASK + TO_RANDOM, replacement, original))
        np.put_along_axis(ids, positions, np.where(used, replacement, original), axis=1)
        labels = np.where(used, original, IGNORE)
        return MaskedBatch(*map(torch.from_numpy, (ids, positions, labels)))


class TrainingData:
    """The batches of a run: `size` sequences a step, every sequence once an epoch in a new order, masked anew."""

    def __init__(self, sequences, size, seed):
        self.sequences, self.size, self.seed = sequences, size, seed
        self.epoch, self.order = None, None

    def batch(self, step, rank=0, world=1):
        """The share of process `rank` in the batch of a step: size / world sequences → MaskedBatch on the CPU."""
        visits = np.arange(step * self.size, (step + 1) * self.size)
        ids = self.sequences.read(self.indices(visits))
        share = self.size // world
        rng = np.random.default_rng([self.seed, step])
        return self.sequences.masked(ids, rng, slice(rank * share, (rank + 1) * share))

    def indices(self, visits):
        """Which sequences are visited: a permutation of all in each epoch, drawn from the seed and the epoch."""
        epochs, places = np.divmod(visits, len(self.sequences))
        found = np.empty_like(visits)
        for epoch in np.unique(epochs):
            if epoch != self.epoch:
                rng = np.random.default_rng([self.seed, int(epoch), 1])
                self.epoch, self.order = epoch, rng.permutation(len(self.sequences))
            found[epochs == epoch] = self.order[places[epochs == epoch]]
        return found


def validation_batches(sequences, limit, rank=0, world=1):
    """Yield masked batches of at most `limit` sequences, spread evenly over the file; always with the same masks."""
    count = min(limit, len(sequences))
    chosen = np.arange(count) * len(sequences) // count
    for number, first in enumerate(range(0, count, VALIDATION_BATCH)):
        if number % world == rank:
            rng = np.random.default_rng([VALIDATION_SEED, number])
            yield sequences.masked(sequences.read(chosen[first : first + VALIDATION_BATCH]), rng)


def unigram_entropy(tokens, is_special):
    """The entropy in nats of the ordinary tokens' frequencies: the loss of a model that knows these and no context."""
    counts = np.bincount(tokens, minlength=len(is_special))[~is_special]
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
