"""Files that can be trusted: atomic writes, checksums, prepared folders, downloads.

Every function turns what can go wrong with a file (missing, truncated, altered, no space, no
permission) into a `UserError` of one sentence.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.spec import UserError

log = logging.getLogger(__name__)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class Damaged(Exception):
    """A prepared copy that does not hold what was written; whoever can rebuild it should."""


def storage_error(error: BaseException, path: Path) -> UserError:
    """The sentence for a failed write at `path`."""
    number = getattr(error, "errno", None)
    if number in _NO_SPACE:
        return UserError(f"no space left while writing '{path}': free some disk or choose another --cache")
    if number in _NO_PERMISSION:
        return UserError(f"'{path}' cannot be written: no permission there, so choose another --cache")
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"'{path}' cannot be written ({reason}): check the disk or choose another --cache")


def read_error(error: BaseException, path: Path, way_out: str) -> UserError:
    """The sentence for a failed read of `path`."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"'{path}' is missing: {way_out}")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"'{path}' cannot be read ({reason}): {way_out}")


def _synced(path: Path) -> None:
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; moved there when the block ends well, removed when it does not."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        _synced(temporary)
        os.replace(temporary, path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise storage_error(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; takes its place when the block ends well, else is removed."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise storage_error(error, path) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder, so that two processes do not build the same thing twice."""
    from filelock import FileLock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError as error:
        raise storage_error(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def listing(*sources: Path) -> str:
    """Names, sizes and times of what a source holds: when they change, it is another source."""
    lines = []
    for source in sources:
        files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        for path in files:
            known = path.stat()
            name = path.relative_to(source.parent).as_posix()
            lines.append(f"{name} {known.st_size} {known.st_mtime_ns}")
    return "\n".join(lines)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's bytes, which publishers of old data sets give."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def sha256_text(*parts: str) -> str:
    """Hex SHA-256 of several strings, kept apart by line ends."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and values; independent of how they are stored."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; `Damaged` where the file holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"'{path}' cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise Damaged(f"'{path}' does not hold a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Strict JSON (no NaN), atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Safetensors, synced to disk; returns the SHA-256 of the file. Raises OSError; not atomic by itself."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, str(path))
    except SafetensorError as error:  # it hides the system's error number in its text
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, str(error)) from error
    _synced(path)
    return sha256_file(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file (memory-mapped); `Damaged` where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise Damaged(f"'{path}' cannot be read ({error})") from error


def read_idx(path: Path, way_out: str) -> tuple[np.ndarray, str]:
    """A gzipped IDX file of unsigned bytes (the MNIST format): a uint8 array and the MD5 of the content.

    Raises UserError where the file is missing, truncated or in another format.
    """
    try:
        with gzip.open(path, "rb") as handle:
            raw = handle.read()
    except (OSError, EOFError, zlib.error) as error:
        raise read_error(error, path, way_out) from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise UserError(f"'{path}' is not an IDX file of bytes: {way_out}")
    shape = tuple(np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int))
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != int(np.prod(shape)):
        raise UserError(f"'{path}' holds {body.size} bytes where its header says {shape}: {way_out}")
    return body.reshape(shape), hashlib.md5(raw).hexdigest()


def read_image(path: Path, way_out: str) -> np.ndarray:
    """An RGB picture `[H, W, 3]` uint8. Raises UserError where the file is missing or no whole image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise UserError(f"'{path}' is not an image: {way_out}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise read_error(error, path, way_out) from error


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory (copied where the array is read-only or not contiguous)."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
