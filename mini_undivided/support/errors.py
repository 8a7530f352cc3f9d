"""Errors that a user can fix, and how a command line ends."""

import os
import sys
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can fix: the command lines print its one sentence and exit with status 2."""


@contextmanager
def command_line():
    """Context for a command line: ends it with one sentence instead of a traceback where that is all there is to say.

    Status 2 after a UserError or when the GPU's memory is full, 130 after Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        fail(error)
    except RuntimeError as error:
        if (
            type(error).__name__ != "OutOfMemoryError"
        ):  # PyTorch's; importing it here would delay --help
            raise
        fail("the GPU is out of memory; a smaller --micro-batch or --batch-tokens needs less")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def fail(sentence):
    """Print one sentence on stderr, under torchrun in the first process only, and exit with status 2."""
    if is_first_process():
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def is_first_process():
    """Whether this is the first, or only, of the processes that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0
