"""The one training loop: every method, every stage, exact resume.

The harness calls `method(x, progress)` and descends what comes back. Nothing inside a step waits for
the device: losses are summed there and fetched every few steps.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.config import TrainConfig
from bench.costing import stage_seconds
from bench.device import fetch, on_device, synchronize
from bench.errors import Interrupted
from bench.forecast import Forecast
from bench.health import Health
from bench.optimise import (
    Average,
    StageOptimiser,
    descend_all,
    losses_of,
    only,
    stage_file,
    stage_groups,
    stage_steps,
)
from bench.progress import Reporter, Task
from bench.randomness import Order, derive, forked, random_state, seed_all, set_random_state
from bench.safefiles import file_hash
from bench.signals import on_signal
from bench.store import CHECKPOINT, RunFolder
from bench.stream import Feed
from datasets.spec import Split, UserError
from methods.base import Diverged, Method, Progress, Stage

VALIDATION_BATCHES = 4


@dataclass
class TrainResult:
    """How training ended: `done` or `diverged` with a reason; clocks in seconds that add up to `wall`."""

    status: str
    reason: str = ""
    steps: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    resumed_at: int | None = None
    code: str = ""


def train(
    method: Method,
    train: Split,
    val: Split | None,
    config: TrainConfig,
    folder: RunFolder,
    *,
    seed: int,
    device: torch.device,
    progress: Reporter | None = None,
    first_stage: int = 0,
    code: str = "",
) -> TrainResult:
    """Train `method` in place and leave its last (or averaged) weights in it.

    Continues from the folder's checkpoint where there is one, bit for bit on a CPU. `first_stage` skips
    stages whose weights are there already. `code` is the hash of the method's code; the result's names all
    that had a part in the weights, joined by `+`. Raises Interrupted after SIGINT or SIGTERM with everything
    saved, UserError for a budget or a checkpoint that does not fit.
    """
    if config.batch_size > len(train):
        raise UserError(
            f"batch size {config.batch_size} exceeds the {len(train)} training tuples; lower train.batch_size"
        )
    loop = Loop(
        method, train, val, config, folder, seed, device, progress or Reporter(quiet=True), first_stage, code
    )
    with on_signal(loop.stop):
        return loop.run()


class Loop:
    """The state of a training run between two steps; see `train`."""

    def __init__(
        self,
        method: Method,
        train: Split,
        val: Split | None,
        config: TrainConfig,
        folder: RunFolder,
        seed: int,
        device: torch.device,
        reporter: Reporter,
        first_stage: int,
        code: str,
    ) -> None:
        self.method, self.config, self.folder, self.reporter = method, config, folder, reporter
        self.seed, self.device, self.code = seed, device, code
        self.train, self.val = on_device(train, device), on_device(val, device) if val is not None else None
        self.stages = method.stages
        self.budget = stage_steps(self.stages, config.steps)
        self.stage, self.step = first_stage, 0
        self.done = self.skipped = sum(self.budget[:first_stage])
        self.log_every = max(1, min(50, config.steps // 200))
        self.order = Order(len(train), config.batch_size, derive(seed, "order"), device)
        self.feed = Feed(self.train, self.order, device)
        self.optimiser: StageOptimiser | None = None
        self.average: Average | None = None
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        # The first step whose loss was not finite, or -1; kept on the device.
        self.bad = torch.full((), -1, dtype=torch.long, device=device)
        self.clocks = {"train_s": 0.0, "validate_s": 0.0, "save_s": 0.0}
        self.validation: dict[str, float] = {}
        self.stopped_by = 0
        # Processor seconds of earlier sessions, less what this process had used before.
        self.cpu = -time.process_time()
        self.forecast = Forecast(self.stages, self.budget)
        self.health = Health()

    def stop(self, number: int) -> None:
        """End after the step under way, because of this signal."""
        self.stopped_by = number

    def run(self) -> TrainResult:
        began = time.monotonic()
        seed_all(derive(self.seed, "train"))
        state = self.folder.load_checkpoint()
        resumed = None
        if state is not None:
            self._restore(state)
            resumed = self.done
            self.reporter.say(f"resuming at step {self.done} of {self.config.steps}")
        else:
            self.folder.cut_log(-1)
        earlier = sum(self.clocks.values())
        status, reason = "done", ""
        try:
            with self.reporter.task("training", self.config.steps, self.done) as task:
                while self.stage < len(self.stages):
                    self._run_stage(task, state)
                    state = None
            self._finish()
        except Diverged as error:
            status, reason = "diverged", f"at step {self.done}: {error}"
        except (ArithmeticError, RuntimeError, ValueError) as error:
            # NaN often surfaces first as somebody's complaint about an argument.
            if self._sane():
                raise
            status, reason = "diverged", f"at step {self.done}: loss or weights are not finite ({error})"
        finally:
            self.feed.close()
        wall = earlier + time.monotonic() - began
        timing = {**self.clocks, "wall_s": wall, "other_s": wall - sum(self.clocks.values())}
        timing["cpu_s"] = self._cpu_seconds()
        timing["step_s"] = self.clocks["train_s"] / max(1, self.done - self.skipped)
        files = {s.name: self.folder.path / stage_file(s.name) for s in self.stages[:-1]}
        stages = {name: file_hash(path) for name, path in files.items() if path.exists()}
        return TrainResult(status, reason, self.done, timing, self.validation, stages, resumed, self.code)

    def _run_stage(self, task: Task, state: dict[str, Any] | None) -> None:
        stage, steps = self.stages[self.stage], self.budget[self.stage]
        groups = stage_groups(self.method, stage)
        with only(self.method, groups.values()):
            self.optimiser = StageOptimiser(groups, self.config, steps, self.order.per_epoch, stage.rate)
            self.average = Average(self.method, self.config.ema) if self.config.ema else None
            if state is not None:
                self._restore_optimiser(state)
            self.method.train()
            first = self.step
            self.forecast.begin()
            while self.step < steps:
                self._timed("train_s", self._one_step, stage, steps)
                if self.forecast.after(self.stage, self.step - first, lambda: synchronize(self.device)):
                    self._announce()
                task.advance(left=self.forecast.left(self.stage, self.step))
                self._between_steps(task, stage, steps)
        if self.stage < len(self.stages) - 1:
            self._timed("save_s", self.folder.save_weights, self.method.state_dict(), stage_file(stage.name))
            self.stage, self.step = self.stage + 1, 0
            self.optimiser = None
            self.order.begin()
            self._timed("save_s", self._save)
        else:
            self.stage += 1

    def _one_step(self, stage: Stage, steps: int) -> None:
        """One batch, one optimiser step for each loss."""
        assert self.optimiser is not None
        batch, precision = self.feed.next(), self.config.precision
        at = self._progress(stage, steps)
        for loss in descend_all(self.method, self.optimiser, batch, at, self.device, precision):
            total = loss.total
            fine = torch.isfinite(total.detach())
            self.bad = torch.where((self.bad < 0) & ~fine, self.done, self.bad)
            self._count({"loss": total, **loss.terms})
        if self.average is not None:
            self.average.update(self.method)
        self.counted += 1
        self.step += 1
        self.done += 1

    def _progress(self, stage: Stage, steps: int) -> Progress:
        return Progress(stage.name, self.step, steps, self.step // self.order.per_epoch)

    def _count(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            value = value.detach().float().mean()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _between_steps(self, task: Task, stage: Stage, steps: int) -> None:
        """Log, validate, save and stop where it is time to."""
        last = self.step == steps
        every = self.config.validate_every
        if self.done % self.log_every == 0 or last:
            self._timed("train_s", self._log, task, stage)
        if self.val is not None and every and (self.done % every == 0 or self.done == self.config.steps):
            self._timed("validate_s", self._validate, stage, steps)
        if self.done % self.config.checkpoint_every == 0 and not last or self.stopped_by:
            self._check_finite()
            self._timed("save_s", self._save)
        if self.stopped_by:
            name = signal.Signals(self.stopped_by).name
            raise Interrupted(f"stopped by {name} at step {self.done}, the same command goes on from here")

    def _log(self, task: Task, stage: Stage) -> None:
        """Fetch the summed losses (the only wait for the device), write a line, look for NaN."""
        if not self.counted:
            return
        names = list(self.sums)
        values = (torch.stack([self.sums[n] for n in names]) / self.counted).tolist()
        self.sums, self.counted = {}, 0
        terms = dict(zip(names, values, strict=True))
        epoch = self.step // self.order.per_epoch
        self.folder.log(
            {
                "kind": "train",
                "stage": stage.name,
                "step": self.done,
                "epoch": epoch,
                "seconds": round(self.clocks["train_s"], 3),
                "terms": terms,
            }
        )
        for sentence in self.health.look(stage.name, self.done, terms):
            self.reporter.say(f"warning: {sentence}")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(terms.items())[:4])
        task.advance(0, shown)
        self._check_finite()

    def _sane(self) -> bool:
        return int(self.bad) < 0 and all(bool(torch.isfinite(p).all()) for p in self.method.parameters())

    def _check_finite(self) -> None:
        bad = int(self.bad)
        if bad >= 0:
            raise Diverged(f"the loss of step {bad} is not finite; lower the learning rate or the step sizes")

    @torch.enable_grad()
    def _validate(self, stage: Stage, steps: int) -> None:
        """Mean loss over a few fixed validation batches; leaves weights, buffers and generators alone."""
        assert self.val is not None
        size = min(self.config.batch_size, len(self.val))
        kept = {name: buffer.clone() for name, buffer in self.method.named_buffers()}
        sums: dict[str, float] = {}
        count = min(VALIDATION_BATCHES, len(self.val) // size)
        at = self._progress(stage, steps)
        self.method.eval()
        with forked(derive(self.seed, "validate")):
            for i in range(count):
                batch = fetch(self.val, slice(i * size, (i + 1) * size), self.device)
                for loss in losses_of(self.method, batch, at, self.device, self.config.precision):
                    for name, value in {"loss": loss.total, **loss.terms}.items():
                        sums[name] = sums.get(name, 0.0) + float(value.detach().float().mean()) / count
        self.method.train()
        with torch.no_grad():
            for name, buffer in self.method.named_buffers():
                buffer.copy_(kept[name])
        self.validation = sums
        epoch = self.step // self.order.per_epoch
        self.folder.log(
            {"kind": "val", "stage": stage.name, "step": self.done, "epoch": epoch, "terms": sums}
        )

    def _announce(self) -> None:
        """Say how long the rest takes; a stage that is still to come is judged by one step of it."""
        if later := self.forecast.unknown(self.stage):
            batch = fetch(self.train, slice(0, self.config.batch_size), self.device)
            for i in later:
                # What a stage cannot do with half-trained weights only costs the forecast.
                with suppress(ArithmeticError, RuntimeError, ValueError, Diverged):
                    seconds = stage_seconds(self.method, batch, self.stages[i], self.config.precision)
                    self.forecast.pace[i] = seconds
        if sentence := self.forecast.sentence(self.stage, self.step, self.device):
            self.reporter.say(sentence)

    def _timed(self, clock: str, call: Any, *args: Any) -> None:
        if clock != "train_s":
            synchronize(self.device)
        began = time.monotonic()
        try:
            call(*args)
        finally:
            self.clocks[clock] += time.monotonic() - began

    def _cpu_seconds(self) -> float:
        """Processor seconds of all threads so far, earlier sessions included."""
        return self.cpu + time.process_time()

    def _save(self) -> None:
        self.folder.save_checkpoint(
            {
                "method": self.method.state_dict(),
                "code": self.code,
                "optimiser": self.optimiser.state() if self.optimiser else None,
                "average": self.average.state() if self.average and self.optimiser else None,
                "stage": self.stage,
                "step": self.step,
                "done": self.done,
                "steps": self.config.steps,
                "order": self.order.state(),
                "random": random_state(),
                "clocks": self.clocks,
                "cpu": self._cpu_seconds(),
                "sums": self.sums,
                "counted": self.counted,
                "validation": self.validation,
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        path = self.folder.path / CHECKPOINT
        try:
            if state["steps"] != self.config.steps:
                raise ValueError(f"it was made for {state['steps']} steps")
            self.method.load_state_dict(state["method"])
            self.stage, self.step, self.done = state["stage"], state["step"], state["done"]
            self.order.load(state["order"])
            if not set_random_state(state["random"]) and self.device.type == "cuda":
                # Else the noise of the first steps would come a second time.
                torch.cuda.manual_seed_all(derive(self.seed, "train", str(self.done)))
                self.reporter.say("note: saved with other GPUs; random numbers go on from a new seed")
            self.clocks.update(state["clocks"])
            self.cpu += state["cpu"]
            self.sums = {k: v.to(self.device) for k, v in state["sums"].items()}
            self.counted, self.validation = state["counted"], state["validation"]
            earlier = state.get("code") or self.code
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(_unfit(path, error)) from error
        if earlier.split("+")[-1] != self.code:
            self.reporter.say(
                f"note: the method's code changed since step {self.done} was saved, and the record will name "
                "both versions; --force starts again"
            )
            self.code = f"{earlier}+{self.code}"
        else:
            self.code = earlier
        self.folder.cut_log(self.done)
        self.health = Health(self.folder.read_log())

    def _restore_optimiser(self, state: dict[str, Any]) -> None:
        assert self.optimiser is not None
        try:
            if state["optimiser"] is None:
                return  # saved between two stages
            self.optimiser.load(state["optimiser"])
            if self.average is not None:
                self.average.load(state["average"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(_unfit(self.folder.path / CHECKPOINT, error)) from error

    def _finish(self) -> None:
        """Put the averaged weights in place; refuse weights that are not finite."""
        self._check_finite()
        if self.average is not None:
            self.method.load_state_dict(self.average.values)
        for name, tensor in self.method.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise Diverged(f"the weights '{name}' are not finite; lower the learning rate")
        self.method.eval()


def _unfit(path: Any, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the checkpoint '{path}' does not fit this run ({reason}); start again with --force"
