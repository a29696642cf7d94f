"""Keeps freed memory in the process: a training step need not ask the system for the same pages anew."""

from __future__ import annotations

import ctypes
import functools
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Numbers of glibc's `mallopt`, from its malloc.h."""

LARGE = 2**31 - 1
STEP = 64 * 2**20
"""Bytes by which the heap grows at a time."""


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to keep them; whether it agreed.

    By default every block of over 32 MB is mapped for itself, filled with zeros page by page, and given back
    when it is freed: each activation of a large batch, in every step. Other C libraries are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    wishes = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGE), (M_TOP_PAD, STEP))
    return all(mallopt(which, value) == 1 for which, value in wishes)
