"""Freed memory stays in the process: no page is asked for twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNT = """
import resource, torch
if {keep}:
    from bench.memory import keep_freed_memory
    assert keep_freed_memory()
def step():
    blocks = [torch.zeros(n) for n in (12_000_000, 10_000_000, 9_000_000)]
    return sum(float(block[0]) for block in blocks)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is what this is about")
def test_large_blocks_are_used_again() -> None:
    import ctypes

    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("this C library is not glibc")
    if HUGE.exists() and "[always]" in HUGE.read_text():
        pytest.skip("huge pages for everything leave few faults to count")
    assert faults(keep=True) * 5 < faults(keep=False)
