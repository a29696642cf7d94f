"""Ending in an orderly way on a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_signal(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop(number)` at the first SIGINT or SIGTERM inside; a second one does what it did before.

    Outside the main thread, which alone gets signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def first(number: int, frame: FrameType | None) -> None:
        stop(number)
        restore()

    try:
        for s in before:
            signal.signal(s, first)
        yield
    finally:
        restore()
