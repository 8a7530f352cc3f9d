"""What a launcher of processes, such as torchrun, says in the environment."""

import os
from typing import NamedTuple


class Launcher(NamedTuple):
    """This process's `rank` of `world_size`; its `local_rank` is that on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def launcher():
    """The Launcher of this process, one of its own unless all that torchrun sets is there.

    Single variables may be left over from something else, and count for nothing.
    """
    numbers = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT", "").isdecimal()
            and all(map(str.isdecimal, numbers)) and int(numbers[0]) < int(numbers[1])):
        return Launcher()
    return Launcher(*map(int, numbers))


def say(text):
    """Print a line, in the first process only."""
    if launcher().rank == 0:
        print(text, flush=True)
