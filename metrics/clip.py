"""CLIP score of pictures and captions: do they tell of the same thing?

s(x, c) = max(0, cos(f(x), g(c))) for the picture tower f and the text tower g of OpenAI's ViT-B/32 (through
open_clip), averaged over pairs; neither times 100 nor times 2.5: the published numbers, 0.23 to 0.29, are
plain cosines (METHODS 3.7). Pictures are 8-bit and go through CLIP's own preprocessing, captions are the data
set's sentences. `clip` is only ever this network with these weights; without them the score is unavailable,
with the command that gets them. Source: Hessel et al., EMNLP 2021, without their factor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datasets.spec import DataSpec, Split, to_uint8
from metrics.cache import cached_arrays
from metrics.frechet import as_rgb
from metrics.intervals import bootstrap
from metrics.protocol import Event, Score
from metrics.rows import spread_rows
from metrics.weights import Published

MODEL = "ViT-B-32-quickgelu"
"""open_clip's name of OpenAI's ViT-B/32, which was trained with that approximation of GELU."""

SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
URL = f"https://openaipublic.azureedge.net/clip/models/{SHA256}/ViT-B-32.pt"
"""As in `open_clip.pretrained`, which takes long to import."""

WEIGHTS = Published(
    "CLIP",
    SHA256[:8],
    ("ViT-B-32.pt",),
    "BENCH_CLIP",
    lambda: URL,
    lambda: Path.home() / ".cache" / "clip",
)
JUDGE = f"clip-{MODEL}-openai-{SHA256[:8]}"

Sentence = Callable[[Tensor], str]
Floats = NDArray[np.float64]


class Encoder(Protocol):
    """Two towers into one space; rows are unit vectors. judge: model and weights."""

    judge: str

    def images(self, images: Tensor) -> Tensor:
        """uint8 `[N, C, H, W]` -> float32 `[N, D]`."""
        ...

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """N sentences -> float32 `[N, D]`."""
        ...


class OpenClip:
    """An open_clip model as an `Encoder`: its own preprocessing, the tokeniser of CLIP (77 tokens)."""

    def __init__(
        self, model: nn.Module, judge: str, device: torch.device | str = "cpu", batch: int = 64
    ) -> None:
        from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, get_tokenizer, image_transform

        self.model: Any = model.to(device).eval().requires_grad_(False)
        self.judge, self.device, self.batch = judge, device, batch
        side = self.model.visual.image_size
        self.transform = image_transform(side, False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        self.tokenise = get_tokenizer(MODEL, context_length=self.model.context_length)

    def images(self, images: Tensor) -> Tensor:
        from PIL import Image

        if images.dtype != torch.uint8:
            raise TypeError(f"CLIP takes uint8 images, got {images.dtype}")
        parts = []
        for part in as_rgb(images).permute(0, 2, 3, 1).cpu().split(self.batch):
            ready = torch.stack([self.transform(Image.fromarray(image.numpy())) for image in part])
            with torch.no_grad():
                parts.append(self.model.encode_image(ready.to(self.device), normalize=True).float().cpu())
        return torch.cat(parts)

    def texts(self, sentences: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(sentences), self.batch):
            tokens = self.tokenise(list(sentences[start : start + self.batch])).to(self.device)
            with torch.no_grad():
                parts.append(self.model.encode_text(tokens, normalize=True).float().cpu())
        return torch.cat(parts)


def openai_clip(weights: Path, device: torch.device | str = "cpu") -> OpenClip:
    """OpenAI's network from its published file, in float32. Raises Unavailable for another file."""
    from open_clip import load_openai_model

    WEIGHTS.check(weights)
    return OpenClip(load_openai_model(str(weights), precision="fp32", device="cpu"), JUDGE, device)


def applies(spec: DataSpec) -> bool:
    """Whether the data have the one picture and the one caption that CLIP compares."""
    return len(spec.images) == 1 and len(spec.texts) == 1


def agreement(a: Tensor, b: Tensor) -> Floats:
    """max(0, cos) of unit vectors `[N, D]`, row by row."""
    cosines: Floats = (a.double() * b.double()).sum(1).clamp(0, 1).numpy()
    return cosines


