"""Names to code: methods are files, data sets a short list, both open to plug-ins.

A method is a file `methods/<name>.py`, an entry point of the group `multimodal_bench.methods`, or
`package.module:Class`. Nothing is imported until a class is asked for.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.names import closest

if TYPE_CHECKING:
    from datasets.spec import Dataset
    from methods.base import Method

METHODS = Path(__file__).parent.parent / "methods"
METHOD_GROUP = "multimodal_bench.methods"
DATASET_GROUP = "multimodal_bench.datasets"
DATASETS = {
    "polydigits": "datasets.polydigits:PolyDigits",
    "polymnist": "datasets.polymnist:PolyMNIST",
    "shapes": "datasets.shapes:Shapes",
    "cub": "datasets.cub:CUB",
    "cub256": "datasets.cub:CUB256",
    "coco": "datasets.coco:COCO",
}
ALIASES = {"mvebm": ("mvebm_base", "mvebm_gen")}

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _error(message: str) -> Exception:
    from bench.errors import UsageError

    return UsageError(message)


def _plugins(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def method_files() -> dict[str, Path | None]:
    """Every method that a name reaches, with its file under `methods/`; None for a plug-in."""
    files: dict[str, Path | None] = {p.stem: p for p in METHODS.glob("*.py")}
    files = {n: p for n, p in files.items() if n != "base" and not n.startswith("_")}
    return dict(sorted((files | dict.fromkeys(_plugins(METHOD_GROUP))).items()))


def method_names() -> list[str]:
    """Every method that a name reaches: files under `methods/` and plug-ins."""
    return list(method_files())


def dataset_names() -> list[str]:
    """Every data set that a name reaches."""
    return sorted({*DATASETS, *_plugins(DATASET_GROUP)})


def expand_methods(names: Sequence[str]) -> list[str]:
    """Aliases replaced by what they stand for, order kept, no method twice.

    Raises UsageError for a name that is neither a method, an alias nor `module:Class`.
    """
    out: list[str] = []
    for name in names:
        for real in ALIASES.get(name, (name,)):
            if not _PATH.fullmatch(real) and real not in method_names():
                raise _error(f"no method '{name}'{closest(name, [*method_names(), *ALIASES])}")
            if real not in out:
                out.append(real)
    return out


def check_dataset(name: str) -> str:
    """`name`, if it is a data set. Raises UsageError otherwise."""
    if not _PATH.fullmatch(name) and name not in dataset_names():
        raise _error(f"no data set '{name}'{closest(name, dataset_names())}")
    return name


def _import(module: str, wanted: str) -> ModuleType:
    """Import a module, also from the working directory. Raises UserError where it fails to import."""
    from datasets.spec import UserError

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        reason = f"no module '{error.name}'"
        raise UserError(f"'{wanted}' cannot be loaded, {reason}; install it or check the name") from error
    except Exception as error:  # whatever the file does when it is imported
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"'{wanted}' cannot be loaded ({said}); mend the file") from error


def _by_path(path: str) -> Any:
    module, _, name = path.partition(":")
    found = getattr(_import(module, path), name, None)
    if found is None:
        raise _error(f"module '{module}' has no class '{name}'; check the spelling")
    return found


def load_method_class(name: str) -> type[Method]:
    """The class behind a method name.

    Raises UserError for an unknown name, a file that does not import, or one that does not define
    exactly one Method.
    """
    from datasets.spec import UserError
    from methods.base import Method

    if _PATH.fullmatch(name):
        found = _by_path(name)
    elif name in _plugins(METHOD_GROUP):
        if (METHODS / f"{name}.py").is_file():
            raise UserError(f"a plug-in calls itself '{name}' like a method of the suite; rename it")
        found = _by_path(_plugins(METHOD_GROUP)[name].value)
    else:
        expand_methods([name])
        module = _import(f"methods.{name}", name)
        classes = [c for c in vars(module).values() if _defines(c, Method, module)]
        if len(classes) != 1:
            listed = ", ".join(c.__name__ for c in classes) or "none"
            raise UserError(f"methods/{name}.py must define exactly one Method, it defines {listed}")
        found = classes[0]
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"'{name}' is not a Method; derive it from methods.base.Method")
    return found


def _defines(item: Any, base: type, module: ModuleType) -> bool:
    own = isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    return own and not item.__name__.startswith("_")


def load_dataset(name: str, cache: Path, data: Path | None = None, seed: int = 0) -> Dataset:
    """The data set behind a name, not yet prepared. Raises UserError for an unknown name."""
    from datasets.spec import Dataset, UserError

    check_dataset(name)
    plugins = _plugins(DATASET_GROUP)
    path = DATASETS.get(name) or (plugins[name].value if name in plugins else name)
    found = _by_path(path)
    if not (isinstance(found, type) and issubclass(found, Dataset)):
        raise UserError(f"'{name}' is not a Dataset; derive it from datasets.spec.Dataset")
    return found(cache=cache, data=data, seed=seed)
