"""CUB Image-Captions (METHODS 4.2): Caltech-UCSD Birds 200-2011 with ten captions each (Reed et al. 2016).

Split by class: 150 of the 200 species train, 50 test. Two layouts are known: the official archives' (unpacked
or not), and a packed one, `*_64.npz` or `*_256_jpeg*.tar` with `*_records.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from datasets.archive import fetch
from datasets.captioned import CaptionedDataset, Source, Whole, first
from datasets.files import listing
from datasets.sources import decode_picture, read_arrays, read_records, read_text, square, walk

# The species that no method sees in training: the zero-shot split of Reed et al.
TEST_CLASSES = frozenset((
    1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66,
    72, 79, 83, 84, 86, 91, 95, 96, 98, 101, 102, 103, 112, 114, 119, 121, 130, 135, 138, 147,
    156, 163, 165, 166, 180, 183, 185, 186, 187, 197,
))  # fmt: skip

IMAGES_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
IMAGES_MD5 = "97eceeb196236b17998738112f37df78"
# No checksum of the captions' archive is known: it is pinned when it is first seen.
TEXTS_URL = (
    "https://drive.usercontent.google.com/download?id=0B0ywwgffWnLLZW9uVHNjb2JmNlE&export=download&confirm=t"
)
IMAGES_FILE, TEXTS_FILE = "CUB_200_2011.tgz", "cvpr2016_cub.tar.gz"

_IMAGE = re.compile(r"(?:^|/)images/(\d{3}\.[^/]+/[^/]+)\.jpe?g$", re.IGNORECASE)
_TEXT = re.compile(r"(?:^|/)text_c10/(\d{3}\.[^/]+/[^/]+)\.txt$")
_NUMBERED = re.compile(r"(?:^|/)0*(\d+)\.jpe?g$", re.IGNORECASE)


def split_of(species: int) -> str:
    """`train` or `test`, by the number of a species."""
    return "test" if species in TEST_CLASSES else "train"


class CUB(CaptionedDataset):
    """64x64 birds: 88,550 training pairs (5 % of images held out as `val`), 29,330 test ones.

    `data`: a folder with either layout, whole or in part; a partial build has another fingerprint, and says
    so.
    """

    name: ClassVar[str] = "cub"
    whole = Whole({"train": 8_855, "test": 2_933}, {"train": 88_550, "test": 29_330}, 1_590)
    wanted = (
        "CUB_200_2011/images and text_c10 (or the archives that hold them), or cub_64.npz, cub_256_jpeg.tar"
        " and cub_records.json,"
    )

    def _local(self, root: Path) -> Source | None:
        for place in (root, root / "cub", root / "official_layout", root / "cub" / "official_layout"):
            # CUB's own names first: the pack of another data set may lie beside them.
            ending = "_64.npz" if self.side == 64 else "_256_jpeg*.tar"
            packed = first(place, f"cub*{ending}", f"*{ending}")
            records = first(place, "cub*_records.json", "*_records.json")
            if packed is not None and records is not None:
                return self._packed(packed, records)
            images = first(place, "CUB_200_2011/images", "images", IMAGES_FILE)
            texts = first(place, "text_c10", "*/text_c10", TEXTS_FILE)
            if images is not None and texts is not None:
                return self._official(images, texts)
        return None

    def _published(self) -> Source:
        images = fetch(self.cache / "cub-archives", IMAGES_URL, IMAGES_FILE, IMAGES_MD5)
        texts = fetch(self.cache / "cub-archives", TEXTS_URL, TEXTS_FILE)
        return self._official(images, texts, published=True)

    def _official(self, images: Path, texts: Path, published: bool = False) -> Source:
        # The patterns begin above the folder, in an unpacked copy as in an archive.
        roots = [p.parent if p.is_dir() else p for p in (images, texts)]

        def captions() -> dict[tuple[str, str], list[str]]:
            found = {}
            for name, content in walk(roots[1], _TEXT):
                key = _TEXT.search(name)[1]  # type: ignore[index]
                # Not splitlines: a caption may hold a character that Unicode calls a line separator.
                lines = read_text(content, name).split("\n")
                found[split_of(int(key[:3])), key] = [line for line in lines if line.strip()]
            return found

        def pictures(wanted: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            for name, content in walk(roots[0], _IMAGE):
                key = _IMAGE.search(name)[1]  # type: ignore[index]
                if key in wanted:
                    yield key, decode_picture(content, self.side, name)

        return Source(listing(images, texts), captions, pictures, published)

    def _packed(self, packed: Path, records: Path) -> Source:
        def captions() -> dict[tuple[str, str], list[str]]:
            return {
                (split_of(int(r["class_id"])), f"{r['image_id']:05d}"): r["captions"]
                for r in read_records(records, class_id=int)
            }

        def pictures(wanted: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
            if packed.suffix == ".npz":
                arrays = read_arrays(packed, ("images", "image_id"))
                for number, picture in zip(arrays["image_id"], arrays["images"], strict=True):
                    if f"{number:05d}" in wanted:
                        yield f"{number:05d}", square(picture, self.side)
                return
            for name, content in walk(packed, _NUMBERED):
                key = f"{int(_NUMBERED.search(name)[1]):05d}"  # type: ignore[index]
                if key in wanted:
                    yield key, decode_picture(content, self.side, name)

        return Source(listing(packed, records), captions, pictures)


class CUB256(CUB):
    """The same at 256x256 (METHODS 4.3), kept compressed and decoded batch by batch."""

    name: ClassVar[str] = "cub256"
    side = 256
    compressed = True
