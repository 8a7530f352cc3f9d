"""Token files: what was written comes back, and what is damaged is written again."""

import numpy as np

from mini_undivided.corpus import open_corpus
from mini_undivided.support import token_files


def test_four_bytes_where_two_are_too_few(tmp_path):
    """A vocabulary above 65,536 gets 32-bit ids, and they survive the round trip."""
    writer = token_files.TokenWriter(tmp_path / "big.npy", 70_001)
    writer.write([3, 70_000, 5])
    writer.close()
    assert np.load(tmp_path / "big.npy", mmap_mode="r").tolist() == [3, 70_000, 5]


def test_what_is_damaged_in_the_cache_is_made_again(tale, tmp_path, monkeypatch):
    """One changed byte in any file of a cached text, and the text is tokenised again, the same."""
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path))
    corpus = open_corpus(tale)

    def made():
        tokenizer = token_files.cached_tokenizer(corpus, 99)
        tokens = token_files.tokenize(corpus, tokenizer)
        counts = tokens.documents, tokens.pieces, tokens.held_out, tokens.words
        return tokenizer.to_str(), tokens.train.tolist(), tokens.valid.tolist(), counts

    expected = made()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.name for path in files if path.suffix != ".sum") == [
        "about.json", "tokenizer.json", "train.npy", "valid.npy"]
    for path, content in files.items():
        for at in (0, len(content) // 2, len(content) - 2):
            damaged = bytearray(content)
            damaged[at] ^= 4
            path.write_bytes(damaged)
            assert made() == expected, (path, at)
            assert path.read_bytes() == content or path.suffix == ".sum"
