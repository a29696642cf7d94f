"""Where runs live: identity, atomic files, locks, and reading records back.

A run is a folder `<results>/runs/<dataset>/<method>/<run_id>/`; committed records (without weights)
have the same shape under `<results>/published/`. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config import RunConfig, plain
from bench.safefiles import (
    atomic,
    digest,
    file_hash,
    finite,
    load_tensors,
    read_json,
    unwritable,
    user_error,
    write_json,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from metrics.protocol import Score

SCHEMA = 1
RECORD, SCORES, OUTCOMES, LOG = "run.json", "scores.json", "outcomes.npz", "train.jsonl"
REFINEMENT = "refinement.json"
WEIGHTS, CHECKPOINT, ERROR, GRID = "weights.safetensors", "checkpoint.pt", "error.txt", "grid.png"


def train_fingerprint(config: RunConfig, data_fingerprint: str) -> str:
    """Hash of everything that changes the weights: no evaluation plan, no preset name, no device."""
    return digest(
        {
            "method": config.method,
            "data": data_fingerprint,
            "hyper": config.hyper,
            "train": config.train.identity(),
            "seed": config.seed,
            "init_from": config.init_from,
            "torch": ".".join(version("torch").split(".")[:2]),
        }
    )


def run_id(config: RunConfig, data_fingerprint: str) -> str:
    """Hash of everything that changes the scores; the preset's name is in, since tables go by it."""
    trained = train_fingerprint(config, data_fingerprint)
    return digest({"train": trained, "plan": config.plan.identity(), "preset": config.preset}, 12)


def folder_name(method: str) -> str:
    """The name of a method or data set as a folder name (`package.module:Class` has a colon)."""
    return method.replace(":", "-")


