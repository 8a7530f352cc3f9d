"""Files: written whole or not at all, damage noticed; paths, the environment, the terminal."""

import os
import subprocess
import sys
from dataclasses import fields
from unittest.mock import Mock

import pytest
from helpers import names

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    atomic, cache_dir, check_writable, is_whole, read_json, remove_temporaries, sealed, write_json)
from mini_undivided.support.options import AnalyzeOptions, FinetuneOptions, PretrainOptions, kind
from mini_undivided.support.terminal import progress, progress_bar, show


def test_atomic_writes_the_whole_file_or_leaves_the_old(tmp_path):
    """The old content stays until the block ends, and for good if a kill or an error ends it.

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


@pytest.mark.parametrize(("error", "left"), [
    (None, 1), (ProcessLookupError(), 0), (PermissionError(), 1), (OSError(22, "Windows"), 1)])
def test_temporary_files_of_living_processes_stay(tmp_path, monkeypatch, error, left):
    """Those of a process that is gone are removed; where the system does not tell, they stay."""
    monkeypatch.setattr(os, "kill", Mock(side_effect=error))
    (tmp_path / ".a.txt.7.tmp").touch()
    remove_temporaries(tmp_path)
    assert len(names(tmp_path)) == left


# Files of our own


def test_every_damaged_byte_is_noticed(tmp_path):
    """A sealed file is whole; with any bit flipped, in it or its checksum, cut, or longer, not."""
    path, seal = tmp_path / "a.bin", tmp_path / "a.bin.sum"
    assert not is_whole(path)
    with sealed(path) as temporary:
        temporary.write_bytes(bytes(range(99)))
    assert is_whole(path) and names(tmp_path) == ["a.bin", "a.bin.sum"]
    for file in (path, seal):
        content = file.read_bytes()
        for i in range(len(content.strip())):
            file.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
            assert not is_whole(path), (file.name, i)
        for other in (b"", content[:-2], content[:9] * 5):
            file.write_bytes(other)
            assert not is_whole(path)
        file.write_bytes(content)
    seal.unlink()
    assert not is_whole(path)


def test_a_kill_between_checksum_and_file_leaves_either_whole(tmp_path, monkeypatch):
    """Whenever a kill comes, even twice, the file that is there has a checksum that says so."""
    path, replace = tmp_path / "a.bin", os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    for content in (b"first", b"second"):
        with sealed(path) as temporary:
            temporary.write_bytes(content)
        monkeypatch.setattr(os, "replace", killed)
        for lost in (b"lost", b"lost again"):
            with pytest.raises(KeyboardInterrupt), sealed(path) as temporary:
                temporary.write_bytes(lost)
            assert is_whole(path) and path.read_bytes() == content
        monkeypatch.undo()


# JSON


def test_json_comes_back(tmp_path):
    """What was written as JSON comes back the same, and letters stay readable.

    Half a surrogate pair, which could be neither written nor printed, is an error.
    """
    path = tmp_path / "a.json"
    value = {"name": "café", "sizes": [1, 2.5, None, True]}
    write_json(path, value)
    assert read_json(path) == value and "café" in path.read_text(encoding="utf-8")
    path.write_text('{"out": "\\ud83d\\ude00"}')
    assert read_json(path) == {"out": "\U0001f600"}
    path.write_text('{"out": "\\uD83D"}')
    with pytest.raises(UserError, match=f"{path} cannot be read as JSON: .*surrogates"):
        read_json(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + 400 * "0"])
def test_a_number_is_one_that_a_float_can_hold(tmp_path, number):
    """What is none, or larger than any float, is an error that names file and key."""
    (tmp_path / "a.json").write_text(f'{{"lr": {number}}}')
    with pytest.raises(UserError, match='a.json: "lr" is .*, but should be a number'):
        read_json(tmp_path / "a.json", {"lr": float})


# Paths and the environment


@pytest.mark.parametrize(("here", "there", "expected"), [
    ("{}/here", "{}/there", "{}/here"), (None, "{}/there", "{}/there/mini_undivided"),
    ("", "{}/there", "{}/there/mini_undivided"), ("~/here", None, "{}/home/here"),
    ("", "", "{}/home/.cache/mini_undivided"), (None, None, "{}/home/.cache/mini_undivided"),
    (None, "~/there", "{}/home/there/mini_undivided")])
def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch, here, there, expected):
    """The cache is MINI_UNDIVIDED_CACHE, else in XDG_CACHE_HOME, else at home; empty is unset."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in (("MINI_UNDIVIDED_CACHE", here), ("XDG_CACHE_HOME", there)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value.format(tmp_path))
    assert str(cache_dir()) == expected.format(tmp_path) and cache_dir().is_dir()


