"""Batches read ahead by worker processes: the same as without, and the random state is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bench.randomness import Order
from bench.stream import Feed
from datasets.packed import Compressed, Shared
from datasets.spec import DataSpec, Modality, Split, UserError

CPU = torch.device("cpu")


def split() -> Split:
    pictures = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8)).astype(np.uint8)
    packed = [Compressed.pack(p) for p in pictures]
    data = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.uint8)
    rows = torch.arange(30) // 3
    held = Shared(Compressed(data, torch.tensor(np.cumsum([len(p) for p in packed])), (3, 8, 8)), rows)
    spec = DataSpec((Modality("image", "image", (3, 8, 8)), Modality("caption", "text", (4,), vocabulary=99)))
    captions = torch.arange(30)[:, None].expand(30, 4).contiguous()
    return Split(spec, {"image": held, "caption": captions}, {})  # type: ignore[dict-item]


@pytest.fixture
def pair() -> Iterator[tuple[Feed, Feed]]:
    data = split()
    feeds = [Feed(data, Order(30, 4, 7), CPU, workers) for workers in (0, 2)]
    yield feeds[0], feeds[1]
    feeds[1].close()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_workers_change_nothing(pair: tuple[Feed, Feed]) -> None:
    plain, ahead = pair
    assert (plain.workers, ahead.workers) == (0, 2)
    state = torch.get_rng_state()
    for _ in range(20):  # over two epochs
        assert same(plain.next(), ahead.next())
        assert plain.order.state()["position"] == ahead.order.state()["position"]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_order_that_is_set_elsewhere_is_followed(pair: tuple[Feed, Feed]) -> None:
    plain, ahead = pair
    for _ in range(3):
        plain.next(), ahead.next()
    kept = plain.order.state()
    for _ in range(4):
        plain.next(), ahead.next()
    for feed in pair:
        feed.order.load(kept)
    assert same(plain.next(), ahead.next())
    for feed in pair:
        feed.order.begin()
    assert same(plain.next(), ahead.next())


def test_a_split_in_memory_needs_no_workers() -> None:
    data = split()
    held = {"image": data.stored["image"][slice(0, 30)], "caption": data.stored["caption"]}
    feed = Feed(Split(data.spec, held, {}), Order(30, 4, 7), CPU, 2)
    assert feed.workers == 0 and feed.next()["image"].shape == (4, 3, 8, 8)


def test_a_worker_that_is_killed_is_one_sentence(pair: tuple[Feed, Feed]) -> None:
    import os
    import signal

    _, ahead = pair
    ahead.next()
    # Torch's handler of SIGCHLD raises wherever the main thread is, which may be pytest itself. Without it
    # the loss is noticed where batches are fetched.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader = ahead._ahead
    try:
        for worker in reader._workers:  # type: ignore[union-attr]
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="was ended .*run the command again"):
            for _ in range(50):
                ahead.next()
    finally:
        # While torch counts the dead among its workers, the end of any other process would raise as well.
        reader._shutdown_workers()  # type: ignore[union-attr]
        signal.signal(signal.SIGCHLD, before)
