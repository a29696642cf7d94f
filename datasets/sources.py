"""Files of a data set wherever they lie: in a folder, a zip or a tar archive. Nothing is ever unpacked.

Everything that is read was written by strangers, so names that climb out of their archive are refused, and a
picture that cannot be decoded is one sentence that names it.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.files import read_error
from datasets.spec import UserError

RESTORE = "restore it, or remove it with its captions"


def walk(source: Path, wanted: Any) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of `source` whose name `wanted.search` finds; sorted, except in a tar.

    source: a folder, a .zip, or a tar archive (compressed or not). Names are relative, with slashes.
    Raises UserError for what cannot be read, and for an archive with a name that climbs out of it.
    """
    if source.is_dir():
        yield from _folder(source, wanted)
        return
    # zipfile raises RuntimeError for what is encrypted.
    broken = (
        OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError
    )  # fmt: skip
    try:
        yield from _zip(source, wanted) if zipfile.is_zipfile(source) else _tar(source, wanted)
    except broken as error:
        raise UserError(
            f"the archive '{source}' is damaged ({error}): remove it and fetch it again"
        ) from error


def _folder(source: Path, wanted: Any) -> Iterator[tuple[str, bytes]]:
    root = source.resolve()
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if not wanted.search(name) or path.is_dir():
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(f"'{path}' leads out of '{source}': replace the link by the file itself")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise read_error(error, path, RESTORE) from error
        yield name, content


def _checked(name: str, source: Path) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise UserError(
            f"the archive '{source}' holds '{name}', which climbs out of it: use the original archive"
        )
    return name


def _zip(source: Path, wanted: Any) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        names = sorted(_checked(name, source) for name in archive.namelist())
        for name in names:
            if wanted.search(name) and not name.endswith("/"):
                yield name, archive.read(name)


def _tar(source: Path, wanted: Any) -> Iterator[tuple[str, bytes]]:
    # Read in the order of the file: seeking in a compressed tar would unpack it again for every member.
    with tarfile.open(source, "r|*") as archive:
        for member in archive:
            name = _checked(member.name, source)
            if member.isfile() and wanted.search(name):
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                yield name, content.read()


def decode_picture(content: bytes, side: int, where: str) -> NDArray[np.uint8]:
    """A picture as RGB `[3, side, side]`, resized to exactly that square (bicubic, aspect ratio not kept).

    Grey, CMYK, palette, 16-bit and 1x1 pictures are converted. Raises UserError, naming `where`, for bytes
    that are no whole picture.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                if image.mode.startswith("I"):
                    deep = np.asarray(image).astype(np.float64)
                    scale = 65535 if deep.max() > 255 else 255
                    plain = Image.fromarray(
                        np.rint(deep.clip(0, scale) * (255 / scale)).astype(np.uint8)
                    ).convert("RGB")
                else:
                    plain = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Warning) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"the picture '{where}' cannot be read ({reason}): {RESTORE}") from error
    return square(np.asarray(plain), side)


def square(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """RGB `[H, W, 3]` -> `[3, side, side]`, bicubic with antialiasing; unchanged where it fits."""
    from PIL import Image

    if picture.shape[:2] != (side, side):
        picture = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def read_text(content: bytes, where: str) -> str:
    """UTF-8 text, or Latin-1 where it is none (some official captions are)."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_records(path: Path, **more: type) -> list[dict[str, Any]]:
    """A JSON list of objects with an integer `image_id`, `captions`, and the keys `more`; else UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise read_error(error, path, "put the original file there") from error
    kinds = {"image_id": int, **more}
    good = isinstance(value, list) and all(
        isinstance(r, dict) and all(isinstance(r.get(key), kind) for key, kind in kinds.items())
        and isinstance(r.get("captions"), list) and all(isinstance(c, str) for c in r["captions"])
        for r in value
    )  # fmt: skip
    if not good:
        names = ", ".join(("image_id", "captions", *more))
        raise UserError(f"'{path}' is no list of records with {names}: put the original file there")
    return value


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file, `images` uint8 `[N, H, W, 3]`, others whole numbers `[N]`; else UserError."""
    way_out = "put the original file there"
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in names}
    except KeyError as error:
        raise UserError(f"'{path}' lacks the array {error}: {way_out}") from error
    except Exception as error:  # zipfile, zlib, numpy and the system each raise their own kinds
        raise UserError(f"'{path}' cannot be read ({error}): {way_out}") from error
    images, numbers = found["images"], [a for name, a in found.items() if name != "images"]
    pictures = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    if not pictures or any(a.shape != images.shape[:1] or a.dtype.kind not in "iu" for a in numbers):
        raise UserError(f"'{path}' does not hold one RGB picture for every entry: {way_out}")
    return found
