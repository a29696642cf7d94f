"""Arrays that are computed once per content: a file under the cache, or the computation that makes it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.spec import UserError

Arrays = dict[str, NDArray[np.generic]]


def cached_arrays(cache: Path, kind: str, key: str, compute: Callable[[], Arrays]) -> Arrays:
    """Arrays from the file of `key` in the folder `kind` of the cache, computed and written when absent.

    The key must name everything the numbers depend on (data fingerprint, split, count, modality, judge); it
    is stored inside and compared, with a checksum, so a damaged or foreign file is computed anew.
    Raises UserError where the cache cannot be written.
    """
    path = Path(cache) / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files if name not in ("key", "sum")}
            if str(stored["key"]) == key and str(stored["sum"]) == _checksum(found):
                return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    found = compute()
    try:
        _write(path, key, found)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{kind} cannot be stored at '{path}' ({reason}); free space or choose another --cache"
        ) from error
    return found


def _write(path: Path, key: str, found: Arrays) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **found, key=np.array(key), sum=np.array(_checksum(found)))  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
