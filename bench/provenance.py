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
    """Hash of the file that defines a class, without comments, docstrings and layout."""
    try:
        tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    except (OSError, TypeError, SyntaxError):
        return ""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                del body[0]
    return digest(ast.dump(tree))
