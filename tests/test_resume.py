"""A run that was stopped anywhere ends with the very weights and scores of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import go, make, same
from tiny import TinyData, TinyVAE

from bench.build import build_method
from bench.device import set_deterministic
from bench.errors import Interrupted
from bench.progress import Reporter
from bench.safefiles import load_tensors
from bench.store import RunFolder, find_runs
from bench.train import train
from datasets.spec import Batch, UserError
from methods.base import Method, Progress

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data() -> TinyData:
    return TinyData(Path("unused"))


def stopped_at(monkeypatch: pytest.MonkeyPatch, call: int, action: Any) -> None:
    """Do `action` when the method is called for the `call`-th time, once."""
    original, count = TinyVAE.forward, [0]

    def forward(self: TinyVAE, x: Batch, progress: Progress) -> Any:
        count[0] += 1
        if count[0] == call:
            action()
        return original(self, x, progress)

    monkeypatch.setattr(TinyVAE, "forward", forward)


class Crash(BaseException):
    """Stands for a power cut: nothing of ours may catch it."""


def crash() -> None:
    raise Crash


FLAVOURS = [
    (),
    ("train.ema=0.9",),
    ("two_losses=true", "clip=1"),
    ("train.schedule=cosine", "warm=0.3"),
    ("train.validate_every=4", "train.precision=bf16"),
]


@pytest.mark.parametrize("call", [3, 6, 13, 14, 24])
@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda f: "+".join(f) or "plain")
def test_a_crash_changes_nothing(
    flavour: tuple[str, ...], call: int, data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(*flavour)
    _, whole = go(config, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stopped_at(patch, call, crash)
        with pytest.raises(Crash):
            go(config, data, tmp_path / "cut")
    saved = RunFolder(tmp_path / "cut").load_checkpoint()
    assert saved is not None or call < 13  # the first is saved after step 5, and validation calls too
    result, resumed = go(config, data, tmp_path / "cut")
    assert same(whole, resumed)
    assert result.resumed_at == (saved["done"] if saved else None)
    assert log(tmp_path / "cut") == log(tmp_path / "whole")


def test_weights_of_two_versions_of_the_code_name_both(
    data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make()

    def run(code: str, reporter: Reporter | None = None) -> str:
        method, folder = build_method(config, data.spec), RunFolder(tmp_path)
        splits, keys = (data.split("train"), data.split("val")), {"seed": 0, "device": torch.device("cpu")}
        return train(method, *splits, config.train, folder, code=code, progress=reporter, **keys).code

    def cut(code: str, call: int) -> None:
        with monkeypatch.context() as patch:
            stopped_at(patch, call, crash)
            with pytest.raises(Crash):
                run(code)

    cut("one", 8)
    cut("one", 6)
    assert "both versions" not in capsys.readouterr().err
    cut("two", 6)
    assert run("two", Reporter()) == "one+two"
    RunFolder(tmp_path).drop("checkpoint.pt")
    cut("one", 8)
    assert run("three", Reporter()) == "one+three"
    assert "the record will name both versions" in capsys.readouterr().err


def log(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).read_log()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("call", [2, 12, 24])
def test_a_signal_saves_and_the_run_goes_on(
    number: signal.Signals, call: int, data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make("train.checkpoint_every=1000", "train.ema=0.9")
    _, whole = go(config, data, tmp_path / "whole")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        stopped_at(patch, call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"{number.name} at step {call}"):
            go(config, data, tmp_path / "cut")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    earlier = RunFolder(tmp_path / "cut").load_checkpoint()["cpu"]
    result, resumed = go(config, data, tmp_path / "cut")
    assert result.resumed_at == call and same(whole, resumed)
    assert result.timing["cpu_s"] > earlier > 0


def test_a_checkpoint_of_another_run_is_one_sentence(data: TinyData, tmp_path: Path) -> None:
    def interrupted(*overrides: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            stopped_at(patch, 8, crash)
            with pytest.raises(Crash):
                go(make(*overrides), data, tmp_path)

    interrupted()
    for other in (make("latent=7"), make("train.steps=30")):
        with pytest.raises(UserError, match="does not fit this run .*--force") as caught:
            go(other, data, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_holds_everything(data: TinyData, tmp_path: Path) -> None:
    """Dropping any part of the state must be seen as a misfit, never passed over."""
    with pytest.MonkeyPatch.context() as patch:
        stopped_at(patch, 8, crash)
        with pytest.raises(Crash):
            go(make("train.ema=0.9"), data, tmp_path)
    whole = RunFolder(tmp_path).load_checkpoint()
    assert whole is not None
    for key in ("optimiser", "average", "order", "random", "stage", "step", "sums"):
        RunFolder(tmp_path).save_checkpoint({k: v for k, v in whole.items() if k != key})
        with pytest.raises(UserError, match="does not fit"):
            go(make("train.ema=0.9"), data, tmp_path)


STEPS = 1500


def command(results: Path, cache: Path) -> list[str]:
    settings = [f"train.steps={STEPS}", "train.batch_size=20", "train.checkpoint_every=50", "plan.joint=100"]
    settings += ["plan.cross=60", "plan.nested=60", "plan.probe_train=100", "plan.metrics=coherence,latent"]
    sets = [part for s in settings for part in ("--set", s)]
    names = ["--method", "tiny:TinyVAE", "--dataset", "tiny:TinyData", "--preset", "quick", "--seed", "3"]
    places = ["--results", str(results), "--cache", str(cache), "--device", "cpu"]
    return [sys.executable, "-m", "bench", "run", *names, *sets, *places]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def logged(results: Path) -> int:
    """Steps that the run under `results` has logged so far."""
    lines = [path.read_bytes().count(b"\n") for path in results.rglob("train.jsonl")]
    return sum(lines)


def scores(results: Path) -> Any:
    (record,) = find_runs(results)
    return record.record, json.loads((record.folder / "scores.json").read_text()), record


@pytest.mark.slow
def test_kill_9_at_a_random_moment(tmp_path: Path) -> None:
    """Whole processes: one is killed without warning (twice), both must end alike to the last bit."""
    moment = random.Random().uniform(0.05, 0.9)  # unseeded on purpose: any moment must do
    cut, whole, cache = tmp_path / "cut", tmp_path / "whole", tmp_path / "cache"
    lines = STEPS // 7
    for share in (moment / 2, moment):
        process = subprocess.Popen(
            command(cut, cache), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while logged(cut) < share * lines and process.poll() is None:
                time.sleep(0.002)
            assert process.poll() is None, "the run ended before it could be killed"
        finally:
            process.kill()
            process.wait()
    for results in (cut, whole):
        done = subprocess.run(command(results, cache), env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (killed_record, killed, a), (record, expected, b) = scores(cut), scores(whole)
    assert killed_record["status"] == record["status"] == "done"
    assert killed_record["run_id"] == record["run_id"]
    assert killed == expected, f"killed at {moment}"
    weights = [load_tensors(run.folder / "weights.safetensors") for run in (a, b)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not (a.folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_next_call_goes_on(tmp_path: Path) -> None:
    # So many steps that the signal meets the training loop, however late a busy machine delivers it.
    endless = [*command(tmp_path, tmp_path / "cache"), "--set", "train.steps=1000000"]
    process = subprocess.Popen(endless, env=environment(), stderr=subprocess.PIPE, text=True)
    while logged(tmp_path) < 20 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in complaint and "stopped by SIGINT at step" in complaint
    (record,) = find_runs(tmp_path)
    assert record.record["status"] == "running" and (record.folder / "checkpoint.pt").exists()


@pytest.mark.gpu
def test_a_crash_changes_nothing_on_cuda(
    data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With deterministic kernels the same holds on a GPU."""
    config, device = make("train.ema=0.9", "two_losses=true"), torch.device("cuda")
    set_deterministic(True)

    def run(folder: Path) -> Method:
        method = build_method(config, data.spec, device)
        folder.mkdir(exist_ok=True)
        splits = data.split("train"), data.split("val")
        train(method, *splits, config.train, RunFolder(folder), seed=0, device=device)
        return method

    try:
        whole = run(tmp_path / "whole")
        with monkeypatch.context() as patch:
            stopped_at(patch, 14, crash)
            with pytest.raises(Crash):
                run(tmp_path / "cut")
        assert same(whole, run(tmp_path / "cut"))
    finally:
        set_deterministic(False)


def test_the_method_has_state_worth_resuming(data: TinyData) -> None:
    """The dummy draws from all three generators; without that the tests above would prove little."""
    method: Method = TinyVAE(data.spec)
    source = Path(sys.modules["tiny"].__file__ or "").read_text()
    assert all(word in source for word in ("random.random()", "np.random.rand()", "torch.randn_like"))
    assert "calls" in method.state_dict()
