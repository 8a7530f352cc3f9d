"""Text in files and on the hub, read in pieces, a block or a line in memory at a time."""

import glob
import gzip
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from mini_undivided.support.errors import UserError

PIECE = 4000  # characters: enough context, and short enough that one novel has a held-out part
BLOCK = 1 << 20  # characters read at once
SUFFIXES = (".txt", ".txt.gz", ".jsonl")


class Piece(NamedTuple):
    """A piece of text. begins: whether a document begins with it; held_out: None if not known."""

    text: str
    begins: bool = True
    held_out: bool | None = None


def find_files(name):
    """The text files that a path, a folder or a glob stands for, in alphabetical order."""
    path = Path(os.path.expanduser(name))
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


def read_pieces(path):
    """Yield the pieces of a file, a block or a line in memory at a time.

    A .txt or .txt.gz is one document, in pieces; each line of a .jsonl is one, in its field "text".
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    lines = 0  # of a .jsonl, read so far: where an error is
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if path.name.endswith(".jsonl"):
                for line in file:
                    lines += 1
                    if line.strip():
                        row = json.loads(line)
                        row["text"].encode()  # half a surrogate pair is no text
                        if row.get("held_out") not in (None, True, False):
                            raise TypeError
                        yield from pieces_of(row["text"], row.get("held_out"))
                return
            rest, begins = "", True
            while block := file.read(BLOCK):
                *whole, rest = cut(rest + block)
                for text in whole:
                    yield Piece(text, begins)
                    begins = False
            yield Piece(rest, begins)
    except UnicodeDecodeError:
        where = f"{path} is not UTF-8 in line {bad_line(path):,}"
        raise UserError(f"{where}; convert it, for example with iconv") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeEncodeError):
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
    """Yield the texts of a dataset's train split, streamed from the hub: hf:NAME[:CONFIG]."""
    import datasets  # late: it takes a second to import, and only this needs it

    dataset, _, config = name.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(dataset, config or None, split="train", streaming=True)
        for row in rows:
            if "text" not in row:
                raise UserError(f'{name} has no field "text"; it has {", ".join(row)}')
            yield from pieces_of(row["text"])
    except UserError:
        raise
    except Exception as error:  # the hub raises many kinds: no network, no such dataset, no config
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the dataset {name} could not be read from the hub ({reason})") from None


def pieces_of(text, held_out=None):
    """The pieces of a whole document."""
    return [Piece(part, i == 0, held_out) for i, part in enumerate(cut(text))]


def cut(text):
    """Cut a text into pieces of at most PIECE characters, at a line's end or else a space."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        middle, limit = start + PIECE // 2, start + PIECE
        line, space = text.rfind("\n", middle, limit), text.rfind(" ", middle, limit)
        end = line + 1 or space + 1 or limit
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]
