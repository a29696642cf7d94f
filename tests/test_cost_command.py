"""`bench cost`: the same step as training, in turns, counted and weighed; nothing left changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cli import call, complaint
from tiny import TinyData
from torch import nn

from bench import cost_command
from bench.benchmark_step import STEP, STEPS, peak_of, shares, subject, training_steps
from bench.ceiling import ConvolutionLog, convolution_work, matrix_product
from bench.config import resolve
from bench.cost_report import measure
from bench.optimise import StageOptimiser, losses_of, only, stage_groups
from bench.randomness import derive, forked
from bench.sweep import least_squares, parse_sweep
from bench.timing import Timing, alternate, weighted
from datasets.spec import UserError
from methods.base import Progress
from metrics.cost import count_flops

CPU = torch.device("cpu")
QUICK = ["--warmup", "0", "--repeats", "2", "--device", "cpu", "--preset", "quick"]
TINY = ["cost", "--method", "tiny:TinyVAE", "--dataset", "tiny:TinyData", *QUICK]


@pytest.fixture
def tiny(tmp_path: Path):
    train = TinyData(tmp_path).split("train")
    return lambda *sets, label="tiny", **how: subject(
        label, resolve("tiny:TinyVAE", "tiny:TinyData", "quick", sets), train, CPU, **how
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("BENCH_DATA", raising=False)
    return ["--cache", str(tmp_path / "cache")]


# -- clocks


def test_calls_alternate_and_the_order_turns() -> None:
    made = []
    timings = alternate({n: lambda n=n: made.append(n) for n in "abc"}, CPU, warmup=1, repeats=3)
    assert "".join(made) == "cba" + "abc" + "cba" + "abc"
    assert all(len(t.seconds) == 3 for t in timings.values())
    with pytest.raises(ValueError, match="0 repetitions"):
        alternate({}, CPU, repeats=0)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30))
def test_quantiles_are_in_order(seconds: list[float]) -> None:
    timing = Timing(tuple(seconds))
    assert min(seconds) <= timing.p10 <= timing.median <= timing.p90 <= max(seconds)
    assert timing.median == pytest.approx(np.median(seconds))


def test_parts_add_up_round_by_round() -> None:
    parts = {"a": Timing((1.0, 2.0)), "b": Timing((10.0, 30.0)), "c": Timing((5.0, 5.0))}
    assert weighted(parts, {"a": 0.5, "b": 2}).seconds == (20.5, 61.0)


# -- the step


def test_the_step_is_the_one_that_training_makes(tiny) -> None:
    """Losses, backward, clipping and Adam written out once more give the same weights."""
    s = tiny("clip=0.5", "two_losses=true")
    plain, progress = tiny("clip=0.5", "two_losses=true"), {}
    stage = s.method.stages[0]
    with training_steps(s) as steps:
        steps["warm"]()
        progress = {n: t.clone() for n, t in s.method.state_dict().items()}
    method, train = plain.method.train(), plain.config.train
    with forked(derive(0, "step cost")), only(method, stage_groups(method, stage).values()):
        optimiser = StageOptimiser(stage_groups(method, stage), train, STEPS, 100, stage.rate)
        for loss in losses_of(method, plain.batch, Progress("warm", STEP, STEPS, 10), CPU, "fp32"):
            optimiser.descend(loss.total, STEP)
    assert all(torch.equal(t, progress[n]) for n, t in method.state_dict().items())
    moved = [n for n, t in progress.items() if not torch.equal(t, s.method.state_dict()[n])]
    assert any("decoders" in name for name in moved) and "calls" in moved


@pytest.mark.parametrize("layers", [False, True])
def test_measuring_leaves_nothing_changed(tiny, layers: bool) -> None:
    s = tiny("train.ema=0.9")
    s.method.eval()
    s.method.decoders["a"].weight.requires_grad_(False)
    before = {n: t.clone() for n, t in s.method.state_dict().items()}
    flags = [p.requires_grad for p in s.method.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure([s], warmup=1, repeats=2, layers=layers)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(t, before[n]) for n, t in s.method.state_dict().items())
    assert [p.requires_grad for p in s.method.parameters()] == flags
    assert all(p.grad is None for p in s.method.parameters())
    assert not any(m.training for m in s.method.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in s.method.modules())


def test_a_step_is_counted_and_weighted_by_stage(tiny) -> None:
    s = tiny("warm=0.25", batch_size=16)
    (found,) = measure([s], warmup=0, repeats=3)
    assert shares(s.method) == {"warm": 0.25, "polish": 0.75} and set(found.stages) == {"warm", "polish"}
    mixed = [0.25 * w + 0.75 * p for w, p in zip(*(t.seconds for t in found.stages.values()), strict=True)]
    assert found.step.seconds == pytest.approx(mixed)
    assert found.flops_per_step == 0.25 * found.flops["warm"] + 0.75 * found.flops["polish"]
    assert 0 < found.flops["polish"] < found.flops["warm"]
    assert found.rate == pytest.approx(found.flops_per_step / found.step.median)
    assert found.peak.mb > 1 and "process" in found.peak.of
    assert {(d.sampler, d.task, d.evaluations) for d in found.sampling} == {
        ("ancestral", "joint", 1),
        ("ancestral", "cross", 1),
    }


def test_batch_size_and_modalities(tiny) -> None:
    s = tiny(batch_size=450, modalities=1)
    assert {n: len(t) for n, t in s.batch.items()} == {"a": 450} and s.method.spec.names == ("a",)
    assert torch.equal(s.batch["a"][:50], s.batch["a"][400:])  # 200 tuples come again


def test_peak_memory_sees_what_is_gone_again() -> None:
    def large() -> None:
        torch.ones(64 * 2**20)  # 256 MiB, touched

    small = peak_of(lambda: None, CPU)
    assert peak_of(large, CPU).mb > small.mb + 100 or small.of != "process"


# -- the ceiling


def test_the_largest_convolution_is_found_with_its_gradients() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 8, 3, 2), nn.Conv2d(8, 1, 1))
    x = torch.rand(5, 3, 8, 8)
    log = ConvolutionLog()
    with log:
        total = count_flops(lambda: net(x).sum().backward())
    assert sum(log.flops.values()) == total > 0
    largest = log.largest()
    assert largest is not None and largest.kernel.size == (4, 8, 3, 3) and log.mask(largest) == (True, True)
    work = convolution_work(log, CPU)
    assert work is not None and "transposed convolution of 5x4x6x6" in work.what
    assert work.flops % log.flops[largest] == 0  # a whole number of the same forward and backward
    with ConvolutionLog() as again:
        work.call()
    assert dict(again.flops) == {largest: work.flops}


def test_a_chain_s_convolution_has_no_gradient_of_its_kernel() -> None:
    net, x = nn.Conv2d(3, 4, 3).requires_grad_(False), torch.rand(2, 3, 8, 8, requires_grad=True)
    with ConvolutionLog() as log:
        torch.autograd.grad(net(x).sum(), x)
    assert log.mask(log.largest()) == (True, False)
    assert convolution_work(log, CPU).what.endswith("gradient of input")
    assert convolution_work(ConvolutionLog(), CPU) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_matrix_product_counts_what_it_does(precision: str) -> None:
    work = matrix_product(CPU, precision)
    assert precision in work.what and count_flops(work.call) == work.flops


# -- the sweep


@given(st.floats(-10, 10), st.floats(0, 10), st.lists(st.integers(0, 50), min_size=2, unique=True))
def test_a_line_fits_points_on_a_line(slope: float, intercept: float, x: list[int]) -> None:
    line = least_squares(x, [intercept + slope * v for v in x])
    assert line.slope == pytest.approx(slope, abs=1e-6) and line.at(3) == pytest.approx(
        intercept + 3 * slope, abs=1e-5
    )


def test_a_line_says_how_well_it_fits() -> None:
    assert least_squares([0, 1, 2], [0, 1, 0]).r2 == pytest.approx(0)
    assert least_squares([1, 2, 4], [3, 5, 9]).r2 == pytest.approx(1)
    with pytest.raises(ValueError, match="two different"):
        least_squares([1, 1], [2, 3])


def test_a_sweep_is_sorted_numbers() -> None:
    assert parse_sweep("train.batch_size=32,8,16", 5) == ("train.batch_size", [8, 16, 32])


def test_a_sweep_is_drawn(cache: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, key in (("train.batch_size=8,16,32", "train.batch_size"), ("modalities=1,2", "modalities")):
        assert call(*TINY, *cache, "--sweep", setting, "--out", str(tmp_path), "--format", "json") == 0
        swept = json.loads(capsys.readouterr().out)["sweep"]
        assert swept["key"] == key and len(swept["values"]) == len(swept["median_s"]) > 1
        line = least_squares(swept["values"], swept["median_s"])
        assert swept["line"]["slope_s"] == pytest.approx(line.slope)
        for name in swept["files"]:
            assert Path(name).parent == tmp_path and Path(name).stat().st_size > 1000
        assert {Path(name).suffix for name in swept["files"]} == {".png", ".pdf"}
    assert call(*TINY, *cache, "--sweep", "latent=2,4", "--out", str(tmp_path)) == 0
    assert "least squares:" in capsys.readouterr().out


# -- the command


def test_json_holds_every_quantity(cache: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--batch-size", "24", "--layers", "--format", "json", "--clock", "processor"]
    assert call(*TINY, *cache, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["device"] == "cpu" and report["clock"] == "processor"
    (found,) = report["configurations"]
    assert found["batch_size"] == 24 and found["parameters"]["total"] > 0
    step = found["training_step"]
    assert 0 < step["p10_s"] <= step["median_s"] <= step["p90_s"] and step["repeats"] == 2
    assert step["samples_per_s"] == pytest.approx(24 / step["median_s"])
    assert step["flops_per_s"] == pytest.approx(step["flops"] / step["median_s"])
    assert step["peak_memory_mib"] > 1 and set(step["stages"]) == {"warm", "polish"}
    ceiling = found["ceilings"]["matrix product"]
    assert ceiling["share"] == pytest.approx(step["flops_per_s"] / ceiling["flops_per_s"])
    assert "convolution" not in found["ceilings"]  # it has none
    assert set(found["networks_alone"]) == {"warm", "polish"}
    for draw in found["sampling"]:
        assert draw["seconds_per_sample"] == pytest.approx(draw["median_s"] / draw["tuples"])
    assert {d["task"] for d in found["sampling"]} == {"joint", "cross"}


def test_two_configurations_and_their_ratio(cache: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    compare = ["--compare", "latent=8", "--compare", "method=tiny:TinyVAE", "--no-sampling"]
    assert call(*TINY, *cache, *compare, "--format", "json") == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["configurations"]
    assert first["overrides"] == {} and second["overrides"] == {"latent": 8} and not first["sampling"]
    ratio = report["ratio"]
    steps = [c["training_step"] for c in (first, second)]
    assert ratio["seconds per training step, median"] == pytest.approx(
        steps[1]["median_s"] / steps[0]["median_s"]
    )
    assert ratio["GFLOP per training step"] == pytest.approx(steps[1]["flops"] / steps[0]["flops"])
    assert call(*TINY, *cache, *compare) == 0
    heading = capsys.readouterr().out.splitlines()[2]
    assert heading.split() == ["tiny:TinyVAE", "latent=8,", "tiny:TinyVAE", "2nd", "/", "1st"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "latent=8", "--sweep", "latent=2,4"], "exclude each other"),
        (["--compare", "latent=8", "--method", "mmvae"], "2 methods cannot be put side by side"),
        (["--compare", "latnt=8"], "no hyper-parameter 'latnt'; did you mean 'latent'?"),
        (["--compare", "method=mvebm"], "stands for mvebm_base and mvebm_gen"),
        (["--sweep", "latent"], "--sweep needs KEY=v1,v2"),
        (["--sweep", "latent=4"], "--sweep needs KEY=v1,v2"),
        (["--sweep", "latent=two,four"], "--sweep needs KEY=v1,v2"),
        (["--sweep", "modalities=1,3"], "whole numbers from 1 to 2"),
        (["--repeats", "0"], "x>=1"),
    ],
)
def test_wrong_wishes(
    arguments: list[str], message: str, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*TINY, *cache, *arguments) == 2
    assert message in complaint(capsys)


def test_a_method_that_cannot_be_measured_is_one_line(
    cache: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(subjects, **how):
        if subjects[0].label == "mmvae":
            raise UserError("needs captions")
        return measure(subjects, **how)

    monkeypatch.setattr(cost_command, "measure", refusing)
    assert call(*TINY, *cache, "--method", "mmvae", "--set", "latent=3") == 0
    out = capsys.readouterr().out
    assert "mmvae cannot be measured: needs captions" in out and "samples per second" in out
    assert call(*TINY, *cache, "--method", "mmvae", "--set", "latent=3", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)["configurations"]
    assert [set(each) >= {"training_step"} for each in found] == [True, False]
    assert call("cost", "--method", "mmvae", *TINY[3:], *cache) == 1
    assert capsys.readouterr().err.endswith("Error: needs captions\n")
