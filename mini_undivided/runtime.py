"""What a run runs on: the device, the precision, the processes of `torchrun`, the memory, the optimiser."""

import ctypes
import functools
import os
import re
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# Dense bfloat16 peaks in FLOP/s, from the makers' data sheets. The first name that occurs in the GPU's own name counts.
PEAK_FLOPS = {
    "B200": 2.25e15, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10G": 70e12, "A10": 125e12,
    "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


class UserError(ValueError):
    """A mistake that the user can mend: the command lines print its one sentence and exit with status 2."""


@contextmanager
def command_line():
    """Context: ends the program with one sentence for a user's mistake, and quietly at Ctrl-C. No traceback for either."""
    try:
        yield
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:  # under torchrun once, not once a process
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        print("error: the GPU has not enough memory; a smaller --micro-batch or --batch-size needs less", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@dataclass(frozen=True)
class Runtime:
    """Where a process computes. `dtype` is the autocast type; `rank` of `world` counts the processes of torchrun."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    def autocast(self):
        """Context: matrix products in `dtype`, sums and norms in float32; does nothing where `dtype` is float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def move(self, tensor):
        """Copy a CPU tensor to the device; on a GPU from pinned memory, without waiting for the copy."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def __str__(self):
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        processes = f", {self.world} processes" if self.world > 1 else ""
        return f"{name}{threads}{processes}, {str(self.dtype).removeprefix('torch.')}"


def start(device="auto", dtype="auto"):
    """Choose device ("auto", "cpu", "cuda", "mps") and precision ("auto", "float32", "bfloat16"); join torchrun's group.

    "auto" takes CUDA, then Apple's MPS, then the CPU; bfloat16 only on a GPU that has it: CPUs without native bfloat16
    are slower with it. On CUDA, float32 products use TF32. Raises UserError where the machine lacks what was asked for.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA GPU; use --device cpu, or install a CUDA build")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this PyTorch sees no Apple GPU; use --device cpu")
    native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "auto":
        dtype = "bfloat16" if native else "float32"

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    elif device == "cpu":
        keep_memory()
        multiply_with_onednn()
    if world > 1 and not dist.is_initialized():
        # DDP imports this. If the group exists by then, defaults of the arguments in it keep the group, gloo's threads
        # outlive `destroy_process_group`, and now and then a run ends in an abort.
        from torch.distributed import nn  # noqa: F401

        # gloo carries the few numbers that the CPU needs every step, so that no GPU has to be waited for.
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=4))
    return Runtime(torch.device(device), getattr(torch, dtype), rank, world)


def keep_memory():
    """Tell glibc to keep freed blocks for the next step instead of handing them back to the system.

    A training step frees and takes the same large blocks again and again; each time they went back, the kernel has to
    map and clear every page anew. Elsewhere than on glibc this does nothing. Returns True where it took effect.
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
    """Let oneDNN multiply float32 matrices where MKL, PyTorch's choice, is half as fast: on AMD's Zen 5 processors.

    MKL is Intel's, and goes at the pace of 256-bit code on a processor of AMD's that has 512 bits. oneDNN, which comes
    with PyTorch too, uses them all. It takes the place of MKL behind `mm` and `addmm`, and so in nn.Linear and its
    gradients. Elsewhere this does nothing. Returns True where it took effect.
    """
    if not mkl_is_slow() or not hasattr(torch.library, "get_kernel"):
        return False
    mkl_mm, mkl_addmm = (torch.library.get_kernel(f"aten::{name}", "CPU") for name in ("mm", "addmm"))
    linear, weight_gradient = torch.ops.mkldnn._linear_pointwise, torch.ops.aten.mkldnn_linear_backward_weights

    def suits(a, b):
        worth_it = a.size(0) * a.size(1) * b.size(1) >= 2**22  # smaller products are over before oneDNN is called
        whole = b.is_contiguous() or b.t().is_contiguous()  # for matrices with gaps oneDNN has slow code only
        return worth_it and whole and a.dtype == b.dtype == torch.float32

    def mm(keys, a, b):  # (M, K), (K, N) → (M, N)
        if not suits(a, b):
            return mkl_mm.call_boxed(keys, a, b)
        # A weight's gradient. `linear` would copy the transposed `a`: slowly, unless it is smaller than b or the result.
        if a.t().is_contiguous() and b.is_contiguous() and min(a.shape) >= b.size(1):
            return weight_gradient(a.t().to_mkldnn(), b.to_mkldnn(), b, False)[0]
        return linear(a, b.t(), None, "none", [], "")

    def addmm(keys, c, a, b, beta=1, alpha=1):  # beta c + alpha a b
        if not suits(a, b) or c.dim() != 1 or (beta, alpha) != (1, 1):
            return mkl_addmm.call_boxed(keys, c, a, b, beta=beta, alpha=alpha)
        return linear(a, b.t(), c, "none", [], "")

    library = torch.library.Library("aten", "IMPL")
    multiply_with_onednn.library = library  # what was registered goes when this object does
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # "Overriding a … kernel"
        library.impl("mm", mm, "CPU", with_keyset=True)
        library.impl("addmm", addmm, "CPU", with_keyset=True)
    return True


def mkl_is_slow():
    """Whether PyTorch multiplies with MKL, has oneDNN too, and runs on Linux on an AMD Zen 5 or later, with AVX-512.

    Zen 4 has AVX-512 as well, but computes it in two halves of 256 bits: there is nothing to gain.
    """
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"AuthenticAMD\ncpu family\s*: (\d+)", cpu)
    zen5 = family is not None and int(family[1]) >= 26 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return zen5 and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def peak_flops(runtime):
    """The GPU's dense bfloat16 peak in FLOP/s by its name, or None where the table does not know it."""
    if runtime.device.type != "cuda" or runtime.dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(runtime.device)
    return next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)


def adamw(model, lr, weight_decay=0.01):
    """AdamW (Loshchilov & Hutter, 1711.05101), fused, with no decay on biases and LayerNorms (the one-dimensional)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-6, fused=True)


def warmup_decay(progress, warmup):
    """The factor on the peak learning rate: up in a line over the share `warmup` of the run, then down to 0 at 1."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


def set_learning_rate(optimizer, lr):
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def peak_memory(runtime):
    """The most memory held so far, in bytes: the GPU's where there is one, else the process's."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    import resource  # not on every system, so not at the top

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
