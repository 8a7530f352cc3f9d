"""Treebanks in the CoNLL-U format of Universal Dependencies."""

from pathlib import Path

from mini_undivided.support.errors import UserError


def read_treebank(folder):
    """The sentences of *train*.conllu, *dev*.conllu, *test*.conllu → {"train", "valid", "test"}."""
    parts = {}
    for part, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        paths = sorted(Path(folder).glob(f"*{name}*.conllu"))
        if len(paths) != 1:
            wanted = f"one file *{name}*.conllu"
            raise UserError(f"{folder} should hold {wanted}, but it holds {len(paths)}")
        parts[part] = list(read_conllu(paths[0]))
        if not parts[part]:
            raise UserError(f"{paths[0]} holds no sentences")
    return parts


def read_conllu(path):
    """Yield sentences as lists of (word, universal tag). Raises UserError with file and line.

    Multi-word tokens (3-4) and empty nodes (3.1) are left out: the words that a multi-word token
    stands for have lines of their own.
    """
    sentence = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\n").split("\t")
                if not line.strip():
                    if sentence:
                        yield sentence
                    sentence = []
                elif not line.startswith("#"):
                    if len(fields) != 10:
                        columns = f"{len(fields)} columns, but CoNLL-U has 10"
                        raise UserError(f"{path}, line {number}: {columns}")
                    if fields[0].isdigit():
                        sentence.append((fields[1], fields[3]))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8") from None
    if sentence:
        yield sentence
