"""PolyMNIST (METHODS 4.1): five pictures of the same digit over five photographs.

Sources, in this order: a prepared copy in the cache, the published archive, a rebuild by the recipe
from local files. A folder given explicitly (`data`) goes before the archive, since whoever names a
folder means it; the folder of the environment variable BENCH_DATA comes after it, also when the
command line passes it on as `data`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from datasets import archive
from datasets.files import as_tensor, listing, read_idx, read_image, sha256_text
from datasets.prepared import PreparedDataset, open_prepared, prepared_or, write_prepared
from datasets.recipe import NAMES, SPEC, composite, exact_pairing
from datasets.spec import UserError

log = logging.getLogger(__name__)

VERSION = 1
VAL = 5_000
COUNTS = {"train": 60_000, "test": 10_000}
CLASSIFIERS = "polymnist_digit_classifiers.npz"
STAND_IN = "m1"

# MD5 of the decompressed content: the gzip wrapping of a copy may differ, its content may not.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
# The published photographs: SHA-256, and for 2.jpg, of which only the listing was seen, its git blob id.
BACKGROUNDS = {
    "m0": ("1.jpg", "c3aea824f3a92ab5692e480d02fe868bafa338de3ed9993d540274374a3c31b8"),
    "m1": ("2.jpg", "79cf07b993c1f50a5a8e9e8675137266337fa330"),
    "m2": ("3.jpg", "65d5d416330334d1fefde1ebd319ce0cce0c44c2aed7414875f724d290934c8b"),
    "m3": ("4.jpg", "22317171efc167c6a5b4a783d44289f8f9b3c987e1e363acddabc81d2227c27c"),
    "m4": ("5.jpg", "22e05161aa0b9963cd0c2089f17e06807e163b36696b70b305c130396c5c448e"),
}
STAND_IN_NOTE = (
    "rebuilt from MNIST with a stand-in background for m1: its Fréchet distances are not comparable with"
    " published ones"
)
REBUILD_NOTE = "rebuilt from MNIST and the published photographs: other pairings than the published archive"

# Border colours of ten real m1 tiles; the stand-in blends them as softly as the defocused original.
PALETTE = (
    (114, 85, 50), (197, 130, 74), (78, 79, 63), (199, 122, 58), (38, 67, 64),
    (22, 34, 27), (13, 24, 18), (209, 118, 41), (90, 81, 67), (23, 27, 20),
)  # fmt: skip


def stand_in_background() -> np.ndarray:
    """A very smooth picture `[720, 960, 3]` uint8 in the colours of m1's photograph; always the same."""
    from PIL import Image

    # 7 x 9 patches of about 105 pixels, blended bicubically: a 28-pixel crop varies by some ten levels.
    rng = np.random.default_rng(20_220_101)
    patches = np.array(PALETTE, np.uint8)[rng.integers(0, len(PALETTE), (7, 9))]
    return np.asarray(Image.fromarray(patches).resize((960, 720), Image.Resampling.BICUBIC))


