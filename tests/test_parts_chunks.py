"""Decodings in chunks: the same loss and gradients as in one piece, and the memory that this is for."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from toy_data import ToyData
from vae_support import SPEC, batch, build, exact, gradients, seeded

from bench.build import build_method, steps_for_flops
from bench.config import resolve
from bench.costing import step_cost
from methods.base import Method
from methods.codevae import CoDEVAE
from methods.mmvae import MMVAE
from methods.mmvaeplus import MMVAEPlus
from methods.parts.chunks import chunk_size, couples_rows, in_chunks, kept_bytes, row_bytes

ROOT = Path(__file__).parent.parent


def test_kept_bytes_are_what_autograd_saves() -> None:
    a, b = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    assert kept_bytes(lambda: a + b) == 0
    assert kept_bytes(lambda: a * b) == 2 * 60  # both factors
    assert kept_bytes(lambda: a * a) == 60  # one storage, saved twice
    with torch.no_grad():
        assert kept_bytes(lambda: (a * b).exp()) == 3 * 60


def test_row_bytes_leave_the_weights_out() -> None:
    network = nn.Sequential(nn.Linear(3, 1000), nn.Tanh(), nn.Linear(1000, 2))
    assert row_bytes(network, torch.randn(7, 3)) == 4 * (3 + 1000)  # the inputs of both layers


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 10**6), st.floats(1, 1e10))
def test_chunks_keep_to_the_limit_and_are_few(rows: int, each: int, limit: float) -> None:
    size = chunk_size(rows, each, limit)
    assert 1 <= size <= rows
    assert size * each <= limit or size == 1
    fewest = 1 if rows * each <= limit else math.ceil(rows / max(1, int(limit / each)))
    assert math.ceil(rows / size) <= fewest


@pytest.mark.parametrize("size", [1, 3, 10, 50])
def test_chunks_give_the_same_value_and_gradients(size: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    z, index = torch.randn(10, 4, dtype=torch.float64, requires_grad=True), torch.arange(10) % 3
    calls = Counter()
    network.register_forward_hook(lambda *_: calls.update(["forward"]))

    def score(z: Tensor, index: Tensor) -> Tensor:
        return network(z).squeeze(-1) * (1 + index)

    results = []
    for compute in (lambda: score(z, index), lambda: torch.cat(in_chunks(score, size, z, index))):
        calls.clear()
        value = compute()
        results.append((value, *torch.autograd.grad(value.square().sum(), [z, *network.parameters()])))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert calls["forward"] == 2 * math.ceil(10 / size)  # once more for the backward pass


def test_chunks_keep_inputs_only() -> None:
    network = nn.Sequential(nn.Linear(4, 500), nn.Tanh(), nn.Linear(500, 1))
    z = torch.randn(100, 4)
    whole = kept_bytes(lambda: network(z))
    assert whole > 100 * 500 * 4
    assert kept_bytes(lambda: in_chunks(network, 10, z)) < whole / 20


def test_chunks_meet_the_same_noise_again() -> None:
    network = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 1))
    z, kept = torch.randn(6, 4), []
    network[1].register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    torch.cat(in_chunks(network, 3, z)).sum().backward()
    assert len(kept) == 4
    assert {tuple(t.flatten().tolist()) for t in kept[:2]} == {tuple(t.flatten().tolist()) for t in kept[2:]}


def test_batch_norm_couples_rows() -> None:
    assert couples_rows(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert not couples_rows(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))


CASES: list[tuple[type[Method], dict[str, Any]]] = [
    (MMVAE, {"samples": 3}),
    (MMVAE, {"samples": 3, "estimator": "dreg"}),
    (MMVAEPlus, {"samples": 2, "network": "resnet", "width": 2}),
    (MMVAEPlus, {"samples": 2, "estimator": "dreg_compat"}),
    (CoDEVAE, {}),
]


@pytest.mark.parametrize(("cls", "hyper"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_method_below_its_limit_has_the_same_loss_and_gradients(
    cls: type[Method], hyper: dict[str, Any]
) -> None:
    method, x = build(cls, **hyper).double(), exact(batch())
    calls: Counter[nn.Module] = Counter()
    networks = [part["photo"] for part in (method.encoders, method.decoders)]
    for network in networks:
        # Before the forward pass: a repeated one ends as soon as it has what the backward pass needs.
        network.register_forward_pre_hook(lambda module, *_: calls.update([module]))
    found, counts = [], []
    for memory in (math.inf, 2e-4, 1e-9):  # in one piece, some rows, row by row
        method.memory = memory
        calls.clear()
        loss = seeded(method, x)
        found.append((loss.detach(), gradients(method, loss)))
        counts.append([calls[network] for network in networks])
    assert counts[0] == [1, 1] and counts[2][0] == 12  # forward and backward, six rows
    assert counts[0][1] < counts[1][1] < counts[2][1]
    for loss, wanted in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-12, atol=1e-12)
        for name, gradient in wanted.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-9, atol=1e-9, msg=name)


def test_decoders_with_batch_norm_stay_in_one_piece() -> None:
    method, calls = build(MMVAEPlus, network="resnet").train(), Counter()
    assert couples_rows(method.decoders["caption"]) and not couples_rows(method.decoders["photo"])
    method.memory = 1e-9
    for name, decoder in method.decoders.items():
        decoder.register_forward_hook(lambda *_, name=name: calls.update([name]))
    tracked = [m for m in method.decoders["caption"].modules() if isinstance(m, nn.BatchNorm2d)]
    seeded(method, batch()).backward()
    assert calls["caption"] == 1 and calls["photo"] > 1
    assert all(m.num_batches_tracked == 1 for m in tracked)  # statistics count a batch once


def test_chunks_under_bf16_autocast_are_close() -> None:
    method, x, losses = build(MMVAEPlus), batch(), []
    for memory in (math.inf, 1e-6):
        method.memory = memory
        with torch.autocast("cpu", torch.bfloat16):
            loss = seeded(method, x)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_without_gradients_nothing_is_cut() -> None:
    method, calls = build(MMVAE), Counter()
    method.memory = 1e-9
    for network in (*method.encoders.values(), *method.decoders.values()):
        network.register_forward_hook(lambda module, *_: calls.update([module]))
    with torch.no_grad():
        seeded(method, batch())
    assert set(calls.values()) == {1}


def test_the_share_of_a_modality_is_what_its_decodings_keep() -> None:
    method, x = build(MMVAE, samples=4), batch()
    z = torch.randn(3, 4, 6, 4)
    for modality in SPEC:
        whole = kept_bytes(lambda m=modality: method._log_likelihood(m, x[m.name], z))
        weights = sum(p.numel() * 4 for p in method.decoders[modality.name].parameters())
        per_row = 72 * method._kept[modality.name].decoder
        assert per_row - 1000 <= whole <= 1.1 * per_row + weights


def test_train_memory_reaches_the_method_and_pays_no_steps(tmp_path: Path) -> None:
    """The budget of `fair-compute` counts every decoding once, however often `train.memory` repeats it."""
    data, steps = ToyData(tmp_path), set()
    for memory in (0.0001, 10.0):
        small = [f"train.memory={memory}", "width=4", "latent=4", "train.batch_size=16", "train.flops=1e9"]
        config = resolve("mmvae", "polydigits", "quick", small)
        method = build_method(config, data.spec)
        assert method.memory == memory
        steps.add(steps_for_flops(method, data.split("train"), config.train, torch.device("cpu")))
        assert method.memory == memory
    assert len(steps) == 1
    method.memory = 0.0001
    batch = data.split("train").batch(slice(0, 16))
    repeated = step_cost(method, batch).flops
    method.memory = 10.0
    assert repeated > step_cost(method, batch).flops  # the small limit does repeat decodings


STEP = """
import resource, sys, torch
from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.mmvaeplus import MMVAEPlus
spec = DataSpec(tuple(Modality(f"m{i}", "image", (3, 28, 28)) for i in range(5)))
torch.manual_seed(0)
method = MMVAEPlus(spec)
assert method.spec and type(method.decoders["m0"]).__name__ == "ResnetDecoder"
if len(sys.argv) > 1:
    method.memory = float(sys.argv[1])
adam = torch.optim.Adam(method.parameters(), 1e-3, amsgrad=True)
x = {m.name: torch.rand(128, *m.shape) for m in spec}
for _ in range(2):
    adam.zero_grad()
    method(x, Progress("train", 0, 10)).total.backward()
    adam.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts in other units elsewhere")
def test_a_step_of_mmvaeplus_with_the_papers_networks_stays_below_4_gb() -> None:
    """Two steps at batch 128 of the network of `paper` in a fresh process, Adam's moments included."""
    done = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 4.0 * 1e9 / 2**30
