"""Files are written whole or not at all, and JSON that cannot be read is named."""

import subprocess
import sys

import pytest
from helpers import names

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, cache_dir, read_json, write_json


def test_atomic_writes_the_whole_file_or_leaves_the_old(tmp_path):
    """The old content stays until the block ends, and for good if it ends in an error.

    No other file is left over.
    """
    path = tmp_path / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.parent == tmp_path
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_kill_while_writing_leaves_the_previous_file(tmp_path):
    """A process that dies in the middle of a write leaves the previous file intact."""
    write_json(tmp_path / "a.json", {"step": 1})
    program = (
        "import os, sys; from mini_undivided.support.files import atomic\n"
        "with atomic(sys.argv[1]) as path:\n"
        "    path.write_text('{'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")], check=False)
    assert killed.returncode == -9
    assert read_json(tmp_path / "a.json") == {"step": 1}


def test_json_comes_back(tmp_path):
    """What was written as JSON comes back the same, and letters stay readable."""
    value = {"name": "café", "sizes": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_missing_or_broken_json_is_an_error_that_names_it(tmp_path, content):
    """A JSON file that is missing or cannot be read is an error that names it."""
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "config.json")):
        read_json(tmp_path / "config.json")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    """The cache is MINI_UNDIVIDED_CACHE, or else a folder in XDG_CACHE_HOME."""
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here" and (tmp_path / "here").is_dir()
    monkeypatch.delenv("MINI_UNDIVIDED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert cache_dir() == tmp_path / "there" / "mini_undivided"
