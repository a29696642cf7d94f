"""Finished runs as committed records: without weights, and small, since a repository keeps every version."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.config import plain
from bench.health import PATIENCE
from bench.safefiles import atomic, read_json, user_error
from bench.store import GRID, LOG, OUTCOMES, RECORD, REFINEMENT, SCORES, RunFolder, folder_name

LOG_LINES = 80
"""Lines of training that a published log keeps, evenly spaced; validations are all kept."""
LOG_DIGITS = 5
"""Significant digits of their numbers."""
SCORE_DIGITS = 8
"""Significant digits of published scores and the ends of their intervals: beyond what any table prints, and
more than float32 holds."""


def publish(folder: Path, root: Path) -> Path:
    """Copy a finished record without its weights to `<root>/published/`; returns the new folder.

    Scores are one a line without empty keys and rounded, the log is thinned (`thin_log`), and the grid goes
    along for seed 0 of a preset alone, as the pictures of other seeds and of ablations say no more. Raises
    UserError where the run is not finished or a published one itself.
    """
    run = RunFolder(Path(folder))
    record = run.read_record()
    if record.get("status") != "done":
        raise user_error(
            f"'{folder}' is {record.get('status', 'no run')}, only a finished run can be published"
        )
    name = Path(folder_name(record["dataset"])) / folder_name(record["method"]) / record["run_id"]
    target = Path(root) / "published" / name
    if target.resolve() == run.path.resolve():
        raise user_error(f"'{folder}' is a published record already; publish the run that it was made from")
    RunFolder(target).drop(REFINEMENT, OUTCOMES, SCORES, LOG, GRID)  # of an earlier state of the run
    for item in (RECORD, REFINEMENT):
        if (run.path / item).exists():
            with atomic(target / item) as temporary:
                shutil.copyfile(run.path / item, temporary)
    if outcomes := run.read_outcomes():
        RunFolder(target).write_outcomes(outcomes)
    if (run.path / SCORES).exists():
        with atomic(target / SCORES) as temporary:
            temporary.write_text(_compact(read_json(run.path / SCORES)), encoding="utf-8")
    if (run.path / LOG).exists():
        with atomic(target / LOG) as temporary:
            temporary.write_text("".join(map(_line, thin_log(run.read_log()))), encoding="utf-8")
    if (run.path / GRID).exists() and not record.get("seed") and not record.get("overrides"):
        from PIL import Image

        # 256 colours look the same and need a third of the room.
        with Image.open(run.path / GRID) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        with atomic(target / GRID) as temporary:
            small.save(temporary, "PNG", optimize=True)
    return target


def thin_log(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At most `LOG_LINES` lines of training, the first and the last among them, and all others; rounded.

    Of every stage the first line and the last `PATIENCE` stay, so that `bench.health` finds the same signs.
    """
    training = [i for i, entry in enumerate(entries) if entry.get("kind", "train") == "train"]
    if len(training) > LOG_LINES:
        stages: dict[str, list[int]] = {}
        for i in training:
            stages.setdefault(entries[i].get("stage", ""), []).append(i)
        kept = {i for lines in stages.values() for i in (lines[0], *lines[-PATIENCE:])}
        even = max(2, LOG_LINES - len(kept))
        kept |= {training[round(k * (len(training) - 1) / (even - 1))] for k in range(even)}
        dropped = set(training) - kept
        entries = [entry for i, entry in enumerate(entries) if i not in dropped]
    return [plain(_rounded(entry, LOG_DIGITS)) for entry in entries]


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v, digits) for k, v in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{digits}g}")
    return value


def _line(entry: Mapping[str, Any]) -> str:
    """One entry as JSON on one line, without blanks between its parts: they are a tenth of a record."""
    return json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n"


def _compact(content: Mapping[str, Any]) -> str:
    """scores.json with one score a line and without the keys that are empty; `Score` fills them in again."""
    always = ("metric", "value", "n", "better")
    rows = [{k: v for k, v in row.items() if k in always or v not in ("", None)} for row in content["scores"]]
    head = json.dumps({k: v for k, v in content.items() if k != "scores"}, indent=1)
    lines = ",\n  ".join(_line(_rounded(row, SCORE_DIGITS)).rstrip() for row in rows)
    return f'{head.removesuffix("}").rstrip()},\n "scores": [\n  {lines}\n ]\n}}\n'
