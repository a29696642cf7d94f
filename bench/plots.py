"""The figures behind `bench plot`: picks the runs, draws what they need, hands it to the drawing code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.build import find_run
from bench.config import RunConfig
from bench.device import autocast
from bench.errors import UsageError
from bench.job import Options
from bench.measured import CAPTIONED
from bench.progress import Reporter
from bench.run import load_run
from bench.store import LOG, REFINEMENT, WEIGHTS, RunFolder, RunRecord, find_runs, folder_name, read_log
from bench.table import method_order
from datasets.spec import Dataset
from methods.base import Method

NAMES = {
    "1": "scatter",
    "4": "chain",
    "5": "captioned",
    "6": "interpolation",
    "7": "pairs",
    "8": "t2i",
    "9": "joint",
    "10": "cross",
}
"""The paper's figure numbers; 2, 3 and 8 are drawn from several runs."""

WITH_CAPTIONS = ("captioned", "pairs", "t2i")


def plot_figure(
    figure: str,
    runs: Sequence[str],
    out: Path,
    dataset: str | None,
    preset: str | None,
    kind: str | None,
    options: Options,
) -> list[Path]:
    """Draw one kind of figure into folder `out`; returns the files.

    runs: folders or ids; without any the newest finished run that fits `dataset` and `preset`. kind: of
    chain. Raises UsageError where there is nothing to draw.
    """
    figure = NAMES.get(figure, figure)
    if not options.results.is_dir():
        raise UsageError(f"there is no results folder '{options.results}'; give one with --results")
    _check_taken(figure, bool(runs), kind)
    records = _fitting(options.results, dataset, preset)
    if preset is not None and not records:
        known = sorted({str(r.record.get("preset")) for r in _fitting(options.results, dataset, None)})
        raise UsageError(f"there are no runs of preset '{preset}', only of {', '.join(known) or 'no other'}")
    if figure == "scatter":
        return _scatter(records, out, dataset, preset)
    if figure == "training":
        return _training(records, runs, out, options)
    if figure in ("2", "3"):
        return _losses(figure, records, out, dataset, preset)
    if figure in WITH_CAPTIONS and dataset is None:
        records = [r for r in records if r.record.get("dataset") in CAPTIONED]
    if figure == "t2i":
        return _across(records, runs, out, options)
    enough = (WEIGHTS, REFINEMENT) if figure == "steps" else (WEIGHTS,)
    folders = [find_run(options.results, name) for name in runs] or [
        _newest(records, options.results, *enough)
    ]
    if figure == "steps":
        return [path for folder in folders for path in _refinement(folder, out, options)]
    files: list[Path] = []
    for folder in folders:
        method, data, config = load_run(folder, options)
        path = out / f"{figure}-{folder_name(config.dataset)}-{folder_name(config.method)}-{folder.name}"
        with autocast(method.device, config.train.precision):
            files += _draw(figure, method, data, config, path, kind)
    return files


def _check_taken(figure: str, runs: bool, kind: str | None) -> None:
    """Raises UsageError for an option that the figure would pass over."""
    if runs and figure in ("scatter", "2", "3"):
        raise UsageError(
            f"figure '{figure}' is drawn from all runs; drop --run, or choose by --dataset and --preset"
        )
    if kind is not None and figure not in ("chain", "chains"):
        raise UsageError(f"figure '{figure}' has no kinds of chains; drop --kind")


def _refinement(folder: Path, out: Path, options: Options) -> list[Path]:
    """Quality against revision steps; what was measured once is kept with the run and drawn from there."""
    from bench import refinement
    from bench.figure_refinement import plot_refinement

    entries = refinement.kept(folder)
    if entries is None:
        method, data, config = load_run(folder, options)
        entries = refinement.measure_refinement(method, data, config, options.cache, Reporter())
        refinement.keep(folder, entries)
    record = RunFolder(folder).read_record()
    names = [folder_name(str(record[key])) for key in ("dataset", "method")]
    title = f"{record['method']} on {record['dataset']}, preset {record['preset']}, seed {record['seed']}"
    return plot_refinement(entries, out / "-".join(("steps", *names, folder.name)), title)


def _fitting(results: Path, dataset: str | None, preset: str | None) -> list[RunRecord]:
    found = [r for r in find_runs(results) if dataset in (None, r.record.get("dataset"))]
    return [r for r in found if preset in (None, r.record.get("preset"))]


def _newest(records: Sequence[RunRecord], results: Path, *enough: str) -> Path:
    """The last finished run that has one of the files `enough`."""
    done = [r for r in records if r.record.get("status") == "done"]
    done = [r for r in done if any((r.folder / name).exists() for name in enough)]
    if not done:
        names = " or ".join(f"'{name}'" for name in enough)
        raise UsageError(
            f"no finished run with {names} fits under '{results}'; run one or name it with --run"
        )
    return max(done, key=lambda r: str(r.record.get("finished"))).folder


