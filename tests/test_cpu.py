"""The tricks for CPUs: the same results as without them, and nothing where they do not help."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from mini_undivided.support import cpu


def test_memory_is_kept_on_glibc_and_nothing_happens_elsewhere(monkeypatch):
    """Memory is kept on Linux with glibc; on any other system nothing happens."""
    assert cpu.keep_memory() == ("glibc" in " ".join(platform.libc_ver()))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu.keep_memory() is False


def test_a_step_that_is_repeated_faults_no_memory_in():
    """With freed blocks kept, taking the same large block again touches no new page of memory."""
    program = """if True:
        import resource, sys, torch
        from mini_undivided.support import cpu
        if not cpu.keep_memory(): sys.exit(0)
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work = lambda: [torch.ones(1 << 20) for _ in range(8)]
        work(), work(); before = faults(); work(); work()
        sys.exit(faults() - before > 1000)  # 64 MB are 16,384 pages
    """
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_onednn_multiplies_as_mkl_does():
    """If oneDNN takes MKL's place, its products and their gradients are those of float64.

    That holds for every size and layout. The check runs in a process of its own, since what is
    registered holds for a whole process. The profile shows that oneDNN is used, and only for large
    products of float32.
    """
    program = """if True:
        import warnings; warnings.simplefilter("error")
        import torch
        from torch.nn import functional as F
        from mini_undivided.support import cpu
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.library, "get_kernel"):
            raise SystemExit(0)
        cpu.mkl_is_slow = lambda: True
        torch.manual_seed(0)

        def largest(t):
            return t.abs().max().item() if t.numel() else 0.0

        def check(product, wanted, what):
            assert product.shape == wanted.shape and product.dtype == torch.float32, what
            error = largest(product - wanted)
            assert error <= 1e-5 * max(1.0, largest(wanted)), (what, error)

        def used(work):
            with torch.profiler.profile(acc_events=True) as profile: work()  # 2.11 warns without
            return any("mkldnn" in event.key for event in profile.key_averages())

        linear, small = torch.nn.Linear(301, 203), torch.nn.Linear(3, 5)
        x = torch.randn(7, 31, 301)
        assert not used(lambda: linear(x))
        assert cpu.multiply_with_onednn() is True and cpu.multiply_with_onednn() is True
        assert used(lambda: linear(x)) and used(lambda: x[0] @ torch.randn(301, 999))
        assert not used(lambda: small(x[..., :3]))
        assert not used(lambda: x.double() @ torch.randn(301, 999).double())
        assert not used(lambda: x[0] @ torch.randn(301, 1998)[:, ::2])

        large = [(217, 301, 203), (2000, 64, 96), (90, 300, 1700), (5000, 129, 33)]
        for M, K, N in [*large, (1, 3, 5), (0, 3, 5), (7, 0, 5)]:
            a, b, c = torch.randn(M, K), torch.randn(K, N), torch.randn(N)
            strided = torch.randn(M, 2 * K)[:, ::2], torch.randn(K, 2 * N)[:, ::2]
            for left in (a, a.t().contiguous().t(), strided[0], a[:1].expand(M, K) if M else a):
                for right in (b, b.t().contiguous().t(), strided[1], b[:, :1].expand(K, N)):
                    wanted = left.double() @ right.double()
                    check(left @ right, wanted, (M, K, N, left.stride(), right.stride()))
                    check(torch.addmm(c, left, right), c + wanted, "addmm")
                    scaled = torch.addmm(c, left, right, beta=2, alpha=3)
                    check(scaled, 2 * c + 3 * wanted, "scaled")
                    check(torch.addmm(wanted.float(), left, right), 2 * wanted, "matrix")
            inputs = [t.clone().requires_grad_() for t in (a, b.t(), c)]
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            weights = torch.randn(M, N)
            (F.linear(*inputs) * weights).sum().backward()
            (F.linear(*doubles) * weights).sum().backward()
            for single, double in zip(inputs, doubles):
                check(single.grad, double.grad, (M, K, N, "gradient"))
    """
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", ["AVX512", "AVX2", "DEFAULT"])
@pytest.mark.parametrize("cpuinfo, slow", [
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", True),
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", False),
    ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
    ("Features\t: asimd\n", False), (None, False)])
def test_only_zen_5_has_a_slow_mkl(monkeypatch, tmp_path, width, cpuinfo, slow):
    """Only AMD's Zen 5 with AVX-512 gets oneDNN; elsewhere nothing is registered.

    An older processor by AMD, another maker's, or a system without /proc/cpuinfo keeps MKL.
    """
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(cpu, "Path", lambda name: {"/proc/cpuinfo": path}[name])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    assert cpu.mkl_is_slow() == (slow and width == "AVX512")
    if not cpu.mkl_is_slow():
        assert cpu.multiply_with_onednn.__wrapped__() is False


def test_importing_changes_nothing_and_the_tricks_can_be_switched_off():
    """Importing every module registers nothing, and starting a machine does.

    With MINI_UNDIVIDED_CPU=plain, starting one registers nothing either and does not name oneDNN.
    """
    program = """if True:
        import importlib, pkgutil, sys, mini_undivided
        for module in pkgutil.walk_packages(mini_undivided.__path__, "mini_undivided."):
            importlib.import_module(module.name)
        from mini_undivided.support import cpu
        from mini_undivided.support.machine import Machine
        assert not hasattr(cpu.multiply_with_onednn, "library")
        cpu.mkl_is_slow = lambda: True
        called = []
        cpu.keep_memory = lambda: called.append(1)
        machine = Machine.start("cpu")
        registered = hasattr(cpu.multiply_with_onednn, "library")
        print(registered, len(called), machine.matmul, "|", machine)
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.library, "get_kernel"):
        pytest.skip("this PyTorch has no oneDNN to register")
    printed = []
    for setting in ({}, {"MINI_UNDIVIDED_CPU": "plain"}):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True,
            env={**os.environ, **setting})
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0].startswith("True 1 oneDNN | cpu,")
    assert "matrix multiplication by oneDNN" in printed[0]
    assert printed[1].startswith("False 0 ") and "oneDNN" not in printed[1]
