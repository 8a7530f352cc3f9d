"""The text of a run: its corpus, its tokenizer and its token files, made once and then cached.

Both are named by a hash of what they are made from. A token file is an array of ids and nothing
else, two bytes a token where the vocabulary allows it, else four; numpy maps it into memory.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mini_undivided.corpus import open_corpus
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    cache_dir,
    is_whole,
    read_json,
    remove_temporaries,
    sealed,
    short_hash,
    write_json,
)
from mini_undivided.support.overlap import shared_words
from mini_undivided.support.run_directory import read_record
from mini_undivided.support.terminal import progress
from mini_undivided.tokenizer import load_tokenizer, opens_word, train_tokenizer

TOKENIZER_CHARACTERS = 10**8  # more text does not change which pieces are frequent
BATCH_CHARACTERS = 1 << 21  # tokenised at once: enough for all cores, small enough for any memory
FILES = ("about.json", "train.bin", "valid.bin")


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus: two arrays of ids, and how many documents, pieces and words it has.

    held_out: documents in the validation split, or pieces if the corpus has few documents.
    overlap: how much of the held-out words is in sequences of 13 that training has, too.
    """

    folder: Path
    train: np.ndarray
    valid: np.ndarray
    documents: int
    pieces: int
    held_out: int
    words: int
    overlap: float

    @property
    def count(self):
        """The number of tokens of both splits."""
        return len(self.train) + len(self.valid)


def prepare_text(options, resume):
    """Find corpus, load or train tokenizer, write token files → Corpus, Tokenizer, Tokens.

    Raises UserError if the text or the tokenizer of a resumed run has changed.
    """
    record = read_record(options.out) if resume else None
    corpus = open_corpus(options.corpus, record and record["corpus"]["fingerprint"])
    if record:
        tokenizer = load_tokenizer(options.out)
    elif options.init or options.tokenizer:
        tokenizer = load_tokenizer(options.init or options.tokenizer, options.cased)
    else:
        tokenizer = cached_tokenizer(corpus, options.vocab_size, options.cased)
    if record and corpus.fingerprint != record["corpus"]["fingerprint"]:
        raise UserError(f"the text of {' '.join(options.corpus)} is not that which the run in "
                        f"{options.out} was started with: put it back, or start a new run")
    tokens = tokenize(corpus, tokenizer)
    saved = record["corpus"].get("tokens", tokens.count) if record else tokens.count
    if saved != tokens.count:
        raise UserError(f"the text of the run in {options.out} now has {tokens.count:,} tokens "
                        f"instead of {saved:,}: its tokenizer has changed; start a new run")
    return corpus, tokenizer, tokens


def cached_tokenizer(corpus, vocab_size, cased=False):
    """A WordPiece tokenizer for a corpus, trained at the first call and then cached.

    It sees the training documents only, and of a corpus above TOKENIZER_CHARACTERS an even sample.
    """
    key = short_hash(f"{corpus.fingerprint} {vocab_size} {cased}")
    path = cache_dir() / f"word-pieces-{key}" / "tokenizer.json"
    if not is_whole(path):
        path.parent.mkdir(exist_ok=True)
        tokenizer = train_tokenizer(sample(corpus), vocab_size, cased)
        with sealed(path) as temporary:
            tokenizer.save(str(temporary))
    return load_tokenizer(path)


def sample(corpus):
    """Yield at most TOKENIZER_CHARACTERS characters of the training documents, spread over them."""
    every, taken = 1 + corpus.size // TOKENIZER_CHARACTERS, 0
    limit = min(corpus.size, TOKENIZER_CHARACTERS) or TOKENIZER_CHARACTERS
    with progress(total=limit, desc="tokenizer", unit="B", unit_scale=True) as bar:
        for i, piece in enumerate(corpus.pieces()):
            if i % every == 0 and not piece.held_out:
                yield piece.text
                bar.update(len(piece.text))
                taken += len(piece.text)
                if taken > TOKENIZER_CHARACTERS:
                    return


def tokenize(corpus, tokenizer):
    """The token files of a corpus, written at the first call and then cached → Tokens."""
    folder = cache_dir() / f"token-files-{short_hash(corpus.fingerprint + tokenizer.to_str())}"
    dtype = np.dtype("<u2" if tokenizer.get_vocab_size() <= 2**16 else "<u4")
    about, train, valid = (folder / name for name in FILES)
    if not all(map(is_whole, (about, train, valid))):
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        with sealed(train) as new_train, sealed(valid) as new_valid:
            counts = write_token_files(corpus, tokenizer, dtype, new_train, new_valid)
        splits = read_tokens(train, dtype), read_tokens(valid, dtype)
        shared = shared_words(*splits, opens_word(tokenizer), tokenizer.token_to_id("[SEP]"))
        with sealed(about) as new_about:
            write_json(new_about, {**counts, "overlap": float(shared.sum()) / max(1, len(shared))})
    return Tokens(folder, read_tokens(train, dtype), read_tokens(valid, dtype), **read_json(about))


def read_tokens(path, dtype):
    """The ids of a token file, read as they are used; an empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def write_token_files(corpus, tokenizer, dtype, train, valid):
    """Tokenise a corpus into two files, batch by batch → the counts of `Tokens`."""
    sep = tokenizer.token_to_id("[SEP]")
    counts = dict.fromkeys(("documents", "pieces", "held_out", "words"), 0)
    tokenizer.encode_special_tokens = True  # a document's own "[MASK]" is text, not a mask
    bar = progress(total=corpus.size or None, desc="tokenising", unit="B", unit_scale=True)
    try:
        with bar, open(train, "wb") as train_file, open(valid, "wb") as valid_file:
            for pieces, encodings in encode_ahead(tokenizer, corpus.pieces()):
                for (text, begins, held_out), encoding in zip(pieces, encodings, strict=True):
                    file = valid_file if held_out else train_file
                    file.write(np.array([*encoding.ids, sep], dtype).tobytes())
                    counts["documents"] += begins
                    counts["pieces"] += 1
                    counts["held_out"] += held_out and (begins or not corpus.holds_out_documents)
                    counts["words"] += len(text.split())
                    bar.update(len(text))
    finally:
        tokenizer.encode_special_tokens = False
    return counts


def batches(pieces):
    """Group pieces of text into lists of about BATCH_CHARACTERS characters."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_ahead(tokenizer, pieces):
    """Yield (pieces, encodings), a batch at a time.

    The library tokenises a batch on all cores while the caller handles the one before.
    """
    with ThreadPoolExecutor(1) as pool:
        ready = None
        for batch in batches(pieces):
            texts = [piece.text for piece in batch]
            job = pool.submit(tokenizer.encode_batch_fast, texts, add_special_tokens=False)
            if ready:
                yield ready[0], ready[1].result()
            ready = batch, job
        if ready:
            yield ready[0], ready[1].result()
