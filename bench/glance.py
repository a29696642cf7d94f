"""What a method file says of itself, read from its source: no import, so no wait for torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench import registry

BASE = "base"
"""The file, below `methods/`, of the class that every method derives from."""


class Unclear(Exception):
    """The source alone does not tell; the class has to be loaded."""


class _Place(NamedTuple):
    """A class and the file that holds it."""

    path: Path
    name: str


def method_attributes(path: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """Class attributes of the method in the file `path`, inherited ones too.

    Raises Unclear where they are not literals or the file does not define exactly one method.
    """
    found = [_Place(path, kind) for kind in _classes(path) if not kind.startswith("_")]
    found = [place for place in found if _Place(registry.METHODS / f"{BASE}.py", "Method") in _order(place)]
    if len(found) != 1:
        raise Unclear(f"{path.name} defines {len(found)} methods")
    return {attribute: _value(found[0], attribute) for attribute in wanted}


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Unclear(f"{path.name} cannot be read") from error


@cache
def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(path).body if isinstance(node, ast.ClassDef)}


def _find(path: Path, name: str) -> _Place | None:
    """Where the class that `path` calls `name` is defined; None for one from outside `methods/`."""
    if name in _classes(path):
        return _Place(path, name)
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("methods."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    module = registry.METHODS.joinpath(*(node.module or "").split(".")[1:])
                    return _find(module.with_suffix(".py"), alias.name)
    return None


def _order(place: _Place) -> list[_Place]:
    """The class and its bases in the order in which attributes are looked up."""
    order = [place]
    for base in _classes(place.path)[place.name].bases:
        found = _find(place.path, base.id) if isinstance(base, ast.Name) else None
        # A base that two parents share comes after both.
        later = _order(found) if found else []
        order = [p for p in order if p not in later] + later
    return order


def _value(place: _Place, attribute: str) -> Any:
    for owner in _order(place):
        for node in _classes(owner.path)[owner.name].body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            value = getattr(node, "value", None)
            if value is not None and any(isinstance(t, ast.Name) and t.id == attribute for t in targets):
                return _evaluate(owner.path, value)
    raise Unclear(f"no class attribute '{attribute}'")


def _evaluate(path: Path, node: ast.expr) -> Any:
    """A literal, or the attribute of a class by its name (`CMVAE.citation`)."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        place = _find(path, node.value.id)
        if place is not None:
            return _value(place, node.attr)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise Unclear(f"{path.name} computes a class attribute") from error
