"""Sentences of GLUE and of a treebank as text to pretrain on, for "An hour" in docs/study.md.

Run: python docs/sentences.py GLUE UD_English-EWT FOLDER

GLUE is a folder of the official files, of which no label is used, and nothing of SST-2's and
STS-B's dev and test parts. FOLDER gets .jsonl files, a document a sentence; SST-2's sentences eight
times and all others twice, since a corpus of novels is so much larger.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mini_undivided.support.errors import UserError, command_line  # noqa: E402
from mini_undivided.support.files import write_text  # noqa: E402
from mini_undivided.support.glue_files import read_folder  # noqa: E402
from mini_undivided.support.tasks import GLUE  # noqa: E402

PARTS = {  # name: (task, parts of it)
    "sst": ("sst2", ["train"]), "cola": ("cola", ["train"]), "mrpc": ("mrpc", ["train"]),
    "stsb": ("stsb", ["train"]), "rte": ("rte", ["train", "test"]),
    "qnli": ("qnli", ["dev", "test"])}


def texts_of(folder, task, parts):
    """The sentences of parts of a GLUE task, those of a pair one after the other."""
    splits = read_folder(GLUE[task], folder, parts).values()
    return [text.strip() for split in splits for texts in split.texts for text in texts]


def whole(phrases):
    """Those phrases that are part of no other: most of SST-2's are parts of its sentences."""
    kept, by_word = [], {}
    for phrase in sorted(set(phrases), key=len, reverse=True):
        words = phrase.split()
        if not any(f" {phrase} " in f" {longer} " for longer in by_word.get(words[0], ())):
            kept.append(phrase)
            for word in set(words):
                by_word.setdefault(word, []).append(phrase)
    return sorted(kept)


def main(glue=None, treebank=None, folder=None):
    """Write the files."""
    if not folder:
        raise UserError("give three folders: GLUE, a treebank, and where to write")
    sentences = {name: texts_of(glue, *source) for name, source in PARTS.items()}
    sentences["sst"] = whole(sentences["sst"])
    mark = "# text = "
    sentences["ewt"] = [line.removeprefix(mark).strip()
                        for path in sorted(Path(treebank).rglob("*.conllu"))
                        for line in path.read_text(encoding="utf-8").splitlines()
                        if line.startswith(mark)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, texts in sentences.items():
        rows = [json.dumps({"text": text}) + "\n" for text in dict.fromkeys(texts) if text]
        for copy in range(1, 9 if name == "sst" else 3):
            file = Path(folder) / f"{name}{copy if copy > 1 else ''}.jsonl"
            write_text(file, "".join(rows))


if __name__ == "__main__":
    with command_line():
        main(*sys.argv[1:])
