"""Options that several commands share, and what they can be. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bench.names import DEFAULT_PRESET

if TYPE_CHECKING:
    from bench.job import Options

Command = Callable[..., Any]

FORMATS = ("terminal", "markdown", "latex", "csv", "html")
FIGURES = (
    *("scatter", "joint", "cross", "interpolation", "chain", "chains", "steps", "training"),
    *("captioned", "pairs", "t2i"),
    *("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
)


def collect(values: dict[str, Any]) -> Options:
    """The shared options of a command, taken out of its keyword arguments."""
    from bench.job import Options

    chosen = {k: values.pop(k) for k in list(values) if k in Options.__dataclass_fields__}
    chosen = {k: v for k, v in chosen.items() if v is not None}
    return Options(**chosen)


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("multimodal-bench"))


def _apply(*options: Command) -> Command:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


results_option = click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), envvar="BENCH_RESULTS",
    show_default=True, help="Folder of run records.",
)  # fmt: skip
place_options = _apply(
    click.option(
        "--data", type=click.Path(path_type=Path), envvar="BENCH_DATA",
        help="Local folder with the sources of a data set. [env: BENCH_DATA]",
    ),
    click.option(
        "--cache", type=click.Path(path_type=Path), default=_cache, envvar="BENCH_CACHE",
        help="Folder of prepared data and classifiers. [env: BENCH_CACHE]",
    ),
)  # fmt: skip
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.", metavar="NAME"
)
weight_options = _apply(
    click.option(
        "--inception", type=click.Path(path_type=Path), envvar="BENCH_INCEPTION",
        help="File with the Inception weights for FID. [env: BENCH_INCEPTION]",
    ),
    click.option(
        "--clip", type=click.Path(path_type=Path), envvar="BENCH_CLIP",
        help="File with OpenAI's CLIP ViT-B/32 weights. [env: BENCH_CLIP]",
    ),
    click.option(
        "--download/--no-download", default=True, show_default=True, help="Whether those may be fetched."
    ),
)  # fmt: skip
debug_option = click.option(
    "--debug/--no-debug", default=False, expose_value=False, help="Show the traceback of an error."
)


def check_method_names(context: Any, parameter: Any, names: Sequence[str]) -> Sequence[str]:
    """Callback: method names with aliases expanded, or an error."""
    from bench.registry import expand_methods

    return expand_methods(names)


def check_dataset_name(context: Any, parameter: Any, name: str | None) -> str | None:
    """Callback: the name of a data set, or an error."""
    from bench.registry import check_dataset

    return check_dataset(name) if name else name


method_option = click.option(
    "--method", "methods", multiple=True, required=True, callback=check_method_names, metavar="NAME",
    help="A name of `bench methods`, or package.module:Class. Repeatable.",
)  # fmt: skip
dataset_option = click.option(
    "--dataset",
    required=True,
    callback=check_dataset_name,
    metavar="NAME",
    help="A name of `bench datasets`.",
)
preset_option = click.option(
    "--preset", default=DEFAULT_PRESET, show_default=True, metavar="NAME",
    help="quick, fair, fair-compute or paper.",
)  # fmt: skip
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a hyper-parameter (beta=2.5), train.KEY or plan.KEY. Repeatable.",
)  # fmt: skip
