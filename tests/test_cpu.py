"""What makes a CPU fast, and that it does nothing where it does not help."""

import platform
import subprocess
import sys

import pytest

from mini_undivided.support import cpu


def test_memory_is_kept_on_glibc_and_nothing_happens_elsewhere(monkeypatch):
    """Memory is kept on Linux with glibc; on any other system nothing happens."""
    assert cpu.keep_memory() == ("glibc" in " ".join(platform.libc_ver()))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu.keep_memory() is False


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


@pytest.mark.parametrize("cpuinfo, has", [
    ("flags\t: avx512f avx512_bf16 fma\n", True), ("flags\t: amx_bf16\n", True),
    ("flags\t: avx512f fma\n", False), ("Features\t: asimd\n", False), (None, False)])
def test_bfloat16_is_used_where_a_cpu_has_instructions_for_it(monkeypatch, tmp_path, cpuinfo, has):
    """The flags in /proc/cpuinfo count; where there is no such file, a CPU has none."""
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(cpu, "Path", lambda name: {"/proc/cpuinfo": path}[name])
    assert cpu.multiplies_bfloat16() == has
