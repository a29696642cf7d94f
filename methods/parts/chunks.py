"""A network on many rows within a memory limit: in chunks that are computed again in the backward pass.

As one batch the M x M x K decodings of MMVAE and MMVAE+ keep gigabytes of activations. In chunks only
inputs and results are kept, and the activations of one chunk at a time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def couples_rows(network: nn.Module) -> bool:
    """Whether rows of a batch can influence each other (BatchNorm), so that it must stay in one piece."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def kept_bytes(call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of `call()`, every storage counted once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()  # held until all is counted: a freed storage could lend its address to another
    total = sum(sizes.values())
    del result
    return total


def row_bytes(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Bytes that autograd keeps for each row of `function`: two rows less one, so that weights cancel.

    The rows of `inputs` must not influence each other; the first one is repeated.
    """

    def kept(rows: int) -> int:
        return kept_bytes(lambda: function(*(t[:1].repeat_interleave(rows, 0) for t in inputs)))

    return max(1, kept(2) - kept(1))


def chunk_size(rows: int, each: int, limit: float) -> int:
    """Rows of a chunk: the fewest chunks of equal size in which `rows` rows of `each` bytes keep to `limit`.

    At least one row, however little it leaves of the limit.
    """
    if rows * each <= limit:
        return rows
    chunks = math.ceil(rows / max(1, int(limit / each)))
    return math.ceil(rows / chunks)


@cache
def _malloc_trim() -> Callable[[int], int]:
    """glibc's malloc_trim, which gives freed memory back to the system; elsewhere nothing.

    Before version 2.38 glibc fits aligned blocks badly into the holes that equal ones left: freed chunks
    would pile up to several times what is in use.
    """
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return lambda _: 0


def in_chunks(function: Callable[..., Result], size: int, *inputs: Tensor) -> list[Result]:
    """Results of `function` on chunks of `size` rows; values and gradients as in one piece.

    Each chunk is computed a second time in the backward pass, under the autocast and the random state of
    the first (torch.utils.checkpoint).
    """
    if inputs[0].device.type == "cpu":
        _malloc_trim()(0)
    parts = zip(*(t.split(size) for t in inputs), strict=True)
    return [checkpoint(function, *part, use_reentrant=False) for part in parts]