def test_without_a_home_the_cache_has_to_be_named(tmp_path, monkeypatch):
    """A process without a home folder is told so, but only if it needs one."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("MINI_UNDIVIDED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="the home folder is not known; set HOME"):
        cache_dir()
    monkeypatch.undo()
    for name in ("MINI_UNDIVIDED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, "")
    with pytest.raises(UserError, match="the home folder is not known; set HOME"):
        cache_dir()
    monkeypatch.setenv("MINI_UNDIVIDED_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


def test_a_folder_without_permission_is_said_before_the_work(tmp_path, monkeypatch):
    """A folder that is not there yet counts as the one that it would be in."""
    check_writable(tmp_path / "new" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write in"):
        check_writable(tmp_path / "new" / "run")


@pytest.mark.parametrize(("options", "given"), [
    (PretrainOptions, {}), (FinetuneOptions, {"run": "r", "task": "t"}),
    (AnalyzeOptions, {"runs": ["r"]})])
def test_a_tilde_is_the_home_folder_in_every_option(monkeypatch, options, given):
    """Every text among the options, alone or in a list, that begins with ~/ is expanded.

    A text that is not UTF-8 is an error.
    """
    monkeypatch.setenv("HOME", "/at/home")
    for field in fields(options):
        type_, many = kind(field)
        if type_ is str and not field.metadata["option"].choices:
            made = options(**{**given, field.name: ["~/a", "b/~"] if many else "~/a"})
            assert getattr(made, field.name) == (["/at/home/a", "b/~"] if many else "/at/home/a")
            with pytest.raises(UserError, match="is not UTF-8: choose another name"):
                options(**{**given, field.name: ["\udcff"] if many else "a\udcff"})


# The terminal


@pytest.mark.parametrize("is_terminal", [False, True])
def test_bars_are_for_terminals(monkeypatch, capsys, is_terminal):
    """A bar is drawn on a terminal alone: a log or a notebook keeps only the lines above it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with progress_bar() as bar:
        for i in range(50):
            show(bar, i / 50, f"step {i}")
            bar.refresh()
        bar.write("step 50: validation")
    assert list(progress(range(3), desc="features")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == "step 50: validation\n"
    assert ("step 49" in captured.err and "features" in captured.err) == is_terminal
    assert is_terminal or captured.err == ""


@pytest.mark.parametrize(("end", "stdout", "stderr"), [
    (">&-", "", ""), ("2>&-", "?", ""), ("| head -c 1", "?", ""),
    (">/dev/full", "", "<stdout> cannot be written: No space left")])
def test_output_that_nobody_takes_costs_no_work(end, stdout, stderr):
    """With stdout or stderr closed, a reader gone, or a full disk, a program goes on to its end.

    Where a letter cannot be shown a question mark stands.
    """
    code = ("from mini_undivided.support.errors import command_line\n"
            "with command_line():\n    print('×' * 99999)\n    import sys\n"
            "    print('warning', file=sys.stderr)\n    sys.exit(7)")
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {end}', sys.executable, code],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 7 and done.stdout[:1] == stdout
    assert stderr in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2
