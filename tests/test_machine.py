"""What a run runs on: the choices of "auto", errors that say what is missing, memory and speed."""

import ctypes
import os
import platform
import subprocess
import sys
import sysconfig
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import C, H, T, V
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mini_undivided.data import MaskedBatch, split
from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.optim import adamw, muon_and_adamw
from mini_undivided.pretrain import WithLoss, masked_loss, train_step
from mini_undivided.report.training import ending
from mini_undivided.run import pretrain
from mini_undivided.support import machine as machine_module
from mini_undivided.support.errors import UserError, command_line
from mini_undivided.support.launcher import launcher
from mini_undivided.support.machine import Machine


@pytest.fixture
def machine(monkeypatch):
    """Make this machine look as if it had a GPU, with or without bfloat16, or none."""

    def look(cuda=False, mps=False, bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        supported = lambda including_emulation=True: bfloat16 or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)

    return look


@pytest.mark.parametrize("has, asked, device, dtype", [
    ({}, (), "cpu", torch.float32),
    ({"mps": True}, (), "cpu", torch.float32),
    ({"cuda": True}, (), "cuda:0", torch.float32),
    ({"cuda": True, "mps": True, "bfloat16": True}, (), "cuda:0", torch.bfloat16),
    ({"cuda": True, "bfloat16": True}, ("cpu",), "cpu", torch.float32),
    ({"cuda": True, "bfloat16": True}, ("cpu", "bfloat16"), "cpu", torch.bfloat16),
    ({"cuda": True, "bfloat16": True}, ("cuda", "float32"), "cuda:0", torch.float32),
    ({"cuda": True, "mps": True}, ("mps",), "mps", torch.float32)])
def test_auto_is_cuda_or_the_cpu_and_what_is_asked_for_counts(machine, has, asked, device, dtype):
    """CUDA comes before the CPU; an Apple GPU, where nothing was measured, is used on request.

    bfloat16 is chosen only if a GPU supports it, and not if it is emulated; Muon multiplies in it
    there whatever was asked for.
    """
    machine(**has)
    chosen = Machine.start(*asked)
    if chosen.on_gpu:
        quick = torch.bfloat16 if has.get("bfloat16") else torch.float32
        assert chosen.quick_dtype == quick
    assert (chosen.device, chosen.dtype) == (torch.device(device), dtype)
    assert (chosen.rank, chosen.world_size) == (0, 1)


def set_launcher(monkeypatch, **changes):
    """Set what torchrun sets for the first of two processes, with changes; None: not set."""
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": 29500}
    for name, value in (variables | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))


def test_a_launchers_variables_count_only_together(monkeypatch):
    """If one is missing, empty or no number, or the rank too large, a process is on its own."""
    set_launcher(monkeypatch, RANK=7, WORLD_SIZE=16, LOCAL_RANK=3)
    assert launcher() == (7, 16, 3)
    for change in ({"RANK": None}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "x"}, {"MASTER_ADDR": None},
                   {"MASTER_PORT": ""}, {"RANK": 2}, {"RANK": -1}):
        set_launcher(monkeypatch, **change)
        assert launcher() == (0, 1, 0), change


