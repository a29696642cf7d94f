"""The suite lives beside packages that probe for, or bring, a package called `datasets`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEIGHBOURS = ("timm", "open_clip", "torch_fidelity")
IMPORT_OURS = "import bench.run, bench.evaluate, methods.mmvae, metrics.judges, datasets.spec as ours"
LOCATE = "import sys; sys.exit(0 if ours.__file__.startswith(sys.argv[1]) else 3)"


def fresh(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(ROOT)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("order", ["before", "after"])
def test_imports_beside_libraries_that_look_for_datasets(order: str) -> None:
    present = [name for name in NEIGHBOURS if importlib.util.find_spec(name)]
    assert "torch_fidelity" in present, "torch-fidelity is a direct dependency"
    others = f"import {', '.join(present)}"
    if "timm" in present:
        # timm reads data sets through a package of our name, when asked to.
        others += "; import timm.data; timm.create_model('resnet10t')"
    lines = [others, IMPORT_OURS] if order == "before" else [IMPORT_OURS, others]
    done = fresh("\n".join([*lines, LOCATE]))
    assert done.returncode == 0, done.stderr


def test_the_command_line_names_the_package_that_shadows_ours(tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(ROOT)!r}); "
        "sys.argv = ['bench', 'methods']; from bench.cli import main; main()"
    )
    done = fresh(code, tmp_path)
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.strip()]
    assert "'datasets'" in line and str(tmp_path) in line
