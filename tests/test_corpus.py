"""Corpora: the same text whatever the form of the file, with nothing lost.

Every file that cannot be read is named.
"""

import gzip
import json
import lzma
import os
import re
import sys
import types

import pytest

from mini_undivided import corpus as corpora
from mini_undivided.corpus import open_corpus
from mini_undivided.support import text_files
from mini_undivided.support.errors import UserError

TEXT = "First line, with a café.\nSecond line: 中文 😀.\n\nA new paragraph."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(*names):
    return [piece.text for piece in open_corpus(list(names)).pieces()]


PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


# Forms of text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", PACK)
def test_byte_order_marks_line_ends_and_packing_change_nothing(tmp_path, mark, end, packed):
    """Byte-order marks, line ends, gzip and xz do not change a document, or a .jsonl of many.

    Other fields, also one of the name "held_out", blank lines, empty texts and a missing last line
    end do no harm there.
    """
    content = mark + TEXT.replace("\n", end).encode()
    assert read(write(tmp_path / f"A.TXT{packed}", PACK[packed](content))) == [TEXT]
    rows = [{"text": TEXT, "held_out": "yes"}, {"text": ""}, {"text": " \n"},
            {"held_out": True, "text": "Another.", "id": 4}] + [{"text": str(i)} for i in range(30)]
    lines = mark + f"{end}{end}".join(map(json.dumps, rows)).encode()
    corpus = open_corpus(write(tmp_path / f"a.jsonl{packed}", PACK[packed](lines)))
    assert corpus.holds_out_documents
    pieces = list(corpus.pieces())
    assert [piece.text for piece in pieces] == [TEXT, "Another.", *map(str, range(30))]
    assert [piece.text for piece in pieces if piece.held_out] == ["8", "28"]


# Where text is found


def test_files_folders_and_globs(tmp_path, capsys):
    """A folder is searched to its bottom, in alphabetical order; a glob takes what it says.

    Hidden files, files of other kinds and links to folders are left out, which is said.
    """
    for name in ("b.txt", "a/z.jsonl", "a/C.TXT", "d/e/f.txt.gz", "d/e/g.jsonl.xz", "readme.md",
                 "a/data.csv", ".ipynb_checkpoints/b.txt", "a/._z.jsonl", "d/.txt"):
        content = json.dumps({"text": name}) if ".jsonl" in name else name
        write(tmp_path / name, PACK.get(name[-3:], bytes)(content.encode()))
    (tmp_path / "d/link").symlink_to(tmp_path)
    files = ["a/C.TXT", "a/z.jsonl", "b.txt", "d/e/f.txt.gz", "d/e/g.jsonl.xz"]
    assert read(str(tmp_path)) == files
    said = capsys.readouterr().out
    assert re.findall("left out, being (.*)", said) == [
        "hidden: 3", "none of .txt or .jsonl, which may be packed: .gz, .xz: 2",
        "links to folders: 1"]
    assert read(str(tmp_path / "*.txt")) == ["b.txt"]
    assert read(str(tmp_path / "**/*.txt")) == ["b.txt"]
    assert read(str(tmp_path / "d"), str(tmp_path / "b.txt")) == [*files[3:], "b.txt"]
    assert read(str(tmp_path / "b.txt"), str(tmp_path)) == ["b.txt", *files[:2], *files[3:]]
    assert [piece.text for piece in open_corpus(str(tmp_path / "b.txt")).pieces()] == ["b.txt"]
    assert capsys.readouterr().out.count("left out") == 2  # of "d"; of the folder it was said


def test_a_file_counts_once(tmp_path, monkeypatch):
    """A file that two links or two names lead to is read once; "." hides no files."""
    write(tmp_path / "a.txt", "one")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "c.txt")
    write(tmp_path / ".hidden/d.txt", "two")
    monkeypatch.chdir(tmp_path)
    assert read(".") == read(".", "a.txt", str(tmp_path)) == ["one"]
    assert read(".hidden") == ["two"]