@dataclass
class RunFolder:
    """One run on disk. `record` mirrors run.json; every file is replaced whole or not at all."""

    path: Path
    record: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock. Raises UserError where another process holds it."""
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise user_error(
                f"another process is working on '{self.path}'; wait for it or stop it"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise unwritable(self.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def read_record(self) -> dict[str, Any]:
        """Load run.json into `record` ({} where there is none). Raises UserError where it is damaged."""
        path = self.path / RECORD
        self.record = read_json(path) if path.exists() else {}
        return self.record

    def write_record(self, changes: Mapping[str, Any]) -> None:
        """Update run.json with `changes`."""
        self.record.update(changes)
        write_json(self.path / RECORD, self.record)

    def write_scores(self, scores: Sequence[Score], meta: Mapping[str, Any]) -> None:
        """Write scores.json: `meta` (metric_version, plan, ...) and the scores in long form."""
        rows = [finite(score.to_json()) for score in scores]
        write_json(self.path / SCORES, {"schema": SCHEMA, **meta, "scores": rows})

    def read_scores(self) -> tuple[list[Score], dict[str, Any]]:
        """The scores and what was written beside them; ([], {}) where there are none."""
        path = self.path / SCORES
        if not path.exists():
            return [], {}
        from metrics.protocol import Score

        meta = read_json(path)
        try:
            return [Score(**row) for row in meta.pop("scores")], meta
        except (KeyError, TypeError) as error:
            raise user_error(
                f"'{path}' does not fit this version ({error}); run it again with --force"
            ) from error

    def write_outcomes(self, outcomes: Mapping[str, np.ndarray]) -> None:
        """Bit-pack right-or-wrong per test tuple and cell; added to those already there."""
        import numpy as np

        merged = {**self.read_outcomes(), **outcomes}
        cells = [np.asarray(values, dtype=bool) for values in merged.values()]
        packed = {
            "cells": np.array(list(merged)),
            "lengths": np.array([len(values) for values in cells]),
            "bits": np.packbits(np.concatenate([np.zeros(0, bool), *cells])),
        }
        with atomic(self.path / OUTCOMES) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, **packed)

    def read_outcomes(self) -> dict[str, np.ndarray]:
        """Cell name -> bool `[n]` in test order; {} where none were written."""
        import numpy as np

        path = self.path / OUTCOMES
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as stored:
                if "cells" not in stored:
                    # Two arrays a cell, as written until November 2026.
                    cells = [key.removeprefix("bits ") for key in stored.files if key.startswith("bits ")]
                    return {
                        cell: np.unpackbits(stored[f"bits {cell}"], count=int(stored[f"n {cell}"])).astype(
                            bool
                        )
                        for cell in cells
                    }
                names, ends = stored["cells"].tolist(), np.cumsum(stored["lengths"])
                rows = np.unpackbits(stored["bits"], count=int(stored["lengths"].sum())).astype(bool)
                return {
                    name: rows[end - n : end]
                    for name, n, end in zip(names, stored["lengths"], ends, strict=True)
                }
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise user_error(
                f"'{path}' cannot be read ({error}); delete it and score the run again with `bench rescore`"
            ) from error

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to train.jsonl; numbers that are not finite become null."""
        line = json.dumps(finite(plain(entry)), allow_nan=False)
        try:
            with open(self.path / LOG, "a", encoding="utf-8") as handle:
                handle.write(line + "\n")
        except OSError as error:
            raise unwritable(self.path / LOG, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of train.jsonl; a last line that a crash cut short is left out."""
        return read_log(self.path)

    def cut_log(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed run will write again."""
        kept = [json.dumps(entry) + "\n" for entry in self.read_log() if entry.get("step", 0) <= step]
        with atomic(self.path / LOG) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def save_weights(self, tensors: Mapping[str, Tensor], name: str = WEIGHTS) -> str:
        """Write a state dictionary as safetensors; returns the hash of the file."""
        from safetensors.torch import save_file

        # A copy each: safetensors refuses tied or strided tensors.
        whole = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
        with atomic(self.path / name) as temporary:
            save_file(whole, str(temporary))
        return file_hash(self.path / name)

    def load_weights(self, name: str = WEIGHTS) -> dict[str, Tensor]:
        """Read a state dictionary. Raises UserError where the file is missing or damaged."""
        return load_tensors(self.path / name)

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write checkpoint.pt (tensors and plain values only)."""
        import torch

        with atomic(self.path / CHECKPOINT) as temporary:
            torch.save(dict(state), temporary)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read checkpoint.pt; None where there is none. Raises UserError where it is damaged."""
        import torch

        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            raise user_error(
                f"the checkpoint '{path}' is damaged ({reason}); start again with --force"
            ) from error
        if not isinstance(state, dict) or "method" not in state:
            raise user_error(
                f"the checkpoint '{path}' is not one of this suite; delete it or start again with --force"
            )
        return state

    def drop(self, *names: str) -> None:
        """Delete files of this run."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything but the lock."""
        for item in self.path.iterdir():
            if item.name != ".lock":
                shutil.rmtree(item) if item.is_dir() else item.unlink()
        self.record = {}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's train.jsonl; lines that are no JSON are left out."""
    out = []
    path = folder / LOG
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            out.append(json.loads(line))
    return out


def open_run(root: Path, config: RunConfig, data_fingerprint: str) -> RunFolder:
    """The folder of this run under `root`; nothing is created yet."""
    name = run_id(config, data_fingerprint)
    return RunFolder(Path(root) / "runs" / folder_name(config.dataset) / folder_name(config.method) / name)


def trained_code(record: Mapping[str, Any]) -> str:
    """Hash of the code that trained a run; empty where the record does not say."""
    return str((record.get("training") or {}).get("code") or record.get("code") or "")


def find_trained(folder: RunFolder, fingerprint: str, code: str) -> RunFolder | None:
    """A sibling that trained the very same weights with the same code for another plan or preset."""
    for path in sorted(folder.path.parent.glob(f"*/{RECORD}")):
        if path.parent == folder.path or not (path.parent / WEIGHTS).exists():
            continue
        with contextlib.suppress(Exception):
            other = RunFolder(path.parent)
            record = other.read_record()
            if record.get("trained") == fingerprint and trained_code(record) == code:
                return other
    return None


@dataclass(frozen=True)
class RunRecord:
    """A record read back: the folder, run.json, and the scores."""

    folder: Path
    record: dict[str, Any]
    scores: list[Score]

    @property
    def published(self) -> bool:
        """Whether this is a committed record."""
        return "published" in self.folder.parts[-4:]

    @property
    def outcomes(self) -> dict[str, np.ndarray]:
        """Cell name -> bool `[n]`, see `RunFolder.write_outcomes`."""
        return RunFolder(self.folder).read_outcomes()


def _preference(run: RunRecord) -> tuple[bool, bool]:
    return run.record.get("status") == "done", not run.published


def _record_paths(root: Path) -> list[Path]:
    found: set[Path] = set()
    for pattern in ("runs/*/*/*", "published/*/*/*", "*/*/*", "*/*", "*", "."):
        found.update(root.glob(f"{pattern}/{RECORD}"))
    return sorted(found)


def find_runs(root: Path) -> list[RunRecord]:
    """Every record under a results folder (or one of its subfolders), sorted by path.

    A run that is both published and still here counts once, the working copy unless only the published one
    is finished. Unreadable records are left out with a warning.
    """
    found: dict[str, RunRecord] = {}
    for path in _record_paths(Path(root)):
        folder = RunFolder(path.parent)
        try:
            record = folder.read_record()
            scores, _ = folder.read_scores()
        except Exception as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        known = found.get(path.parent.name)
        present = RunRecord(path.parent, record, scores)
        if known is None or _preference(present) > _preference(known):
            found[path.parent.name] = present
    return sorted(found.values(), key=lambda r: r.folder)
