"""Errors of the harness that end in one sentence. Importing this imports torch; do it lazily."""

from __future__ import annotations

from datasets.spec import UserError


class UsageError(UserError):
    """The command line or a preset asks for something that does not exist (exit code 2)."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived and the state is safe on disk; the message says how to go on."""