def test_the_fingerprint_follows_the_text(tmp_path):
    """The same bytes in another place have the same fingerprint; a changed character another."""
    first, second, third = (
        open_corpus([write(tmp_path / folder / "a.txt", text)])
        for folder, text in (("x", "ab"), ("y", "ab"), ("z", "ac")))
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert first.size == 2


# Long documents


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
@pytest.mark.parametrize("unit", [
    "a line of words\n", "words without a line end ", "x", "中文", "\n\n",
    "a very long one " * 300 + "\n"])
def test_a_long_document_comes_in_pieces_that_lose_nothing(tmp_path, monkeypatch, unit, name, end):
    """The pieces of a long document, put together, are the document; none is longer than PIECE."""
    monkeypatch.setattr(text_files, "PIECE", 97)
    monkeypatch.setattr(text_files, "BLOCK", 251)
    text = unit * (1 + 3000 // len(unit)) + "The end"
    content = json.dumps({"text": text}) if name == "a.jsonl" else text.replace("\n", end)
    pieces = read(write(tmp_path / name, PACK.get(name[-3:], bytes)(content.encode())))
    assert "".join(pieces).split() == text.split() and max(map(len, pieces)) <= 97
    if not unit.isspace():  # what is blank as a whole is left out
        assert "".join(pieces) == text


def test_pieces_end_where_a_line_or_a_word_does():
    """The end of a line is preferred to a space, and a space to the middle of a word."""
    assert text_files.cut("a b\n" * 3000)[0].endswith("b\n")
    assert text_files.cut("word " * 3000)[0].endswith("word ")
    pieces = text_files.cut("x" * (text_files.PIECE + 1))
    assert [len(piece) for piece in pieces] == [text_files.PIECE, 1]
    assert text_files.cut("short") == ["short"]


# What cannot be read


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.xz"])
def test_text_that_is_not_utf8_is_an_error_that_names_file_and_line(tmp_path, name, end):
    """Text that is not UTF-8 is an error that names the file and the line, however lines end."""
    lines = [json.dumps({"text": f"line {i}"}).encode() for i in range(1, 2001)]
    lines[1233] = b'{"text": "caf\xe9"}'  # Latin-1, in line 1,234
    path = write(tmp_path / name, PACK.get(name[-3:], bytes)(end.join(lines)))
    with pytest.raises(UserError, match="not UTF-8") as error:
        read(path)
    assert path in str(error.value) and "line 1,234;" in str(error.value)


NO_OBJECT, NO_JSON = "but should be a", "cannot be read as JSON: "


@pytest.mark.parametrize(("line", "said"), [
    ('{"text": "cut', NO_JSON + "Invalid control"), ('{"words": "none"}', 'has no "text"'),
    ('"a string"', NO_OBJECT), ("3", NO_OBJECT), ('{"text": 3}', NO_OBJECT),
    ('{"text": ["a"]}', NO_OBJECT), ('{"text": "a", "n": ' + "9" * 5000 + "}", NO_JSON + "Exceeds"),
    ("[" * 100_000, NO_JSON + "maximum recursion"),
    ('{"text": "\\ud83d"}', NO_JSON + "'utf-8' codec can't encode")])
def test_json_without_a_text_is_an_error_that_names_file_and_line(tmp_path, line, said):
    """A line that is not JSON with a text is an error: file, line, and what is wrong with it."""
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + '\n{"text": "good"}\n')
    with pytest.raises(UserError) as error:
        read(path)
    assert path in str(error.value) and "line 3" in str(error.value) and said in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("packed", [".gz", ".xz"])
def test_a_broken_packed_file_is_an_error(tmp_path, packed):
    """A packed file that is cut short, damaged inside, or not packed at all is an error."""
    whole = PACK[packed](b"some words " * 1000)
    for content in (whole[:-9], whole[:30] + b"\0\0\0\0" + whole[34:], b"plain text"):
        path = write(tmp_path / f"a.txt{packed}", content)
        with pytest.raises(UserError, match=path):
            read(path)


