"""The docs corpus: documentation of Python, numpy and torch, found on the machine itself."""

import importlib
import importlib.util
import json
import platform
import re
import sysconfig
from importlib.metadata import version
from pathlib import Path

from mini_undivided.support.files import (
    cache_dir,
    is_whole,
    remove_temporaries,
    sealed,
    short_hash,
)
from mini_undivided.support.terminal import progress

DOCS_VERSION = 2  # raise it when the text below changes
RUN_LENGTH = 13  # words in a row: so many that two texts do not share them by chance
MIN_CHARACTERS = 80  # characters of a document
NOT_PROSE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def docs_file(is_held_out):
    """The docs corpus as a .jsonl ("text", "library", "held_out"), gathered once and then cached.

    is_held_out: a function, number of a document → bool.
    """
    libraries = (f"{name} {version(name)}" for name in ("numpy", "torch"))
    versions = " ".join([f"{DOCS_VERSION} {platform.python_version()}", *libraries])
    path = cache_dir() / f"docs-{short_hash(versions, 6)}.jsonl"
    if not is_whole(path):
        remove_temporaries(path.parent)
        documents = gather_docs()
        texts = separate([text for _, text in documents], is_held_out)
        with sealed(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for number, ((library, _), text) in enumerate(zip(documents, texts, strict=True)):
                if len(text) > MIN_CHARACTERS:
                    row = {"text": text, "library": library, "held_out": is_held_out(number)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def gather_docs():
    """(library, document) pairs: each topic and docstring once, cleaned, in a mixed order."""
    documents = {}
    sources = list(doc_sources())
    for library, path in progress(sources, desc="gathering docs", unit="file"):
        for text in docstrings(path):
            prose = clean(text)
            if len(prose) > MIN_CHARACTERS:
                documents.setdefault(prose, library)
    mixed = sorted(documents, key=lambda text: short_hash(text, 8))
    return [(documents[text], text) for text in mixed]


def separate(texts, is_held_out):
    """Keep each sentence once, and out of the held-out texts what the others have, too → the texts.

    What held-out text may not share with the others is a whole sentence, or RUN_LENGTH words in a
    row.
    """
    seen, kept = set(), {}
    # The training texts first (False < True): what they have, no held-out text keeps.
    for number in sorted(range(len(texts)), key=is_held_out):
        kept[number] = [[s for s in split_sentences(paragraph) if is_new(s, seen)]
                        for paragraph in texts[number].split("\n\n")]
    held_out = [number for number in kept if is_held_out(number)]
    training = set()
    for number in kept.keys() - held_out:
        training.update(map(hash, word_runs(locate_words(kept[number])[0])))
    for number in held_out:
        while shared := shared_sentences(kept[number], training):  # a gap joins what was apart
            kept[number] = [[s for j, s in enumerate(paragraph) if (i, j) not in shared]
                            for i, paragraph in enumerate(kept[number])]
    ordered = [kept[number] for number in range(len(texts))]
    return ["\n\n".join(" ".join(p) for p in paragraphs if p) for paragraphs in ordered]


def shared_sentences(paragraphs, runs):
    """The (paragraph, sentence) numbers through which a run of `runs`, hashes, goes → a set."""
    words, origins = locate_words(paragraphs)
    return {origin for start, run in enumerate(word_runs(words)) if hash(run) in runs
            for origin in origins[start : start + RUN_LENGTH]}


def is_new(sentence, seen):
    """Whether a sentence is not in `seen`, by its words; it is put there."""
    words = tuple(split_words(sentence))
    if words in seen:
        return False
    seen.add(words)
    return True


def locate_words(paragraphs):
    """The words of a document, and the (paragraph, sentence) that each is from."""
    words, origins = [], []
    for i, paragraph in enumerate(paragraphs):
        for j, sentence in enumerate(paragraph):
            new_words = split_words(sentence)
            words += new_words
            origins += [(i, j)] * len(new_words)
    return words, origins


def word_runs(words):
    """Each RUN_LENGTH words in a row."""
    return zip(*(words[i:] for i in range(RUN_LENGTH)), strict=False)


def split_words(text):
    """Words and punctuation marks, in lower case: as BERT's tokenizer begins."""
    return re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())


def split_sentences(text):
    """Cut prose behind full stops before a capital, and at blank lines, by a simple rule."""
    parts = re.split(r"(?<=[.!?])([\"')\]]*)\s+(?=[\"'(\[]*[A-Z])|\n\s*\n", text)
    ends = [end or "" for end in parts[1::2]] + [""]  # quotation marks and brackets behind the stop
    return [" ".join((part + end).split()) for part, end in zip(parts[::2], ends, strict=True)]


def doc_sources():
    """(library, path) of every Python source file of the standard library, numpy and torch."""
    roots = {"python": [sysconfig.get_paths()["stdlib"]]}
    for library in ("numpy", "torch"):
        roots[library] = importlib.util.find_spec(library).submodule_search_locations
    for library, folders in roots.items():
        for folder in folders:
            for path in sorted(Path(folder).rglob("*.py")):
                if not NOT_PROSE & set(path.relative_to(folder).parts):
                    yield library, path


def docstrings(path):
    """The long triple-quoted strings of a source file, found faster than by parsing."""
    if path.parent.name == "pydoc_data":  # Python's language reference: strings in a dictionary
        return list(importlib.import_module("pydoc_data.topics").topics.values())
    source = path.read_text(encoding="utf-8", errors="replace")
    pairs = re.findall(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', source, re.DOTALL)
    return [text for pair in pairs for text in pair if len(text) > MIN_CHARACTERS]


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
