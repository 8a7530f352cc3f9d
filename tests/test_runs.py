"""Run directories: a file is written whole or not at all, and nothing that is read can run code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

import mini_undivided
from mini_undivided import runs
from mini_undivided.runtime import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_writes_the_whole_file_or_leaves_the_old(tmp_path):
    """The old content stays until the block ends, and for good where it ends in an error; nothing else is left."""
    path = tmp_path / "a.txt"
    with runs.atomic(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.parent == tmp_path
    with pytest.raises(KeyboardInterrupt), runs.atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]
    with runs.atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_kill_while_writing_leaves_the_previous_file(tmp_path):
    """A process that dies without warning in the middle of a write does not damage the file that was there."""
    runs.write_json(tmp_path / "a.json", {"step": 1})
    program = (
        "import os, sys; from mini_undivided import runs\n"
        "with runs.atomic(sys.argv[1]) as path:\n"
        "    path.write_text('{'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")], check=False)
    assert killed.returncode == -9
    assert runs.read_json(tmp_path / "a.json") == {"step": 1}


@pytest.mark.parametrize("write", ["write_state", "write_weights"])
def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch, write):
    """A full disk in the middle of a checkpoint leaves the one before it."""
    getattr(runs, write)(tmp_path, {"a": torch.ones(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        getattr(runs, write)(tmp_path, {"a": torch.zeros(3)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_json_comes_back(tmp_path):
    value = {"name": "café", "sizes": [1, 2.5, None, True]}
    runs.write_json(tmp_path / "a.json", value)
    assert runs.read_json(tmp_path / "a.json") == value
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [None, b"", b'{"a": 1', b"\xff\xfe"])
def test_missing_or_broken_json_is_an_error_that_names_it(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "config.json")):
        runs.read_json(tmp_path / "config.json")


def test_weights_come_back(tmp_path):
    """Tensors that are not contiguous, or need gradients, are written as they look; the folder is made."""
    weight = torch.nn.Parameter(torch.ones(3))
    tensors = {"a": torch.arange(35.0).reshape(5, 7).T, "b": weight, "c": torch.ones(2).half()}
    runs.write_weights(tmp_path / "new" / "run", tensors)
    read = runs.read_weights(tmp_path / "new" / "run")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(t, read[name]) and t.dtype == read[name].dtype for name, t in tensors.items())


def test_state_comes_back_and_is_weights_only(tmp_path):
    """training_state.pt holds an optimiser's state and opens with weights_only=True."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    runs.write_state(tmp_path, {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "step": 7})
    state = runs.read_state(tmp_path)
    torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert state["step"] == 7 and torch.equal(state["random"], torch.get_rng_state())
    torch.optim.AdamW([weight]).load_state_dict(state["optimizer"])
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], optimizer.state[weight]["exp_avg"])


class Trap:
    """A pickle that creates a file when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_state_with_code_cut_short_or_missing_is_an_error(tmp_path):
    path = tmp_path / "training_state.pt"
    with pytest.raises(UserError, match="nothing to resume"):
        runs.read_state(tmp_path)
    torch.save({"step": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(UserError, match=str(path)):
        runs.read_state(tmp_path)
    assert not (tmp_path / "sprung").exists()
    runs.write_state(tmp_path, {"a": torch.ones(999)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=str(path)):
        runs.read_state(tmp_path)


def test_the_log_is_appended_read_and_truncated(tmp_path):
    """Rows after a step are dropped; a last line that a kill cut short is not read, and does not spoil the next one."""
    assert runs.read_log(tmp_path) == []
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 3, 4)]
    for row in rows:
        runs.append_log(tmp_path, row)
    assert runs.read_log(tmp_path) == rows
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert runs.read_log(tmp_path) == rows
    runs.truncate_log(tmp_path, 3)
    assert runs.read_log(tmp_path) == rows[:4]
    runs.append_log(tmp_path, {"step": 4})
    assert runs.read_log(tmp_path) == [*rows[:4], {"step": 4}] and names(tmp_path) == ["log.jsonl"]


def test_truncating_a_log_that_is_not_there(tmp_path):
    runs.truncate_log(tmp_path, 3)
    assert runs.read_log(tmp_path) == []


@pytest.mark.parametrize("status, fine", [("running", False), ("interrupted", False), ("finished", True), (None, True)])
def test_an_unfinished_run_is_an_error_that_says_how_to_go_on(tmp_path, status, fine):
    """A Hugging Face folder without train.json is taken as it is."""
    if status:
        runs.write_json(tmp_path / "train.json", {"status": status})
    if fine:
        runs.check_finished(tmp_path)
    else:
        with pytest.raises(UserError, match=f"--resume --out {tmp_path}"):
            runs.check_finished(tmp_path)


def test_a_folder_is_itself_and_what_cannot_be_a_hub_id_is_an_error(tmp_path):
    """Nothing that looks like a path is asked of the hub."""
    assert runs.resolve(tmp_path) == tmp_path and runs.resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "gone", tmp_path / "file", "./gone", "runs/gone", "a/b/c", "~/gone"):
        with pytest.raises(UserError, match="not a folder"):
            runs.resolve(name)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    """The files that are read, and no others, are asked for; a failure is one sentence with the id."""
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert runs.resolve("org/model") == tmp_path
    ((name, patterns),) = asked
    assert name == "org/model" and {"config.json", "model.safetensors"} <= set(patterns)
    assert not any("*" in pattern and "tokenizer" not in pattern for pattern in patterns)

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="org/model .*ConnectionError"):
        runs.resolve("org/model")


def test_versions_name_what_ran():
    found = runs.versions()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["mini_undivided"] == mini_undivided.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["git_commit"] is None or len(found["git_commit"]) == 40
    json.dumps(found)
