"""What a run record says about the code and the machine that produced it."""

from __future__ import annotations

import ast
import inspect
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.guard import ROOT
from bench.safefiles import digest

RECORDED = ("multimodal-bench", "torch", "numpy", "scikit-learn", "scipy", "torch-fidelity")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision(root: Path = ROOT) -> dict[str, Any] | None:
    """Commit and whether the working tree differs from it; None outside a repository."""

    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return None
    commit = ask("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(ask("status", "--porcelain"))} if commit else None


def code_hash(kind: type) -> str:
    """Hash of the file that defines a class and of every file under `methods/` that it is built from.

    Comments, docstrings and layout do not count. Empty where the source cannot be read.
    """
    try:
        files = [Path(inspect.getfile(kind))]
        trees: dict[Path, ast.Module] = {}
        while files:
            path = files.pop().resolve()
            if path not in trees:
                trees[path] = ast.parse(path.read_text(encoding="utf-8"))
                files += _imported_parts(trees[path])
    except (OSError, TypeError, SyntaxError):
        return ""
    return digest(sorted(_bare(tree) for tree in trees.values()))


def _imported_parts(tree: ast.Module) -> list[Path]:
    """The files of the modules under `methods` that a module imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    paths = [ROOT / (name.replace(".", "/") + ".py") for name in names if name.split(".")[0] == "methods"]
    return [path for path in paths if path.is_file()]


def _bare(tree: ast.Module) -> str:
    """The syntax tree as text, without docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return ast.dump(tree)
