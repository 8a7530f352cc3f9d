"""Text in files and on the hub, read in pieces, a block or a line in memory at a time."""

import glob
import gzip
import lzma
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import parse_json, refuse_pointer
from mini_undivided.support.launcher import say

PIECE = 4000  # characters: enough context, and short enough that one novel has a held-out part
BLOCK = 1 << 20  # characters read at once
SUFFIXES = (".txt", ".jsonl")
OPENERS = {".gz": gzip.open, ".xz": lzma.open}
say_once = cache(say)  # a line that was printed already is not printed again
KNOWN = f"{' or '.join(SUFFIXES)}, which may be packed: {', '.join(OPENERS)}"


class Piece(NamedTuple):
    """A piece of text. begins: whether a document begins with it; held_out: None if not known."""

    text: str
    begins: bool = True
    held_out: bool | None = None


def find_files(name):
    """The text files that a path, a folder or a glob stands for, in alphabetical order.

    Hidden files in a folder and what links to folders hold are left out; what is left out is said.
    """
    path, files = Path(name), []
    if path.is_file():
        if not text_suffix(path):
            raise UserError(f"{name} is no corpus file: its name should end in {KNOWN}")
        return [path]
    is_folder = path.is_dir()
    found = path.rglob("*") if is_folder else map(Path, glob.glob(name, recursive=True))
    left_out = {"hidden": 0, f"none of {KNOWN}": 0, "links to folders": 0}
    hidden, other, links = left_out
    for file in sorted(found):
        inside = file.relative_to(path).parts if is_folder else ()
        if not file.is_file():
            left_out[links] += is_folder and file.is_symlink() and file.is_dir()
        elif any(part.startswith(".") for part in inside):
            left_out[hidden] += 1
        elif not text_suffix(file):
            left_out[other] += 1
        else:
            files.append(file)
    if not files:
        nothing = f"it holds none of {KNOWN}"
        reason = nothing if is_folder or left_out[other] else "no such file or folder"
        raise UserError(f"nothing to read at {name}: {reason}")
    for kind, count in left_out.items():
        if count:
            say_once(f"files of {name} that are left out, being {kind}: {count:,}")
    return files


def different_files(paths):
    """The paths, but of those that lead to one file, by a link, only the first."""
    files = {}
    for path in paths:
        about = path.stat()
        files.setdefault((about.st_dev, about.st_ino), path)
    return tuple(files.values())


def text_suffix(path):
    """".txt" or ".jsonl", as a file's name ends before .gz and .xz; "" if it does in neither."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def open_text(path, newline=None):
    """Open a text file, packed or not; a byte that is not UTF-8 becomes half a surrogate pair."""
    refuse_pointer(path)
    opener = OPENERS.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def read_pieces(path, ours=False):
    """Yield the pieces of a file, a block or a line in memory at a time.

    A .txt is one document, in pieces; each line of a .jsonl is one, in its field "text". ours: the
    file is one of ours, whose field "held_out" counts.
    """
    try:
        with open_text(path) as file:
            if text_suffix(path) == ".jsonl":
                form = {"text": str, "held_out": bool} if ours else {"text": str}
                for number, line in enumerate(file, 1):
                    check_utf8(path, number, line)
                    if line.strip():
                        row = parse_json(line, form, f"{path}, line {number:,}")
                        yield from pieces_of(row["text"], row["held_out"] if ours else None)
                return
            rest, begins, number = "", True, 1
            while block := file.read(BLOCK):
                check_utf8(path, number, block)
                number += block.count("\n")
                *whole, rest = cut(rest + block)
                for text in whole:
                    yield Piece(text, begins)
                    begins = False
            yield Piece(rest, begins)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def check_utf8(path, line, text):
    """Raise UserError if a text, which begins in this line, has a byte that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line += text.count("\n", 0, error.start)
        where = f"{path} is not UTF-8 in line {line:,}"
        raise UserError(f"{where}; convert it, for example with iconv") from None


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
        raise UserError(f"the dataset {name} could not be read from the hub "
                        f"({type(error).__name__}: {error})") from None


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
