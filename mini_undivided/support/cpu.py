"""What makes a CPU fast: memory that is kept, and the quicker of two matrix libraries.

Nothing here changes a result by more than rounding. `Machine.start` calls it;
MINI_UNDIVIDED_CPU=plain in the environment switches it off.
"""

import ctypes
import functools
import os
import re
import sys
import warnings
from pathlib import Path

import torch


def speed_up():
    """Do what helps on this CPU → the name of the library that multiplies matrices."""
    if not is_plain():
        keep_memory()
        if multiply_with_onednn():
            return "oneDNN"
    name = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return {"mkl": "MKL", "open": "OpenBLAS"}.get(name[1], name[1]) if name else "PyTorch"


def is_plain():
    """Whether the tricks of this module are switched off."""
    return os.environ.get("MINI_UNDIVIDED_CPU") == "plain"


def keep_memory():
    """Tell glibc, if there is one, to keep freed blocks for the next step → whether it does.

    A training step frees and takes the same large blocks over and over; each time they are returned
    to the system, the kernel has to map and clear every page again.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # the names' numbers in malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


@functools.cache  # what it registers holds for the whole process
def multiply_with_onednn():
    """Let oneDNN multiply float32 matrices on AMD's Zen 5, where MKL is half as fast → whether so.

    MKL, PyTorch's choice, is Intel's, and runs at the pace of 256-bit code on an AMD processor that
    has 512 bits. oneDNN, which comes with PyTorch too, uses them all. It replaces MKL behind `mm`
    and `addmm`, and so in nn.Linear and its gradients. Does nothing on other processors.
    """
    if not mkl_is_slow() or not hasattr(torch.library, "get_kernel"):
        return False
    kernel, linear = torch.library.get_kernel, torch.ops.mkldnn._linear_pointwise
    mkl_mm, mkl_addmm = kernel("aten::mm", "CPU"), kernel("aten::addmm", "CPU")
    weight_gradient = torch.ops.aten.mkldnn_linear_backward_weights

    def suits(a, b):
        # Smaller ones are over before oneDNN is called; for matrices with gaps its code is slow.
        worth_it = a.size(0) * a.size(1) * b.size(1) >= 2**22
        whole = b.is_contiguous() or b.t().is_contiguous()
        return worth_it and whole and a.dtype == b.dtype == torch.float32

    def mm(keys, a, b):  # (M, K), (K, N) → (M, N)
        if not suits(a, b):
            return mkl_mm.call_boxed(keys, a, b)
        # A weight's gradient. `linear` would copy the transposed `a`: slow, unless it is smaller
        # than b or the result.
        if a.t().is_contiguous() and b.is_contiguous() and min(a.shape) >= b.size(1):
            return weight_gradient(a.t().to_mkldnn(), b.to_mkldnn(), b, False)[0]
        return linear(a, b.t(), None, "none", [], "")

    def addmm(keys, c, a, b, beta=1, alpha=1):  # beta c + alpha a b
        if not suits(a, b) or c.dim() != 1 or (beta, alpha) != (1, 1):
            return mkl_addmm.call_boxed(keys, c, a, b, beta=beta, alpha=alpha)
        return linear(a, b.t(), c, "none", [], "")

    library = torch.library.Library("aten", "IMPL")
    multiply_with_onednn.library = library  # what was registered lives as long as this object
    with warnings.catch_warnings():  # "Overriding a … kernel"
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        library.impl("mm", mm, "CPU", with_keyset=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True)
    return True


def multiplies_bfloat16():
    """Whether the processor has instructions for products of bfloat16 matrices."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not is_plain() and re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None


def mkl_is_slow():
    """Whether PyTorch uses MKL, has oneDNN too, and runs on Linux on an AMD Zen 5 or later.

    Zen 4 has AVX-512 as well, but computes it in two halves of 256 bits: there is nothing to gain.
    """
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"AuthenticAMD\ncpu family\s*: (\d+)", cpu)
    zen5 = family is not None and int(family[1]) >= 26
    backends = torch.backends
    return (zen5 and backends.cpu.get_cpu_capability() == "AVX512"
            and backends.mkl.is_available() and backends.mkldnn.is_available())
