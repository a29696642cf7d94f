"""Presets as files: which there are, and the tables that several layers of them make.

A preset is a table in `presets/<dataset>/_common.toml` (budget, plan and shared backbone for every
method) that `presets/<dataset>/<method>.toml` refines. Importing this module
imports neither torch nor pydantic.
"""

from __future__ import annotations

import tomllib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.names import DEFAULT_PRESET, closest

PRESETS = Path(__file__).parent / "presets"
TABLES = ("train", "plan", "hyper")
FALLBACK_PRESET = "fair"
"""The budget of a method whose own `paper` preset nobody has written."""


def misuse(message: str) -> Exception:
    """A UsageError of this message, whose module imports torch."""
    from bench.errors import UsageError

    return UsageError(message)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise misuse(f"the preset file '{path}' cannot be read ({error}); mend or remove it") from error


def _chain(files: Sequence[Mapping[str, Any]], preset: str, seen: tuple[str, ...] = ()) -> list[str]:
    """The presets that `preset` extends, the most basic first, and itself."""
    if preset in seen:
        raise misuse(f"preset '{preset}' extends itself; name another one in its file")
    base = next((f[preset]["extends"] for f in files if "extends" in f.get(preset, {})), None)
    return [*(_chain(files, base, (*seen, preset)) if base else []), preset]


def _layers(tables: Mapping[str, Any], presets: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Those of a file's tables that are named, in this order."""
    out = []
    for preset in presets:
        table = {k: v for k, v in tables.get(preset, {}).items() if k not in ("extends", "like")}
        for key in table:
            if key not in TABLES:
                raise misuse(f"'{path.name}' has an unknown table '{preset}.{key}'{closest(key, TABLES)}")
        out.append(table)
    return out


def preset_files(method: str, dataset: str) -> tuple[Path, Path]:
    """The common file and the method's own; a data set without a folder takes `presets/_common.toml`."""
    common = PRESETS / dataset / "_common.toml"
    if not common.is_file():
        common = PRESETS / "_common.toml"
    return common, PRESETS / dataset / f"{method}.toml"


def preset_names(dataset: str) -> list[str]:
    """Presets that every method has on `dataset`."""
    return list(_read_toml(preset_files("", dataset)[0]))


def load_preset(
    method: str, dataset: str, preset: str, keywords: Container[str]
) -> dict[str, dict[str, Any]]:
    """The merged tables `train`, `plan`, `hyper`; the common `hyper` has the method's `keywords` alone.

    A preset that the method's file lacks is the common budget alone, `fair`'s where it is `paper`. In a
    method's file, `like = "ours"` in a preset takes the values of that method first: an ablation then
    differs in what its file names and nowhere else.
    """
    common_path, own_path = preset_files(method, dataset)
    common, own = _read_toml(common_path), _read_toml(own_path)
    names = {*common, *own}
    if preset not in names:
        raise misuse(f"no preset '{preset}' for {method} on {dataset}{closest(preset, names)}")
    out: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    chain = _chain((own, common), preset)
    if preset == DEFAULT_PRESET and preset not in own:
        chain = [*_chain((own, common), FALLBACK_PRESET), preset]
    for layer in _layers(common, chain, common_path):
        for table, values in layer.items():
            out[table].update({k: v for k, v in values.items() if table != "hyper" or k in keywords})
    for name in chain:
        like = own.get(name, {}).get("like")
        if like is not None:
            for table, values in _of_model(str(like), dataset, name, own_path).items():
                out[table].update({k: v for k, v in values.items() if table != "hyper" or k in keywords})
        for layer in _layers(own, [name], own_path):
            for table, values in layer.items():
                out[table].update(values)
    return out


def _of_model(model: str, dataset: str, preset: str, path: Path) -> dict[str, Any]:
    """The preset of the method that another takes its values from (`like = "ours"`), own layers only."""
    tables = _read_toml(preset_files(model, dataset)[1])
    if preset not in tables:
        raise misuse(f"'{path.name}' takes '{preset}' from '{model}', which has none; name another method")
    return _layers(tables, [preset], path)[0]
