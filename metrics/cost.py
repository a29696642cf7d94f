"""Cost: what a method needs to train and to sample. Every figure depends on the machine that measured it.

Parameters and floating-point operations are exact; seconds are wall time with the device synchronised.
Protocol: METHODS 3.8.
"""

from __future__ import annotations

import math
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from metrics.protocol import Score

OVERHEAD_GROUPS = ("prior", "energy", "diffusion")
"""Parameter groups that are no encoder and no decoder."""


def synchronise(device: torch.device) -> None:
    """Wait until the device has done its work; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the highest memory use seen so far, where the device counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory use: of the device since `reset_peak`, on a CPU of the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _FlopCount(TorchDispatchMode):
    """Sum of torch's own operation counts.

    The same registry as `torch.utils.flop_counter.FlopCounterMode`, without its per-module tracking,
    whose hooks refuse `autograd.grad` with respect to a leaf, the very thing Langevin sampling does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(getattr(func, "overloadpacket", None))
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=out))
        return out


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions in `call`, backward passes included."""
    with _FlopCount() as counter:
        call()
    return counter.total


class _Touched(TorchDispatchMode):
    """Which of some tensors' storages any operation reads."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.wanted = {t.untyped_storage().data_ptr() for t in tensors}
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.seen.add(leaf.untyped_storage().data_ptr())
        return func(*args, **kwargs)


class _Alive(TorchDispatchMode):
    """Bytes of storages alive, `held` and those that operations make, and the most there were at once."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}
        for tensor in held:
            self._add(tensor)
        self.peak = self.now

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._add(leaf)
        self.peak = max(self.peak, self.now)
        return out


def peak_call_mb(call: Callable[[], Any], module: nn.Module, device: torch.device) -> float:
    """Highest memory use while `call` runs, in MB (2^20 bytes), the networks of `module` included.

    On a GPU what torch's allocator gave out during the call; on a CPU, where no allocator keeps count, the
    tensors that were alive at once, without what a single operation needs for itself.
    """
    own = [*module.parameters(), *module.buffers()]
    if device.type == "cuda":
        reset_peak(device)
        before = torch.cuda.memory_allocated(device)
        call()
        used = torch.cuda.max_memory_allocated(device) - before
        return (used + sum(t.untyped_storage().nbytes() for t in own)) / 2**20
    with _Alive(own) as alive:
        call()
    return alive.peak / 2**20


def parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for p in module.parameters())


def sampling_overhead(
    groups: Mapping[str, Iterable[nn.Parameter]],
    sample: Callable[[], Any],
    fitted: Iterable[tuple[Tensor, int]] = (),
) -> int:
    """Parameters of the groups `prior`, `energy`, `diffusion`, and `fitted` numbers, that `sample()` reads.

    So a sampler that leaves the energy network alone has no overhead, although the method owns one. fitted:
    tensors that no optimiser trains, each with how many free numbers it holds.
    """
    extra: dict[Tensor, int] = {p: p.numel() for name in OVERHEAD_GROUPS for p in groups.get(name, ())}
    extra |= dict(fitted)
    if not extra:
        return 0
    with _Touched(extra) as touched:
        sample()
    return sum(n for t, n in extra.items() if t.untyped_storage().data_ptr() in touched.seen)


@dataclass(frozen=True)
class Timing:
    """Mean wall time of a call, with how often it was made before and while the clock ran."""

    seconds: float
    warmup: int
    repeats: int

    @property
    def text(self) -> str:
        """`3 warm-ups, mean of 10`."""
        return f"{self.warmup} warm-up{'s' * (self.warmup != 1)}, mean of {self.repeats}"


WARMUP, REPEATS = 3, 10
"""Of a sampling time (METHODS 3.8)."""


def timed_call(call: Callable[[], Any], device: torch.device, budget: float = math.inf) -> Timing:
    """Mean wall time of `call`: 3 warm-ups, mean of 10 (METHODS 3.8), where `budget` seconds pay for that.

    The first call tells. Where 13 would take longer, it is the only warm-up and as many follow as the budget
    pays for, at least one; `Timing` says how many. Where not even two are paid for, the first is the timing.
    """
    first = seconds_per_call(call, device, 0, 1)
    if first * (WARMUP + REPEATS) <= budget:
        return Timing(seconds_per_call(call, device, WARMUP - 1, REPEATS), WARMUP, REPEATS)
    if 2 * first > budget:
        return Timing(first, 0, 1)
    repeats = min(REPEATS, max(1, int(budget / first) - 1))
    return Timing(seconds_per_call(call, device, 0, repeats), 1, repeats)


def seconds_per_call(
    call: Callable[[], Any], device: torch.device, warmup: int = 2, repeats: int = 5
) -> float:
    """Mean wall time of `call` after `warmup` calls."""
    for _ in range(warmup):
        call()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def cost_score(metric: str, value: float | None, n: int = 1, **key: Any) -> Score:
    """A cost, of which less is better. `unavailable` in `key` says why there is none."""
    return Score(metric, None if value is None else float(value), n, "lower", **key)
