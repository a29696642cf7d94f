"""The training loop: what it may and may not change, stages, clipping, averages, divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyData, TinyVAE
from torch import nn

import bench.forecast
from bench.build import build_method
from bench.config import RunConfig, TrainConfig, resolve
from bench.optimise import Average, StageOptimiser, only, stage_groups, stage_steps
from bench.progress import Reporter
from bench.randomness import Order, forked, random_state, seed_all, set_random_state
from bench.store import RunFolder
from bench.train import TrainResult, train
from datasets.spec import Batch, Split, UserError
from methods.base import Loss, Method, ParamGroup, Progress, Stage

CPU = torch.device("cpu")
BASE = ("train.steps=24", "train.batch_size=40", "train.checkpoint_every=5", "train.validate_every=0")


@pytest.fixture(scope="module")
def data() -> TinyData:
    return TinyData(Path("unused"))


def make(*overrides: str, seed: int = 0) -> RunConfig:
    return resolve("tiny:TinyVAE", "tiny:TinyData", "quick", [*BASE, *overrides], seed)


def go(
    config: RunConfig, data: TinyData, folder: Path, reporter: Reporter | None = None
) -> tuple[TrainResult, Method]:
    method = build_method(config, data.spec)
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = data.split("train"), data.split("val")
    result = train(method, *splits, config.train, run, seed=config.seed, device=CPU, progress=reporter)
    return result, method


def same(a: Method, b: Method) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(left[k], right[k]) for k in left)


def test_the_same_seed_gives_the_same_weights(data: TinyData, tmp_path: Path) -> None:
    _, first = go(make(), data, tmp_path / "a")
    torch.rand(7)
    _, second = go(make(), data, tmp_path / "b")
    _, other = go(make(seed=1), data, tmp_path / "c")
    assert same(first, second) and not same(first, other)


def test_it_learns(data: TinyData, tmp_path: Path) -> None:
    result, _ = go(make("train.steps=200", "train.validate_every=50"), data, tmp_path)
    lines = RunFolder(tmp_path).read_log()
    losses = {k: [line["terms"]["loss"] for line in lines if line["kind"] == k] for k in ("train", "val")}
    assert losses["train"][-1] < 0.3 * losses["train"][0] and losses["val"][-1] < losses["val"][0]
    assert result.status == "done" and result.steps == 200 and len(losses["val"]) == 4
    assert result.validation["loss"] == losses["val"][-1]


@pytest.mark.parametrize("changed", ["train.validate_every=3", "train.checkpoint_every=100"])
def test_looking_and_saving_change_nothing(changed: str, data: TinyData, tmp_path: Path) -> None:
    _, first = go(make(), data, tmp_path / "a")
    _, second = go(make(changed), data, tmp_path / "b")
    assert same(first, second)


def test_only_the_groups_of_the_stage_move(data: TinyData, tmp_path: Path) -> None:
    _, warm = go(make("warm=0"), data, tmp_path / "a")
    fresh = build_method(make("warm=0"), data.spec)
    moved = {k for k, v in warm.state_dict().items() if not torch.equal(v, fresh.state_dict()[k])}
    assert moved == {k for k in fresh.state_dict() if k.startswith("decoders")} | {"calls"}
    assert all(p.requires_grad for p in warm.parameters())


def test_a_stage_keeps_its_weights(data: TinyData, tmp_path: Path) -> None:
    result, method = go(make(), data, tmp_path)
    stored = RunFolder(tmp_path).load_weights("stage-warm.safetensors")
    assert set(result.stages) == {"warm"}
    assert torch.equal(stored["inner.a.weight"], method.state_dict()["inner.a.weight"])
    assert not torch.equal(stored["decoders.a.weight"], method.state_dict()["decoders.a.weight"])
    assert stored["calls"] == 12


@pytest.mark.parametrize("shares", [(1.0,), (0.3, 0.7), (1, 1, 1), (0.0, 1.0)])
def test_stage_budgets_add_up(shares: tuple[float, ...]) -> None:
    stages = tuple(Stage(str(i), (), s) for i, s in enumerate(shares))
    assert sum(stage_steps(stages, 101)) == 101


def test_a_stage_with_an_unknown_group(data: TinyData) -> None:
    method = build_method(make(), data.spec)
    with pytest.raises(UserError, match="'generater'; did you mean 'generator'"):
        stage_groups(method, Stage("x", ("generater",)))


def test_clipping_comes_after_backward() -> None:
    layer = nn.Linear(4, 1)
    group = ParamGroup(list(layer.parameters()), lr=0.1, clip=0.5)
    optimiser = StageOptimiser({"all": group}, TrainConfig(), 10, 5)
    optimiser.descend((100 * layer(torch.ones(3, 4))).sum(), 0)
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_rates_follow_epoch_decay_and_schedule() -> None:
    layer = nn.Linear(2, 1)
    group = ParamGroup(list(layer.parameters()), lr=0.4, decay=0.5)
    constant = StageOptimiser({"all": group}, TrainConfig(), 10, 3)
    assert [constant.rate(group, s) for s in (0, 2, 3, 6)] == [0.4, 0.4, 0.2, 0.1]
    cosine = StageOptimiser({"all": group}, TrainConfig(schedule="cosine"), 10, 100)
    assert cosine.rate(group, 5) == pytest.approx(0.2) and cosine.rate(group, 10) == pytest.approx(0)
    constant.descend(layer(torch.ones(1, 2)).sum(), 3)
    assert constant.adam.param_groups[0]["lr"] == 0.2


def test_groups_outside_a_stage_ask_for_no_gradient(data: TinyData) -> None:
    method = build_method(make(), data.spec)
    method.inner["a"].weight.requires_grad_(False)
    groups = stage_groups(method, Stage("polish", ("generator",)))
    with only(method, groups.values()):
        assert {n.split(".")[0] for n, p in method.named_parameters() if p.requires_grad} == {"decoders"}
    assert [n for n, p in method.named_parameters() if not p.requires_grad] == ["inner.a.weight"]


def test_the_average_is_the_formula() -> None:
    layer = nn.Linear(1, 1, bias=False)
    expected = float(layer.weight.detach())
    average = Average(layer, 0.15)
    for t, value in enumerate([3.0, -1.0, 2.0]):
        nn.init.constant_(layer.weight, value)
        average.update(layer)
        decay = min(0.15, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert float(average.values["weight"]) == pytest.approx(expected, rel=1e-5)


def test_averaged_weights_are_the_ones_left(data: TinyData, tmp_path: Path) -> None:
    _, plain = go(make(), data, tmp_path / "a")
    _, averaged = go(make("train.ema=0.9"), data, tmp_path / "b")
    assert not same(plain, averaged)
    assert torch.equal(plain.state_dict()["calls"], averaged.state_dict()["calls"])


class Counting(Method):
    """Two losses; the second is computed only when it is asked for. Remembers what it saw."""

    def __init__(self, spec: Any, lazy: bool) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(1))
        self.lazy, self.seen = lazy, []

    def param_groups(self) -> dict[str, ParamGroup]:
        return {"generator": ParamGroup([self.weight], lr=1.0)}

    def forward(self, x: Batch, progress: Progress) -> Any:
        def losses() -> Iterator[Loss]:
            for _ in range(2):
                self.seen.append((progress.step, progress.epoch, float(self.weight.detach())))
                yield Loss(self.weight.sum(), {"weight": self.weight.sum()})

        return losses() if self.lazy else list(losses())


@pytest.mark.parametrize(("lazy", "second"), [(True, -1.0), (False, 0.0)])
def test_every_loss_is_one_step_in_order(lazy: bool, second: float, data: TinyData, tmp_path: Path) -> None:
    method = Counting(data.spec, lazy)
    config = TrainConfig(batch_size=100, steps=3, validate_every=0)
    train(method, data.split("train"), None, config, RunFolder(tmp_path), seed=0, device=CPU)
    assert [s[:2] for s in method.seen[::2]] == [(0, 0), (1, 0), (2, 1)]  # 200 tuples: two steps an epoch
    assert method.seen[0][2] == 0 and method.seen[1][2] == pytest.approx(second, abs=1e-3)
    assert float(method.weight.detach()) == pytest.approx(-6, abs=0.01)


@pytest.mark.parametrize(
    ("override", "message"),
    [("explode=4", "not finite"), ("diverge=5", "the chains ran away"), ("explode=1000003", "not finite")],
)
def test_divergence_is_a_status_with_a_reason(
    override: str, message: str, data: TinyData, tmp_path: Path
) -> None:
    result, _ = go(make(override), data, tmp_path)
    assert result.status == "diverged" and message in result.reason
    assert "NaN" not in (tmp_path / "train.jsonl").read_text()
    state = RunFolder(tmp_path).load_checkpoint()
    if state is not None:
        assert all(torch.isfinite(t).all() for t in state["method"].values())


def test_a_complaint_about_nan_is_divergence(
    data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TinyVAE.forward

    def forward(self: TinyVAE, x: Batch, progress: Progress) -> Any:
        if progress.step == 3:
            with torch.no_grad():
                self.decoders["a"].weight.fill_(float("nan"))
            torch.distributions.Normal(self.decoders["a"].weight, 1.0)
        return original(self, x, progress)

    monkeypatch.setattr(TinyVAE, "forward", forward)
    result, _ = go(make(), data, tmp_path)
    assert result.status == "diverged" and "not finite" in result.reason


def test_an_ordinary_error_stays_one(data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="planted"):
        go(make("crash=3"), data, tmp_path)


def test_a_batch_larger_than_the_data(data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch size 500 exceeds the 200 training tuples"):
        go(make("train.batch_size=500"), data, tmp_path)


def test_an_epoch_is_a_permutation_and_the_rest_is_dropped() -> None:
    order = Order(10, 3, seed=4)
    epochs = [torch.cat([order.next() for _ in range(3)]) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("before", range(8))
def test_the_order_resumes_anywhere(before: int) -> None:
    order = Order(10, 3, seed=4)
    for _ in range(before):
        order.next()
    other = Order(10, 3, seed=99)
    other.load(order.state())
    assert all(torch.equal(order.next(), other.next()) for _ in range(10))


def test_a_fork_leaves_every_generator_alone() -> None:
    import random

    import numpy as np

    seed_all(3)
    before = random_state()
    with forked(5):
        inside = (random.random(), np.random.rand(), float(torch.rand(())))
    after = random_state()
    assert before["python"] == after["python"] and torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2] == after["numpy"][2]
    with forked(5):
        assert inside == (random.random(), np.random.rand(), float(torch.rand(())))


def test_bf16_trains(data: TinyData, tmp_path: Path) -> None:
    result, method = go(make("train.precision=bf16"), data, tmp_path)
    assert result.status == "done"
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in method.parameters())


class Ear(Reporter):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


def test_a_slow_device_is_announced(data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.forecast, "SLOW", 0.0)
    monkeypatch.setattr(bench.forecast, "AFTER", 0.0)
    ear = Ear()
    go(make("warm=0.5"), data, tmp_path / "a", ear)
    first, second = ear.heard
    # The first forecast covers the stage to come, too.
    assert "more steps take about" in first and " in warm, " in first and " in polish)" in first
    assert "more steps take about" in second and "warm" not in second
    monkeypatch.setattr(bench.forecast, "SLOW", math.inf)
    quiet = Ear()
    go(make(), data, tmp_path / "b", quiet)
    assert quiet.heard == []


def test_a_run_that_goes_wrong_is_told_early(
    data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TinyVAE.forward

    def starving(self: TinyVAE, x: Batch, progress: Progress) -> Loss:
        loss = plain(self, x, progress)
        share = torch.tensor(0.01 if progress.step > 2 else 0.5)
        return Loss(loss.total, {**loss.terms, "share.a": share, "share.b": 1 - share})

    monkeypatch.setattr(TinyVAE, "forward", starving)
    ear = Ear()
    result, _ = go(make("warm=0.5"), data, tmp_path, ear)
    warnings = [text for text in ear.heard if text.startswith("warning: ")]
    assert result.status == "done" and len(warnings) == 2, "once in each stage"
    step = int(warnings[0].split("at step ")[1].split()[0])
    assert step < result.steps / 2 and "a 1.0%" in warnings[0] and "latent_steps" in warnings[0]


def test_the_clocks_add_up(data: TinyData, tmp_path: Path) -> None:
    timing = go(make("train.validate_every=4"), data, tmp_path)[0].timing
    parts = sum(timing[k] for k in ("train_s", "validate_s", "save_s", "other_s"))
    assert parts == pytest.approx(timing["wall_s"]) and timing["other_s"] >= 0
    assert all(timing[k] > 0 for k in ("train_s", "validate_s", "save_s", "step_s", "cpu_s"))


def test_data_of_a_split_is_not_touched(data: TinyData, tmp_path: Path) -> None:
    split: Split = data.split("train")
    before = {k: t.clone() for k, t in split.stored.items()}
    train(build_method(make(), data.spec), split, None, make().train, RunFolder(tmp_path), seed=0, device=CPU)
    assert all(torch.equal(before[k], t) for k, t in split.stored.items())


def test_random_numbers_of_other_gpus_are_not_said_to_be_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state()
    assert set_random_state(state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(state["cuda"]) + 1)
    assert not set_random_state(state)
