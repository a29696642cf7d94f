"""Names that the command line needs before anything else is loaded, and suggestions for wrong ones."""

from __future__ import annotations

from collections.abc import Iterable

DEFAULT_PRESET = "paper"

EX_POST = {"ex_post_normal": 1, "ex_post_mixture": 10}
"""Joint samplers that the harness fits after training (`bench.ex_post`), with their numbers of components."""

PRIORS = "priors"
"""The table that compares them with a method's own samplers."""


def closest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'beta'?` where a known name is near, else the list of known names."""
    import difflib

    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    return f"; there are {', '.join(known)}" if known else ""
