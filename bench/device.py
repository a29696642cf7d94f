"""Devices, precision, deterministic mode, and what a record says about the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UsageError
from bench.memory import keep_freed_memory
from datasets.spec import Batch, Split


def pick_device(name: str = "auto") -> torch.device:
    """`auto` (a CUDA device where there is one), `cpu`, `cuda` or `cuda:N`.

    On a CPU the process keeps the memory that it frees from then on (`keep_freed_memory`).
    Raises UsageError for another name or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"no device '{name}'; choose auto, cpu, cuda or cuda:N")
    if name == "cpu":
        keep_freed_memory()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(f"device '{name}' is not there, torch sees no CUDA device; use --device cpu")
    device = torch.device(name)
    if (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(
            f"device '{name}' is not there, the last one is cuda:{last}; choose a smaller number"
        )
    return device


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where an operation allows it, or nothing for `fp32`. Raises UsageError without support."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bfloat16; use --precision fp32")
    return torch.autocast(device.type, dtype=torch.bfloat16)


def set_deterministic(wanted: bool) -> None:
    """Ask torch for deterministic kernels (slower on CUDA; the CPU ones we use are so anyway)."""
    if wanted:
        # cuBLAS reads this when it starts, so it has to be set before the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted, warn_only=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything asked of it, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hardware(device: torch.device) -> dict[str, Any]:
    """What a record says about the machine: no host name, no paths."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device), "cores": os.cpu_count()}
    threads = torch.get_num_threads()
    return {"device": "cpu", "name": _processor(), "cores": len(_affinity()), "threads": threads}


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on every system
        return set(range(os.cpu_count() or 1))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def on_device(split: Split, device: torch.device) -> Split:
    """The split on the device, or where it is when there is no room for it."""
    if device.type == "cpu":
        return split
    try:
        return split.to(device)
    except torch.OutOfMemoryError:
        return split


def fetch(split: Split, index: Tensor | slice, device: torch.device) -> Batch:
    """One batch on the device."""
    home = next(iter(split.stored.values())).device
    if isinstance(index, Tensor):
        index = index.to(home)
    batch = split.batch(index)
    return {k: t.to(device) for k, t in batch.items()} if home != device else batch
