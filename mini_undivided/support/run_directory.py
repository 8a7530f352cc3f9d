"""A run directory: a Hugging Face checkpoint, with what is needed to resume it and to know where it came from.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json     what Hugging Face reads
training_state.pt                                                         what --resume reads (weights_only=True)
train.json  log.jsonl  loss.png                                           options, versions; rows; the curve
"""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, read_json, write_text


def resolve(directory):
    """The local folder of a run: `directory` itself, or if it is a model's id on the hub, a download of it."""
    path = Path(directory)
    if path.is_dir():
        return path
    if (
        path.exists()
        or str(directory).count("/") > 1
        or str(directory).startswith((".", "/", "~", "runs"))
    ):
        raise UserError(f"{directory} is not a folder: give a run directory, such as runs/noffn")
    from huggingface_hub import snapshot_download

    try:
        wanted = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "vocab.txt",
            "tokenizer*.json",
        ]
        return Path(snapshot_download(str(directory), allow_patterns=wanted))
    except (
        Exception
    ) as error:  # the hub raises many kinds: no network, no such model, no permission
        raise UserError(
            f"{directory} is neither a folder here nor a model that the hub gave ({type(error).__name__}); "
            "check the name"
        ) from None


def write_state(directory, state):
    """Write training_state.pt: a dictionary of tensors and plain numbers."""
    import torch

    with atomic(Path(directory) / "training_state.pt") as temporary:
        torch.save(state, temporary)


def read_state(directory):
    """Read training_state.pt, never executing its pickle. Raises UserError if it is missing or damaged."""
    import torch

    path = Path(directory) / "training_state.pt"
    if not path.exists():
        raise UserError(
            f"{path} does not exist, so there is nothing to resume; start it without --resume"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def append_log(directory, row):
    """Add one row, a dictionary, to log.jsonl."""
    with open(Path(directory) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_log(directory):
    """The rows of log.jsonl; a last line that was cut short by a kill is left out."""
    path = Path(directory) / "log.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def truncate_log(directory, step):
    """Drop the rows after `step`, which a resumed run will write again."""
    rows = [row for row in read_log(directory) if row["step"] <= step]
    write_text(Path(directory) / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def check_finished(directory):
    """Raise UserError if the run in `directory` was started by train.py and has not reached its end."""
    path = Path(directory) / "train.json"
    if path.exists() and read_json(path).get("status") != "finished":
        raise UserError(
            f"{directory} has not finished its training: wait for it, or resume it with "
            f"`python train.py --resume --out {directory}`"
        )


def versions():
    """Versions of Python and of the libraries a run depends on, and the git commit of the checkout if there is one."""
    found = {"python": platform.python_version()}
    for name in ("mini_undivided", "torch", "numpy", "tokenizers", "datasets", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found["git_commit"] = subprocess.run(
            git, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["git_commit"] = None
    return found
