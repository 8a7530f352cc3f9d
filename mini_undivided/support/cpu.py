"""What makes a CPU fast: freed memory that is kept, and instructions for bfloat16."""

import ctypes
import re
import sys
from pathlib import Path


def keep_memory():
    """Tell glibc, if there is one, to keep freed blocks for the next step → whether it does.

    A training step frees and takes the same large blocks over and over; each time they are returned
    to the system, the kernel has to map and clear every page again. No result depends on it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # the names' numbers in malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def multiplies_bfloat16():
    """Whether the processor has instructions for products of bfloat16 matrices."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None
