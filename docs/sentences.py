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

COLUMNS = {  # of sentences, in files with a header (but for CoLA's)
    "sst": {"SST-2/train.tsv": [0]}, "cola": {"CoLA/train.tsv": [3]},
    "mrpc": {"MRPC/train.tsv": [3, 4]}, "stsb": {"STS-B/train.tsv": [7, 8]},
    "rte": {"RTE/train.tsv": [1, 2], "RTE/test.tsv": [1, 2]},
    "qnli": {"QNLI/dev.tsv": [1, 2], "QNLI/test.tsv": [1, 2]}}


def columns(path, numbers):
    """The texts in these columns of a file of tab-separated values."""
    with open(path, encoding="utf-8-sig") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return [row[i] for row in rows["CoLA" not in path.parts :] for i in numbers]


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
    sentences = {name: [text.strip() for file, numbers in files.items()
                        for text in columns(Path(glue) / file, numbers)]
                 for name, files in COLUMNS.items()}
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
            file.write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    with command_line():
        main(*sys.argv[1:])
