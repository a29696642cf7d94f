"""Prepared copies: a folder of safetensors that appears whole or not at all and is verified when opened."""

from __future__ import annotations

import json
import logging
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from datasets.files import (
    Damaged,
    atomic_folder,
    locked,
    read_json,
    read_tensors,
    sha256_file,
    sha256_text,
    tensors_hash,
    write_json,
    write_tensors,
)
from datasets.spec import Dataset, Split, UserError

log = logging.getLogger(__name__)

INFO = "info.json"
SPLITS = ("train", "val", "test")


def write_prepared(
    folder: Path,
    parts: Iterable[tuple[str, dict[str, Tensor]]],
    info: dict[str, Any],
    extras: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    """Store the parts with their checksums as one folder; `extras` are further files beside them.

    Returns the stored information: `info` plus `files` (SHA-256 by part), `fingerprint` (of the content,
    whatever the file format) and `seal`. Call it under the lock of the parent, since what killed builds
    left there is removed.
    """
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        files, contents = {}, []
        for part, tensors in parts:
            contents.append(f"{part} {tensors_hash(tensors)}")
            files[part] = write_tensors(temporary / f"{part}.safetensors", tensors)
        for name, content in (extras or {}).items():
            (temporary / name).write_bytes(content)
        stored = {**info, "files": files, "fingerprint": sha256_text(*contents)[:16]}
        stored["seal"] = _seal(stored)
        write_json(temporary / INFO, stored)
    return stored


def _seal(info: dict[str, Any]) -> str:
    """Hash of all other entries, so that an edited information file is noticed too."""
    rest = {key: value for key, value in info.items() if key != "seal"}
    return sha256_text(json.dumps(rest, sort_keys=True))


def check_prepared(folder: Path) -> dict[str, Any]:
    """The information of a prepared folder after comparing every file with its checksum.

    Raises `Damaged` for a file that is missing, truncated or altered.
    """
    info = read_json(folder / INFO)
    if info.get("seal") != _seal(info):
        raise Damaged(f"'{folder / INFO}' is not what was written there")
    for part, expected in info["files"].items():
        path = folder / f"{part}.safetensors"
        try:
            actual = sha256_file(path)
        except OSError as error:
            raise Damaged(f"'{path}' cannot be read ({error.strerror})") from error
        if actual != expected:
            raise Damaged(f"'{path}' is not what was written there (truncated or altered)")
    return info


def open_prepared(folder: Path) -> dict[str, Any] | None:
    """The information of a sound prepared folder; None, with a warning where it is damaged, otherwise."""
    if not folder.exists():
        return None
    try:
        return check_prepared(folder)
    except Damaged as error:
        log.warning("%s: this copy is not used", error)
        return None


def prepared_or(build: Callable[[], dict[str, Any]], folder: Path) -> tuple[Path, dict[str, Any]]:
    """A prepared folder and its information; built under the lock unless a sound copy is there."""
    info = open_prepared(folder)
    if info is None:
        existed = folder.exists()
        with locked(folder.parent):
            # Another process may have built it while this one waited; a damaged copy is not read twice.
            info = None if existed else open_prepared(folder)
            info = info or build()
    return folder, info


class PreparedDataset(Dataset):
    """A data set whose splits lie in one prepared folder.

    A subclass has the `spec`, says where that folder is and fills it (`_locate`). A part of the folder holds
    one tensor per modality; `source.<modality>`, which become `groups` (the source picture behind each
    entry, where it is known); whatever else it holds are `labels`.
    """

    def __init__(self, cache: Path, data: Path | None = None, seed: int = 0) -> None:
        super().__init__(cache, Path(data) if data is not None else None, seed)
        self._found: tuple[Path, dict[str, Any]] | None = None
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def _locate(self) -> tuple[Path, dict[str, Any]]:
        """The prepared folder, verified or built just now, and its information."""

    def prepare(self) -> None:
        """Build once, afterwards only verify. Raises UserError where there is no sound source or no space."""
        self._opened()

    def _opened(self) -> tuple[Path, dict[str, Any]]:
        if self._found is None:
            self._found = self._locate()
        return self._found

    @property
    def folder(self) -> Path:
        """The folder of the prepared copy."""
        return self._opened()[0]

    @property
    def fingerprint(self) -> str:
        """Hash of the prepared content."""
        return self._opened()[1]["fingerprint"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What every table must say about this build."""
        return tuple(self._opened()[1].get("notes", ()))

    def split(self, name: Literal["train", "val", "test"]) -> Split:
        """One split, read once and kept. Raises UserError where its parts do not fit together."""
        if name not in SPLITS:
            raise ValueError(f"no split '{name}'; there are {', '.join(SPLITS)}")
        if name not in self._splits:
            try:
                tensors = read_tensors(self.folder / f"{name}.safetensors")
            except Damaged as error:
                raise UserError(f"{error}: run the command again to build this copy anew") from error
            self._splits[name] = self._split(tensors)
        return self._splits[name]

    def _split(self, tensors: dict[str, Tensor]) -> Split:
        """A split from the tensors of its part."""
        names = self.spec.names
        groups = {m: tensors[f"source.{m}"] for m in names if f"source.{m}" in tensors}
        labels = {k: t for k, t in tensors.items() if k not in names and not k.startswith("source.")}
        return Split(self.spec, {m: tensors[m] for m in names}, labels, groups)
