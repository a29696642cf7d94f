"""What a record says about the code that made it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench import provenance
from bench.provenance import code_hash
from bench.registry import load_method_class
from methods import ours
from methods.parts import cooperative

METHOD = "from methods.parts.shared import value\nclass Thing:\n    size = value\n"
PARTS = {
    "methods/__init__.py": "",
    "methods/parts/__init__.py": "",
    "methods/parts/shared.py": "from methods.parts import deep\nvalue = 1\n",
    "methods/parts/deep.py": "depth = 1\n",
    "methods/parts/other.py": "x = 1\n",
}


def hash_with(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> str:
    """Hash of a class whose file imports `shared`, which imports `deep`."""
    for name, text in PARTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changes.get(path.stem, text))
    own = root / "thing.py"
    own.write_text(changes.get("thing", METHOD))
    monkeypatch.setattr(provenance, "ROOT", root)
    monkeypatch.setattr(provenance.inspect, "getfile", lambda kind: str(own))
    return code_hash(object)


@pytest.mark.parametrize("module", ["thing", "shared", "deep"])
def test_a_change_in_any_part_is_another_code(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_with(tmp_path, monkeypatch)
    text = METHOD if module == "thing" else PARTS[f"methods/parts/{module}.py"]
    assert hash_with(tmp_path, monkeypatch, **{module: text + "more = 2\n"}) != before
    assert hash_with(tmp_path, monkeypatch, **{module: f'"""Words."""\n# more words\n{text}'}) == before


def test_parts_that_are_not_imported_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_with(tmp_path, monkeypatch)
    assert hash_with(tmp_path, monkeypatch, other="x = 2\n") == before


def test_the_hash_of_ours_covers_the_scheme_it_is_made_of() -> None:
    tree = ast.parse(Path(ours.__file__).read_text(encoding="utf-8"))
    read = [path.resolve() for path in provenance._imported_parts(tree)]
    assert Path(cooperative.__file__).resolve() in read
    assert code_hash(ours.Ours) not in ("", code_hash(load_method_class("mmvae")))
