"""The layers of the suite: who may import whom, and what the command line must not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"bench", "datasets", "methods", "metrics"}
ALLOWED = {
    "datasets": {"datasets"},
    "methods": {"methods", "datasets.spec"},
    "metrics": {"metrics", "datasets.spec"},
}
"""Folder -> what its files may import of ours: packages, or single modules."""


def imported(path: Path, text: str | None = None) -> set[str]:
    """Every module of ours that a file imports, also inside functions."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if text is None else text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: -node.level + 1 or None], base]).strip(".")
            submodules = {f"{base}.{a.name}" for a in node.names if (ROOT / base.replace(".", "/")).is_dir()}
            found |= submodules or {base}
    return {name for name in found if name.split(".")[0] in OURS}


def forbidden(folder: str, names: set[str]) -> list[str]:
    allowed = ALLOWED[folder]
    return sorted(n for n in names if n not in allowed and n.split(".")[0] not in allowed)


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_only_bench_imports_across_folders(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    faults = {str(f.relative_to(ROOT)): forbidden(folder, imported(f)) for f in files}
    assert {name: found for name, found in faults.items() if found} == {}


def test_spec_imports_nothing_of_ours() -> None:
    assert imported(ROOT / "datasets" / "spec.py") == set()


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("metrics", "from methods.base import Method"),
        ("metrics", "from datasets.files import sha256_text"),
        ("methods", "from datasets import files"),
        ("methods", "import bench.config"),
        ("datasets", "def f():\n    from metrics.judges import Judges"),
    ],
)
def test_a_forbidden_import_is_seen(folder: str, line: str) -> None:
    assert forbidden(folder, imported(ROOT / folder / "x.py", line))


@pytest.mark.parametrize("module", ["bench.cli", "bench.config", "bench.registry", "bench.store"])
def test_importing_it_does_not_import_torch(module: str) -> None:
    slow = ("torch", "pandas", "matplotlib", "sklearn", "pydantic")
    code = f"import {module}, sys; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
