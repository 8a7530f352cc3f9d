"""Reading and writing files: whole or not at all, JSON that is checked, and the cache folder."""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from mini_undivided.support.errors import UserError


@contextmanager
def atomic(path):
    """Context: yields a temporary path beside `path`, which is renamed to `path` if no error occurred."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # some writers create files that nobody else may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path):
    """Read a JSON file. Raises UserError, which names the file, if it is missing or not valid."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: is {Path(path).parent} a run or a Hugging Face checkpoint?"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


def cache_dir():
    """The folder of gathered text and token files: $MINI_UNDIVIDED_CACHE, else ~/.cache/mini_undivided."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mini_undivided"
    path = Path(os.environ.get("MINI_UNDIVIDED_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


def short_hash(text, size=12):
    """A hash of a text in 2 * `size` hexadecimal digits, for names in the cache."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
