"""`bench cost`: which configurations are measured, and what is printed of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.benchmark_step import Subject, subject
from bench.config import RunConfig, resolve
from bench.cost_report import Measured, measure
from bench.cost_text import conditions_text, machine_text, ratio_json, table_text, to_json
from bench.device import hardware, pick_device
from bench.errors import UsageError
from bench.job import Options
from bench.progress import Reporter
from bench.registry import expand_methods
from bench.run import prepare
from bench.sweep import MODALITIES, Swept, parse_sweep, plot_sweep, sweep_text
from datasets.spec import Split, UserError


@dataclass(frozen=True)
class Request:
    """What to measure. `compare`: KEY=VALUE of the second configuration; `sweep`: KEY=v1,v2,..."""

    methods: Sequence[str]
    dataset: str
    preset: str
    overrides: Sequence[str] = ()
    batch_size: int | None = None
    compare: Sequence[str] = ()
    sweep: str = ""
    layers: bool = False
    sampling: bool = True
    warmup: int = 3
    repeats: int = 20
    clock: str = "wall"
    out: Path = Path("figures")


def cost_text(request: Request, options: Options, style: str = "table") -> str:
    """Measure freshly built methods on this machine; `style` is `table` or `json`.

    Raises UsageError for wishes that exclude each other, UserError where a method cannot be measured.
    """
    if request.compare and request.sweep:
        raise UsageError("--compare and --sweep exclude each other; give one of them")
    if (request.compare or request.sweep) and len(request.methods) != 1:
        what = (
            "--compare method=NAME names the second one" if request.compare else "sweep one after the other"
        )
        raise UsageError(f"{len(request.methods)} methods cannot be put side by side like this; {what}")
    device, reporter = pick_device(options.device), Reporter()
    if request.clock == "processor" and device.type != "cpu":
        raise UsageError(f"the processor's clock does not see what '{device}' does; use --clock wall")
    train = prepare(request.dataset, options, reporter).split("train")
    report: dict[str, Any] = {"machine": {**hardware(device), "torch": torch.__version__}}
    report |= {"warmup": request.warmup, "repeats": request.repeats, "clock": request.clock}
    blocks = [machine_text(report["machine"], device)]
    if request.sweep:
        swept = _sweep(request, train, device, reporter)
        files = plot_sweep(swept, request.out)
        report["sweep"] = {**swept.to_json(), "files": [str(path) for path in files]}
        blocks += [sweep_text(swept), "\n".join(map(str, files))]
        return json.dumps(report, indent=2) if style == "json" else "\n\n".join(blocks)
    report["configurations"] = []
    groups = _groups(request)
    for group in groups:
        try:
            found = _measure(group, request, train, device, reporter)
        except UserError as error:
            if len(groups) == 1:
                raise
            report["configurations"].append({"label": group[0][0], "unavailable": str(error)})
            blocks.append(f"{group[0][0]} cannot be measured: {error}")
            continue
        report["configurations"] += [to_json(each) for each in found]
        if len(found) == 2:
            report["ratio"] = ratio_json(*found)
        blocks.append(
            f"{table_text(found)}\n{conditions_text(found, request.warmup, request.repeats, request.clock)}"
        )
    return json.dumps(report, indent=2) if style == "json" else "\n\n".join(blocks)


def _groups(request: Request) -> list[list[tuple[str, RunConfig]]]:
    """What is measured together: one method after the other, or two configurations side by side."""
    configs = [resolve(name, request.dataset, request.preset, request.overrides) for name in request.methods]
    if not request.compare:
        return [[(config.method, config)] for config in configs]
    second = compared(configs[0], request)
    label = ", ".join([part.removeprefix("method=") for part in request.compare])
    return [[(configs[0].method, configs[0]), (label, second)]]


def compared(first: RunConfig, request: Request) -> RunConfig:
    """The first configuration with the KEY=VALUE of `compare`, of which `method` and `preset` may be keys."""
    chosen = {"method": first.method, "preset": first.preset}
    overrides = list(request.overrides)
    for text in request.compare:
        key, sign, value = text.partition("=")
        if sign and key.strip() in chosen:
            chosen[key.strip()] = value.strip()
        else:
            overrides.append(text)
    names = expand_methods([chosen["method"]])
    if len(names) != 1:
        raise UsageError(f"'{chosen['method']}' stands for {' and '.join(names)}; compare with one of them")
    return resolve(names[0], first.dataset, chosen["preset"], overrides)


def _measure(
    group: Sequence[tuple[str, RunConfig]],
    request: Request,
    train: Split,
    device: torch.device,
    reporter: Reporter,
) -> list[Measured]:
    reporter.say(f"measuring {' and '.join(label for label, _ in group)}")
    subjects = [subject(label, config, train, device, request.batch_size) for label, config in group]
    return _tried(subjects, request, layers=request.layers, sampling=request.sampling)


def _tried(subjects: Sequence[Subject], request: Request, **how: bool) -> list[Measured]:
    try:
        return measure(subjects, warmup=request.warmup, repeats=request.repeats, clock=request.clock, **how)
    except torch.OutOfMemoryError as error:
        labels = " and ".join(s.label for s in subjects)
        raise UserError(f"a step of {labels} does not fit into memory; lower --batch-size") from error


def _sweep(request: Request, train: Split, device: torch.device, reporter: Reporter) -> Swept:
    """Steps of one method at every value of one setting, in turns."""
    key, values = parse_sweep(request.sweep, len(train.spec))
    subjects = []
    for value in values:
        settings = [] if key == MODALITIES else [f"{key}={value:g}"]
        config = resolve(request.methods[0], request.dataset, request.preset, [*request.overrides, *settings])
        size = None if key == "train.batch_size" else request.batch_size
        modalities = int(value) if key == MODALITIES else None
        subjects.append(subject(f"{key}={value:g}", config, train, device, size, modalities))
    reporter.say(f"measuring {request.methods[0]} at {len(values)} values of {key}")
    found = _tried(subjects, request, sampling=False)
    title = f"{request.methods[0]} on {request.dataset}, preset {request.preset}"
    return Swept(title, key, values, [each.step for each in found])