def test_processes_of_torchrun_need_a_device_each(machine, monkeypatch):
    """Two processes leave an Apple GPU alone; more than there are CUDA GPUs are an error."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for cuda in (False, True):
        machine(cuda=cuda, mps=True)
        set_launcher(monkeypatch, RANK=1, LOCAL_RANK=1)
        with pytest.raises(UserError, match="1 GPU" if cuda else "several processes"):
            Machine.start("auto" if cuda else "mps")
        assert cuda or Machine.start().device.type == "cpu"


@pytest.mark.parametrize(("change", "compiles"), [
    ({}, True), ({"capability": (7, 0)}, True), ({"capability": (6, 1)}, False),
    ({"triton": None}, False), ({"PATH": "", "CC": ""}, False), ({"PATH": "", "CC": "/cc"}, True),
    ({"headers": "/nowhere"}, False)])
def test_torch_compile_needs_triton_a_compiler_and_a_gpu_that_it_knows(
        monkeypatch, change, compiles):
    """By default models are compiled on a GPU of 2017 or later if Triton is there and can build.

    It builds with $CC, gcc or clang, and Python's headers. On a CPU nothing is compiled.
    """
    monkeypatch.setattr(machine_module, "find_spec", lambda name: change.get("triton", True))
    monkeypatch.setattr(torch.cuda, "get_device_capability",
                        lambda device: change.get("capability", (9, 0)))
    monkeypatch.setattr(machine_module.sysconfig, "get_path",
                        lambda name, path=sysconfig.get_path: change.get("headers") or path(name))
    for name in ("PATH", "CC"):
        monkeypatch.setenv(name, change.get(name, os.environ.get(name, "")))
    assert Machine(torch.device("cuda:0")).compiles == compiles
    assert not Machine(torch.device("cpu")).compiles


def test_autocast_is_of_the_dtype():
    """Products are in bfloat16 if that was chosen, and in float32 otherwise.

    Outside autocast they stay in float32.
    """
    a = torch.ones(3, 5)
    for dtype in (torch.float32, torch.bfloat16):
        with Machine(torch.device("cpu"), dtype).autocast():
            assert (a @ a.T).dtype == dtype
    assert (a @ a.T).dtype == torch.float32


def test_a_machine_says_what_it_is(machine):
    """A machine names device, precision, threads and processes, and an Apple GPU to be used."""
    text = str(Machine(torch.device("cpu"), torch.bfloat16, rank=1, world_size=3))
    assert "cpu" in text and "bfloat16" in text and "3 processes" in text and "thread" in text
    for apple in (False, True):
        machine(mps=apple)
        assert ("--device mps would use the Apple GPU" in str(Machine.start())) == apple
    assert "--device mps" not in str(Machine.start("mps"))


# Memory and speed


def test_a_step_that_is_repeated_faults_no_memory_in():
    """On a machine that has started, taking the same large block again touches no new page."""
    program = """if True:
        import platform, resource, sys, torch
        from mini_undivided.support.machine import Machine
        if "glibc" not in platform.libc_ver(): sys.exit(0)
        Machine.start("cpu")
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work = lambda: [torch.ones(1 << 20) for _ in range(8)]
        work(), work(); before = faults(); work(); work()
        sys.exit(faults() - before > 1000)  # 64 MB are 16,384 pages
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_glibc_memory_is_not_kept(monkeypatch):
    """On a system with another C library, a machine starts and calls nothing of glibc."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("a library is loaded"))
    machine_module.keep_memory()


@pytest.mark.parametrize("cpuinfo, has", [
    ("flags\t: avx512f avx512_bf16 fma\n", True), ("flags\t: amx_bf16\n", True),
    ("flags\t: avx512f fma\n", False), ("Features\t: asimd\n", False), (None, False)])
def test_bfloat16_is_used_where_a_cpu_has_instructions_for_it(monkeypatch, tmp_path, cpuinfo, has):
    """The flags in /proc/cpuinfo count; where there is no such file, a CPU has none."""
    monkeypatch.setattr(machine_module, "CPU_INFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert machine_module.multiplies_bfloat16("cpu") == has


def test_peak_memory_is_in_bytes():
    """Peak memory is at least a block that was just touched, and less than a terabyte."""
    cpu = Machine(torch.device("cpu"), torch.float32)
    block = torch.ones(50_000_000, dtype=torch.uint8)
    assert block.numel() < cpu.peak_memory() < 1e12


def test_a_system_that_does_not_say_its_memory(options, monkeypatch):
    """On Windows Python has no module `resource`: a run ends well there, without that number."""
    monkeypatch.setitem(sys.modules, "resource", None)
    record = pretrain(replace(options, steps=1))
    assert record["result"]["peak_memory_bytes"] is None
    assert "tokens/s\nwritten to" in ending(record)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of the tests: its name and its memory in bytes."""
    properties = SimpleNamespace(name="", total_memory=0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H200", 989e12), ("NVIDIA H200 NVL", 835e12), ("NVIDIA RTX A1000", None),
    ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Tesla T4", None),
    ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12),
    ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12)])
