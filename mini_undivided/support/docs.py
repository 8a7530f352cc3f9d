"""The docs corpus: English documentation prose that lies on every machine with Python, numpy and torch."""

import hashlib
import importlib
import importlib.util
import json
import platform
import re
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, cache_dir, short_hash

DOCS_VERSION = 1  # raise it when the cleaning below changes
NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def docs_file():
    """The docs corpus as a .jsonl ("text", "library"), gathered at the first call and then cached."""
    versions = [f"{DOCS_VERSION} {platform.python_version()}"]
    for library in ("numpy", "torch"):
        try:
            versions.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            pass
    path = cache_dir() / f"docs-{short_hash(' '.join(versions), 6)}.jsonl"
    if not path.exists():
        with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for library, text in gather_docs():
                row = {"text": text, "library": library}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def gather_docs():
    """(library, document) pairs: each topic and docstring once, cleaned, in an order that mixes them."""
    documents = {}
    sources = list(doc_sources())
    bar = tqdm(sources, desc="gathering docs", unit="file", leave=False, mininterval=0.5)
    for library, path in bar:
        for text in docstrings(path):
            prose = clean(text)
            if len(prose) > 80:
                documents.setdefault(prose, library)
    if not documents:
        raise UserError("the docs corpus is empty on this machine; give text with --corpus PATH")
    mixed = sorted(
        documents, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest()
    )
    return [(documents[text], text) for text in mixed]


def doc_sources():
    """(library, path) of every Python source file of the standard library, numpy and torch."""
    roots = {"python": [sysconfig.get_paths()["stdlib"]]}
    for library in ("numpy", "torch"):
        spec = importlib.util.find_spec(library)
        roots[library] = list(spec.submodule_search_locations) if spec else []
    for library, folders in roots.items():
        for folder in folders:
            for path in sorted(Path(folder).rglob("*.py")):
                if not NOT_PROSE & set(path.relative_to(folder).parts):
                    yield library, path


def docstrings(path):
    """The long triple-quoted strings of a source file: ten times as fast as parsing; `clean` drops code."""
    if path.parent.name == "pydoc_data":  # Python's language reference: strings in a dictionary
        return list(importlib.import_module("pydoc_data.topics").topics.values())
    source = path.read_text(encoding="utf-8", errors="replace")
    pairs = re.findall(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', source, re.DOTALL)
    return [text for pair in pairs for text in pair if len(text) > 80]


def clean(text):
    """Keep the prose of a docstring: paragraphs of words, without examples, tables and markup."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        block = " ".join(block.split())
        # :func:`name` → name, then ``x`` and *x* → x
        block = re.sub(r":[a-z:]+:`~?([^`<]*?)(?: <[^`>]*>)?`", r"\1", block)
        block = re.sub(r"`{1,2}([^`]*)`{1,2}_*|\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1\2", block)
        words = block.split()
        word = re.compile(r"[(\"']?[A-Za-z][A-Za-z'-]*[.,;:!?)\"']*")
        plain = sum(bool(word.fullmatch(w)) for w in words)
        is_code = block.startswith((">>>", "..", "$", "|", "+-"))
        if len(words) >= 6 and plain >= 0.75 * len(words) and not is_code:
            paragraphs.append(block)
    return "\n\n".join(paragraphs)
