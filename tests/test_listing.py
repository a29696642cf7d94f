"""The lists of methods, data sets and metrics: true, and there without waiting for torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import registry
from bench.glance import Unclear, method_attributes
from bench.listing import ATTRIBUTES, methods_text

ROOT = Path(__file__).parent.parent
BASE = """from typing import ClassVar
class Method:
    citation: ClassVar[str] = "none"
    latents = "shared"
    samplers = {"ancestral": ("joint",)}
    chains: ClassVar[tuple[str, ...]] = ()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `methods` folder with a base class and a mixin."""
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mixin.py").write_text("class Mixin:\n    chains = ('prior',)\n    latents: str\n")
    monkeypatch.setattr(registry, "METHODS", tmp_path)
    monkeypatch.setattr(registry, "_plugins", lambda group: {})
    return tmp_path


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text("from methods.base import Method\n" + text)
    return path


@pytest.mark.parametrize("name", registry.method_names())
def test_the_source_says_what_the_class_says(name: str) -> None:
    path = registry.method_files()[name]
    if path is None:
        pytest.skip("a plug-in is always imported")
    kind = registry.load_method_class(name)
    assert method_attributes(path, ATTRIBUTES) == {a: getattr(kind, a) for a in ATTRIBUTES}


def test_attributes_are_inherited_in_python_s_order(folder: Path) -> None:
    text = "from methods.parts.mixin import Mixin as Mixed\nclass A(Mixed, Method):\n    citation = 'A'\n"
    first = written(folder, "first", text)
    assert method_attributes(first, ATTRIBUTES) == {
        "citation": "A", "latents": "shared", "samplers": {"ancestral": ("joint",)}, "chains": ("prior",)
    }  # fmt: skip
    other = "from methods.first import A\nclass _N(Method): pass\nclass B(Method):\n    citation = A.citation"
    assert method_attributes(written(folder, "second", other), ("citation", "chains")) == {
        "citation": "A",
        "chains": (),
    }


@pytest.mark.parametrize(
    "text",
    [
        "class A: pass",
        "class A(Method): pass\nclass B(Method): pass",
        "class A(Method):\n  citation = f()",
        "class",
    ],
)
def test_what_the_source_does_not_tell_is_loaded(folder: Path, text: str) -> None:
    with pytest.raises(Unclear):
        method_attributes(written(folder, "odd", text), ATTRIBUTES)


def test_a_plug_in_and_a_broken_file_have_a_row(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    written(folder, "good", "class A(Method):\n    citation = 'someone'\n")
    written(folder, "broken_one", "class A(Method:")
    points = {
        "theirs": EntryPoint("theirs", "tiny:TinyVAE", registry.METHOD_GROUP),
        "gone": EntryPoint("gone", "nowhere:Method", registry.METHOD_GROUP),
    }
    monkeypatch.setattr(registry, "_plugins", lambda group: points if group == registry.METHOD_GROUP else {})
    rows = {line.split()[0]: line for line in methods_text().splitlines()}
    assert set(rows) == {"method", "good", "broken_one", "theirs", "gone"}
    assert "someone" in rows["good"] and "ancestral" in rows["theirs"]
    assert "cannot be loaded" in rows["broken_one"] and "no module 'nowhere'" in rows["gone"]


@pytest.mark.parametrize("command", ["--help", "cost --help", "methods", "datasets", "metrics"])
def test_it_does_not_wait_for_torch(command: str) -> None:
    code = f"import sys; from bench.cli import cli; cli.main({command.split()}, standalone_mode=False)\n"
    code += "slow = {'torch', 'pandas', 'matplotlib', 'sklearn', 'pydantic', 'scipy'} & set(sys.modules)\n"
    code += "sys.exit(str(slow) if slow else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
