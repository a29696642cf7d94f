"""What the commands print: outcomes, tables, probes, data sets, the state of the machine."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.build import find_run
from bench.device import autocast, hardware, pick_device
from bench.errors import UsageError
from bench.job import Options, Outcome
from bench.listing import columns
from bench.names import PRIORS
from bench.progress import Reporter, duration
from bench.provenance import versions
from bench.publish import publish
from bench.randomness import derive, forked
from bench.registry import dataset_names, load_dataset
from bench.run import load_run, prepare
from bench.scoring import save_grid, score
from bench.store import GRID, RECORD, RunRecord, find_runs
from datasets.spec import UserError
from metrics.protocol import Score


def outcomes_text(outcomes: Sequence[Outcome]) -> str:
    """One paragraph per run: how it ended and where its record and grid are."""
    parts = []
    for o in outcomes:
        how = "done before, reused" if o.reused else f"{o.status} in {duration(o.seconds)}"
        lines = [f"{o.method} on {o.dataset} ({o.preset}, seed {o.seed}): {how}"]
        if o.reason:
            lines.append(f"  reason  {o.reason}")
        for name, file in (("record", RECORD), ("grid", GRID)):
            if (o.folder / file).exists():
                lines.append(f"  {name:<6}  {o.folder / file}")
        parts.append("\n".join(lines))
    return "\n".join(parts)


def tables_text(name: str | None, results: Path, dataset: str | None, preset: str | None, style: str) -> str:
    """The comparison tables of a results folder, or a table of the paper."""
    from bench.paper_tables import paper_table
    from bench.prior_table import prior_table
    from bench.render import render
    from bench.table import comparison_tables

    records = _records(results)
    if name == PRIORS:
        return render(prior_table(records, preset, dataset), style).rstrip("\n")
    if name is not None:
        return render(paper_table(name, records, preset=preset, dataset=dataset), style).rstrip("\n")
    tables = comparison_tables(records, dataset=dataset, preset=preset)
    return "\n\n".join(render(table, style).rstrip("\n") for table in tables)


def scores_of(results: Path, style: str, names: Sequence[str] = (), **chosen: Any) -> str:
    """The scores of a results folder, one a line; see `score_lines`."""
    from bench.score_list import score_lines, scores_text

    return scores_text(score_lines(_records(results), methods=names, **chosen), style)


def _records(results: Path) -> list[RunRecord]:
    if not results.is_dir():
        raise UsageError(f"there is no results folder '{results}'; give one with --results or run something")
    return find_runs(results)


def score_rows(scores: Sequence[Score]) -> str:
    """Scores as a table of text."""
    rows = [["metric", "task", "given", "target", "sampler", "attribute", "value", "95 %", "n"]]
    for s in scores:
        value = f"{s.value:.4g}" if s.value is not None else s.unavailable or "-"
        span = f"{s.low:.3f} to {s.high:.3f}" if s.low is not None and s.high is not None else ""
        rows.append([s.metric, s.task, s.given, s.target, s.sampler, s.attribute, value, span, str(s.n)])
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return columns([[row[i] for i in used] for row in rows])


def probe_text(run_name: str, full: bool, options: Options) -> str:
    """Probe a finished run's latents; its record stays as it is."""
    folder = find_run(options.results, run_name)
    method, data, config = load_run(folder, options)
    plan = replace(config.plan, metrics=("latent",), probe_full=full or config.plan.probe_full)
    found = score(method, data, plan, config, method.device, options, Reporter())
    return f"probes on {folder}\n{score_rows(found.scores)}"


def publish_runs(names: Sequence[str], results: Path) -> list[Path]:
    """Publish several runs; none is copied unless all are there."""
    folders = [find_run(results, name) for name in names]
    return [publish(folder, results) for folder in folders]


def sample_run(
    run_name: str,
    given: Sequence[str],
    sampler: str | None,
    steps: int | None,
    count: int,
    seed: int,
    out: Path,
    options: Options,
) -> Path:
    """Draw `count` tuples from a finished run into one picture; with `given`, from test tuples."""
    method, data, config = load_run(find_run(options.results, run_name), options)
    names, task = data.spec.names, "cross" if given else "joint"
    for name in given:
        if name not in names:
            raise UsageError(f"{config.dataset} has no modality '{name}'; there are {', '.join(names)}")
    serving = [name for name, tasks in method.samplers.items() if task in tasks]
    if sampler is not None and sampler not in serving:
        known = ", ".join(serving) or "none"
        raise UsageError(f"{config.method} has no sampler '{sampler}' for {task} samples; there are: {known}")
    reason = type(method).unsupported(data.spec, task)
    if reason is not None:
        raise UserError(f"{config.method} draws no {task} samples here: {reason}")
    from bench.drawing import spread

    test = data.split("test")
    with forked(derive(seed, "sample")), torch.no_grad(), autocast(method.device, config.train.precision):
        if not given:
            batch = method.joint_generate(count, sampler, steps)
        else:
            rows = spread(test, count)
            seen = {n: t.to(method.device) for n, t in test.batch(rows).items() if n in given}
            targets = [n for n in names if n not in given]
            batch = {**method.cross_generate(dict(seen), targets, sampler, steps), **seen}
    return save_grid({n: batch[n] for n in names}, out, data)


