"""A run directory: a Hugging Face checkpoint, with what is needed to go on training it and to know how it was made.

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json     what Hugging Face reads
    training_state.pt                                                         what --resume reads (weights_only=True)
    train.json  log.jsonl  loss.png                                           options, versions; rows; the curve

Every file is written under a temporary name and renamed, so that a kill at any moment leaves the previous one whole.
"""

import json
import os
import platform
import subprocess
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mini_undivided.runtime import UserError


@contextmanager
def atomic(path):
    """Context: yields a temporary path beside `path`; what was written there becomes `path` only if no error came."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # some writers make files that nobody else may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    """Write `value` as indented JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path):
    """Read a JSON file. Raises UserError, which names the file, where it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {Path(path).parent} a run or a Hugging Face checkpoint?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


def resolve(directory):
    """The local folder of a run: `directory` itself, or a download of it where it is the id of a model on the hub."""
    path = Path(directory)
    if path.is_dir():
        return path
    if path.exists() or str(directory).count("/") > 1 or str(directory).startswith((".", "/", "~", "runs")):
        raise UserError(f"{directory} is not a folder: give a run directory, such as runs/noffn")
    from huggingface_hub import snapshot_download

    try:
        wanted = ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer*.json"]
        return Path(snapshot_download(str(directory), allow_patterns=wanted))
    except Exception as error:  # the hub raises many kinds: no network, no such model, no permission
        raise UserError(
            f"{directory} is neither a folder here nor a model that the hub gave ({type(error).__name__}); check the name"
        ) from None


def read_weights(directory):
    """All tensors of a checkpoint by name: model.safetensors, else pytorch_model.bin (never executing pickled code)."""
    directory = Path(directory)
    try:
        if (directory / "model.safetensors").exists():
            from safetensors.torch import load_file

            return load_file(directory / "model.safetensors")
        if (directory / "pytorch_model.bin").exists():
            import torch

            return torch.load(directory / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and zip errors have no common parent
        raise UserError(f"the weights in {directory} cannot be read ({error}); the file may be cut short") from None
    raise UserError(f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin is there")


def write_weights(directory, tensors):
    """Write tensors by name as model.safetensors."""
    from safetensors.torch import save_file

    Path(directory).mkdir(parents=True, exist_ok=True)
    with atomic(Path(directory) / "model.safetensors") as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, {"format": "pt"})


def write_state(directory, state):
    """Write training_state.pt: a dictionary of tensors and plain numbers."""
    import torch

    with atomic(Path(directory) / "training_state.pt") as temporary:
        torch.save(state, temporary)


def read_state(directory):
    """Read training_state.pt, never executing pickled code. Raises UserError where it is missing or broken."""
    import torch

    path = Path(directory) / "training_state.pt"
    if not path.exists():
        raise UserError(f"{path} does not exist, so there is nothing to resume; start it without --resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def append_log(directory, row):
    """Add one row, a dictionary, to log.jsonl."""
    with open(Path(directory) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_log(directory):
    """The rows of log.jsonl; a last line that a kill cut short is left out."""
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
    with atomic(Path(directory) / "log.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def check_finished(directory):
    """Raise UserError where the run in `directory` was begun by train.py and has not reached its end."""
    path = Path(directory) / "train.json"
    if path.exists() and read_json(path).get("status") != "finished":
        raise UserError(
            f"{directory} has not finished its training: wait for it, or go on with "
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
        found["git_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["git_commit"] = None
    return found
