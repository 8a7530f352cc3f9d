"""Run directories: nothing is left half written, and nothing that is read can run code."""

import json
import os
import sys

import huggingface_hub
import pytest
import torch
from helpers import Trap, names

import mini_undivided
from mini_undivided.support import checkpoint, run_directory
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json


@pytest.mark.parametrize("write", [run_directory.write_state, checkpoint.write_weights])
def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch, write):
    """A full disk in the middle of a checkpoint leaves the one before it."""
    write(tmp_path, {"a": torch.ones(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, {"a": torch.zeros(3)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_state_comes_back_and_is_weights_only(tmp_path):
    """training_state.pt holds an optimiser's state and opens with weights_only=True."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    run_directory.write_state(
        tmp_path, {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "step": 7}
    )
    state = run_directory.read_state(tmp_path)
    torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert state["step"] == 7 and torch.equal(state["random"], torch.get_rng_state())
    torch.optim.AdamW([weight]).load_state_dict(state["optimizer"])
    assert torch.equal(
        state["optimizer"]["state"][0]["exp_avg"], optimizer.state[weight]["exp_avg"]
    )


def test_a_state_with_code_cut_short_or_missing_is_an_error(tmp_path):
    """A training state that is missing, holds code or was cut short is an error."""
    path = tmp_path / "training_state.pt"
    with pytest.raises(UserError, match="has no checkpoint yet: start it again without --resume"):
        run_directory.read_state(tmp_path)
    torch.save({"step": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(UserError, match=str(path)):
        run_directory.read_state(tmp_path)
    assert not (tmp_path / "sprung").exists()
    run_directory.write_state(tmp_path, {"a": torch.ones(999)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=str(path)):
        run_directory.read_state(tmp_path)


def test_the_log_is_appended_read_and_truncated(tmp_path):
    """Truncating the log drops the rows after a step.

    A last line that a kill cut short is not read, and does not spoil the next one.
    """
    assert run_directory.read_log(tmp_path) == []
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 3, 4)]
    for row in rows:
        run_directory.append_log(tmp_path, row)
    assert run_directory.read_log(tmp_path) == rows
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert run_directory.read_log(tmp_path) == rows
    run_directory.truncate_log(tmp_path, 3)
    assert run_directory.read_log(tmp_path) == rows[:4]
    run_directory.append_log(tmp_path, {"step": 4})
    assert run_directory.read_log(tmp_path) == [*rows[:4], {"step": 4}]
    assert names(tmp_path) == ["log.jsonl"]


def test_truncating_a_log_that_is_not_there(tmp_path):
    """A log that is not there is empty, before and after truncating."""
    run_directory.truncate_log(tmp_path, 3)
    assert run_directory.read_log(tmp_path) == []


@pytest.mark.parametrize(
    "status, fine", [("running", False), ("interrupted", False), ("finished", True), (None, True)]
)
def test_an_unfinished_run_is_an_error_that_says_how_to_go_on(tmp_path, status, fine):
    """An unfinished run is an error that says how to resume it.

    A Hugging Face folder without train.json is taken as it is.
    """
    if status:
        write_json(tmp_path / "train.json", {"status": status})
    if fine:
        run_directory.check_finished(tmp_path)
    else:
        with pytest.raises(UserError, match=f"--resume --out {tmp_path}"):
            run_directory.check_finished(tmp_path)


def test_a_folder_is_itself_and_what_cannot_be_a_hub_id_is_an_error(tmp_path):
    """A folder is itself, and nothing else that looks like a path is asked of the hub."""
    assert run_directory.resolve(tmp_path) == tmp_path
    assert run_directory.resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "gone", tmp_path / "file", "./gone", "runs/gone", "a/b/c", "~/gone"):
        with pytest.raises(UserError, match="not a folder"):
            run_directory.resolve(name)


def test_a_hub_id_is_downloaded(tmp_path, monkeypatch):
    """For a hub id, only the files that are read are asked for.

    A failure is one sentence with the id.
    """
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert run_directory.resolve("org/model") == tmp_path
    ((name, patterns),) = asked
    assert name == "org/model" and {"config.json", "model.safetensors"} <= set(patterns)
    assert not any("*" in pattern and "tokenizer" not in pattern for pattern in patterns)

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="org/model .*ConnectionError"):
        run_directory.resolve("org/model")


def test_versions_name_what_ran():
    """versions() names the versions of PyTorch, this package and Python, and the git commit."""
    versions = run_directory.versions()
    assert (
        versions["torch"] == torch.__version__.partition("+")[0]
        or versions["torch"] == torch.__version__
    )
    assert versions["mini_undivided"] == mini_undivided.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["git_commit"] is None or len(versions["git_commit"]) == 40
    json.dumps(versions)
