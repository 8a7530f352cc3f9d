"""What a run runs on: the choices of "auto", the learning rate, the optimiser, and errors that say what is missing."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from mini_undivided import runtime
from mini_undivided.model import BertConfig, MaskedLM
from mini_undivided.runtime import UserError


@pytest.fixture
def machine(monkeypatch):
    """Make this machine look as if it had a GPU, or bfloat16 on it, or neither."""

    def look(cuda=False, mps=False, bfloat16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        supported = lambda including_emulation=True: bfloat16 or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)

    return look


@pytest.mark.parametrize(
    "has, device, dtype",
    [
        ({}, "cpu", torch.float32),
        ({"mps": True}, "mps", torch.float32),
        ({"cuda": True}, "cuda:0", torch.float32),
        ({"cuda": True, "bfloat16": True}, "cuda:0", torch.bfloat16),
        ({"cuda": True, "mps": True, "bfloat16": True}, "cuda:0", torch.bfloat16),
    ],
)
def test_auto_takes_the_best_that_is_there(machine, has, device, dtype):
    """CUDA before MPS before the CPU; bfloat16 only where a GPU has it, and not where it is emulated."""
    machine(**has)
    found = runtime.start()
    assert (found.device, found.dtype, found.rank, found.world) == (torch.device(device), dtype, 0, 1)


def test_what_is_asked_for_counts(machine):
    machine(cuda=True, mps=True, bfloat16=True)
    assert runtime.start("cpu").dtype == torch.float32
    assert runtime.start("cpu", "bfloat16").dtype == torch.bfloat16
    assert runtime.start("cuda", "float32").dtype == torch.float32
    assert runtime.start("mps").device.type == "mps"


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(machine, device):
    machine()
    with pytest.raises(UserError, match=f"--device {device}.*--device cpu"):
        runtime.start(device)


def test_autocast_is_of_the_dtype():
    """Products are in bfloat16 where that was chosen, and in float32 otherwise; the weights stay float32."""
    a = torch.ones(3, 5)
    for dtype in (torch.float32, torch.bfloat16):
        with runtime.Runtime(torch.device("cpu"), dtype).autocast():
            assert (a @ a.T).dtype == dtype
    assert (a @ a.T).dtype == torch.float32


def test_moving_to_the_cpu_copies_nothing():
    a = torch.ones(3)
    assert runtime.Runtime(torch.device("cpu"), torch.float32).move(a) is a


def test_a_runtime_says_what_it_is():
    text = str(runtime.Runtime(torch.device("cpu"), torch.bfloat16, rank=1, world=3))
    assert "cpu" in text and "bfloat16" in text and "3 processes" in text and "threads" in text


# Training


def test_the_learning_rate_rises_and_falls_in_lines():
    """0 at the start, 1 where the warm-up ends, 0 at the end and after it; straight between, and never negative."""
    warmup = 0.2
    points, factors = [0.0, 0.1, 0.2, 0.6, 1.0, 1.3], [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert [runtime.warmup_decay(p, warmup) for p in points] == pytest.approx(factors)
    many = [runtime.warmup_decay(p, warmup) for p in np.linspace(0, 1, 101)]
    assert many == pytest.approx(np.interp(np.linspace(0, 1, 101), points[:5], factors[:5]))
    assert runtime.warmup_decay(0.0, 0.0) == 1.0 and runtime.warmup_decay(0.75, 0.0) == pytest.approx(0.25)


@pytest.mark.parametrize("ffn_layers", [None, []])
def test_no_decay_on_biases_and_norms(ffn_layers):
    """Every parameter is in exactly one group; those with decay are the matrices, and all of them."""
    sizes = {"vocab_size": 99, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3}
    mlm = MaskedLM(BertConfig(**sizes, ffn_layers=ffn_layers))
    groups = runtime.adamw(mlm, lr=0.1, weight_decay=0.3).param_groups
    decayed, kept = ({id(p) for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    for name, p in mlm.named_parameters():
        plain = name.endswith("bias") or ".norm." in name
        assert (id(p) in kept, id(p) in decayed) == (plain, not plain), name
    assert len(decayed) + len(kept) == len(list(mlm.parameters()))


def test_a_step_is_adamws():
    """Three steps move a weight exactly as torch.optim.AdamW moves it, decay included; a frozen one not at all."""
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    frozen = ours.bias.detach().clone()
    ours.bias.requires_grad_(False)
    optimizer = runtime.adamw(ours, lr=0.5, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs.weight], lr=0.05, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1)
    runtime.set_learning_rate(optimizer, 0.05)
    for i in range(3):
        x = torch.full((7, 5), float(i + 1))
        for layer, by in ((ours, optimizer), (theirs, reference)):
            by.zero_grad()
            layer(x).square().mean().backward()
            by.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, frozen)


def test_the_learning_rate_reaches_every_group():
    optimizer = runtime.adamw(torch.nn.Linear(5, 3), lr=0.1)
    runtime.set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


# Memory and speed


def test_memory_is_kept_on_glibc_and_nothing_happens_elsewhere(monkeypatch):
    """It takes effect on Linux with glibc; on another system it is silent."""
    assert runtime.keep_memory() == ("glibc" in " ".join(platform.libc_ver()))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.keep_memory() is False


def test_a_step_that_is_repeated_faults_no_memory_in():
    """With freed blocks kept, taking the same large block again touches no new page of the system's."""
    program = """if True:
        import resource, sys, torch
        from mini_undivided import runtime
        if not runtime.keep_memory(): sys.exit(0)
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work = lambda: [torch.ones(1 << 20) for _ in range(8)]
        work(), work(); before = faults(); work(); work()
        sys.exit(faults() - before > 1000)  # 64 MB are 16,384 pages
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_onednn_multiplies_as_mkl_does():
    """Where oneDNN takes MKL's place, products of every size and layout, and their gradients, are those of float64.

    In a process of its own, since what is registered holds for a whole process. That oneDNN is used, and only for
    large products of float32, is read from the profile.
    """
    program = """if True:
        import warnings; warnings.simplefilter("error")
        import torch
        from torch.nn import functional as F
        from mini_undivided import runtime
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.library, "get_kernel"): raise SystemExit(0)
        runtime.mkl_is_slow = lambda: True
        torch.manual_seed(0)

        def largest(t):
            return t.abs().max().item() if t.numel() else 0.0

        def check(found, wanted, what):
            assert found.shape == wanted.shape and found.dtype == torch.float32, what
            error = largest(found - wanted)
            assert error <= 1e-5 * max(1.0, largest(wanted)), (what, error)

        def used(work):
            with torch.profiler.profile() as profile: work()
            return any("mkldnn" in event.key for event in profile.key_averages())

        linear, small = torch.nn.Linear(301, 203), torch.nn.Linear(3, 5)
        x = torch.randn(7, 31, 301)
        assert not used(lambda: linear(x))
        assert runtime.multiply_with_onednn() is True and runtime.multiply_with_onednn() is True
        assert used(lambda: linear(x)) and used(lambda: x[0] @ torch.randn(301, 999))
        assert not used(lambda: small(x[..., :3])) and not used(lambda: x.double() @ torch.randn(301, 999).double())
        assert not used(lambda: x[0] @ torch.randn(301, 1998)[:, ::2])

        for M, K, N in [(217, 301, 203), (2000, 64, 96), (90, 300, 1700), (5000, 129, 33), (1, 3, 5), (0, 3, 5), (7, 0, 5)]:
            a, b, c = torch.randn(M, K), torch.randn(K, N), torch.randn(N)
            strided = torch.randn(M, 2 * K)[:, ::2], torch.randn(K, 2 * N)[:, ::2]
            for left in (a, a.t().contiguous().t(), strided[0], a[:1].expand(M, K) if M else a):
                for right in (b, b.t().contiguous().t(), strided[1], b[:, :1].expand(K, N)):
                    wanted = left.double() @ right.double()
                    check(left @ right, wanted, (M, K, N, left.stride(), right.stride()))
                    check(torch.addmm(c, left, right), c + wanted, "addmm")
                    check(torch.addmm(c, left, right, beta=2, alpha=3), 2 * c + 3 * wanted, "scaled")
                    check(torch.addmm(wanted.float(), left, right), 2 * wanted, "matrix")
            inputs = [t.clone().requires_grad_() for t in (a, b.t(), c)]
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            weights = torch.randn(M, N)
            (F.linear(*inputs) * weights).sum().backward()
            (F.linear(*doubles) * weights).sum().backward()
            for found, wanted in zip(inputs, doubles): check(found.grad, wanted.grad, (M, K, N, "gradient"))
    """
    done = subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", ["AVX512", "AVX2", "DEFAULT"])
@pytest.mark.parametrize(
    "cpu, slow",
    [("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", True), ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", False),
     ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False), ("Features\t: asimd\n", False), (None, False)],
)  # fmt: skip
def test_only_zen_5_has_a_slow_mkl(monkeypatch, tmp_path, width, cpu, slow):
    """An older processor of AMD's, another maker's, or a system without /proc/cpuinfo keeps MKL: nothing is registered."""
    cpuinfo = tmp_path / "cpuinfo"
    if cpu is not None:
        cpuinfo.write_text(cpu)
    monkeypatch.setattr(runtime, "Path", lambda path: {"/proc/cpuinfo": cpuinfo}[path])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    assert runtime.mkl_is_slow() == (slow and width == "AVX512")
    if not runtime.mkl_is_slow():
        assert runtime.multiply_with_onednn.__wrapped__() is False


def test_peak_memory_is_in_bytes():
    """At least a block that was just touched, and less than a terabyte."""
    cpu = runtime.Runtime(torch.device("cpu"), torch.float32)
    block = torch.ones(50_000_000, dtype=torch.uint8)
    assert block.numel() < runtime.peak_memory(cpu) < 1e12


@pytest.mark.parametrize(
    "name, peak",
    [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Tesla T4", None),
     ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12), ("NVIDIA L4", 121e12),
     ("NVIDIA L40S", 362e12)],
)  # fmt: skip
def test_the_peak_is_that_of_the_gpus_name(monkeypatch, name, peak):
    """The most precise name counts; an unknown GPU, another precision or a CPU has no peak."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    gpu = runtime.Runtime(torch.device("cuda:0"), torch.bfloat16)
    assert runtime.peak_flops(gpu) == peak
    assert runtime.peak_flops(runtime.Runtime(torch.device("cuda:0"), torch.float32)) is None
    assert runtime.peak_flops(runtime.Runtime(torch.device("cpu"), torch.bfloat16)) is None
