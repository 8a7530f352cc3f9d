"""Files: written whole or not at all, checked by checksum or by form; paths; the cache folder."""

import errno
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from mini_undivided.support.errors import UserError

FULL = 1 << 20  # bytes left on a disk that is full
POINTER = b"version https://git-lfs"


# Writing.


@contextmanager
def atomic(path):
    """Context: yields a temporary path, which is renamed to `path` if no error occurred."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # some writers create files that nobody else may read
        os.replace(temporary, path)
    except Exception as error:  # PyTorch and safetensors have exceptions of their own
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or (path.parent.exists() and shutil.disk_usage(path.parent).free < FULL):
            raise UserError(f"{path} could not be written: the disk is full") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sealed(path):
    """As `atomic`, for a file that only we write: its checksum lies beside it, in NAME.sum.

    The checksum is written before the file is renamed, above that of the file that is replaced:
    whenever a kill comes, the file that is there is one of the two.
    """
    with atomic(path) as temporary:
        yield temporary
        sums = [checksum(file) for file in (temporary, path) if Path(file).exists()]
        write_text(f"{path}.sum", "\n".join(sums) + "\n")


def is_whole(path):
    """Whether a file that `sealed` wrote is there, and every byte of it as it was written."""
    seal = Path(f"{path}.sum")
    known = seal.read_bytes().split() if seal.exists() and Path(path).exists() else []
    return bool(known) and checksum(path).encode() in known


def checksum(path):
    """A hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def remove_temporaries(folder):
    """Remove the temporary files that killed processes left in a folder."""
    for path in Path(folder).glob(".*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)  # no signal, but an error without a process
        except (ProcessLookupError, OverflowError, ValueError):
            path.unlink(missing_ok=True)
        except OSError:  # there is one, of somebody else; on Windows, perhaps none
            pass


def check_writable(folder):
    """Raise UserError if files cannot be written to a folder, which need not exist yet."""
    folder = Path(folder)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write to {folder}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: no permission to write in {parent}")


def write_text(path, text):
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# Reading.


@contextmanager
def reading(path):
    """Context: whatever goes wrong with the content of a file is an error that names the file."""
    try:
        refuse_pointer(path)
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: "
                        f"is {Path(path).parent} a run or a Hugging Face checkpoint?") from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # parsers, pickle, zip: no common parent; tokenizers panics
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}") from None


def refuse_pointer(path):
    """Raise UserError if a file only says where git-lfs would find its content."""
    if Path(path).is_file():
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{path} is a pointer of git-lfs: get the file with `git lfs pull`")


def read_json(path, form=dict):
    """Read a JSON file of a form (see `check_form`). UserError, with its name, if it is another."""
    with reading(path):
        text = Path(path).read_text(encoding="utf-8")
    return parse_json(text, form, path)


def parse_json(text, form, source):
    """The value of a JSON text of a form. UserError, which names its source, if it is another."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a surrogate pair: nothing could write or print it
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} cannot be read as JSON: {error}") from None
    check_form(value, form, source)
    return value


KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false",
         list: "a list", dict: "an object", type(None): "null"}


def check_form(value, form, path, key="its content"):
    """Raise UserError, which names file and key, if a JSON value is not of a form.

    A form is a type, a union of types, [form] for a list, or {key: form} for an object with
    at least these keys; {"key?": form} may be absent.
    """
    if isinstance(form, dict):
        check_form(value, dict, path, key)
        for name, inner in form.items():
            optional, name = name.endswith("?"), name.rstrip("?")
            if name in value:
                check_form(value[name], inner, path, f'"{name}"')
            elif not optional:
                raise UserError(f'{path} has no "{name}"')
    elif isinstance(form, list):
        check_form(value, list, path, key)
        for entry in value:
            check_form(entry, form[0], path, f"an entry of {key}")
    elif not any(is_kind(value, kind) for kind in get_args(form) or (form,)):
        wanted = " or ".join(KINDS[kind] for kind in get_args(form) or (form,))
        raise UserError(f"{path}: {key} is {str(value)[:40]}, but should be {wanted}")


def is_kind(value, kind):
    """Whether a JSON value is of a kind: true is no number, and a number is finite."""
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


# Paths.


def from_user(text):
    """A text that a user typed or set, usually a path: "~" is the home folder.

    Raises UserError for bytes that are no UTF-8, and if the home folder is not known.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="replace")
        raise UserError(f"{shown} is not UTF-8: choose another name") from None
    path = os.path.expanduser(text)
    if path.startswith("~/") or (path != text and os.environ.get("HOME") == ""):
        raise UserError(f"{path}: the home folder is not known; set HOME")
    return path


def cache_dir():
    """The folder of text and token files: $MINI_UNDIVIDED_CACHE, else ~/.cache/mini_undivided."""
    default = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/mini_undivided"
    path = Path(from_user(os.environ.get("MINI_UNDIVIDED_CACHE") or default))
    check_writable(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def short_hash(text, size=12):
    """A hash of a text in 2 * `size` hexadecimal digits, for names in the cache."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
