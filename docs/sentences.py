"""The training sentences of six GLUE tasks, without labels, to pretrain on for docs/study.md.

Run: python docs/sentences.py GLUE FOLDER

GLUE is a folder of the official files. FOLDER gets .jsonl files, a document a sentence, the
sentences of a pair one after the other, and without those of any dev part. SST-2's are written four
times and the small tasks' three times, since QNLI has three times as many words as all the others.
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

COPIES = {"cola": 3, "sst2": 4, "mrpc": 3, "stsb": 3, "qnli": 1, "rte": 3}


def texts_of(folder, task, split):
    """The sentences of a split of a GLUE task, those of a pair one after the other."""
    texts = read_folder(GLUE[task], folder, [split])[split].texts
    return [text.strip() for pair in texts for text in pair]


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


def main(glue=None, folder=None):
    """Write the files."""
    if not folder:
        raise UserError("give two folders: GLUE, and where to write")
    held_out = {text for task in COPIES for text in texts_of(glue, task, "dev")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for task, copies in COPIES.items():
        texts = texts_of(glue, task, "train")
        texts = whole(texts) if task == "sst2" else dict.fromkeys(texts)
        rows = [json.dumps({"text": text}) + "\n" for text in texts if text not in held_out]
        for copy in range(copies):
            write_text(Path(folder) / f"{task}{copy or ''}.jsonl", "".join(rows))


if __name__ == "__main__":
    with command_line():
        main(*sys.argv[1:])
