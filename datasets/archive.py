"""Downloads (resumed, checksum pinned) of any archive, and reading of the published PolyMNIST one.

Two layouts are known: pictures `<split>/m<i>/<index>.<digit>.png`, and tensors `<split>/m<i>.pt` with
`<split>/labels.pt`; the digit classifiers may lie beside them under `clf/`.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.files import atomic_file, md5_file, read_error, sha256_file, storage_error
from datasets.recipe import NAMES, SIDE
from datasets.spec import UserError

log = logging.getLogger(__name__)

URL = "https://zenodo.org/record/4899160/files/PolyMNIST.zip"
FILE = "PolyMNIST.zip"
TIMEOUT = (5, 15)  # seconds to connect, and between two pieces of data
_PICTURE = re.compile(r"(?:^|/)(train|test)/m(\d)/(\d+)\.(\d)\.png$")
_TENSOR = re.compile(r"(?:^|/)(train|test)/(m\d|labels)\.pt$")
_CLASSIFIER = re.compile(r"(?:^|/)pretrained_img_to_digit_clf_(m\d)$")
_CHUNK = 1 << 17


class Unreachable(Exception):
    """The archive's server did not answer; another source may serve."""


def _broke_off(url: str, how: str) -> UserError:
    return UserError(f"the download of '{url}' broke off ({how}): run the command again to go on")


class Resuming:
    """A downloader for pooch that continues where an earlier attempt broke off.

    What has arrived is kept in `<file>.part` beside the target, together with the server's mark for
    this version of the file (`ETag`), without which nothing is continued.
    """

    def __init__(self, target: Path) -> None:
        self.name = target.name
        self.part = target.with_name(target.name + ".part")
        self.mark = target.with_name(target.name + ".part.etag")

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        import requests

        have = self.part.stat().st_size if self.part.exists() and self.mark.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.mark.read_text(encoding="utf-8")}
        try:
            answer = requests.get(url, stream=True, timeout=TIMEOUT, headers=headers)
        except requests.RequestException as error:
            raise Unreachable(type(error).__name__) from error
        with answer:
            if answer.status_code == 416 and have:  # nothing comes after `have`: begin again
                self._forget()
                self(url, output_file, _)
                return
            if not answer.ok:
                raise Unreachable(f"the server answered {answer.status_code}")
            try:
                whole = self._receive(answer, have if answer.status_code == 206 else 0)
            except requests.RequestException as error:
                raise _broke_off(url, type(error).__name__) from error
        size = self.part.stat().st_size
        if whole is not None and size != whole:
            raise _broke_off(url, f"{size} of {whole} bytes")
        os.replace(self.part, output_file)
        self._forget()

    def _receive(self, answer: Any, start: int) -> int | None:
        """Append the answer's body to the part; the size of the whole file, where the server says it."""
        from tqdm.auto import tqdm

        length = answer.headers.get("Content-Length")
        whole = start + int(length) if length else None
        if mark := answer.headers.get("ETag"):
            self.mark.write_text(mark, encoding="utf-8")
        else:
            self.mark.unlink(missing_ok=True)
        with (
            open(self.part, "ab" if start else "wb") as handle,
            tqdm(total=whole, initial=start, unit="B", unit_scale=True, desc=self.name, disable=None) as bar,
        ):
            for piece in answer.iter_content(_CHUNK):
                handle.write(piece)
                bar.update(len(piece))
        return whole

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def download(folder: Path, url: str | None = None) -> Path:
    """The PolyMNIST archive in `folder`, see `fetch`; no official checksum is known."""
    return fetch(folder, url or URL, FILE)


def fetch(folder: Path, url: str, name: str, md5: str | None = None) -> Path:
    """The archive `name` in `folder`, downloaded if need be and equal to the checksum pinned beside it.

    md5: the official checksum; without one, that of the first copy seen is pinned. Raises `Unreachable` where
    the server does not answer, UserError for a broken or altered download.
    """
    import pooch

    target, pin = folder / name, folder / f"{name}.sha256"
    pinned = pin.read_text(encoding="utf-8").strip() if pin.exists() else None
    if target.exists():
        if pinned is None and md5 is not None and md5_file(target) != md5:
            raise UserError(
                f"'{target}' is not the published file (MD5 differs): put the original there or remove it"
            )
        check_pin(target, pin)
        return target
    known = f"sha256:{pinned}" if pinned else f"md5:{md5}" if md5 else None
    pooch.get_logger().setLevel("WARNING")  # it would print its own advice on pinning
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s", url)
        pooch.retrieve(url, known_hash=known, fname=name, path=folder, downloader=Resuming(target))
    except ValueError as error:
        if not pinned:
            raise UserError(
                f"'{url}' is not the published file (MD5 differs): fetch it elsewhere and put it into"
                f" '{folder}'"
            ) from error
        raise UserError(
            f"'{url}' is not the file seen before (SHA-256 differs): if it was replaced on purpose,"
            f" remove '{pin}'"
        ) from error
    except OSError as error:
        raise storage_error(error, target) from error
    check_pin(target, pin)
    return target


