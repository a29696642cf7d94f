"""Tiny folders and archives of CUB and MSCOCO in their official and packed layouts."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.captioned import Whole
from datasets.coco import COCO
from datasets.cub import CUB

TRAIN, TEST = "002.Laysan_Albatross", "001.Black_footed_Albatross"
COUNTS = {TRAIN: 20, TEST: 6}


def encoded(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """A picture file of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def texts(species: str, i: int) -> str:
    """Ten captions, one per line, in a few common words and one that is rare."""
    return "".join(f"this bird {c} is {'white' if i % 2 else 'black'}, number{i}{c}\n" for c in range(10))


def cub_files() -> dict[str, bytes]:
    """Name -> content, as the official archives hold them."""
    files = {}
    for species, count in COUNTS.items():
        for i in range(count):
            stem = f"{species}/{species[4:]}_{i:04d}"
            files[f"CUB_200_2011/images/{stem}.jpg"] = encoded(100 * int(species[:3]) + i)
            files[f"text_c10/{stem}.txt"] = texts(species, i).encode()
    return files


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def packed_cub(root: Path) -> Path:
    """The packed layout of the same pictures, at 64 and at 256 pixels."""
    root.mkdir(parents=True, exist_ok=True)
    records, images, members = [], [], {}
    for number, (species, i) in enumerate(((s, i) for s, n in COUNTS.items() for i in range(n)), 1):
        captions = texts(species, i).splitlines()
        records.append({"image_id": number, "class_id": int(species[:3]), "captions": captions})
        content = encoded(100 * int(species[:3]) + i)
        images.append(np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((64, 64))))
        members[f"{number:05d}.jpg"] = content
    (root / "cub_records.json").write_text(json.dumps(records))
    np.savez(root / "cub_64.npz", images=np.stack(images), image_id=np.arange(1, len(records) + 1))
    (root / "cub_256_jpeg.tar").write_bytes(tarred(members))
    return root


def coco_files() -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 12), ("val", 5)):
        notes = []
        for i in range(count):
            number = i + (1000 if split == "val" else 0)
            files[f"{split}2014/COCO_{split}2014_{number:012d}.jpg"] = encoded(number)
            for c in range(6):
                notes.append({"id": 10 * number + c, "image_id": number, "caption": f"A Dog runs {c}."})
        files[f"annotations/captions_{split}2014.json"] = json.dumps({"annotations": notes}).encode()
    return files


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let the data sets expect the tiny sources of this module, no local folder, and no network."""
    patch.delenv("BENCH_DATA", raising=False)
    patch.setattr(CUB, "whole", Whole({"train": 20, "test": 6}, {"train": 200, "test": 60}))
    patch.setattr(COCO, "whole", Whole({"train": 12, "test": 5}))
    for name in ("datasets.cub.IMAGES_URL", "datasets.cub.TEXTS_URL", "datasets.coco.ADDRESS"):
        patch.setattr(name, "http://127.0.0.1:9/")  # nobody listens there
    patch.setattr("datasets.archive.TIMEOUT", (2, 2))
