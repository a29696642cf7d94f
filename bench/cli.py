"""The command line. Only names, options and help live here; every command calls one function.

Results go to stdout, progress and messages to stderr; for exit codes see `bench.exits`. Importing this module
does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from bench.exits import debugging, exit_code
from bench.options import (
    FIGURES,
    FORMATS,
    check_dataset_name,
    collect,
    dataset_option,
    debug_option,
    device_option,
    method_option,
    place_options,
    preset_option,
    results_option,
    set_option,
    weight_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="multimodal-bench")
@debug_option
def cli() -> None:
    """Train, score and compare multimodal generative models.

    \b
    Examples:
      bench run --method ours --dataset polydigits --preset quick
      bench run --method mmvae --method mopoe --dataset polymnist --seed 0
      bench table
      bench table 7 --format markdown
      bench plot scatter --dataset polymnist
      bench check my_package.my_module:MyMethod
    """


@cli.command()
@method_option
@dataset_option
@preset_option
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), help="Repeatable. [default: 0]")
@set_option
@device_option
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="Instead of the preset's.")
@results_option
@place_options
@weight_options
@click.option("--deterministic/--no-deterministic", default=False, help="Repeatable bits on CUDA too.")
@click.option("--init-from", metavar="RUN", help="Run whose weights replace the first training stage.")
@click.option("--rescore/--no-rescore", default=False, help="Score again, without training.")
@click.option("--force/--no-force", default=False, help="Start over, whatever is there.")
@debug_option
def run(methods: list[str], dataset: str, preset: str, seeds: tuple[int, ...], overrides: tuple[str, ...],
        **rest: Any) -> int:  # fmt: skip
    """Train methods on a data set, score them and keep a record.

    \b
    Examples:
      bench run --method ours --dataset polydigits --preset quick
      bench run --method mvebm --dataset polymnist --seed 0 --seed 1
      bench run --method mmvae --dataset polydigits --set beta=2.5

    The same command again reuses what is done and continues what was interrupted.
    """
    from bench.run import run_many
    from bench.show import outcomes_text

    outcomes = run_many(methods, dataset, preset, seeds, overrides, collect({**rest, "debug": debugging()}))
    click.echo(outcomes_text(outcomes))
    return int(any(outcome.failed for outcome in outcomes))


@cli.command()
@click.argument("name", required=False)
@results_option
@click.option("--dataset", callback=check_dataset_name, metavar="NAME", help="Only this data set.")
@click.option("--preset", metavar="NAME", help="Only this preset. [default: the most complete]")
@click.option("--format", "style", type=click.Choice(FORMATS), default="terminal", show_default=True)
@debug_option
def table(name: str | None, results: Path, dataset: str | None, preset: str | None, style: str) -> None:
    """Print a comparison of all runs, or a table of the papers.

    1 to 5, 7 to 9 and `cub` are the main paper's, `mvebm_slides/base` and `moe_ebm_paper/1` (for example)
    those of its predecessors, `ablations` shows what each part of `ours` earns, `priors` what a better prior
    would earn.

    \b
    Examples:
      bench table
      bench table 5 --format latex > table5.tex
      bench table ablations --preset quick
      bench table --dataset polydigits --preset quick --format csv
    """
    from bench.show import tables_text

    click.echo(tables_text(name, results, dataset, preset, style))


@cli.command()
@click.option("--metric", "metrics", multiple=True, metavar="PATTERN", help="As swd_*. Repeatable.")
@click.option("--method", "names", multiple=True, metavar="PATTERN", help="As ours*. Repeatable.")
@results_option
@click.option("--dataset", callback=check_dataset_name, metavar="NAME", help="Only this data set.")
@click.option("--preset", metavar="NAME", help="Only this preset.")
@click.option(
    "--details/--no-details", default=False, help="Also of single modalities and subsets; the end of the log."
)
@click.option(
    "--format", "style", type=click.Choice(["terminal", "csv"]), default="terminal", show_default=True
)
@debug_option
def scores(results: Path, style: str, **chosen: Any) -> None:
    """Print the scores of finished runs one by one, as they are in their records.

    \b
    Examples:
      bench scores --metric coherence_joint --metric fd_clf_uncond
      bench scores --metric "swd*" --method "ours*" --preset fair --format csv
      bench scores --metric "chain_*" --method ours --details
    """
    from bench.show import scores_of

    click.echo(scores_of(results, style, **chosen))


@cli.command()
@click.argument("figure", type=click.Choice(FIGURES))
@click.option(
    "--run", "runs", multiple=True, metavar="RUN", help="Run folder or id; repeatable. [default: the newest]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder."
)
@click.option("--dataset", callback=check_dataset_name, metavar="NAME", help="Only this data set.")
@click.option("--preset", metavar="NAME", help="Only this preset.")
@click.option("--kind", metavar="CHAIN", help="For chain, chains: data, posterior or prior. [default: all]")
@results_option
@place_options
@device_option
@debug_option
def plot(figure: str, runs: tuple[str, ...], out: Path, dataset: str | None, preset: str | None,
         kind: str | None, **rest: Any) -> None:  # fmt: skip
    """Draw a figure as PNG and PDF; 1 to 10 are the paper's numbers.

    Captioned pictures: 7 (pairs) unconditional, 5 (captioned) also given either, 8 (t2i) all methods beside
    each other for the same captions.

    \b
    Examples:
      bench plot scatter --dataset polydigits
      bench plot joint --run 3fa1 --out figures
      bench plot chain --run results/runs/polydigits/ours/3fa1c2d4e5f6
      bench plot chains --run 3fa1
    """
    from bench.plots import plot_figure

    for path in plot_figure(figure, runs, out, dataset, preset, kind, collect(rest)):
        click.echo(str(path))


@cli.command()
@click.argument("run_names", metavar="RUN...", nargs=-1, required=True)
@results_option
@place_options
@weight_options
@device_option
@debug_option
def rescore(run_names: tuple[str, ...], **rest: Any) -> int:
    """Score finished runs again, with the settings in their records; trains nothing.

    \b
    Example:
      bench rescore 3fa1c2d4e5f6 77ab
    """
    from bench.run import rescore
    from bench.show import outcomes_text

    outcomes = rescore(run_names, collect({**rest, "debug": debugging()}))
    click.echo(outcomes_text(outcomes))
    return int(any(outcome.failed for outcome in outcomes))


@cli.command()
@click.argument("run_name", metavar="RUN")
@click.option("--full/--no-full", default=False, help="Also the probe on the whole training split.")
@results_option
@place_options
@device_option
@debug_option
def probe(run_name: str, full: bool, **rest: Any) -> None:
    """Probe the latents of a finished run, without retraining.

    \b
    Example:
      bench probe 3fa1c2d4e5f6 --full
    """
    from bench.show import probe_text

    click.echo(probe_text(run_name, full, collect(rest)))


@cli.command()
@click.argument("run_name", metavar="RUN")
@click.option("--given", multiple=True, metavar="MODALITY", help="Condition on it. Repeatable.")
@click.option("--sampler", metavar="NAME", help="Instead of the method's first.")
@click.option("--steps", type=click.IntRange(min=0), help="Instead of the sampler's own.")
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Tuples to draw.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
@results_option
@place_options
@device_option
@debug_option
def sample(run_name: str, given: tuple[str, ...], sampler: str | None, steps: int | None, count: int,
           seed: int, out: Path, **rest: Any) -> None:  # fmt: skip
    """Draw a grid of samples from a finished run.

    \b
    Example:
      bench sample 3fa1c2d4e5f6 --given m0 --out cross.png
    """
    from bench.show import sample_run

    click.echo(str(sample_run(run_name, given, sampler, steps, count, seed, out, collect(rest))))


@cli.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@results_option
@debug_option
def publish(runs: tuple[str, ...], results: Path) -> None:
    """Copy records of finished runs, without weights, to `published/` of the results folder.

    \b
    Example:
      bench publish 3fa1c2d4e5f6 5d0c7712ab31
    """
    from bench.show import publish_runs

    for folder in publish_runs(runs, results):
        click.echo(str(folder))


@cli.command()
@method_option
@dataset_option
@preset_option
@set_option
@click.option("--batch-size", type=click.IntRange(min=1), help="Instead of the preset's.")
@click.option(
    "--compare",
    multiple=True,
    metavar="KEY=VALUE",
    help="What a second configuration has otherwise: a setting as for --set, method=NAME or preset=NAME. "
    "Repeatable.",
)
@click.option(
    "--sweep",
    default="",
    metavar="KEY=V1,V2,...",
    help="Step time at these values of a setting (or of `modalities`), drawn with a straight line.",
)
@click.option("--layers/--no-layers", default=False, help="Also the networks alone, for comparison.")
@click.option("--sampling/--no-sampling", default=True, show_default=True, help="Also time every sampler.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Steps not counted.")
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True, help="Steps counted.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "processor"]),
    default="wall",
    show_default=True,
    help="`processor` counts the seconds of all threads, for a CPU that others use too.",
)
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="Folder for the figure of --sweep.",
)
@place_options
@device_option
@debug_option
def cost(style: str, batch_size: int | None, **rest: Any) -> None:  # fmt: skip
    """Measure time, memory and floating-point operations of untrained methods on this machine.

    A training step is the one that training makes, optimiser included. Beside its rate stands what the
    machine reaches in a large matrix product and in the method's own largest convolution. With --compare,
    two configurations make their steps in turns in one process, and the last column is their ratio.

    \b
    Examples:
      bench cost --method ours --dataset polymnist --preset fair
      bench cost --method mmvaeplus --dataset polydigits --preset paper --compare train.precision=bf16
      bench cost --method mmvae --dataset polydigits --preset quick --compare method=mopoe --format json
      bench cost --method ours --dataset polydigits --preset quick --sweep data_steps=5,10,20,40
    """
    from bench.cost_command import Request, cost_text

    names = ("methods", "dataset", "preset", "overrides", "compare", "sweep", "layers", "sampling", "warmup",
             "repeats", "clock", "out")  # fmt: skip
    wanted = {name: rest.pop(name) for name in names}
    click.echo(cost_text(Request(batch_size=batch_size, **wanted), collect(rest), style))


@cli.command()
@click.argument("method")
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check. Repeatable.")
@debug_option
def check(method: str, only: tuple[str, ...]) -> int:
    """Run the conformance checks over a method.

    \b
    Example:
      bench check my_package.my_module:MyMethod
    """
    from bench.check import check_method, report

    results = check_method(method, only or None)
    click.echo(report(results))
    return int(any(not result.ok for result in results))


@cli.command()
@click.argument("name", callback=check_dataset_name)
@place_options
@device_option
@debug_option
def data(name: str, **rest: Any) -> None:
    """Prepare a data set and describe it.

    \b
    Example:
      bench data polymnist --data /path/to/sources
    """
    from bench.show import data_text

    click.echo(data_text(name, collect(rest)))


@cli.command()
@debug_option
def methods() -> None:
    """List the methods."""
    from bench.listing import methods_text

    click.echo(methods_text())


@cli.command()
@debug_option
def datasets() -> None:
    """List the data sets."""
    from bench.listing import datasets_text

    click.echo(datasets_text())


@cli.command()
@debug_option
def metrics() -> None:
    """List the metrics."""
    from bench.listing import metrics_text

    click.echo(metrics_text())


@cli.command()
@results_option
@place_options
@device_option
@debug_option
def doctor(**rest: Any) -> int:
    """Say what works on this machine and what is missing."""
    from bench.show import doctor_text

    text, ok = doctor_text(collect(rest))
    click.echo(text)
    return int(not ok)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `bench` command: run it and turn every error into one sentence and a code."""
    given = list(arguments) if arguments is not None else None
    sys.exit(exit_code(lambda: cli.main(given, "bench", standalone_mode=False)))