def shuffled(n: int) -> Tensor:
    """A permutation of n that leaves nothing in its place (one cycle), the same for every method."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(20_240_711))  # any constant
    out = torch.empty(n, dtype=torch.long)
    out[order] = order.roll(1)
    return out


class ClipMetric:
    """CLIP score of the draws of one picture and one caption, beside real and shuffled real pairs.

    `clip_uncond`: of joint samples; `clip_t2i`: given caption, generated picture; `clip_i2t`: given picture,
    generated caption. `clip_ceiling`: of real test pairs, as many as were drawn at most; `clip_floor`: of the
    same pairs shuffled. Intervals resample the real pictures behind conditional pairs.

    n: real pairs to encode at most, spread over the split as conditional draws are; the others are encoded
    where they occur.
    """

    name = "clip"

    def __init__(
        self,
        encoder: Encoder,
        test: Split,
        sentence: Sentence,
        n: int,
        *,
        fingerprint: str,
        cache: Path,
        split: str = "test",
        seed: int = 0,
    ) -> None:
        self.encoder, self.test, self.sentence, self.seed = encoder, test, sentence, seed
        self.image, self.text = test.spec.images[0].name, test.spec.texts[0].name
        self.rows = spread_rows(len(test), n)
        key = f"{fingerprint}|{split}|{len(self.rows)}|{self.image}+{self.text}|{encoder.judge}"
        found = cached_arrays(cache, "features", key, self._encode_real)
        self.real = {name: torch.from_numpy(found[name].astype(np.float32)) for name in found}
        self._place = {int(row): i for i, row in enumerate(self.rows)}
        # (metric, task, sampler, steps) -> cosines and the real pictures behind them
        self._pairs: dict[tuple[str, str, str, int | None], list[tuple[Floats, NDArray[np.int64]]]] = (
            defaultdict(list)
        )

    def _encode_real(self) -> dict[str, Any]:
        images, texts = self.test.stored[self.image], self.test.stored[self.text]
        parts = [(images[i.to(images.device)], texts[i.to(texts.device)]) for i in self.rows.split(64)]
        return {
            self.image: torch.cat([self.encoder.images(pixels) for pixels, _ in parts]).numpy(),
            self.text: torch.cat([self._texts(tokens) for _, tokens in parts]).numpy(),
        }

    def _texts(self, tokens: Tensor) -> Tensor:
        return self.encoder.texts([self.sentence(row) for row in tokens.cpu()])

    def _images(self, images: Tensor) -> Tensor:
        return self.encoder.images(to_uint8(images))

    def _given(self, event: Event, name: str) -> Tensor:
        """Real features of what was given, from the cache where it holds them."""
        index = event.index.tolist()
        if all(row in self._place for row in index):
            return self.real[name][[self._place[row] for row in index]]
        return (self._images if name == self.image else self._texts)(event.real[name])

    def update(self, event: Event) -> None:
        made = event.generated
        key = (event.task, event.sampler, event.steps)
        pictures = event.groups.get(self.image, event.index).cpu().numpy()
        if event.task == "joint":
            if self.image in made and self.text in made:
                values = agreement(self._images(made[self.image]), self._texts(made[self.text]))
                self._pairs["clip_uncond", *key].append((values, event.index.cpu().numpy()))
        elif event.given == (self.text,) and self.image in made:
            values = agreement(self._images(made[self.image]), self._given(event, self.text))
            self._pairs["clip_t2i", *key].append((values, pictures))
        elif event.given == (self.image,) and self.text in made:
            values = agreement(self._given(event, self.image), self._texts(made[self.text]))
            self._pairs["clip_i2t", *key].append((values, pictures))

    def compute(self) -> list[Score]:
        scores, drawn = [], {}
        for (metric, task, sampler, steps), parts in self._pairs.items():
            values, pictures = (np.concatenate(each) for each in zip(*parts, strict=True))
            drawn[task] = max(len(values), drawn.get(task, 0))
            scores.append(self._score(metric, values, pictures, task=task, sampler=sampler, steps=steps))
        for task, n in drawn.items():
            rows = spread_rows(len(self.test), min(n, len(self.rows)))
            at = [self._place[int(row)] for row in rows]
            images, texts = self.real[self.image][at], self.real[self.text][at]
            groups = self.test.groups.get(self.image, torch.arange(len(self.test))).cpu()[rows].numpy()
            scores.append(self._score("clip_ceiling", agreement(images, texts), groups, task=task))
            if len(rows) > 1:
                apart = agreement(images, texts[shuffled(len(rows))])
                scores.append(self._score("clip_floor", apart, groups, task=task))
        return scores

    def outcomes(self) -> dict[str, NDArray[np.bool_]]:
        return {}

    def _score(self, metric: str, values: Floats, pictures: NDArray[np.int64], **key: Any) -> Score:
        low, high = bootstrap(values, pictures, seed=self.seed)
        judge = self.encoder.judge
        return Score(
            metric, float(values.mean()), len(values), "higher", low=low, high=high, judge=judge, **key
        )
