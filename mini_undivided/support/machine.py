"""The machine that a run computes on: its device, its precision, and torchrun's processes."""

import ctypes
import os
import platform
import re
import shutil
import sys
import sysconfig
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mini_undivided.support.errors import UserError
from mini_undivided.support.launcher import launcher

# Dense bfloat16 peaks in FLOP/s, from the data sheets; the first name within the GPU's own counts.
PEAK_FLOPS = {
    "B200": 2.25e15, "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989e12, "A100": 312e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10G": 70e12, "A10": 125e12,
    "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
CPU_INFO = Path("/proc/cpuinfo")
QUICK_WIDTH = 128  # hidden size from which bfloat16 is quicker on a CPU with instructions for it


@dataclass(frozen=True)
class Machine:
    """A device, the autocast type `dtype`, and this process's `rank` of torchrun's `world_size`.

    On each of several computers ("nodes") one process has `local_rank` 0.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def start(cls, device="auto", dtype="auto", width=0):
        """Choose device (auto, cpu, cuda, mps) and precision (auto, float32, bfloat16) → Machine.

        "auto" takes CUDA, else the CPU, and bfloat16 where the device multiplies matrices in it; on
        a CPU only for models of a `width` that makes it quicker. An Apple GPU is used on request:
        nothing was measured there. On CUDA, float32 matrix multiplications use TF32.
        Joins torchrun's process group. Raises UserError if the machine lacks what was asked for.
        """
        rank, world_size, local_rank = launcher()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: this PyTorch sees no CUDA GPU; "
                            "use --device cpu, or install a CUDA build")
        if device == "mps" and (world_size > 1 or not torch.backends.mps.is_available()):
            raise UserError("--device mps: this PyTorch sees no Apple GPU, or torchrun has started "
                            "several processes, which cannot share one; use --device cpu")
        if dtype == "auto":
            worth_it = device != "cpu" or width >= QUICK_WIDTH
            dtype = "bfloat16" if worth_it and multiplies_bfloat16(device) else "float32"

        if device == "cpu":
            keep_memory()
        if device == "cuda":
            count = torch.cuda.device_count()
            if local_rank >= count:
                raise UserError(f"this machine has {count} GPU(s): start no more processes on it")
            device = f"cuda:{local_rank}"
            torch.cuda.set_device(device)
            torch.set_float32_matmul_precision("high")
        if world_size > 1 and not dist.is_initialized():
            # DDP imports this. If the group exists by then, default arguments in it keep the group
            # alive, gloo's threads outlive `destroy_process_group`, and some runs end in an abort.
            from torch.distributed import nn  # noqa: F401

            # gloo carries the few numbers that the CPU needs every step: no waiting for the GPU.
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=4))
        return cls(torch.device(device), getattr(torch, dtype), rank, world_size, local_rank)

    def __str__(self):
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else self.device.type
        count = torch.get_num_threads()
        plural = "" if count == 1 else "s"
        threads = f", {count} thread{plural}" if self.device.type == "cpu" else ""
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        precision = str(self.dtype).removeprefix("torch.")
        apple = self.device.type == "cpu" and torch.backends.mps.is_available()
        advice = "; --device mps would use the Apple GPU" if apple and self.world_size == 1 else ""
        return f"{name}{threads}{processes}, {precision}{advice}"

    # One device.

    @property
    def on_gpu(self):
        """Whether the device is a CUDA GPU."""
        return self.device.type == "cuda"

    def autocast(self):
        """Context: matrix multiplications in `dtype`, sums and norms in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def compiles(self):
        """Whether torch.compile works on the GPU, which has to be of 2017 or later.

        Triton, which writes the kernels, needs a C compiler and Python's headers.
        """
        builds = (find_spec("triton") is not None
                  and (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
                  and Path(sysconfig.get_path("include"), "Python.h").exists())
        return (self.on_gpu and bool(builds)
                and torch.cuda.get_device_capability(self.device) >= (7, 0))

    @property
    def quick_dtype(self):
        """The type in which the device multiplies matrices fastest, where rounding is harmless."""
        return torch.bfloat16 if multiplies_bfloat16(self.device.type) else torch.float32

    def to_device(self, tensor):
        """Copy a CPU tensor to the device; to a GPU from pinned memory, without waiting for it."""
        if not self.on_gpu:
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def batch_to_device(self, batch):
        """A batch, a named tuple of CPU tensors, on the device."""
        return type(batch)(*map(self.to_device, batch))

    def compile(self, model):
        """torch.compile for a run whose shapes never change: one graph.

        For several processes, `distribute` what it returns: PyTorch then cuts the graph where
        gradients are ready to travel.
        """
        torch.compiler.reset()  # PyTorch stops compiling after eight graphs of one function
        return torch.compile(model, dynamic=False)

    def tokens_at_once(self, config):
        """The tokens of a micro-batch that fit beside a model of this BertConfig in training.

        The bytes of a token are an estimate, rather too high: 1.1 million of BERT-Base, so that
        65,536 tokens fit in 80 GB.
        """
        if not self.on_gpu:
            return 4096
        width = config.num_hidden_layers * config.hidden_size
        token = 100 * width + 6 * config.vocab_size
        return torch.cuda.get_device_properties(self.device).total_memory // token

    def peak_flops(self):
        """The GPU's dense bfloat16 peak in FLOP/s by its name, or None if it is not known."""
        if not self.on_gpu or self.dtype != torch.bfloat16:
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for known, peak in PEAK_FLOPS.items()
                     if re.search(rf"\b{known}\b", name)), None)

    def utilisation(self, flops):
        """FLOP/s of all processes as a fraction of the peak (MFU), in words; "" if unknown."""
        peak = self.peak_flops()
        return f", {flops / self.world_size / peak:.1%} MFU" if peak else ""

    def peak_memory(self):
        """The most memory held so far, in bytes: the GPU's if there is one, else the process's.

        None on Windows, which does not say it of a process.
        """
        if self.on_gpu:
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def random_state(self):
        """The state of PyTorch's random generators, CPU's and then GPU's, as a tensor of bytes."""
        gpu = [torch.cuda.get_rng_state()] if self.on_gpu else []
        return torch.cat([torch.get_rng_state(), *gpu])

    def set_random_state(self, state):
        """Restore what `random_state` returned."""
        cpu_size = torch.get_rng_state().numel()
        torch.set_rng_state(state[:cpu_size])
        if self.on_gpu and state.numel() > cpu_size:
            torch.cuda.set_rng_state(state[cpu_size:])

    # Several processes. With one of them, each of these does nothing.

    @property
    def is_main(self):
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def all_reduce(self, tensor):
        """The sum of a CPU tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value):
        """A list of every process's value."""
        if self.world_size == 1:
            return [value]
        everyone = [None] * self.world_size
        dist.all_gather_object(everyone, value)
        return everyone

    def in_main(self, work):
        """Do `work` in the main process, rank 0 → its result there, elsewhere None.

        A UserError is raised in all processes.
        """
        return self.do_if(self.is_main, work)

    def main_first(self, work):
        """Do `work` in a machine's first process, then in its others, which find it cached."""
        first = self.local_rank == 0
        result = self.do_if(first, work)
        return result if first else work()

    def do_if(self, chosen, work):
        """Do `work` where it is `chosen` → its result there, elsewhere None, when all are done."""
        result = error = None
        if chosen:
            try:
                result = work()
            except UserError as its:
                error = its
        for sentence in self.gather_objects(error and str(error)):
            if sentence is not None:
                raise error or UserError(sentence)
        return result

    def distribute(self, model):
        """The model under DDP, which averages gradients over the processes."""
        return DistributedDataParallel(model) if self.world_size > 1 else model

    def synchronise(self, model, now):
        """Context: gradients travel between processes only if `now`, after the last micro-batch."""
        return nullcontext() if now or self.world_size == 1 else model.no_sync()

    def close(self):
        """Leave torchrun's process group. Nothing may refer to a DDP model any more.

        DDP keeps the group. Whoever lets go of it last waits for gloo's threads: DDP would do so
        holding the lock of Python's interpreter, for which such a thread may be waiting, for ever.
        """
        if self.world_size > 1:
            dist.destroy_process_group()


def keep_memory():
    """Tell glibc, if there is one, to keep freed blocks for the next step.

    A training step frees and takes the same large blocks over and over; each time they are returned
    to the system, the kernel has to map and clear every page again. No result depends on it.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, mmap_max = -1, -4  # the names' numbers in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def multiplies_bfloat16(device):
    """Whether "cpu", "cuda" or "mps" has instructions for products of bfloat16 matrices."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not CPU_INFO.exists():
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", CPU_INFO.read_text()) is not None


def in_float64(x):
    """A tensor in float64, on the CPU if its device has none (Apple's GPUs)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
