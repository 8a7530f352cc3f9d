"""Where text comes from: documentation on this machine, files, or a Hugging Face dataset.

A corpus yields documents of at most PIECE characters: a longer one, such as a novel, comes in several pieces. One in
twenty of them is held out: for validation, for the built-in tasks, and for the sentences at the end of a run.
"""

import glob
import gzip
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from mini_undivided import runs
from mini_undivided.runtime import UserError

PIECE = 4000  # characters: long enough for any context, short enough that a single novel has a held-out part
BLOCK = 1 << 20  # characters read at once
HELD_OUT_EVERY = 20
SUFFIXES = (".txt", ".txt.gz", ".jsonl")
DOCS_VERSION = 1  # raise it when the cleaning below changes


def cache_dir():
    """Where gathered corpora and token files are kept: $MINI_UNDIVIDED_CACHE, else ~/.cache/mini_undivided."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mini_undivided"
    path = Path(os.environ.get("MINI_UNDIVIDED_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Corpus:
    """Text to train on. `names` says where it comes from, `files` lists what is read, `size` is in bytes (0: unknown)."""

    names: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def size(self):
        return sum(path.stat().st_size for path in self.files)

    def __iter__(self):
        """Yield the documents in a fixed order. Raises UserError, which names the file, for text it cannot read."""
        sources = map(read_documents, self.files) if self.files else [read_hub(self.names[0])]
        for source in sources:
            yield from (text for text in source if text and not text.isspace())

    @cached_property
    def fingerprint(self):
        """A hash of the files' bytes (of the name alone, for a dataset from the hub)."""
        digest = hashlib.blake2b(f"{PIECE} {HELD_OUT_EVERY} {'' if self.files else self.names}".encode(), digest_size=16)
        for path in self.files:
            digest.update(path.suffix.encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_corpus(names):
    """Find a corpus: ["docs"], ["hf:NAME:CONFIG"], or files, folders and globs. Raises UserError for what is not there."""
    if isinstance(names, str):
        names = [names]
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
            raise UserError(f"{name} is no corpus file: its name should end in {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(path.rglob("*")) if path.is_dir() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [p for p in found if p.is_file() and p.name.endswith(SUFFIXES)]
    if not files:
        reason = "no such file or folder" if not found and not path.is_dir() else "it holds none of " + ", ".join(SUFFIXES)
        raise UserError(f"nothing to read at {name}: {reason}")
    return files


def read_documents(path):
    """Yield the documents of a file, a block or a line in memory at a time.

    .txt and .txt.gz: the file is one document, which comes in pieces. .jsonl: a document a line, in its field "text".
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    lines = 0  # of a .jsonl, read so far: where an error is
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as file:
            if path.name.endswith(".jsonl"):
                for line in file:
                    lines += 1
                    if line.strip():
                        yield from cut(json.loads(line)["text"] + "")  # a TypeError where it is no string
                return
            rest = ""
            while block := file.read(BLOCK):
                *whole, rest = cut(rest + block)
                yield from whole
            yield rest
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 in line {bad_line(path):,}; convert it, for example with iconv") from None
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
    """Yield the texts of a dataset on the Hugging Face hub, streamed: hf:NAME or hf:NAME:CONFIG, its train split."""
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
    except Exception as error:  # the hub raises many kinds: no network, no such dataset, a config to choose
        raise UserError(f"the dataset {name} could not be read from the hub ({type(error).__name__}: {error})") from None


def cut(text):
    """Cut a text into pieces of at most PIECE characters, at the end of a line or else at a space, losing nothing."""
    pieces, start = [], 0
    while len(text) - start > PIECE:
        middle, limit = start + PIECE // 2, start + PIECE
        end = text.rfind("\n", middle, limit) + 1 or text.rfind(" ", middle, limit) + 1 or limit
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def is_held_out(index):
    """Whether the document of this number belongs to the validation part: every twentieth, from the eleventh on."""
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
    """Cut prose into sentences of 5 to 60 words: a simple rule that is right often enough for examples and probes."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])|\n\s*\n", text)
    parts = (" ".join(part.split()) for part in parts)
    return [part for part in parts if 5 <= len(part.split()) <= 60]


# The docs corpus: English documentation prose that lies on every machine with Python, numpy and torch.


def docs_file():
    """The docs corpus as a .jsonl ("text", "library"), gathered at the first call and kept in the cache."""
    found = [f"{DOCS_VERSION} {platform.python_version()}"]
    for library in ("numpy", "torch"):
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            pass
    key = hashlib.blake2b(" ".join(found).encode(), digest_size=6).hexdigest()
    path = cache_dir() / f"docs-{key}.jsonl"
    if not path.exists():
        with runs.atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for library, text in gather_docs():
                file.write(json.dumps({"text": text, "library": library}, ensure_ascii=False) + "\n")
    return path


def gather_docs():
    """(library, document) pairs: each topic and docstring once, cleaned, in an order that mixes the libraries."""
    documents = {}
    for library, path in tqdm(list(doc_sources()), desc="gathering docs", unit="file", leave=False, mininterval=0.5):
        for text in docstrings(path):
            prose = clean(text)
            if len(prose) > 80:
                documents.setdefault(prose, library)
    if not documents:
        raise UserError("the docs corpus is empty on this machine; give text with --corpus PATH")
    by_hash = sorted(documents, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest())
    return [(documents[text], text) for text in by_hash]


def doc_sources():
    """(library, path) of every Python source file of the standard library, numpy and torch."""
    roots = {"python": [sysconfig.get_paths()["stdlib"]]}
    for library in ("numpy", "torch"):
        spec = importlib.util.find_spec(library)
        roots[library] = list(spec.submodule_search_locations) if spec else []
    for library, folders in roots.items():
        for folder in folders:
            for path in sorted(Path(folder).rglob("*.py")):
                parts = path.relative_to(folder).parts
                if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(parts):
                    yield library, path


def docstrings(path):
    """The long triple-quoted strings of a source file; a search is ten times as fast as parsing, and `clean` drops code."""
    if path.parent.name == "pydoc_data":  # Python's language reference: plain strings in a dictionary
        return list(importlib.import_module("pydoc_data.topics").topics.values())
    source = path.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', source, re.DOTALL)
    return [text for pair in found for text in pair if len(text) > 80]


def clean(text):
    """Keep the prose of a docstring: paragraphs of words, without examples, tables, signatures and markup."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        block = " ".join(block.split())
        block = re.sub(r":[a-z:]+:`~?([^`<]*?)(?: <[^`>]*>)?`", r"\1", block)  # :func:`name` → name
        block = re.sub(r"`{1,2}([^`]*)`{1,2}_*|\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1\2", block)  # ``x``, *x* → x
        words = block.split()
        plain = sum(bool(re.fullmatch(r"[(\"']?[A-Za-z][A-Za-z'-]*[.,;:!?)\"']*", word)) for word in words)
        if len(words) >= 6 and plain >= 0.75 * len(words) and not block.startswith((">>>", "..", "$", "|", "+-")):
            paragraphs.append(block)
    return "\n\n".join(paragraphs)
