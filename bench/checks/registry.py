"""The registry of checks: small named functions that each try to catch one fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class CheckFailed(Exception):
    """A check found its fault; the message says what is wrong and where."""


class NotApplicable(Exception):
    """A check has nothing to look at in this method; the message says why."""


def require(condition: Any, message: str) -> None:
    """Raise CheckFailed with `message` unless `condition` holds."""
    if not condition:
        raise CheckFailed(message)


@dataclass(frozen=True)
class Check:
    """One check: `run(subject)` returns quietly, or raises CheckFailed or NotApplicable.

    tasks: what the method must support for the check to make sense. everywhere: the check looks at all
    specs together (`run(subjects)`) instead of one at a time.
    """

    name: str
    run: Callable[[Any], None]
    tasks: tuple[str, ...] = ()
    everywhere: bool = False

    @property
    def purpose(self) -> str:
        """First line of the docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


CHECKS: dict[str, Check] = {}


def check(*tasks: str, everywhere: bool = False) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as a check under its own name."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        name = function.__name__
        if name in CHECKS:
            raise ValueError(f"two checks are called '{name}'")
        CHECKS[name] = Check(name, function, tasks, everywhere)
        return function

    return register
