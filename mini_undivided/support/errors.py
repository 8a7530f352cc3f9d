"""Errors that a user can fix, and how a command line ends."""

import os
import signal
import sys
from contextlib import contextmanager
from functools import partial

from mini_undivided.support.launcher import launcher


class UserError(ValueError):
    """An error that the user can fix: command lines print its sentence and exit with status 2."""

    def __init__(self, sentence):
        super().__init__(visible(sentence))


def visible(text):
    r"""A text in one line, with an escape, as \u200b, for each character that does not show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@contextmanager
def command_line():
    """Context for a command line: a sentence instead of a traceback, if that says it all.

    Status 2 after a UserError, a file that cannot be written, or when memory is full; 130
    after Ctrl-C and SIGTERM.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the whole program)
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # "?" for what it cannot show
        setattr(sys, name, Patient(stream))
    # As Ctrl-C, so that files are cleaned up.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        if launcher().rank == 0:
            print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # at once: a thread of a library may be busy for a while
    finally:
        signal.signal(signal.SIGTERM, before)
        for name, stream in streams.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)


def sentence_of(error):
    """What a user needs to know of an error, or None if only the traceback says it."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return visible(f"{error.filename}: {error.strerror}")
    # PyTorch's for a GPU, by its name: an import would delay --help; its plain one for a CPU.
    gpu, cpu = type(error).__name__ == "OutOfMemoryError", "DefaultCPUAllocator" in str(error)
    if gpu or cpu or isinstance(error, MemoryError):
        return ("out of memory: a smaller model or smaller batches need less (train.py "
                "--micro-batch, finetune.py --batch-size)")
    return None


class Patient:
    """A stream that goes on when nobody takes what it writes (`| head -1`): no work is lost."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        attribute = getattr(self.stream, name)
        return partial(self.patiently, attribute) if name in ("write", "flush") else attribute

    def patiently(self, method, *arguments):
        """Call a method; after an error, as of a broken pipe, all goes to the null device."""
        try:
            return method(*arguments)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not isinstance(error, BrokenPipeError):  # a pipe's reader has gone on purpose
                print(f"{self.stream.name} cannot be written: {error.strerror}", file=sys.stderr)
