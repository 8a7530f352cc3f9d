"""Token files: what was written comes back; caches; what is damaged is refused."""

import json

import numpy as np
import pytest
from helpers import write_corpus

from mini_undivided import corpus
from mini_undivided import tokens as tokens_module
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import cache_dir
from mini_undivided.tokenizer import opens_word, same_tokenizer, special_ids, train_tokenizer
from mini_undivided.tokens import cached_tokenizer, tokenize


def test_tokens_are_the_documents_in_order_with_separators(greek):
    """The token files hold each document's ids and a [SEP], in order.

    Every twentieth document is in the validation file.
    """
    source, tokenizer, tokens = greek
    sep = tokenizer.token_to_id("[SEP]")
    expected = {True: [], False: []}
    for i, piece in enumerate(source.pieces()):
        expected[i % 20 == 10] += [*tokenizer.encode(piece.text, add_special_tokens=False).ids, sep]
    assert tokens.train.tolist() == expected[False]
    assert tokens.valid.tolist() == expected[True]
    assert (tokens.documents, tokens.words, tokens.train.dtype) == (170, 170 * 97, np.dtype("<u2"))


def test_a_mask_that_a_document_spells_out_is_not_a_mask(tmp_path, greek):
    """A document that spells out special tokens brings the id of none into the token file.

    The only special ids are its unknown words' [UNK] and the [SEP] at its end. Elsewhere the
    tokenizer still takes "[MASK]" for the mask.
    """
    (tmp_path / "a.txt").write_text("alpha [MASK] beta [CLS] [SEP] [PAD] " * 7)
    tokens = tokenize(corpus.open_corpus([str(tmp_path / "a.txt")]), greek[1])
    pad, unknown, cls, sep, mask = special_ids(greek[1])
    assert tokens.train[-1] == sep
    assert not set(tokens.train[:-1].tolist()) & {pad, cls, sep, mask}
    assert greek[1].encode("[MASK]", add_special_tokens=False).ids == [mask]


def test_token_files_are_cached_by_content(tmp_path, greek, monkeypatch):
    """The same bytes under another name are not tokenised again; other bytes are."""
    source, tokenizer, tokens = greek
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(source.files[0].read_bytes())
    monkeypatch.setattr(
        tokens_module, "write_token_files", lambda *_: pytest.fail("tokenised again"))
    again = tokenize(corpus.open_corpus([str(copy)]), tokenizer)
    assert np.array_equal(again.train, tokens.train)
    copy.write_text(json.dumps({"text": "alpha"}))
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        tokenize(corpus.open_corpus([str(copy)]), tokenizer)


def test_trained_tokenizer_is_cached_and_ignores_held_out_text(tmp_path, monkeypatch):
    """The second time the same tokenizer is read, not trained; a cased one is another.

    A word that only the held-out document has is not learned.
    """
    trained = []
    monkeypatch.setattr(tokens_module, "train_tokenizer",
                        lambda *args: trained.append(args) or train_tokenizer(*args))
    texts = ["plain words here again"] * 30
    texts[10] = "zyzzyva " * 50  # document 10 is held out
    source = corpus.open_corpus([write_corpus(tmp_path, "a.jsonl", texts)])
    tokenizer = cached_tokenizer(source, 60)
    assert same_tokenizer(tokenizer, cached_tokenizer(source, 60))
    assert len(trained) == 1
    assert tokenizer.token_to_id("plain") and tokenizer.token_to_id("zyzzyva") is None
    assert not same_tokenizer(tokenizer, cached_tokenizer(source, 60, cased=True))
    assert len(trained) == 2


def test_a_failed_tokenisation_leaves_nothing_behind(tmp_path, greek):
    """An error on the way leaves no file, whole or temporary, and the next try ends as the first.

    So no later run takes what was written for complete.
    """
    (tmp_path / "bad.txt").write_bytes(b"alpha beta \xff\xfe gamma")
    source = corpus.open_corpus([str(tmp_path / "bad.txt")])
    before = {path for path in cache_dir().rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(UserError, match="bad.txt is not UTF-8"):
            tokenize(source, greek[1])
        assert {path for path in cache_dir().rglob("*") if path.is_file()} == before


def test_four_bytes_where_two_are_too_few(tmp_path, monkeypatch, greek):
    """A vocabulary above 65,536 gets 32-bit ids, and the same tokens as one below."""
    source, tokenizer, tokens = greek
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path))
    large = type("Large", (), {
        "get_vocab_size": lambda self: 70_001,
        "__getattr__": lambda self, name: getattr(tokenizer, name)})()
    monkeypatch.setattr(tokens_module, "opens_word", lambda _: opens_word(tokenizer))
    wide = tokenize(source, large)
    assert wide.train.dtype == np.dtype("<u4") and np.array_equal(wide.train, tokens.train)


def test_what_is_damaged_in_the_cache_is_made_again(tale, tmp_path, monkeypatch):
    """One changed byte in any file of a cached text, and the text is tokenised again, the same."""
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path))
    source = corpus.open_corpus([tale])

    def made():
        tokenizer = cached_tokenizer(source, 99)
        tokens = tokenize(source, tokenizer)
        counts = tokens.documents, tokens.pieces, tokens.held_out, tokens.words
        return tokenizer.to_str(), tokens.train.tolist(), tokens.valid.tolist(), counts

    expected = made()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.name for path in files if path.suffix != ".sum") == [
        "about.json", "tokenizer.json", "train.bin", "valid.bin"]
    for path, content in files.items():
        for at in (0, len(content) // 2, len(content) - 2):
            damaged = bytearray(content)
            damaged[at] ^= 4
            path.write_bytes(damaged)
            assert made() == expected, (path, at)
            assert path.read_bytes() == content or path.suffix == ".sum"
