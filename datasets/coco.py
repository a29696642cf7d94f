"""MSCOCO (METHODS 4.3): photographs with five captions each; train2014 trains, val2014 tests.

Two layouts are known: the official archives' (unpacked or not; a folder may hold the pictures of 2017, the
same photographs in other folders, since captions say what trains and what tests), and a packed one,
`*_64.npz` with `*_records.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datasets.archive import fetch
from datasets.captioned import CaptionedDataset, Source, Whole, first
from datasets.files import listing
from datasets.sources import decode_picture, read_arrays, read_records, square, walk
from datasets.spec import UserError

ADDRESS = "http://images.cocodataset.org/"
MD5 = {
    "zips/train2014.zip": "0da8c0bd3d6becc4dcb32757491aca88",
    "zips/val2014.zip": "a3d79f5ed8d289b7a7554ce06a5782b3",
    "annotations/annotations_trainval2014.zip": "0a379cfc70b0e71301e0f377548639bd",
}
CAPTIONS = 5
"""Captions kept of a picture; some have more."""

_SPLITS = {"train": "train", "val": "test"}
_PICTURE = re.compile(r"(?:^|/)(?:COCO_(?:train|val)\d{4}_)?0*(\d+)\.jpe?g$", re.IGNORECASE)
_CAPTIONS = re.compile(r"(?:^|/)captions_(train|val)(2014|2017)\.json$")


class COCO(CaptionedDataset):
    """64x64 photographs: 82,783 training pictures (5 % held out as `val`) and 40,504 test pictures.

    Words are lower-case, the 10,000 most frequent at most. `data`: a folder with either layout, whole or in
    part. A partial build has its own fingerprint and says so.
    """

    name: ClassVar[str] = "coco"
    whole = Whole({"train": 82_783, "test": 40_504})
    lower = True
    most_words = 10_000
    wanted = (
        "train2014, val2014 and annotations (or the archives that hold them), or coco_64.npz and"
        " coco_records.json,"
    )

    def _local(self, root: Path) -> Source | None:
        for place in (root, root / "coco", root / "official_layout", root / "coco" / "official_layout"):
            packed, records = first(place, "coco*_64.npz"), first(place, "coco*_records.json")
            if packed is not None and records is not None:
                return self._packed(packed, records)
            found = [
                first(place, "train2014", "train2014.zip", "train2017", "train2017.zip"),
                first(place, "val2014", "val2014.zip", "val2017", "val2017.zip"),
                first(place, "annotations", "annotations_trainval20*.zip"),
            ]
            if None not in found:
                return self._official([p for p in found if p is not None])
        return None

    def _published(self) -> Source:
        folder = self.cache / "coco-archives"
        files = [fetch(folder, ADDRESS + path, Path(path).name, md5) for path, md5 in MD5.items()]
        return self._official(files, published=True)

    def _official(self, files: list[Path], published: bool = False) -> Source:
        *folders, annotations = files

        def captions() -> dict[tuple[str, str], list[str]]:
            years: dict[str, dict[tuple[str, str], list[tuple[int, str]]]] = {}
            for name, content in walk(annotations, _CAPTIONS):
                split, year = _CAPTIONS.search(name).groups()  # type: ignore[union-attr]
                out = years.setdefault(year, {})
                for number, key, text in _annotations(content, name):
                    out.setdefault((_SPLITS[split], key), []).append((number, text))
            # Both years caption the same photographs, in other splits: one alone counts, 2014 if it is there.
            found = years[min(years)] if years else {}
            return {pair: [t for _, t in sorted(texts)[:CAPTIONS]] for pair, texts in found.items()}

        def pictures(wanted: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            for folder in folders:
                for name, content in walk(folder, _PICTURE):
                    key = f"{int(_PICTURE.search(name)[1]):012d}"  # type: ignore[index]
                    if key in wanted:
                        yield key, decode_picture(content, self.side, name)

        return Source(listing(*files), captions, pictures, published)

    def _packed(self, packed: Path, records: Path) -> Source:
        def captions() -> dict[tuple[str, str], list[str]]:
            found = {}
            for r in read_records(records, split=str):
                split = "train" if str(r["split"]).startswith("train") else "test"
                found[split, f"{r['image_id']:012d}"] = r["captions"][:CAPTIONS]
            return found

        def pictures(wanted: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            arrays = read_arrays(packed, ("images", "image_id"))
            for number, picture in zip(arrays["image_id"], arrays["images"], strict=True):
                if f"{number:012d}" in wanted:
                    yield f"{number:012d}", square(picture, self.side)

        return Source(listing(packed, records), captions, pictures)


def _annotations(content: bytes, where: str) -> list[tuple[int, str, str]]:
    """(number, picture, caption) of a file of captions. Raises UserError for another format."""
    try:
        found: list[dict[str, Any]] = json.loads(content)["annotations"]
        return [(int(a["id"]), f"{int(a['image_id']):012d}", str(a["caption"])) for a in found]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{where}' is no file of captions ({error}): put the original file there") from error
