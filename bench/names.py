"""Names that the command line needs before anything else is loaded, and suggestions for wrong ones."""

from __future__ import annotations

from collections.abc import Iterable

DEFAULT_PRESET = "paper"


def closest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'beta'?` where a known name is near, else the list of known names."""
    import difflib

    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    return f"; there are {', '.join(known)}" if known else ""
