"""A run directory: a Hugging Face checkpoint, and what is needed to resume it and know its origin.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json    what Hugging Face reads
training_state.pt  training_state.pt.sum                                 what --resume reads
train.json  log.jsonl  loss.png                                          options; rows; the curve
.lock                                                                    who trains here
"""

import json
import platform
import subprocess
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from mini_undivided import __version__
from mini_undivided.support.errors import UserError
from mini_undivided.support.files import (
    check_form,
    parse_json,
    read_json,
    reading,
    remove_temporaries,
    write_text,
)

# Of train.json, and a row of log.jsonl.
BASELINE = {"loss": float, "accuracy": float, "accuracy_at_mask": float}
OPTIONS = {"corpus?": [str], "seq_len?": int, "out?": str}
RESULT = {"validation_loss": float, "validation_accuracy": float, "tokens": int, "seconds": float,
          "tokens_per_second": float, "peak_memory_bytes": float | None,
          "baseline?": BASELINE, "accuracy_at_mask": float}
RECORD = {"status": str, "options": OPTIONS,
          "corpus": {"fingerprint": str, "documents": int, "tokens?": int},
          "versions?": dict, "flops_per_token?": float, "baseline?": BASELINE, "result?": RESULT}
ROW = {"step": int, "tokens": int, "loss?": float, "validation_loss?": float}


def resolve(directory):
    """The local folder of a run: `directory` itself, or a download if it is an id on the hub."""
    path, name = Path(directory), str(directory)
    if path.is_dir():
        return path
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/", "~", "runs")):
        raise UserError(f"{directory} is not a folder: give a run directory, such as runs/noffn")
    from huggingface_hub import snapshot_download

    weights = ["model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin",
               "pytorch_model-*-of-*.bin", "*.index.json"]
    words = ["vocab.txt", "tokenizer*.json", "added_tokens.json", "special_tokens_map.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", *weights, *words]))
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
    """Claim a run directory for this process, until `lock.release()` or its end → the lock.

    Its file stays: without it, processes could hold locks on two files of one name.
    Removes the temporary files that killed processes left. UserError if another process holds it.
    """
    from filelock import FileLock, Timeout  # late: slow to import

    Path(directory).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(directory) / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is training in {directory}: "
                        "wait for it, or choose another folder with --out") from None
    remove_temporaries(directory)
    return lock


def has_checkpoint(directory):
    """Whether there is something in a folder that a new run would destroy."""
    names = ("training_state.pt", "model.safetensors")
    return any((Path(directory) / name).exists() for name in names)


def check_free(out, resume):
    """Raise UserError if a new run would destroy another one."""
    if not resume and has_checkpoint(out):
        raise UserError(f"{out} already holds a run: "
                        "resume it with --resume, or choose another folder with --out")


@contextmanager
def claimed(out, resume, machine):
    """Context: the run directory is this run's alone. UserError if it is taken."""
    lock = machine.in_main(lambda: claim(out))
    try:
        machine.in_main(lambda: check_free(out, resume))  # a run may just have finished there
        yield
    finally:
        if machine.is_main:
            lock.release()


def read_record(directory):
    """What train.json says of a run."""
    path = Path(directory) / "train.json"
    record = read_json(path, RECORD)
    if record["status"] == "finished":
        check_form(record, {"result": RESULT}, path)
    return record


def check_version(directory, record):
    """Raise UserError if another version of mini_undivided started a run, so that none can resume.

    A version's first two numbers count: within them what a checkpoint holds stays the same.
    """
    started = str(record.get("versions", {}).get("mini_undivided"))
    alike = started.split(".")[:2] == __version__.split(".")[:2]
    if has_checkpoint(directory) and not alike:
        raise UserError(f"{directory} was started with version {started} of mini_undivided, which "
                        f"{__version__} cannot resume: start a new run with --init {directory}")


def append_log(directory, row):
    """Add one row, a dictionary, to log.jsonl."""
    with open(Path(directory) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_log(directory):
    """The rows of log.jsonl, without a last line that a kill cut short.

    UserError names a damaged line.
    """
    path = Path(directory) / "log.jsonl"
    with reading(path):
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [parse_json(line, ROW, f"{path}, line {number}")
            for number, line in enumerate(lines[:-1], 1)]


def count_rows(directory):
    """How many rows log.jsonl has."""
    path = Path(directory) / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def truncate_log(directory, count):
    """Keep the first `count` rows: a resumed run writes the others again."""
    rows = read_log(directory)[:count]
    write_text(Path(directory) / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def check_finished(directory):
    """Raise UserError if the run in `directory` was started by train.py and is not finished."""
    path = Path(directory) / "train.json"
    if path.exists() and read_json(path, {"status": str})["status"] != "finished":
        raise UserError(f"{directory} has not finished its training: wait for it, or resume it "
                        f"with `python train.py --resume --out {directory}`")


def versions():
    """Versions of Python and of the libraries, and the checkout's git commit (or None)."""
    libraries = ("torch", "numpy", "tokenizers", "safetensors")
    numbers = {"python": platform.python_version(), "mini_undivided": __version__,
               **{name: version(name) for name in libraries}}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    return {**numbers, "git_commit": commit}
