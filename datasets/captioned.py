"""Data sets of captioned photographs (METHODS 4.2, 4.3): what CUB and MSCOCO share.

A source says which captions there are and yields the pictures; here they become tokens, a held-out `val`, and
one prepared folder in which a picture is kept once, however many captions it has. Every picture is decoded
when the folder is built and the folder is verified when it is opened, so that no epoch meets a bad file.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.archive import Unreachable
from datasets.files import as_tensor, sha256_text
from datasets.packed import Compressed, Shared
from datasets.prepared import PreparedDataset, open_prepared, prepared_or, write_prepared
from datasets.spec import DataSpec, Modality, Split, UserError
from datasets.vocabulary import Vocabulary, tokenise

log = logging.getLogger(__name__)

VERSION = 2
VAL_SHARE = 0.05
"""Of the training pictures, not captions, held out as `val` (METHODS 4.2)."""


@dataclass(frozen=True)
class Source:
    """Where a build comes from.

    captions(): (split, key) -> captions, split being `train` or `test`. pictures(wanted): (key, `[3, S, S]`)
    of the wanted keys, in any order. identity: what tells this source from another one.
    """

    identity: str
    captions: Callable[[], dict[tuple[str, str], list[str]]]
    pictures: Callable[[set[str]], Iterator[tuple[str, NDArray[np.uint8]]]]
    published: bool = False


@dataclass(frozen=True)
class Whole:
    """What the published data hold: pictures and captions by split, words with the special ones."""

    images: dict[str, int]
    captions: dict[str, int] = field(default_factory=dict)
    words: int | None = None


class CaptionedDataset(PreparedDataset):
    """Pictures with several captions each; a tuple is one picture and one of its captions.

    `groups` of both modalities are the pictures, so that intervals know which tuples belong together. There
    are no labels. A subclass says where sources are (`_local`, `_published`) and what a whole build holds.
    """

    side: ClassVar[int] = 64
    compressed: ClassVar[bool] = False
    whole: ClassVar[Whole]
    lower: ClassVar[bool] = False
    most_words: ClassVar[int | None] = None
    wanted: ClassVar[str]
    """What a local folder has to hold, for people."""

    @abstractmethod
    def _local(self, root: Path) -> Source | None:
        """The source in a folder, None where it is not there."""

    @abstractmethod
    def _published(self) -> Source:
        """The downloaded archives. Raises `archive.Unreachable` where no server answers."""

    @property
    def spec(self) -> DataSpec:  # type: ignore[override]
        picture = Modality("image", "image", (3, self.side, self.side))
        return DataSpec((picture, self.vocabulary.modality()))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of this build."""
        return Vocabulary(tuple(self._opened()[1]["words"]))

    def sentence(self, tokens: Tensor) -> str:
        return self.vocabulary.decode(tokens.tolist())

    # -- where it comes from

    def _locate(self) -> tuple[Path, dict[str, Any]]:
        environment = os.environ.get("BENCH_DATA")
        given = self.data or (Path(environment) if environment else None)
        source = None
        if given is not None:
            if not Path(given).is_dir():
                raise UserError(
                    f"the data folder '{given}' does not exist or is no folder: check --data or BENCH_DATA"
                )
            source = self._local(Path(given))
            if source is None and (environment is None or Path(given) != Path(environment)):
                raise UserError(f"the data folder '{given}' holds no {self.name}: put {self.wanted} there")
        if source is not None:
            return self._prepared(source)
        folder = self._folder("published")
        if (folder / "info.json").exists():
            return prepared_or(lambda: self._build(folder, self._published()), folder)
        if given is None and (copy := self._local_copy()) is not None:
            return copy
        try:
            published = self._published()
        except Unreachable as error:
            raise UserError(
                f"{self.name} has no source: its archives cannot be reached ({error}), so give a folder with"
                f" {self.wanted} by --data or BENCH_DATA"
            ) from error
        return prepared_or(lambda: self._build(folder, published), folder)

    def _local_copy(self) -> tuple[Path, dict[str, Any]] | None:
        """The one copy that was prepared from a local folder, when nothing says which folder is meant."""
        pattern = self._folder("local-*")
        found = [p for p in pattern.parent.glob(pattern.name) if p.is_dir()]
        if len(found) > 1:
            raise UserError(
                f"'{found[0].parent}' holds {len(found)} builds of {self.name} from local folders: "
                "say which by --data or BENCH_DATA"
            )
        info = open_prepared(found[0]) if found else None
        return (found[0], info) if info is not None else None

    def _folder(self, source: str) -> Path:
        return self.cache / self.name / f"{source}-v{VERSION}-seed{self.seed}"

    def _prepared(self, source: Source) -> tuple[Path, dict[str, Any]]:
        folder = self._folder(f"local-{sha256_text(source.identity)[:12]}")
        return prepared_or(lambda: self._build(folder, source), folder)

    # -- what is made of it

    def _build(self, folder: Path, source: Source) -> dict[str, Any]:
        log.info("building %s in '%s'", self.name, folder)
        empty, captions = 0, {}
        for (split, key), texts in source.captions().items():
            words = [tokenise(text.lower() if self.lower else text) for text in texts]
            kept = [w for w in words if w]
            empty += len(words) - len(kept)
            if kept:
                captions[split, key] = kept
        twice = [key for split, key in captions if split == "test" and ("train", key) in captions]
        if twice:
            raise UserError(
                f"{self.name} has {len(twice)} pictures in training and in the test ({min(twice)}): "
                "restore the original files"
            )
        pictures = self._pictures(source, {key for _, key in captions})
        unpaired = [pair for pair in captions if pair[1] not in pictures]
        captions = {pair: texts for pair, texts in sorted(captions.items()) if pair[1] in pictures}
        keys = {s: [key for split, key in captions if split == s] for s in ("train", "test")}
        for split, found in keys.items():
            if len(found) < (2 if split == "train" else 1):
                raise UserError(
                    f"{self.name} has {len(found)} captioned '{split}' pictures here, too few: add some,"
                    " or give the original archives"
                )
        vocabulary = Vocabulary.learn(
            (text for (split, _), texts in captions.items() if split == "train" for text in texts),
            self.most_words,
        )
        notes = self._notes(source, keys, captions, vocabulary)
        if unpaired:
            notes.append(f"{len(unpaired)} pictures are missing, their captions are left out")
        if empty:
            notes.append(f"{empty} captions without a word are left out")
        info = {"name": self.name, "seed": self.seed, "notes": notes, "words": list(vocabulary.words)}

        def parts() -> Iterator[tuple[str, dict[str, Tensor]]]:
            train = keys["train"]
            order = np.random.default_rng([self.seed, VERSION]).permutation(len(train))
            held = max(1, round(VAL_SHARE * len(train)))
            cut = {"train": np.sort(order[held:]), "val": np.sort(order[:held])}
            chosen = {name: [train[i] for i in rows] for name, rows in cut.items()} | {"test": keys["test"]}
            for name, members in chosen.items():
                split = "test" if name == "test" else "train"
                texts = [captions[split, key] for key in members]
                rows = np.repeat(np.arange(len(members)), [len(t) for t in texts])
                tokens = vocabulary.encode([text for several in texts for text in several])
                yield (
                    name,
                    {
                        "caption": as_tensor(tokens),
                        "row": as_tensor(rows.astype(np.int64)),
                        **self._stored([pictures[key] for key in members]),
                    },
                )

        return write_prepared(folder, parts(), info)

    def _pictures(self, source: Source, wanted: set[str]) -> dict[str, Any]:
        """Every picture that there is, compressed where the data set is kept so."""
        pack = Compressed.pack if self.compressed else np.asarray
        return {key: pack(picture) for key, picture in source.pictures(wanted)}

    def _stored(self, pictures: list[Any]) -> dict[str, Tensor]:
        if not self.compressed:
            return {"image": as_tensor(np.stack(pictures))}
        data = np.frombuffer(b"".join(pictures), np.uint8)
        return {"data": as_tensor(data), "ends": as_tensor(np.cumsum([len(p) for p in pictures]))}

    def _notes(
        self,
        source: Source,
        keys: dict[str, list[str]],
        captions: dict[tuple[str, str], list[Any]],
        vocabulary: Vocabulary,
    ) -> list[str]:
        """What a table must say: that a build is partial. UserError for archives of other counts."""
        images = {split: len(found) for split, found in keys.items()}
        texts = {s: sum(len(t) for (split, _), t in captions.items() if split == s) for s in images}
        whole = self.whole
        if images == whole.images and all(texts[s] == n for s, n in whole.captions.items()):
            if whole.words is not None and len(vocabulary) != whole.words:
                return [f"a vocabulary of {len(vocabulary):,} words instead of the published {whole.words:,}"]
            return []
        count = " and ".join(
            f"{n:,} of {whole.images[s]:,} {s} pictures ({texts[s]:,} captions)" for s, n in images.items()
        )
        if source.published or any(images[s] > n for s, n in whole.images.items()):
            raise UserError(f"{self.name} holds {count}: restore the original archives")
        return [f"partial {self.name}: {count}; no number compares with published ones"]

    def _split(self, tensors: dict[str, Tensor]) -> Split:
        rows = tensors["row"]
        shape = (3, self.side, self.side)
        pictures = (
            Compressed(tensors["data"], tensors["ends"], shape) if self.compressed else tensors["image"]
        )
        stored: dict[str, Any] = {"image": Shared(pictures, rows), "caption": tensors["caption"]}
        return Split(self.spec, stored, {}, {"image": rows, "caption": rows})


def first(root: Path, *names: str) -> Path | None:
    """The first of several patterns that something in `root` matches."""
    for name in names:
        for found in sorted(root.glob(name)):
            return found
    return None