def _scatter(records: list[RunRecord], out: Path, dataset: str | None, preset: str | None) -> list[Path]:
    from bench.figure import plot_scatter
    from bench.table import comparison_tables

    files: list[Path] = []
    tables = comparison_tables(records, dataset=dataset, preset=preset, methods=[])
    for table in tables:
        name = str(table.context.get("dataset", "")) or "all"
        files += plot_scatter(
            table, out / f"scatter-{folder_name(name)}-{table.context.get('preset', 'all')}"
        )
    return files


def _training(records: list[RunRecord], runs: Sequence[str], out: Path, options: Options) -> list[Path]:
    from bench.figure import plot_training

    folders = [find_run(options.results, name) for name in runs] or [_newest(records, options.results, LOG)]
    by_folder = {r.folder.resolve(): r.record for r in find_runs(options.results)}
    logs = {}
    for folder in folders:
        record = by_folder.get(folder.resolve(), {})
        label = f"{record.get('method', folder.name)}, seed {record.get('seed', '?')}"
        logs[label if label not in logs else f"{label} ({folder.name})"] = read_log(folder)
    return plot_training(logs, out / f"training-{'-'.join(f.name for f in folders)}")


def _losses(
    figure: str, records: list[RunRecord], out: Path, dataset: str | None, preset: str | None
) -> list[Path]:
    from bench.losses import plot_losses

    files, commands = plot_losses(figure, records, out, dataset, preset)
    for command in commands:
        Reporter().say(f"missing, `{command}` adds it")
    return files


def _across(records: Sequence[RunRecord], runs: Sequence[str], out: Path, options: Options) -> list[Path]:
    """Figure 8: the same captions for every method; without `runs` the newest run of each, on the data and
    preset of the newest of all."""
    from bench import captions
    from bench.drawing import serves

    folders = [find_run(options.results, name) for name in runs] or _newest_each(records, options.results)
    drawn, shown = {}, None
    for folder in folders:
        method, data, config = load_run(folder, options)
        if shown is None:
            shown = (data, config)
        elif data.fingerprint != shown[0].fingerprint:
            raise UsageError(
                f"run '{folder}' is on other data than '{folders[0]}'; name runs of one data set"
            )
        reason = type(method).unsupported(data.spec, "cross")
        if reason is not None:
            Reporter().say(f"{config.method} is left out: {reason}")
            continue
        changed = [f"{k}={v}" for k, v in config.overrides.items() if not k.startswith("plan.")]
        several = f" ({serves(method, None, 'cross')})" if len(method.samplers) > 1 else ""
        label = "\n".join([config.method + several, *changed])
        label = label if label not in drawn else f"{label}\n{folder.name[:12]}"
        with autocast(method.device, config.train.precision):
            drawn[label] = captions.pictures_of_captions(
                method, data.split("test"), config.dataset, config.seed
            )
    if shown is None or not drawn:
        raise UsageError("no run here draws pictures of captions; train one, for example on shapes")
    data, config = shown
    title = f"pictures of given captions, {config.dataset}, preset {config.preset}"
    path = out / f"t2i-{folder_name(config.dataset)}-{folder_name(config.preset)}"
    test = data.split("test")
    return captions.plot_text_to_image(drawn, test, path, data.sentence, config.dataset, title)


def _newest_each(records: Sequence[RunRecord], results: Path) -> list[Path]:
    """The newest finished run of every method, in the order of the tables."""
    newest = _newest(records, results, WEIGHTS)
    model = next(r.record for r in records if r.folder == newest)

    def same(record: Mapping[str, Any]) -> bool:
        data, wanted = record.get("data") or {}, model.get("data") or {}
        return (record.get("preset"), data.get("fingerprint")) == (
            model.get("preset"),
            wanted.get("fingerprint"),
        )

    fitting = [r for r in records if r.record.get("status") == "done" and (r.folder / WEIGHTS).exists()]
    found = {}
    for run in sorted(fitting, key=lambda r: str(r.record.get("finished"))):
        if same(run.record):
            found[str(run.record.get("method"))] = run.folder
    return [found[name] for name in sorted(found, key=lambda name: method_order(str(model["dataset"]), name))]


def _draw(
    figure: str, method: Method, data: Dataset, config: RunConfig, path: Path, kind: str | None
) -> list[Path]:
    """One figure of one trained method."""
    from bench import captions, drawing

    title = f"{config.method} on {config.dataset}, preset {config.preset}, seed {config.seed}"
    words = data.sentence
    if figure == "joint":
        return drawing.draw_joint(method, path, seed=config.seed, title=title, words=words)
    if figure == "interpolation":
        return drawing.draw_interpolation(method, path, seed=config.seed, title=title, words=words)
    if figure == "pairs":
        return captions.draw_pairs(method, path, words, config.dataset, config.seed, title)
    test = data.split("test")
    if figure == "captioned":
        return captions.draw_captioned(method, test, path, words, config.dataset, config.seed, title)
    if figure == "cross":
        return drawing.draw_cross(method, test, path, seed=config.seed, title=title, words=words)
    kinds = [kind] if kind else ()
    if figure == "chains":
        return drawing.draw_diagnostics(method, test, path, seed=config.seed, kinds=kinds, title=title)
    return drawing.draw_chains(method, test, path, seed=config.seed, kinds=kinds, title=title, words=words)
