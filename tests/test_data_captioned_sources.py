"""Folders that hold more than one source of CUB or MSCOCO: which is read, and when it is read anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import captioned_support as mini
import numpy as np
import pytest

from datasets.coco import COCO
from datasets.cub import CUB
from datasets.spec import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    mini.shrink(monkeypatch)


def test_coco_takes_the_captions_of_one_year(tmp_path: Path) -> None:
    """2017 splits the same photographs otherwise: both years together would test on training pictures."""
    files = mini.coco_files()
    alone = COCO(tmp_path / "cache", mini.write(tmp_path / "alone", files))
    swapped = {"train": files["annotations/captions_val2014.json"]}
    swapped["val"] = files["annotations/captions_train2014.json"]
    both = files | {f"annotations/captions_{split}2017.json": text for split, text in swapped.items()}
    data = COCO(tmp_path / "cache", mini.write(tmp_path / "both", both))
    assert data.fingerprint == alone.fingerprint


def test_coco_refuses_a_picture_that_trains_and_tests(tmp_path: Path) -> None:
    files = mini.coco_files()
    notes = json.loads(files["annotations/captions_val2014.json"])["annotations"]
    notes += [{"id": 7, "image_id": 3, "caption": "A Dog runs."}]
    files["annotations/captions_val2014.json"] = json.dumps({"annotations": notes}).encode()
    with pytest.raises(UserError, match="1 pictures in training and in the test \\(000000000003\\)"):
        COCO(tmp_path / "cache", mini.write(tmp_path / "data", files)).prepare()


def test_another_pack_in_the_same_folder_is_not_taken_for_cub(tmp_path: Path) -> None:
    root = mini.packed_cub(tmp_path / "data")
    alone = CUB(tmp_path / "cache", root).fingerprint
    with np.load(root / "cub_64.npz") as pack:
        np.savez(root / "coco_64.npz", images=255 - pack["images"], image_id=pack["image_id"])
    assert CUB(tmp_path / "other", root).fingerprint == alone


def test_a_source_of_the_same_size_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    root = mini.packed_cub(tmp_path / "data")
    before = CUB(tmp_path / "cache", root).fingerprint
    path = root / "cub_64.npz"
    with np.load(path) as pack:
        arrays = {"images": 255 - pack["images"], "image_id": pack["image_id"]}
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    np.savez(path, **arrays)
    os.utime(path, ns=(time, time + 1_000_000_000))
    assert path.stat().st_size == size
    assert CUB(tmp_path / "cache", root).fingerprint != before


def test_a_slash_at_the_end_of_the_folder_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for text in (f"{tmp_path}/empty", f"{tmp_path}/empty/"):
        monkeypatch.setenv("BENCH_DATA", text)
        with pytest.raises(UserError, match="its archives cannot be reached"):
            CUB(tmp_path / "cache", Path(text)).prepare()
