"""Makes sure that `datasets`, `methods` and `metrics` are ours, since those names are common."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datasets", "methods", "metrics")


def shadowed(root: Path = ROOT) -> str | None:
    """One sentence on the first package that another one hides, or None. Imports nothing."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return f"package '{name}' of this suite is not in '{root}'; install it again with `make install`"
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        if not any(Path(place).resolve().is_relative_to(root / name) for place in places):
            return (
                f"package '{name}' of this suite is shadowed by the one at '{places[0]}'; "
                "uninstall that one or use an environment of its own (`make install` makes one)"
            )
    return None
