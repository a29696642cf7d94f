"""What the machine could do: rates of a large matrix product and of a convolution of the method's own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CONVOLUTION = torch.ops.aten.convolution
BACKWARD = torch.ops.aten.convolution_backward
LEAST = {"cpu": 5e8, "cuda": 2e11}
"""Floating-point operations that one timed call holds at least, so that a clock can tell."""


@dataclass(frozen=True)
class Layout:
    """A tensor without its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def random(self, device: torch.device) -> Tensor:
        values = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)
        return values.normal_()


@dataclass(frozen=True)
class Convolution:
    """A convolution as it was called: layouts of input and kernel, then stride, padding and the rest."""

    x: Layout
    kernel: Layout
    settings: tuple[Any, ...]

    def __str__(self) -> str:
        size, kernel = ("x".join(map(str, s)) for s in (self.x.size, self.kernel.size))
        transposed = "transposed " if self.settings[3] else ""
        stride = "x".join(map(str, self.settings[0]))
        return f"{transposed}convolution of {size} with {kernel}, stride {stride}"


class ConvolutionLog(TorchDispatchMode):
    """Notes every convolution inside, its floating-point operations, and which gradients are taken of it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[Convolution] = Counter()
        self.gradients: dict[Convolution, Counter[tuple[bool, bool]]] = defaultdict(Counter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        if packet is CONVOLUTION:
            x, kernel, _, *settings = args
        elif packet is BACKWARD:
            _, x, kernel, _, *settings, mask = args
        else:
            return out
        key = Convolution(Layout.of(x), Layout.of(kernel), tuple(_fixed(s) for s in settings))
        self.flops[key] += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        if packet is BACKWARD:
            self.gradients[key][bool(mask[0]), bool(mask[1])] += 1
        return out

    def largest(self) -> Convolution | None:
        """The convolution that costs most in all; None where there is none."""
        return self.flops.most_common(1)[0][0] if self.flops else None

    def mask(self, convolution: Convolution) -> tuple[bool, bool]:
        """Whether the gradients of input and kernel are taken, as most of its backward passes do."""
        found = self.gradients[convolution]
        return found.most_common(1)[0][0] if found else (False, False)


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Work:
    """A call and the floating-point operations it makes; `what` says in words."""

    what: str
    call: Callable[[], Any]
    flops: float


def _enough(what: str, once: Callable[[], Any], flops: float, device: torch.device) -> Work:
    """`once` as often as a clock needs."""
    times = max(1, round(LEAST[device.type] / flops))

    def call() -> None:
        for _ in range(times):
            once()

    return Work(what, call, times * flops)


def matrix_product(device: torch.device, precision: str) -> Work:
    """A product of two square matrices that is large enough to reach what the device can do."""
    n = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return _enough(f"product of two {n}x{n} matrices, {precision}", lambda: a @ b, 2.0 * n**3, device)


def convolution_work(log: ConvolutionLog, device: torch.device) -> Work | None:
    """The method's largest convolution with the gradients that are taken of it; None where it has none."""
    found = log.largest()
    if found is None:
        return None
    x, kernel = found.x.random(device), found.kernel.random(device)
    settings, mask = [list(s) if isinstance(s, tuple) else s for s in found.settings], log.mask(found)
    out = CONVOLUTION(x, kernel, None, *settings)
    flops = flop_registry[CONVOLUTION](x, kernel, None, *settings, out_val=out)
    backward = (torch.ones_like(out), x, kernel, [0], *settings, [*mask, False])
    if any(mask):
        flops += flop_registry[BACKWARD](*backward, out_val=BACKWARD(*backward))

    @torch.no_grad()
    def once() -> None:
        CONVOLUTION(x, kernel, None, *settings)
        if any(mask):
            BACKWARD(*backward)

    names = [name for name, taken in zip(("input", "kernel"), mask, strict=True) if taken]
    gradients = f" and the gradient of {' and '.join(names)}" if names else ""
    return _enough(f"{found}{gradients}", once, float(flops), device)