# Datasets from the hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` library.

    It keeps what was asked of it, and gives its rows or raises its error.
    """
    stand_in = types.SimpleNamespace(asked=None, rows=[{"text": "One."}, {"text": "x " * 9000}])

    def load_dataset(*args, **kwargs):
        stand_in.asked = args, kwargs
        if isinstance(stand_in.rows, Exception):
            raise stand_in.rows
        return iter(stand_in.rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return stand_in


@pytest.mark.parametrize(("name", "asked"), [
    ("hf:a/b", ("a/b", None)), ("hf:a/b:en", ("a/b", "en")), ("hf:c", ("c", None))])
def test_a_dataset_of_the_hub_is_streamed(hub, name, asked, tmp_path):
    """NAME and CONFIG reach the library, and the dataset is streamed.

    Long texts come in the same pieces as from a file. Each name has a fingerprint of its own.
    """
    texts = read(name)
    assert hub.asked == (asked, {"split": "train", "streaming": True})
    assert texts[0] == "One." and "".join(texts[1:]) == "x " * 9000
    lines = "\n".join(json.dumps(row) for row in hub.rows)
    assert len(texts) > 2 and texts == read(write(tmp_path / "a.jsonl", lines))
    one, again, other = (open_corpus(each).fingerprint for each in (name, name, "hf:other"))
    assert one == again != other


@pytest.mark.parametrize(("rows", "sentence"), [
    ([{"question": "?", "answer": "!"}], 'hf:a/b has no field "text"; it has question, answer'),
    (ConnectionError("no network"), "hf:a/b .*no network")])
def test_a_dataset_that_cannot_be_read_is_an_error(hub, rows, sentence):
    """A dataset without a text field names the fields it has; a failure of the hub its cause."""
    hub.rows = rows
    with pytest.raises(UserError, match=sentence):
        read("hf:a/b")


# Prose


def test_sentences_are_whole_sentences():
    """Text is cut into sentences at full stops before a capital and at blank lines.

    It is not cut inside a sentence, and short sentences are left out.
    """
    text = (
        "This is the first of three sentences. Is (version 2.5 of) this the\nsecond one? "
        "Too short. \n\n"
        'He said: "This is one that ends in a quotation." And the last has no full stop'
    )
    assert corpora.sentences(text) == [
        "This is the first of three sentences.", "Is (version 2.5 of) this the second one?",
        'He said: "This is one that ends in a quotation."', "And the last has no full stop"]


def test_whole_documents_are_held_out_where_there_are_enough(tmp_path, monkeypatch):
    """Of 41 files two whole ones, all of their pieces; of three files one piece in twenty."""
    monkeypatch.setattr(text_files, "PIECE", 50)
    for i in range(41):
        write(tmp_path / "many" / f"{i:02}.txt", f"text number {i:02} " * 11)
    many = open_corpus([str(tmp_path / "many")])
    numbers = {True: set(), False: set()}
    for piece in many.pieces():
        numbers[piece.held_out] |= set(re.findall(r"\d\d", piece.text))
    assert many.holds_out_documents
    assert numbers[True] == {"10", "30"} and not numbers[True] & numbers[False]
    assert sum(piece.begins for piece in many.pieces()) == 41
    few = open_corpus([str(tmp_path / "many" / f"0{i}.txt") for i in range(9)])
    numbers = [i for i, piece in enumerate(few.pieces()) if piece.held_out]
    assert not few.holds_out_documents and numbers == list(range(10, len(list(few.pieces())), 20))
    lines = [json.dumps({"text": f"line {i}"}) for i in range(25)]
    rows = open_corpus([write(tmp_path / "rows.jsonl", "\n".join(lines))])
    assert rows.holds_out_documents
    assert list(corpora.held_out(rows)) == ["line 10"]
