"""Run directories: nothing is left half written, and nothing that is read can run code."""

import json
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import Trap, names

import mini_undivided
from mini_undivided.run import pretrain
from mini_undivided.support import checkpoint, run_directory
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import write_json

# Checkpoints


def test_a_state_with_code_or_damage_is_an_error(tmp_path):
    """A training state that holds code, was cut short or has a flipped bit is an error."""
    path = tmp_path / "training_state.pt"
    torch.save({"step": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(UserError, match="training_state.pt is damaged"):
        checkpoint.read_state(tmp_path)
    assert not (tmp_path / "sprung").exists()
    checkpoint.write_state(tmp_path, {"a": torch.ones(99), "step": 3})
    content = path.read_bytes()
    for damaged in (content[:-9], content[:99] + bytes([content[99] ^ 1]) + content[100:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="training_state.pt is damaged"):
            checkpoint.read_state(tmp_path)


def test_a_state_of_another_model_is_an_error(options, tmp_path):
    """A whole checkpoint beside the options of another run is refused, not half loaded."""
    pretrain(replace(options, steps=1))
    other = replace(options, steps=1, out=str(tmp_path / "other"), optimizer="adamw")
    pretrain(other)
    for name in ("training_state.pt", "training_state.pt.sum"):
        shutil.copy(tmp_path / "other" / name, options.out)
    with pytest.raises(UserError, match="training_state.pt cannot be read"):
        pretrain(options, resume=True)


def test_a_kill_before_the_end_leaves_no_row_twice(options):
    """A run that is killed after its last validation, and resumed, has the log of any other run."""
    record = pretrain(options)
    rows = run_directory.read_log(options.out)
    write_json(Path(options.out) / "train.json", {**record, "status": "running"})
    pretrain(options, resume=True)
    again = run_directory.read_log(options.out)
    assert again == rows and sum("validation_loss" in row for row in again) == 10


def test_a_claim_is_passed_on_to_one_process(tmp_path):
    """Who opened the lock before it was let go and takes it then has it; a third is refused."""
    fcntl = pytest.importorskip("fcntl")
    first = run_directory.claim(tmp_path)
    with open(tmp_path / ".lock") as second:
        first.release()
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(UserError, match="another process is training in"):
            run_directory.claim(tmp_path)
    run_directory.claim(tmp_path).release()


# Records


def test_the_log_is_appended_read_and_truncated(tmp_path):
    """Truncating the log drops the rows after a number of them; a damaged line is an error.

    A last line that a kill cut short is not read, and does not spoil the next one.
    """
    run_directory.truncate_log(tmp_path, 3)
    assert run_directory.read_log(tmp_path) == [] and run_directory.count_rows(tmp_path) == 0
    rows = [{"step": step, "tokens": 9, "loss": 1 / step} for step in (1, 2, 3, 3, 4)]
    for row in rows:
        run_directory.append_log(tmp_path, row)
    assert run_directory.read_log(tmp_path) == rows and run_directory.count_rows(tmp_path) == 5
    path = tmp_path / "log.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    assert run_directory.read_log(tmp_path) == rows and run_directory.count_rows(tmp_path) == 5
    run_directory.truncate_log(tmp_path, 4)
    assert run_directory.read_log(tmp_path) == rows[:4]
    run_directory.append_log(tmp_path, {"step": 4, "tokens": 9})
    assert run_directory.read_log(tmp_path) == [*rows[:4], {"step": 4, "tokens": 9}]
    assert names(tmp_path) == ["log.jsonl"]
    for damage in ('{"step": 3, ', '{"step": 3, "loss": 1.0}'):
        lines = path.read_text().split("\n")
        path.write_text("\n".join([*lines[:2], damage, *lines[3:]]))
        for read in (run_directory.read_log, lambda folder: run_directory.truncate_log(folder, 4)):
            with pytest.raises(UserError, match="log.jsonl, line 3"):
                read(tmp_path)


def test_a_finished_run_has_a_result(tmp_path):
    """train.json that says "finished" without a result is an error that names what is missing."""
    record = {"status": "running", "options": {}, "corpus": {"fingerprint": "x", "documents": 1}}
    write_json(tmp_path / "train.json", record)
    assert run_directory.read_record(tmp_path) == record
    write_json(tmp_path / "train.json", {**record, "status": "finished"})
    with pytest.raises(UserError, match='train.json has no "result"'):
        run_directory.read_record(tmp_path)


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
    assert name == "org/model"

    def fetched(file):
        return any(fnmatch(file, pattern) for pattern in patterns)

    assert all(map(fetched, (
        "config.json", "model.safetensors", "model-00001-of-00002.safetensors", "vocab.txt",
        "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin", "added_tokens.json",
        "tokenizer_config.json", "special_tokens_map.json")))
    assert not any(map(fetched, ("model.fp16.safetensors", "tf_model.h5", "onnx/model.onnx")))

    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="org/model .*ConnectionError"):
        run_directory.resolve("org/model")


def test_versions_name_what_ran():
    """versions() names the versions of PyTorch, this package and Python, and the git commit."""
    versions = run_directory.versions()
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert versions["mini_undivided"] == mini_undivided.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["git_commit"] is None or len(versions["git_commit"]) == 40
    json.dumps(versions)