def check_pin(archive: Path, pin: Path) -> str:
    """The SHA-256 of an archive: pinned where it is new, compared where it is known.

    Raises UserError where it differs, and where a new file is no zip archive (it is not pinned then).
    """
    try:
        actual = sha256_file(archive)
    except OSError as error:
        raise read_error(error, archive, "check the folder's permissions") from error
    if not pin.exists():
        if not (zipfile.is_zipfile(archive) or archive.suffix != ".zip" and tarfile.is_tarfile(archive)):
            kind = "zip" if archive.suffix == ".zip" else "tar"
            raise UserError(f"'{archive}' is not a whole {kind} archive: remove it and run the command again")
        with atomic_file(pin) as temporary:
            temporary.write_text(actual + "\n", encoding="utf-8")
    elif pin.read_text(encoding="utf-8").strip() != actual:
        raise UserError(f"'{archive}' is truncated or altered: remove it and run the command again")
    return actual


class Archive:
    """Reading access to the archive; a context manager. Raises UserError for whatever is wrong inside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.broken(str(error)) from error
        self._pictures: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
        self._tensors: dict[tuple[str, str], str] = {}
        self._classifiers: dict[str, str] = {}
        for name in self._zip.namelist():
            if "__MACOSX" in name:
                continue
            if found := _PICTURE.search(name):
                key = (found[1], f"m{found[2]}")
                self._pictures.setdefault(key, []).append((int(found[3]), int(found[4]), name))
            elif found := _TENSOR.search(name):
                self._tensors[found[1], found[2]] = name
            elif found := _CLASSIFIER.search(name):
                self._classifiers[found[1]] = name
        # A directory scan has no order: sorted by (index, digit), the same tuple comes first everywhere.
        for members in self._pictures.values():
            members.sort()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def broken(self, reason: str) -> UserError:
        """The sentence for something wrong inside the archive."""
        return UserError(f"the archive '{self.path}' is damaged ({reason}): remove it and download it again")

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise self.broken(f"{name}: {error}") from error

    def labels(self, split: str) -> np.ndarray:
        """Digits `[N]` int64 of a split, after making sure that all modalities agree on them."""
        if (split, "labels") in self._tensors:
            return self._tensor(split, "labels").long().reshape(-1).numpy()
        listed = {m: self._pictures.get((split, m), []) for m in NAMES}
        lengths = {m: len(members) for m, members in listed.items()}
        if not any(lengths.values()):
            raise self.broken(f"it holds no '{split}' pictures or tensors")
        if len(set(lengths.values())) != 1:
            raise self.broken(f"the modalities of '{split}' have unequal lengths: {lengths}")
        digits = {m: np.array([digit for _, digit, _ in members]) for m, members in listed.items()}
        for name in NAMES[1:]:
            unequal = np.flatnonzero(digits[NAMES[0]] != digits[name])
            if unequal.size:
                raise self.broken(
                    f"tuple {unequal[0]} of '{split}' has digit {digits[NAMES[0]][unequal[0]]} in {NAMES[0]}"
                    f" and {digits[name][unequal[0]]} in {name}"
                )
        return digits[NAMES[0]].astype(np.int64)

    def images(self, split: str, modality: str) -> np.ndarray:
        """All pictures of one modality, `[N, 3, 28, 28]` uint8, in tuple order."""
        if (split, modality) in self._tensors:
            return self._bytes(self._tensor(split, modality), f"{split}/{modality}.pt")
        members = self._pictures.get((split, modality))
        if not members:
            raise self.broken(f"it holds no pictures of '{split}/{modality}'")
        return np.stack([self._picture(name) for _, _, name in members])

    def _picture(self, name: str) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self._read(name))) as image:
                array = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise self.broken(f"{name} is not an image") from error
        if array.shape != (SIDE, SIDE, 3):
            raise self.broken(f"{name} measures {array.shape[1]} x {array.shape[0]}, not 28 x 28")
        return array.transpose(2, 0, 1)

    def _tensor(self, split: str, name: str) -> torch.Tensor:
        member = self._tensors[split, name]
        try:
            value = torch.load(io.BytesIO(self._read(member)), map_location="cpu", weights_only=True)
        except Exception as error:  # the restricted unpickler fails in many ways on foreign bytes
            raise self.broken(f"{member} is not a tensor") from error
        if not isinstance(value, torch.Tensor):
            raise self.broken(f"{member} is not a tensor")
        return value

    def _bytes(self, images: torch.Tensor, member: str) -> np.ndarray:
        if images.shape[1:] != (3, SIDE, SIDE):
            raise self.broken(f"{member} has shape {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            return images.numpy()
        if not images.is_floating_point() or not 0 <= images.min() <= images.max() <= 1:
            raise self.broken(f"{member} holds values outside [0, 1]")
        return np.concatenate([x.mul(255).round().to(torch.uint8).numpy() for x in images.split(4096)])

    def classifiers(self) -> Iterator[tuple[str, np.ndarray]]:
        """The weights of the digit classifiers, named `<modality>.<layer>`; unreadable ones are skipped."""
        for modality, member in sorted(self._classifiers.items()):
            try:
                state = torch.load(io.BytesIO(self._read(member)), map_location="cpu", weights_only=True)
                weights = [(f"{modality}.{key}", value.numpy()) for key, value in state.items()]
            except Exception as error:  # as above; the suite then trains its own
                log.warning("the classifier '%s' of the archive cannot be read (%s)", member, error)
                continue
            yield from weights