def test_the_peak_is_that_of_the_gpus_name(gpu, name, peak):
    """The peak is that of the most precise name that fits the GPU's.

    An unknown GPU, another precision or a CPU has no peak.
    """
    gpu.name = name
    assert Machine(torch.device("cuda:0"), torch.bfloat16).peak_flops() == peak
    assert Machine(torch.device("cuda:0"), torch.float32).peak_flops() is None
    assert Machine(torch.device("cpu"), torch.bfloat16).peak_flops() is None


BASE = BertConfig()


@pytest.mark.parametrize("gigabytes, config, least, most", [
    (2, BASE, 1024, 2048), (24, BASE, 16_384, 24_000), (80, BASE, 65_536, 80_000),
    (80, BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
     16_384, 32_768),
    (141, BASE, 98_304, 141_000)])
def test_a_micro_batch_grows_with_the_memory_of_the_gpu(gpu, gigabytes, config, least, most):
    """At most 1,000 tokens of BERT-Base a GB, and fewer of a larger model; 4,096 on a CPU."""
    gpu.total_memory = int(gigabytes * 0.99 * 2**30)  # a part of it is the driver's
    assert least <= Machine(torch.device("cuda:0")).tokens_at_once(config) <= most
    assert Machine(torch.device("cpu")).tokens_at_once(config) == 4096


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_the_memory_of_a_token_is_estimated_from_above(gpu, ffn_layers):
    """What a step keeps for the backward pass is less than the estimate, but no tenth of it."""
    config = BertConfig(vocab_size=2003, hidden_size=96, num_hidden_layers=5, num_attention_heads=3,
                        intermediate_size=384, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0, ffn_layers=ffn_layers)
    model, kept = MaskedLM(config), {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids, positions = torch.randint(2003, (7, 64)), torch.arange(25).repeat(7, 1)  # 40 % masked
    batch = MaskedBatch(ids, positions, ids[:, :25])
    with (torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
          torch.autocast("cpu", torch.bfloat16)):
        masked_loss(model, batch)
    gpu.total_memory = 2**30
    estimate = 2**30 / Machine(torch.device("cuda:0")).tokens_at_once(config)
    actual = sum(storage.nbytes() for storage in kept.values()) / ids.numel()
    assert estimate / 10 < actual < estimate


def test_a_step_reads_nothing_back():
    """A step queues its work: a number read from the device would make the CPU wait for a GPU.

    PyTorch's fake tensors have no numbers, so that reading one is an error.
    """
    config = BertConfig(vocab_size=V, hidden_size=C, num_hidden_layers=2, num_attention_heads=H,
                        intermediate_size=41)
    cpu = Machine(torch.device("cpu"), torch.bfloat16)
    with FakeTensorMode():
        model = MaskedLM(config)
        ids, positions = torch.zeros(6, T, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long)
        batches = [*split(MaskedBatch(ids, positions, positions), 2)]
        for optimizers in (muon_and_adamw(model, 0.01, 1e-3), [adamw(model.parameters(), 1e-3)]):
            for _ in range(2):  # the first makes the optimizers' states
                loss = train_step(WithLoss(model), optimizers, batches, 24, cpu)
        with pytest.raises(DataDependentOutputException):
            loss.item()


def gpu_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("work", [
    gpu_is_full, lambda: torch.empty(2**60), lambda: np.empty(2**55)])
def test_memory_that_is_full_is_a_sentence(work, capsys):
    """A GPU's, PyTorch's on the CPU, numpy's: the sentence names options that there are."""
    with pytest.raises(SystemExit) as ended, command_line():
        work()
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and shown.startswith("error: out of memory")
    assert "train.py --micro-batch, finetune.py --batch-size" in shown
    with pytest.raises(RuntimeError, match="another"), command_line():
        raise RuntimeError("another")