def data_text(name: str, options: Options) -> str:
    """Prepare a data set; its counts, fingerprint, notes and judges."""
    from bench.evaluate import coherence_metric, find_judges

    data = prepare(name, options, Reporter())
    lines = [f"{name}, fingerprint {data.fingerprint}"]
    for modality in data.spec:
        lines.append(f"  modality {modality.name}: {modality.kind} {'x'.join(map(str, modality.shape))}")
    for split in ("train", "val", "test"):
        part = data.split(split)  # type: ignore[arg-type]
        lines.append(f"  {split}: {len(part):,} tuples, labels {', '.join(part.labels) or 'none'}")
    lines += [f"  note: {note}" for note in data.notes]
    judges, reason = find_judges(data, options.cache, pick_device(options.device))
    if judges is None:
        return "\n".join([*lines, f"  no judges: {reason}"])
    for modality_name, accuracy in judges.accuracy.items():
        source = getattr(judges, "source", {}).get(modality_name, "")
        lines.append(f"  judge of {modality_name}: accuracy {accuracy:.4f} on test ({source})")
    if data.oracle is not None:
        lines += _agreement(coherence_metric(data, judges, data.split("test")).compute())
    return "\n".join(lines)


def _agreement(scores: Sequence[Score]) -> list[str]:
    """Agreement of real pairs and chance, per attribute and for all of them together."""
    value = {(s.metric, s.attribute): s.value for s in scores}
    names = dict.fromkeys(s.attribute for s in scores if s.metric == "coherence_joint_ceiling")
    return [
        f"  {name or 'all attributes'}: real pairs agree {value['coherence_joint_ceiling', name]:.4f}, "
        f"chance {value['coherence_joint_chance', name]:.4g} (joint), "
        f"{value['coherence_cross_chance', name]:.4g} (cross)"
        for name in names
    ]


def _writable(folder: Path) -> str:
    """Empty if files can be made in `folder`, or in what is there of its path, else the reason."""
    try:
        there = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def doctor_text(options: Options) -> tuple[str, bool]:
    """What works here, one line each; False if something that every run needs does not."""
    from metrics import clip, fid
    from metrics.weights import Unavailable

    rows = [["check", "state", "detail"]]
    for name, number in versions().items():
        rows.append([name, "ok", number])
    try:
        device = pick_device(options.device)
        about = hardware(device)
        rows.append(["device", "ok", f"{device}, {about['name']}, {about['cores']} cores"])
    except UserError as error:
        rows.append(["device", "FAILED", str(error)])
    for name, folder in (("results", options.results), ("cache", options.cache)):
        reason = _writable(folder)
        rows.append([name, "FAILED" if reason else "ok", f"{folder}: {reason}" if reason else str(folder)])
    if options.data is None:
        rows.append(["data folder", "not set", "--data or BENCH_DATA names one; polydigits needs none"])
    else:
        found = options.data.is_dir()
        rows.append(
            ["data folder", "ok" if found else "FAILED", f"{options.data}{'' if found else ': no folder'}"]
        )
    for weights, path in ((fid.WEIGHTS, options.inception), (clip.WEIGHTS, options.clip)):
        try:
            found = weights.find(path or os.environ.get(weights.environment), download=False)
            rows.append([f"{weights.what} weights", "ok", str(found)])
        except (Unavailable, UserError) as error:
            rows.append([f"{weights.what} weights", "missing", str(error)])
    for name in dataset_names():
        try:
            load_dataset(name, options.cache, options.data)
            rows.append([f"data set {name}", "ok", "loads; `bench data` prepares it"])
        except UserError as error:
            rows.append([f"data set {name}", "FAILED", str(error)])
    broken = {row[1] for row in rows} & {"FAILED"}
    runs = (
        Counter(r.record.get("status") for r in find_runs(options.results))
        if options.results.is_dir()
        else {}
    )
    rows.append(["runs", "ok", ", ".join(f"{n} {s}" for s, n in sorted(runs.items())) or "none yet"])
    return columns(rows), not broken
