"""Where text comes from, and what is held out: documentation on this machine, files, or a dataset.

A corpus yields documents of at most PIECE characters: a longer one, such as a novel, comes in
several pieces. One in twenty of them is held out: for validation, for the built-in tasks, and for
the sentences at the end of a run.
"""

import glob
import gzip
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mini_undivided.support.docs import docs_file
from mini_undivided.support.errors import UserError

PIECE = 4000  # characters: enough context, and short enough that one novel has a held-out part
BLOCK = 1 << 20  # characters read at once
HELD_OUT_EVERY = 20
SUFFIXES = (".txt", ".txt.gz", ".jsonl")


@dataclass(frozen=True)
class Corpus:
    """Text to train on. `names` says where it comes from, `files` lists what is read (none: the hub)."""

    names: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def size(self):
        """Bytes; 0 where it is not known."""
        return sum(path.stat().st_size for path in self.files)

    def __iter__(self):
        """Yield the documents in a fixed order. UserError names a file that cannot be read."""
        sources = map(read_documents, self.files) if self.files else [read_hub(self.names[0])]
        for source in sources:
            yield from (text for text in source if text and not text.isspace())

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


def open_corpus(names):
    """Find a corpus: ["docs"], ["hf:NAME:CONFIG"], or files, folders and globs. UserError if not there."""
    names = [names] if isinstance(names, str) else names
    if names == ["docs"]:
        return Corpus(("docs",), (docs_file(),))
    if any(name.startswith("hf:") for name in names):
        if len(names) > 1:
            raise UserError("--corpus takes one dataset from the hub, or paths, not both")
        return Corpus(tuple(names))
    files = tuple(file for name in names for file in find_files(name))
    if not any(path.stat().st_size for path in files):
        raise UserError(f"the corpus {' '.join(names)} is empty: every file has a length of 0")
    return Corpus(tuple(names), files)


def find_files(name):
    """The text files that a path, a folder or a glob stands for, in alphabetical order."""
    path = Path(name).expanduser()
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            known = ", ".join(SUFFIXES)
            raise UserError(f"{name} is no corpus file: its name should end in {known}")
        return [path]
    matches = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    matches = sorted(matches)
    files = [match for match in matches if match.is_file() and match.name.endswith(SUFFIXES)]
    if not files:
        missing = not matches and not path.is_dir()
        reason = "no such file or folder" if missing else "it holds none of " + ", ".join(SUFFIXES)
        raise UserError(f"nothing to read at {name}: {reason}")
    return files


def read_documents(path):
    """Yield the documents of a file, a block or a line in memory at a time.

    .txt and .txt.gz: the file is one document, which comes in pieces. .jsonl: each line is one, in
    its field "text".
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    lines = 0  # of a .jsonl, read so far: where an error is
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if path.name.endswith(".jsonl"):
                for line in file:
                    lines += 1
                    if line.strip():
                        yield from cut(json.loads(line)["text"] + "")  # TypeError if not a string
                return
            rest = ""
            while block := file.read(BLOCK):
                *whole, rest = cut(rest + block)
                yield from whole
            yield rest
    except UnicodeDecodeError:
        line = f"{bad_line(path):,}"
        raise UserError(
            f"{path} is not UTF-8 in line {line}; convert it, for example with iconv"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f'{path}, line {lines}: not a JSON object with a "text" field') from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def bad_line(path):
    """The number of the first line of a file that is not UTF-8."""
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number


def read_hub(name):
    """Yield the texts of a dataset on the hub, streamed: hf:NAME or hf:NAME:CONFIG, its train split."""
    import datasets  # late: it takes a second to import, and only this needs it

    dataset, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise UserError(f'{name} has no field "text"; it has {", ".join(row)}')
            yield from cut(row["text"])
    except UserError:
        raise
    except Exception as error:  # the hub raises many kinds: no network, no such dataset, no config
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the dataset {name} could not be read from the hub ({reason})") from None


def cut(text):
    """Cut a text into pieces of at most PIECE characters, at a line's end or a space, losing nothing."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        middle, limit = start + PIECE // 2, start + PIECE
        line, space = text.rfind("\n", middle, limit), text.rfind(" ", middle, limit)
        end = line + 1 or space + 1 or limit
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def is_held_out(index):
    """Whether document number `index` is in the validation part: every twentieth, from the eleventh."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2


def held_out(corpus):
    """Yield the held-out documents of a corpus."""
    return (text for i, text in enumerate(corpus) if is_held_out(i))


def held_out_docs():
    """Yield (library, text) of the docs corpus' held-out documents."""
    index = 0
    with open(docs_file(), encoding="utf-8") as file:
        for row in map(json.loads, file):
            for text in filter(str.strip, cut(row["text"])):  # counted as the corpus counts them
                if is_held_out(index):
                    yield row["library"], text
                index += 1


def sentences(text):
    """Cut prose into sentences of 5 to 60 words, by a simple rule that is right often enough."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])|\n\s*\n", text)
    parts = (" ".join(part.split()) for part in parts)
    return [part for part in parts if 5 <= len(part.split()) <= 60]
