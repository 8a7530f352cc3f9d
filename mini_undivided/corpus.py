"""Where text comes from, and what is held out: documentation on this machine, files, or a dataset.

A corpus yields pieces of text of at most PIECE characters; a longer document, such as a novel,
comes in several. One document in twenty is held out, whole: for validation, for the built-in tasks,
and for the sentences at the end of a run. If there are fewer than twenty documents, one piece in
twenty is, so that even a single novel can be validated on; but then pieces of one text lie on both
sides.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

from mini_undivided.support.docs import docs_file, split_sentences
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import cache_dir
from mini_undivided.support.text_files import (
    PIECE,
    Piece,
    different_files,
    find_files,
    open_text,
    read_hub,
    read_pieces,
    text_suffix,
)

HELD_OUT_EVERY = 20


@dataclass(frozen=True)
class Corpus:
    """Text to train on: `names` says where it is from, `files` what is read (none: the hub)."""

    names: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def size(self):
        """Bytes; 0 where it is not known."""
        return sum(path.stat().st_size for path in self.files)

    def pieces(self):
        """Yield each Piece in a fixed order, `held_out` decided. UserError names a broken file."""
        number, begins = -1, False  # number of documents, or of pieces if there are few documents
        ours = self.names == ("docs",)
        sources = [read_pieces(path, ours) for path in self.files] or [read_hub(self.names[0])]
        for piece in chain.from_iterable(sources):
            begins |= piece.begins
            if not piece.text or piece.text.isspace():
                continue
            number += begins or not self.holds_out_documents
            out = is_held_out(number) if piece.held_out is None else piece.held_out
            yield Piece(piece.text, begins, out)
            begins = False

    @cached_property
    def holds_out_documents(self):
        """Whether there are documents enough to hold out whole ones."""
        count = 0
        for path in self.files:
            if text_suffix(path) == ".jsonl":
                with open_text(path) as file:
                    count += sum(1 for _ in islice(filter(str.strip, file), HELD_OUT_EVERY))
            else:
                count += 1
            if count >= HELD_OUT_EVERY:
                return True
        return not self.files  # a dataset from the hub is large

    @cached_property
    def fingerprint(self):
        """A hash of the files' bytes (of the name alone, for a dataset from the hub)."""
        source = f"{PIECE} {HELD_OUT_EVERY} {'' if self.files else self.names}"
        digest = hashlib.blake2b(source.encode(), digest_size=16)
        for path in self.files:
            digest.update(path.suffix.encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_corpus(names, fingerprint=None):
    """Find a corpus: ["docs"], ["hf:NAME:CONFIG"], or files, folders, globs. UserError if none.

    fingerprint: of the docs corpus that is wanted, if it is still in the cache: it changes with
    every version of Python, numpy and torch.
    """
    names = [names] if isinstance(names, str) else names
    if names == ["docs"]:
        for path in sorted(cache_dir().glob("docs-*.jsonl")) if fingerprint else ():
            if (corpus := Corpus(("docs",), (path,))).fingerprint == fingerprint:
                return corpus
        return Corpus(("docs",), (docs_file(is_held_out),))
    if any(name.startswith("hf:") for name in names):
        if len(names) > 1:
            raise UserError("--corpus takes one dataset from the hub, or paths, not both")
        return Corpus(tuple(names))
    if "docs" in names:
        raise UserError("--corpus docs stands alone; a folder of that name is docs/")
    files = different_files(file for name in names for file in find_files(name))
    if not any(path.stat().st_size for path in files):
        raise UserError(f"the corpus {' '.join(names)} is empty: every file has a length of 0")
    return Corpus(tuple(names), files)


def is_held_out(index):
    """Whether number `index` is in the validation split: every twentieth, from the eleventh."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2


def held_out(corpus):
    """Yield the held-out pieces' texts of a corpus."""
    return (piece.text for piece in corpus.pieces() if piece.held_out)


def held_out_docs():
    """Yield (library, text) of the docs corpus' held-out documents."""
    with open(docs_file(is_held_out), encoding="utf-8") as file:
        rows = map(json.loads, file)
        yield from ((row["library"], row["text"]) for row in rows if row["held_out"])


def sentences(text):
    """The sentences of 5 to 60 words of a text, by a simple rule that is usually correct."""
    return [sentence for sentence in split_sentences(text) if 5 <= len(sentence.split()) <= 60]
