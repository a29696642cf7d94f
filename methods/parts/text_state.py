"""Text as a continuous state of the data chain (METHODS 2.14.5), which Langevin dynamics needs.

Three forms of a caption of L words out of V: tokens `[B, L]` at the doors, logits `[B, L, V]` out of a
generator, a state in the chain. The energy sees words as rows of a table E `[V, D]` of unit length:

    embedding   state y = softmax(logits) E `[B, L, D]`, the words of data E[token]      (option 1)
    simplex     state a = log softmax(logits) `[B, L, V]`, seen by the energy as softmax(a) E   (option 2)
    fixed       as `embedding`, but the chain moves pictures alone                       (option 3)

The caption of a state is the row of E nearest to each y_l, or the largest entry of a_l. E is a buffer: no
loss trains it, since a loss that could move E would shrink or stretch the distance between data and
negatives. The directions of its rows are given (`settle`), their length is `scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import Batch, DataSpec
from methods.parts.langevin import State

TextOption = Literal["embedding", "simplex", "fixed"]
OPTIONS: tuple[TextOption, ...] = ("embedding", "simplex", "fixed")


class TextState(nn.Module):
    """One text modality in the chain.

    words: rows `[V, D]` whose directions E takes. scale: length of the rows of E; the shorter, the fewer
    steps change a word. option: what the state is, see above.
    Raises ValueError for an option that does not exist or a length that is not positive.
    """

    def __init__(self, words: Tensor, scale: float, option: TextOption = "embedding") -> None:
        super().__init__()
        if option not in OPTIONS:
            raise ValueError(f"text_state '{option}' is none of {', '.join(OPTIONS)}")
        if not scale > 0:
            raise ValueError(f"text_scale={scale} is impossible; give more than 0")
        self.option, self.scale = option, scale
        self.register_buffer("table", torch.empty(words.shape))
        self.settle(words)

    @torch.no_grad()
    def settle(self, words: Tensor) -> None:
        """Take the directions of E from `words` `[V, D]`, and keep them."""
        self.table.copy_(F.normalize(words.detach().float(), dim=-1) * self.scale)

    def mix(self, weights: Tensor) -> Tensor:
        """weights `[B, L, V]` of sum 1 -> sum_v weights_v E_v `[B, L, D]`, always in float32 (trap 25)."""
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.table

    def state(self, logits: Tensor) -> Tensor:
        """The state of the caption that a generator's logits `[B, L, V]` describe; keeps the graph."""
        if self.option == "simplex":
            return logits.float().log_softmax(-1)
        return self.mix(logits.float().softmax(-1))

    def noise(self, n: int, length: int, normal: bool = False) -> Tensor:
        """`n` states that describe nothing: entries uniform or normal, rows about as long as those of E."""
        words, size = self.table.shape
        simplex = self.option == "simplex"
        shape, spread = (n, length, words if simplex else size), 1.0 if simplex else self.scale / size**0.5
        device = self.table.device
        if normal:
            return spread * torch.randn(shape, device=device)
        return 3**0.5 * spread * (2 * torch.rand(shape, device=device) - 1)

    def embed(self, text: Tensor) -> Tensor:
        """What the energy sees `[B, L, D]` of tokens (E[token]) or of a state."""
        if not text.is_floating_point():
            return self.table[text]
        return self.mix(text.float().softmax(-1)) if self.option == "simplex" else text

    def read(self, state: Tensor) -> Tensor:
        """The tokens `[B, L]` of a state: the nearest row of E, for `simplex` the likeliest word."""
        if self.option == "simplex":
            return state.argmax(-1)
        with torch.autocast(state.device.type, enabled=False):
            # The nearest row is the one of largest inner product, since all are equally long.
            return (state.float() @ self.table.T).argmax(-1)

    def log_likelihood(self, revised: Tensor, drawn: Tensor, sigma: float, weight: float) -> Tensor:
        """How well a generator's state `drawn` explains a revised one, without constants `[B]`.

        log N(y-; y, sigma^2 I) as for images, P1 Eqn 4; `simplex`: weight sum_l sum_v softmax(a-)_v a_v, the
        categorical likelihood of soft words. Both are largest where nothing was revised.
        """
        if self.option == "simplex":
            return weight * (revised.softmax(-1) * drawn).flatten(1).sum(1)
        return -(revised - drawn).flatten(1).square().sum(1) / (2 * sigma**2)


class TextStates(nn.ModuleDict):
    """The text modalities of a batch by name; whatever is no text passes through unchanged.

    Without text modalities every method returns what it is given.
    """

    def __init__(self, words: Mapping[str, Tensor], scale: float, option: TextOption) -> None:
        super().__init__({name: TextState(rows, scale, option) for name, rows in words.items()})
        self.option = option

    @property
    def sizes(self) -> dict[str, int]:
        """Modality -> numbers D that stand for a word in the energy."""
        return {name: text.table.shape[1] for name, text in self.items()}

    def settle(self, words: Mapping[str, Tensor]) -> None:
        """Take every table's directions from `words`."""
        for name, text in self.items():
            text.settle(words[name])

    def state(self, locations: Mapping[str, Tensor]) -> State:
        """What generators put out (text: logits) as a state of the chain."""
        return {k: self[k].state(x) if k in self else x for k, x in locations.items()}

    def embed(self, x: Mapping[str, Tensor]) -> State:
        """Tokens or states as the energy sees them."""
        return {k: self[k].embed(v) if k in self else v for k, v in x.items()}

    def read(self, state: Mapping[str, Tensor]) -> Batch:
        """States as tokens."""
        return {k: self[k].read(v) if k in self else v for k, v in state.items()}

    def noise(self, n: int, spec: DataSpec, normal: bool = False) -> State:
        """States to start a chain from that describe no caption."""
        return {name: text.noise(n, spec[name].shape[0], normal) for name, text in self.items()}

    def moving(self, names: Iterable[str]) -> list[str]:
        """Which of these modalities a data chain moves: all, or only what is no text."""
        return [name for name in names if self.option != "fixed" or name not in self]
