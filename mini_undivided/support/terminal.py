"""What happens at the terminal while a run works: the progress bar, and Ctrl-C."""

import os
import signal
from contextlib import contextmanager

from tqdm import tqdm


def progress(iterable=None, **kwargs):
    """A bar of tqdm that leaves nothing behind, and on what is no terminal nothing at all."""
    return tqdm(iterable, leave=False, dynamic_ncols=True, mininterval=0.3, disable=None, **kwargs)


def progress_bar(hidden=False):
    """A bar of a run, with the time left.

    In a log or a notebook there is none: what is written above it, ten lines a run, is left.
    """
    form = "{percentage:3.0f} %|{bar:20}| {elapsed} < {remaining}{postfix}"  # postfix: ", …"
    return tqdm(total=1, bar_format=form, disable=hidden or None, mininterval=0.2,
                dynamic_ncols=True)


def show(bar, progress, text):
    """Move the bar to a progress from 0 to 1, with a text behind it."""
    bar.n = progress
    bar.set_postfix_str(text, refresh=False)
    bar.update(0)


@contextmanager
def catch_signals():
    """Context: yields a list that takes the first Ctrl-C or SIGTERM; a second ends the program.

    Not under torchrun: it passes on a signal that its processes may have had themselves.
    """
    caught = []

    def handler(number, frame):
        caught.append(number)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(number, before[number])

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)
