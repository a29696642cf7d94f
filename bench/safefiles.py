"""Files that are replaced whole or not at all, strict JSON, hashes; errors in one sentence.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import plain

if TYPE_CHECKING:
    from torch import Tensor


def user_error(message: str) -> Exception:
    """A UserError, imported late because its module imports torch."""
    from datasets.spec import UserError

    return UserError(message)


def unwritable(path: Path, error: Exception, option: str = "--results") -> Exception:
    """The sentence for a file that cannot be written; `option` names its folder."""
    reason = getattr(error, "strerror", None) or str(error)
    return user_error(f"'{path}' cannot be written ({reason}); choose another folder with {option}")


def digest(value: Any, length: int = 16) -> str:
    """Hash of a value in canonical JSON: key order and tuples against lists make no difference."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@contextlib.contextmanager
def atomic(path: Path, option: str = "--results") -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, synced to disk.

    Raises UserError where the folder, which `option` names, cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error, option) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (NaN and infinity raise ValueError), atomically."""
    text = json.dumps(plain(value), indent=1, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise user_error(
            f"'{path}' is unreadable ({error}); delete its folder or run it again with --force"
        ) from error
    if not isinstance(value, dict):
        raise user_error(f"'{path}' holds no record; run it again with --force")
    return value


def finite(value: Any) -> Any:
    """The same structure with None in place of every number JSON cannot hold."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value


def file_hash(path: Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise user_error(
            f"the weights '{path}' are missing; `bench run` with its settings makes them"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise user_error(f"the weights '{path}' are damaged ({reason}); train again with --force") from error
