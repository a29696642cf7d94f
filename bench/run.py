"""From names to finished runs: what `bench run` calls, and loading a run again."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.build import build_method, find_initial, find_run, load_weights
from bench.config import RunConfig, resolve
from bench.device import autocast, pick_device
from bench.errors import Interrupted, UsageError
from bench.job import Job, Options, Outcome
from bench.names import DEFAULT_PRESET
from bench.progress import Reporter, duration
from bench.registry import expand_methods, load_dataset, load_method_class
from bench.safefiles import unwritable
from bench.store import WEIGHTS, RunFolder
from datasets.spec import Dataset, UserError
from methods.base import Method

__all__ = ["Options", "Outcome", "load_run", "prepare", "rescore", "run_many"]


def prepare(name: str, options: Options, reporter: Reporter) -> Dataset:
    """The data set, prepared. Raises UserError where its sources are missing or damaged."""
    data = load_dataset(name, options.cache, options.data)
    began = time.monotonic()
    data.prepare()
    if time.monotonic() - began > 2:
        reporter.say(f"prepared {name} in {duration(time.monotonic() - began)}")
    for note in data.notes:
        reporter.say(f"note: {note}")
    return data


def run_many(
    methods: Sequence[str],
    dataset: str,
    preset: str = DEFAULT_PRESET,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    options: Options | None = None,
    reporter: Reporter | None = None,
) -> list[Outcome]:
    """Run every method with every seed; one that fails does not stop the others.

    Everything is resolved before anything is trained. Raises UserError for bad names, keys or data,
    Interrupted after a signal.
    """
    options, reporter = options or Options(), reporter or Reporter()
    device = pick_device(options.device)
    with autocast(device, options.precision or "fp32"):
        pass  # says early that a device has no bfloat16
    names = expand_methods(methods)
    for name in names:
        load_method_class(name)
        resolve(name, dataset, preset, overrides, seeds[0], options.precision, options.deterministic)
    _check_results(options.results)
    data = prepare(dataset, options, reporter)
    jobs = []
    for name in names:
        for seed in dict.fromkeys(seeds):
            config = resolve(name, dataset, preset, overrides, seed, options.precision, options.deterministic)
            initial = None
            if options.init_from:
                source = find_run(options.results, options.init_from)
                initial = find_initial(source, build_method(config, data.spec))
                config = dataclasses.replace(config, init_from=initial.hash)
            jobs.append(Job(config, data, device, options, reporter, initial))
    with _terminable():
        return [job.guarded(last=job is jobs[-1]) for job in jobs]


def rescore(
    names: Sequence[str], options: Options | None = None, reporter: Reporter | None = None
) -> list[Outcome]:
    """Score finished runs again, by their records: with the settings, weights and ids that they have.

    Presets and methods may have changed since, so that `run_many` would train another run. Everything is
    looked up before anything is scored. Raises UserError for a run that is not trained to its end, has no
    weights, or was made on another build of the data.
    """
    options = dataclasses.replace(options or Options(), rescore=True, force=False)
    reporter = reporter or Reporter()
    device, jobs = pick_device(options.device), []
    for name in names:
        folder = RunFolder(_with_weights(find_run(options.results, name), options.results))
        config, data = _read_run(folder, options)
        if not folder.record.get("trained") or not (folder.path / WEIGHTS).exists():
            raise UserError(
                f"run '{folder.path}' has no finished weights to score; `bench run` trains it, and published "
                "records leave them out"
            )
        # As they were written: a hyper-parameter that came later keeps its default.
        config = dataclasses.replace(config, hyper=folder.record["config"]["hyper"])
        with autocast(device, config.train.precision):
            pass  # says early that a device has no bfloat16
        jobs.append(Job(config, data, device, options, reporter, done=folder))
    with _terminable():
        return [job.guarded(last=job is jobs[-1]) for job in jobs]


def _with_weights(folder: Path, results: Path) -> Path:
    """The working copy of a run that is published too, whatever its state; else the folder itself."""
    working = results / "runs" / Path(*folder.parts[-3:])
    return working if (working / WEIGHTS).exists() else folder


def _check_results(folder: Path) -> None:
    """Raises UserError where nothing can be written, before hours are spent on what could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run like SIGINT does, also outside the training loop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Interrupted("stopped by SIGTERM, the same command goes on from here")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load_run(folder: Path, options: Options | None = None) -> tuple[Method, Dataset, RunConfig]:
    """A finished run: the trained method in evaluation mode, its data set, its configuration.

    Raises UserError for a run without weights, or whose data set is another build than here.
    """
    options, run = options or Options(), RunFolder(Path(folder))
    config, data = _read_run(run, options)
    method = build_method(config, data.spec, pick_device(options.device))
    load_weights(method, run.load_weights(), run.path / WEIGHTS)
    return method.eval(), data, config


def _read_run(run: RunFolder, options: Options) -> tuple[RunConfig, Dataset]:
    """The configuration of a run, read into it, and its data set, which must be the same build here."""
    record = run.read_record()
    if not record:
        raise UsageError(f"'{run.path}' is no run folder; give one that holds a run.json")
    config = RunConfig.from_record(record)
    data = load_dataset(config.dataset, options.cache, options.data)
    data.prepare()
    made_on = record["data"]["fingerprint"]
    if data.fingerprint != made_on:
        raise UserError(
            f"run '{run.path}' was made on build {made_on} of {config.dataset}, here is {data.fingerprint}; "
            "give the same --data"
        )
    return config, data
