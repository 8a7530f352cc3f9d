"""Treebanks in the CoNLL-U format of Universal Dependencies."""

import re
from pathlib import Path

from mini_undivided.support.errors import UserError
from mini_undivided.support.text_files import check_utf8, open_text


SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def read_treebank(folder):
    """The sentences of a folder's .conllu files → {"train", "valid", "test"}.

    The last of the words train, dev and test in a file's name says what it is for; large treebanks
    have several files for training. A sentence in which a word has no tag ("_") is left out.
    """
    splits = {split: [] for split in SPLITS.values()}
    for path in sorted(Path(folder).glob("*.conllu")):
        if names := re.findall("|".join(SPLITS), path.name):
            sentences = list(read_conllu(path))
            tagged = [sentence for sentence in sentences if all(tag != "_" for _, tag in sentence)]
            if len(tagged) < len(sentences):
                untagged = f"{len(sentences) - len(tagged):,} of {len(sentences):,} sentences"
                print(f"{path}: {untagged} left out, in which a word has no tag")
            splits[SPLITS[names[-1]]] += tagged
    for name, split in SPLITS.items():
        if not splits[split]:
            raise UserError(f"{folder} holds no file *{name}*.conllu with a tagged sentence")
    return splits


def read_conllu(path):
    """Yield sentences as lists of (word, universal tag or "_"). UserError names file and line.

    Multi-word tokens (3-4) and empty nodes (3.1) are left out: the words that a multi-word token
    stands for have lines of their own.
    """
    sentence = []
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            check_utf8(path, number, line)
            fields = line.rstrip("\n").split("\t")
            if not line.strip():
                if sentence:
                    yield sentence
                sentence = []
            elif not line.startswith("#"):
                if len(fields) != 10:
                    raise UserError(f"{path}, line {number}: "
                                    f"{len(fields)} columns, but CoNLL-U has 10")
                if not re.fullmatch(r"[0-9]+([-.][0-9]+)?", fields[0]):
                    raise UserError(f'{path}, line {number}: "{fields[0]}" numbers no word')
                if fields[0].isdigit():
                    if not fields[1].strip() or not fields[3].strip():
                        raise UserError(f"{path}, line {number}: the word or its tag is missing")
                    sentence.append((fields[1], fields[3]))
    if sentence:
        yield sentence
