"""Words and token ids (METHODS 4.2): special tokens first, captions cut, ended and padded to one length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datasets.spec import Modality

LENGTH = 32
SPECIAL = ("<unk>", "<pad>", "<end>")
UNKNOWN, PADDING, END = range(3)
RARE = 3
"""Words that occur this often in training or less are unknown."""

# Penn Treebank conventions, which NLTK's word tokeniser follows: punctuation and clitics are tokens, a full
# stop is one at the end of a caption and before a new sentence, `blue/black` and `long-billed` stay whole.
_CLITIC = re.compile(r"(?<=\w)('(?:s|m|d|ll|re|ve)|n't)(?=\W|$)", re.IGNORECASE)
_PUNCTUATION = re.compile(r"\.\.\.|--|[,:](?!\d)|[;@#$%&?!()\[\]{}<>\"]")
_STOP = re.compile(r"\.(?=[\"')\]]*(?:\s*$|\s+))")
# Blanks that some of CUB's captions lost to a wrong encoding: else a whole clause is one unknown word.
_LOST = re.compile("\ufffd+")


def tokenise(caption: str) -> list[str]:
    """Words and punctuation of one caption, case kept: `it's white.` -> `it`, `'s`, `white`, `.`."""
    text = _PUNCTUATION.sub(lambda m: f" {m[0]} ", _LOST.sub(" ", caption))
    text = _STOP.sub(" . ", text)
    return _CLITIC.sub(r" \1", text).split()


def detokenise(words: Iterable[str]) -> str:
    """Words as a sentence, without blanks before punctuation and clitics."""
    return re.sub(r" (?=[,.;:?!)\]]|'\w|n't)", "", " ".join(words))


@dataclass(frozen=True)
class Vocabulary:
    """The words of a data set, the special tokens first; ids are positions.

    Raises ValueError where the special tokens are not in front, or a word repeats.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:3] != SPECIAL or len(set(self.words)) != len(self.words):
            raise ValueError("a vocabulary begins with the special tokens and repeats no word")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @classmethod
    def learn(cls, captions: Iterable[Sequence[str]], most: int | None = None) -> Vocabulary:
        """Words with more than 3 occurrences, the most frequent first; `most` bounds the size in all."""
        counts = Counter(word for caption in captions for word in caption)
        kept = sorted(
            (w for w, n in counts.items() if n > RARE and w not in SPECIAL), key=lambda w: (-counts[w], w)
        )
        return cls((*SPECIAL, *kept[: None if most is None else most - len(SPECIAL)]))

    def encode(self, captions: Sequence[Sequence[str]], length: int = LENGTH) -> NDArray[np.int64]:
        """Tokens `[N, length]`: first length - 1 words, the end token, padding; unknown words are id 0."""
        out = np.full((len(captions), length), PADDING, np.int64)
        for row, caption in zip(out, captions, strict=True):
            ids = [self.ids.get(word, UNKNOWN) for word in caption[: length - 1]]
            row[: len(ids)], row[len(ids)] = ids, END
        return out

    def decode(self, tokens: Iterable[int]) -> str:
        """The sentence up to the end token, without padding; an id that is no word prints as unknown."""
        found = []
        for token in tokens:
            if token == END:
                break
            if token != PADDING:
                found.append(self.words[token] if 0 <= token < len(self.words) else SPECIAL[UNKNOWN])
        return detokenise(found)

    def modality(self, name: str = "caption", length: int = LENGTH) -> Modality:
        """The text modality of these words."""
        return Modality(name, "text", (length,), len(self.words), UNKNOWN, PADDING, END)
