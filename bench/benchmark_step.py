"""One training step of a method, the very one that training runs, ready to be timed, counted and weighed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.build import build_method
from bench.config import RunConfig
from bench.costing import EPOCH, STEP, STEPS, traceless
from bench.device import fetch
from bench.optimise import Average, StageOptimiser, descend_all, only, stage_groups
from datasets.spec import Batch, DataSpec, Split
from methods.base import Method, Progress, Stage
from metrics.cost import peak_memory_mb, reset_peak


@dataclass(frozen=True)
class Subject:
    """What is measured: a method freshly built from `config`, and the batch it steps on."""

    label: str
    config: RunConfig
    method: Method
    batch: Batch
    train: Split
    device: torch.device

    @property
    def batch_size(self) -> int:
        return len(next(iter(self.batch.values())))


def subject(
    label: str,
    config: RunConfig,
    train: Split,
    device: torch.device,
    batch_size: int | None = None,
    modalities: int | None = None,
) -> Subject:
    """Build the method and its batch.

    batch_size: instead of the configuration's; a split that is smaller is repeated. modalities: only the
    first so many of the data set.
    """
    spec = train.spec if modalities is None else DataSpec(train.spec.modalities[:modalities])
    index = torch.arange(batch_size or config.train.batch_size) % len(train)
    batch = {name: t for name, t in fetch(train, index, device).items() if name in spec.names}
    return Subject(label, config, build_method(config, spec, device), batch, train, device)


@dataclass
class StageSteps:
    """Training steps of one stage: losses, backward, clipping, Adam, averaged weights. Call it for one."""

    subject: Subject
    stage: Stage
    optimiser: StageOptimiser = field(init=False)
    average: Average | None = field(init=False)

    def __post_init__(self) -> None:
        method, train = self.subject.method, self.subject.config.train
        self.groups = stage_groups(method, self.stage)
        self.optimiser = StageOptimiser(self.groups, train, STEPS, STEPS // EPOCH, self.stage.rate)
        self.average = Average(method, train.ema) if train.ema else None

    def __call__(self) -> None:
        s, progress = self.subject, Progress(self.stage.name, STEP, STEPS, EPOCH)
        precision = s.config.train.precision
        with only(s.method, self.groups.values()):
            for loss in descend_all(s.method, self.optimiser, s.batch, progress, s.device, precision):
                torch.isfinite(loss.total.detach())
            if self.average is not None:
                self.average.update(s.method)


@contextmanager
def training_steps(subject: Subject) -> Iterator[dict[str, StageSteps]]:
    """The steps of every stage by name. The method is as before afterwards: weights, buffers, mode, seeds."""
    with traceless(subject.method):
        yield {stage.name: StageSteps(subject, stage) for stage in subject.method.stages}


def shares(method: Method) -> dict[str, float]:
    """Share of every stage in the step budget."""
    total = sum(stage.share for stage in method.stages)
    return {stage.name: stage.share / total for stage in method.stages}


@dataclass(frozen=True)
class Peak:
    """Highest memory use in MiB, and what of: `device`, `process`, or `process since its start`."""

    mb: float
    of: str


def peak_of(call: Callable[[], object], device: torch.device) -> Peak:
    """Highest memory use during `call`; on a CPU that of the process, all it holds included."""
    if device.type == "cuda":
        reset_peak(device)
        call()
        return Peak(peak_memory_mb(device), "device")
    forgotten = _forget_peak()
    call()
    return Peak(_resident_peak(), "process") if forgotten else Peak(peak_memory_mb(device), SINCE_START)


SINCE_START = "process since its start"


def _forget_peak() -> bool:
    """Let the kernel count the peak of resident memory anew; False where it cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return "VmHWM" in Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False


def _resident_peak() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
