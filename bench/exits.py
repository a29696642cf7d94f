"""How a command ends: every error as one sentence on stderr and a code.

0 fine, 1 a run failed, 2 wrong usage, 130 interrupted. Importing this module does not import torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import rich_click as click


def debugging() -> bool:
    """Whether the user wants tracebacks."""
    return "--debug" in sys.argv[1:]


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command of click in this process; its code. With `--debug` unexpected errors are raised."""
    from bench.guard import shadowed

    warnings.formatwarning = _one_line  # type: ignore[assignment]
    hidden = shadowed()
    if hidden:
        _complain(hidden)
        return 2
    try:
        code = command()
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
        else:
            _complain(error.format_message())
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        # click wraps what the training loop raised; its message says where the run stands.
        reason = str(error) or str(error.__cause__ or error.__context__ or "")
        _complain(reason or "interrupted, the same command goes on from here")
        code = 130
    except BrokenPipeError:
        # Somebody downstream (head, less) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debugging():
            raise
        code = _code(error)
    return code if isinstance(code, int) else 0


def _complain(text: str) -> None:
    print(f"Error: {text}", file=sys.stderr, flush=True)


def _one_line(message: Any, category: Any, filename: str, lineno: int, line: Any = None) -> str:
    return f"warning: {message}\n"


def _code(error: Exception) -> int:
    from bench.errors import UsageError
    from datasets.spec import UserError

    if isinstance(error, UserError):
        _complain(str(error))
        return 2 if isinstance(error, UsageError) else 1
    text = (str(error).splitlines() or [""])[0]
    _complain(f"{type(error).__name__}: {text} (this is a fault of the suite, --debug shows where)")
    return 1
