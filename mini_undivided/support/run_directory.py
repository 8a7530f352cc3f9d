"""A run directory: a Hugging Face checkpoint, and what is needed to resume it and know its origin.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json    what Hugging Face reads
training_state.pt                                                        what --resume reads
train.json  log.jsonl  loss.png                                          options; rows; the curve
"""

import json
import os
import pickle
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    atomic,
    check_form,
    parse_json,
    read_json,
    reading,
    remove_temporaries,
    write_text,
)

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

BASELINE = {"loss": float, "accuracy": float, "accuracy_at_mask": float}
OPTIONS = {"corpus?": [str], "seq_len?": int, "out?": str}
RESULT = {"validation_loss": float, "validation_accuracy": float, "tokens": int, "seconds": float,
          "tokens_per_second": float, "peak_memory_bytes": float | None,
          "baseline?": BASELINE, "accuracy_at_mask?": float}
RECORD = {"status": str, "options": OPTIONS, "corpus": {"fingerprint": str, "documents": int},
          "flops_per_token?": float, "baseline?": BASELINE, "result?": RESULT}  # of train.json
ROW = {"step": int, "tokens?": int, "loss?": float, "validation_loss?": float}  # of log.jsonl


def resolve(directory):
    """The local folder of a run: `directory` itself, or a download if it is an id on the hub."""
    path, name = Path(directory), str(directory)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~", "runs")):
        raise UserError(f"{directory} is not a folder: give a run directory, such as runs/noffn")
    from huggingface_hub import snapshot_download

    weights = ["model.safetensors", "pytorch_model.bin"]
    wanted = ["config.json", *weights, "vocab.txt", "tokenizer*.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # of many kinds: no network, no such model, no permission
        kind = type(error).__name__
        advice = "check the name" if "NotFound" in kind else "is there a network?"
        raise UserError(f"{directory} is no folder here, and the hub did not give a model of this "
                        f"name ({kind}): {advice}") from None


def results_folder(directory):
    """Where results about a run go: into its folder, or for an id on the hub to runs/NAME."""
    path = Path(directory)
    return path if path.is_dir() else Path("runs") / path.name


def claim(directory):
    """Claim a run directory for this process, until it ends or is killed → what keeps the claim.

    Removes the temporary files that killed processes left. UserError if another process holds it.
    """
    Path(directory).mkdir(parents=True, exist_ok=True)
    handle = None
    if fcntl:
        handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            advice = "wait for it, or choose another folder with --out"
            raise UserError(f"another process is training in {directory}: {advice}") from None
    remove_temporaries(directory)
    return handle


def release(handle):
    """Give up what `claim` returned."""
    if handle is not None:
        os.close(handle)


def has_checkpoint(directory):
    """Whether there is something in a folder that a new run would destroy."""
    names = ("training_state.pt", "model.safetensors")
    return any((Path(directory) / name).exists() for name in names)


def read_record(directory):
    """What train.json says of a run."""
    return read_json(Path(directory) / "train.json", RECORD)


def write_state(directory, state):
    """Write training_state.pt: a dictionary of tensors and plain numbers."""
    import torch

    with atomic(Path(directory) / "training_state.pt") as temporary:
        torch.save(state, temporary)


def read_state(directory):
    """Read training_state.pt, never executing its pickle. UserError if it is missing or damaged."""
    import torch

    path = Path(directory) / "training_state.pt"
    if not path.exists():
        raise UserError(f"{directory} has no checkpoint yet: start it again without --resume")
    with reading(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its text advises to load it without this safety
            raise UserError(f"{path} holds something else than tensors and numbers") from None


def append_log(directory, row):
    """Add one row, a dictionary, to log.jsonl."""
    with open(Path(directory) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def log_rows(directory):
    """Yield the rows of log.jsonl; a last line that was cut short by a kill is left out."""
    path = Path(directory) / "log.jsonl"
    with reading(path):
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    for number, line in enumerate(lines[:-1], 1):
        with reading(f"{path}, line {number},"):
            row = parse_json(line)
        check_form(row, ROW, f"{path}, line {number}")
        yield row


def read_log(directory):
    """The rows of log.jsonl. UserError names a damaged line."""
    return list(log_rows(directory))


def truncate_log(directory, step):
    """Drop the rows after `step`, which a resumed run will write again, and what is damaged."""
    rows = []
    try:
        for row in log_rows(directory):
            rows += [row] if row["step"] <= step else []
    except UserError as error:
        print(f"{error}; the rows from there on are dropped")
    write_text(Path(directory) / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def check_finished(directory):
    """Raise UserError if the run in `directory` was started by train.py and is not finished."""
    path = Path(directory) / "train.json"
    if path.exists() and read_json(path, {"status": str})["status"] != "finished":
        raise UserError(f"{directory} has not finished its training: wait for it, or resume it "
                        f"with `python train.py --resume --out {directory}`")


def trained_length(directory):
    """The tokens of a sequence that a run was trained on, or None if it does not say."""
    known = (Path(directory) / "train.json").exists()
    return read_record(directory)["options"].get("seq_len") if known else None


def versions():
    """Versions of Python and of the libraries, and the checkout's git commit (or None)."""
    numbers = {"python": platform.python_version()}
    for name in ("mini_undivided", "torch", "numpy", "tokenizers", "datasets", "safetensors"):
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = None
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {**numbers, "git_commit": commit}
