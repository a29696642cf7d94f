"""`bench cost` for people and for programs: the quantities as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.config import plain
from bench.cost_report import Alone, Measured
from bench.listing import columns
from bench.timing import Timing


class Row(NamedTuple):
    """One quantity: its name, its value (None: none here), how to print it, whether a ratio makes sense."""

    name: str
    value: float | str | None
    form: str = ".4g"
    ratio: bool = True


def rows_of(found: Measured) -> list[Row]:
    """Every quantity of one subject, in the order in which they are printed."""
    s, step = found.subject, found.step
    rows = [
        Row("preset", s.config.preset, ratio=False),
        Row("precision", s.config.train.precision, ratio=False),
        Row("batch", s.batch_size, "d", ratio=False),
        Row("parameters", found.parameters["total"], ",d"),
        Row("seconds per training step, median", step.median),
        Row("  p10", step.p10),
        Row("  p90", step.p90),
    ]
    if len(found.stages) > 1:
        rows += [Row(f"  of stage {name}, median", t.median) for name, t in found.stages.items()]
    rows += [
        Row("samples per second", s.batch_size / step.median),
        # A process also holds what came before: of two in one process the second would look larger.
        Row(f"peak memory of the {found.peak.of}, MiB", found.peak.mb, ".0f", found.peak.of == "device"),
        Row("GFLOP per training step", found.flops_per_step / 1e9),
        Row("GFLOP/s of a training step", found.rate / 1e9),
    ]
    for name, (work, timing) in found.ceilings.items():
        rate = work.flops / timing.median
        rows.append(Row(f"GFLOP/s of a {name}", rate / 1e9))
        rows.append(Row(f"  share of a {name} in a training step", found.rate / rate, ".1%", ratio=False))
    for name, alone in found.alone.items():
        rows += _alone_rows(f"stage {name}" if name in found.stages else name, alone, name in found.stages)
    for draw in found.sampling:
        how = f"{draw.sampler} {draw.task}"
        rows.append(Row(f"seconds per sample, {how}", draw.timing.median / draw.tuples))
        rows.append(Row(f"  evaluations, {how}", draw.evaluations, "d", ratio=False))
        rows.append(Row(f"  parameter overhead, {how}", draw.overhead, ",d", ratio=False))
    return rows


def _alone_rows(name: str, alone: Alone, stage: bool) -> Iterator[Row]:
    step, networks = alone.step.median, alone.networks.median
    yield Row(f"seconds of the networks alone, {name}", networks)
    if stage:
        yield Row(f"  share of them in a step, {name}", networks / step, ".1%", ratio=False)
    else:
        yield Row(f"seconds of one {name}", step)
        yield Row(f"  times its networks alone, {name}", step / networks, ".2f", ratio=False)


def table_text(measured: Sequence[Measured]) -> str:
    """Quantities down, subjects across; two subjects get their ratio, second by first."""
    both = [{row.name: row for row in rows_of(found)} for found in measured]
    names = list(dict.fromkeys(name for rows in both for name in rows))
    lines = [["", *(found.subject.label for found in measured)]]
    for name in names:
        lines.append([name, *(_shown(rows.get(name)) for rows in both)])
    if len(both) == 2:
        lines[0].append("2nd / 1st")
        for line, name in zip(lines[1:], names, strict=True):
            line.append(_ratio(both[0].get(name), both[1].get(name)))
    return columns(lines)


def _shown(row: Row | None) -> str:
    if row is None or row.value is None:
        return "-"
    return row.value if isinstance(row.value, str) else format(row.value, row.form)


def _ratio(first: Row | None, second: Row | None) -> str:
    if first is None or second is None or not first.ratio or not first.value:
        return ""
    return f"{second.value / first.value:.2f}"  # type: ignore[operator]


def machine_text(machine: dict[str, Any], device: Any) -> str:
    """The first line: what measured."""
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    return f"{machine['name']}, {machine['cores']} cores, device {device}{threads}"


def conditions_text(measured: Sequence[Measured], warmup: int, repeats: int, clock: str) -> str:
    """What the figures mean."""
    works = {
        f"{found.subject.label}: {work.what}"
        if name == "convolution" and len(measured) > 1
        else work.what: None
        for found in measured
        for name, (work, _) in found.ceilings.items()
    }
    return "\n".join(
        [
            f"{repeats} steps after {warmup} for warming up, optimiser included, all calls in turns; medians"
            f" of {clock} seconds",
            *(f"ceiling: {what}" for what in works),
        ]
    )


def timing_json(timing: Timing) -> dict[str, Any]:
    return {
        "median_s": timing.median,
        "p10_s": timing.p10,
        "p90_s": timing.p90,
        "repeats": len(timing.seconds),
    }


def to_json(found: Measured) -> dict[str, Any]:
    """Everything about one subject in JSON's own types; seconds, bytes of 2^20 (`mib`), operations."""
    s, step = found.subject, found.step
    return {
        "label": s.label,
        "method": s.config.method,
        "dataset": s.config.dataset,
        "preset": s.config.preset,
        "overrides": plain(s.config.overrides),
        "precision": s.config.train.precision,
        "batch_size": s.batch_size,
        "parameters": dict(found.parameters),
        "training_step": {
            **timing_json(step),
            "samples_per_s": s.batch_size / step.median,
            "flops": found.flops_per_step,
            "flops_per_s": found.rate,
            "peak_memory_mib": found.peak.mb,
            "peak_memory_of": found.peak.of,
            "stages": {n: {**timing_json(t), "flops": found.flops[n]} for n, t in found.stages.items()},
        },
        "ceilings": {
            name: {
                "what": work.what,
                **timing_json(timing),
                "flops": work.flops,
                "flops_per_s": work.flops / timing.median,
                "share": found.rate / (work.flops / timing.median),
            }
            for name, (work, timing) in found.ceilings.items()
        },
        "networks_alone": {
            name: {
                "step": timing_json(alone.step),
                "networks": timing_json(alone.networks),
                "step_by_networks": alone.step.median / alone.networks.median,
            }
            for name, alone in found.alone.items()
        },
        "sampling": [
            {
                "sampler": draw.sampler,
                "task": draw.task,
                "tuples": draw.tuples,
                **timing_json(draw.timing),
                "seconds_per_sample": draw.timing.median / draw.tuples,
                "evaluations": draw.evaluations,
                "parameter_overhead": draw.overhead,
            }
            for draw in found.sampling
        ],
    }


def ratio_json(first: Measured, second: Measured) -> dict[str, float]:
    """Second by first, for the quantities that both have and that a ratio makes sense of."""
    before = {row.name.strip(): row for row in rows_of(first) if row.ratio}
    return {
        name: row.value / before[name].value  # type: ignore[operator]
        for row in rows_of(second)
        if (name := row.name.strip()) in before and before[name].value
    }