class PolyMNIST(PreparedDataset):
    """PolyMNIST: 55,000 train, 5,000 val (cut from train by the seed) and 10,000 test tuples.

    `data`: a folder with `mnist/*.gz` and `polymnist/backgrounds_original/*.jpg`, or with the archive
    `PolyMNIST.zip`. `groups` (rebuild only): the MNIST picture behind each entry. Every build has its
    own cache folder and fingerprint; `notes` say what a table must say.
    """

    name: ClassVar[str] = "polymnist"
    spec = SPEC

    def _locate(self) -> tuple[Path, dict[str, Any]]:
        root = self.cache / self.name
        published = root / f"archive-v{VERSION}-seed{self.seed}"
        environment = Path(os.environ["BENCH_DATA"]) if os.environ.get("BENCH_DATA") else None
        given = self.data or environment
        local = Local(given) if given is not None else None
        if local is not None and (path := local.zip) is not None:
            # A copy of its own: another archive of this name may hold something else.
            folder = published.with_name(f"{published.name}-{sha256_text(listing(path))[:12]}")
            return prepared_or(lambda: self._from_archive(folder, path), folder)
        if local is not None and given != environment:
            return self._rebuilt(root, local)
        if (info := open_prepared(published)) is not None:
            return published, info
        copies = [self._rebuild_folder(root, local)] if local is not None else self._rebuilds(root)
        for copy in copies:
            if (info := open_prepared(copy)) is not None:
                return copy, info
        try:
            return prepared_or(lambda: self._from_archive(published, archive.download(root)), published)
        except archive.Unreachable as error:
            if local is None:
                raise UserError(
                    f"polymnist has no source: '{archive.URL}' cannot be reached ({error}), so give a folder"
                    " with mnist/ and polymnist/backgrounds_original/, or with PolyMNIST.zip, by --data or"
                    " BENCH_DATA"
                ) from error
            log.warning(
                "the PolyMNIST archive cannot be reached (%s): rebuilding from '%s'", error, local.root
            )
        return self._rebuilt(root, local)

    def _rebuild_folder(self, root: Path, local: Local) -> Path:
        return root / f"rebuild-v{VERSION}-seed{self.seed}-{local.key()}"

    def _rebuilds(self, root: Path) -> list[Path]:
        """The copies of this seed made from a local folder, when nothing says from which; at most one."""
        patterns = [f"{kind}-v{VERSION}-seed{self.seed}-*" for kind in ("archive", "rebuild")]
        found = [p for pattern in patterns for p in sorted(root.glob(pattern)) if p.is_dir()]
        if len(found) > 1:
            raise UserError(
                f"'{root}' holds {len(found)} copies of polymnist: say which source by --data or BENCH_DATA"
            )
        return found

    def _rebuilt(self, root: Path, local: Local) -> tuple[Path, dict[str, Any]]:
        folder = self._rebuild_folder(root, local)
        return prepared_or(lambda: self._rebuild(folder, local), folder)

    def _info(self, source: str, notes: list[str]) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "source": source, "notes": notes}

    def _val_cut(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of train and of val: val is the tail of a seeded permutation of the training tuples."""
        order = np.random.default_rng([self.seed, VERSION, 1]).permutation(n)
        return order[: n - VAL], order[n - VAL :]

    def _rebuild(self, folder: Path, local: Local) -> dict[str, Any]:
        log.info("rebuilding polymnist from '%s' in '%s'", local.root, folder)
        digits = {split: local.digits(split) for split in COUNTS}
        photos = local.backgrounds()
        notes = [REBUILD_NOTE if local.original(STAND_IN) else STAND_IN_NOTE]
        path = local.classifiers
        extras = {CLASSIFIERS: path.read_bytes()} if path is not None else {}

        def parts() -> Iterator[tuple[str, dict[str, Tensor]]]:
            rng = np.random.default_rng([self.seed, VERSION])
            for split, (pictures, labels) in digits.items():
                source, digit = exact_pairing(labels, rng)
                if split == "train":
                    cut = dict(zip(("train", "val"), self._val_cut(len(digit)), strict=True))
                else:  # shuffled, so that the first n test tuples hold every class
                    cut = {"test": rng.permutation(len(digit))}
                for name, rows in cut.items():
                    tensors = {"digit": as_tensor(digit[rows])}
                    for m in NAMES:
                        index = source[m][rows]
                        tensors[m] = as_tensor(composite(pictures[index], photos[m], rng))
                        tensors[f"source.{m}"] = as_tensor(index)
                    yield name, tensors

        return write_prepared(folder, parts(), self._info("rebuild", notes), extras)

    def _from_archive(self, folder: Path, path: Path) -> dict[str, Any]:
        log.info("reading '%s' into '%s'", path, folder)
        with archive.Archive(path) as source:
            labels = {split: source.labels(split) for split in COUNTS}
            for split, count in COUNTS.items():
                if len(labels[split]) != count:
                    raise source.broken(f"{len(labels[split])} '{split}' tuples instead of {count}")
            weights = dict(source.classifiers())
            extras = {}
            if weights:
                buffer = io.BytesIO()
                np.savez(buffer, **weights)
                extras[CLASSIFIERS] = buffer.getvalue()

            def parts() -> Iterator[tuple[str, dict[str, Tensor]]]:
                for split, digit in labels.items():
                    images = {m: source.images(split, m) for m in NAMES}
                    lengths = {m: len(x) for m, x in images.items()} | {"labels": len(digit)}
                    if len(set(lengths.values())) != 1:
                        raise source.broken(f"unequal lengths in '{split}': {lengths}")
                    rng = np.random.default_rng([self.seed, VERSION, 2])
                    cut = {"test": rng.permutation(len(digit))}
                    if split == "train":
                        cut = dict(zip(("train", "val"), self._val_cut(len(digit)), strict=True))
                    for name, rows in cut.items():
                        tensors = {m: as_tensor(images[m][rows]) for m in NAMES}
                        yield name, {"digit": as_tensor(digit[rows])} | tensors

            return write_prepared(folder, parts(), self._info("archive", []), extras)

    @property
    def official_classifiers(self) -> Path | None:
        """The published digit classifiers (npz): kept beside the prepared copy, else in the local folder."""
        kept = self.folder / CLASSIFIERS
        if kept.exists():
            return kept
        given = self.data or os.environ.get("BENCH_DATA")
        return Local(Path(given)).classifiers if given else None


class Local:
    """A local source folder: MNIST under `mnist/`, photographs under `polymnist/backgrounds_original/`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(
                f"the data folder '{root}' does not exist or is no folder: check --data or BENCH_DATA"
            )

    def _existing(self, *candidates: str) -> Path | None:
        return next((self.root / c for c in candidates if (self.root / c).exists()), None)

    @property
    def zip(self) -> Path | None:
        """The archive, where somebody has put it into the folder."""
        return self._existing(archive.FILE, f"polymnist/{archive.FILE}")

    @property
    def classifiers(self) -> Path | None:
        return self._existing(f"polymnist/{CLASSIFIERS}", CLASSIFIERS)

    def _photo(self, modality: str) -> Path:
        return self.root / "polymnist" / "backgrounds_original" / BACKGROUNDS[modality][0]

    def original(self, modality: str) -> bool:
        """Whether the photograph of a modality is there."""
        return self._photo(modality).exists()

    def key(self) -> str:
        """Names the rebuild that this folder gives: by the pinned sources, and whether m1 is among them."""
        pins = sha256_text(repr((COUNTS, VAL, MNIST_MD5, BACKGROUNDS)))[:8]
        return f"{'original' if self.original(STAND_IN) else 'standin'}-{pins}"

    def digits(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """MNIST pictures `[N, 28, 28]` uint8 and labels `[N]` int64 of a split; only the original files."""
        prefix = "train" if split == "train" else "t10k"
        images = self._mnist(f"{prefix}-images-idx3-ubyte.gz")
        labels = self._mnist(f"{prefix}-labels-idx1-ubyte.gz")
        if len(images) != len(labels) or len(labels) != COUNTS[split]:
            raise UserError(
                f"MNIST in '{self.root / 'mnist'}' has {len(images)} '{split}' pictures and"
                f" {len(labels)} labels instead of {COUNTS[split]}: restore the original files"
            )
        return images, labels.astype(np.int64)

    def _mnist(self, name: str) -> np.ndarray:
        path = self.root / "mnist" / name
        array, md5 = read_idx(path, "put the original MNIST file there")
        if md5 != MNIST_MD5[name]:
            raise UserError(f"'{path}' is not the original MNIST file (MD5 differs): put the original there")
        return array

    def backgrounds(self) -> dict[str, np.ndarray]:
        """The five backgrounds; a stand-in for m1 where its photograph is missing."""
        out = {}
        for modality, (_, known) in BACKGROUNDS.items():
            path = self._photo(modality)
            if modality == STAND_IN and not path.exists():
                out[modality] = stand_in_background()
                continue
            way_out = "put the published photograph there"
            out[modality] = read_image(path, way_out)
            content = path.read_bytes()
            blob = b"blob %d\0" % len(content) + content
            if known not in (hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest()):
                raise UserError(f"'{path}' is not the published photograph (checksum differs): {way_out}")
        return out
