"""Pictures that are looked up when they are wanted: shared by several captions, or still compressed.

Both behave as the uint8 tensor `[N, C, H, W]` that `Split.stored` expects: length, device, indexing.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

Index = Tensor | slice | int


class Shared:
    """Pictures `[I, C, H, W]` (a tensor or `Compressed`) seen through `rows` `[N]`: captions share them."""

    def __init__(self, pictures: Tensor | Compressed, rows: Tensor) -> None:
        self.pictures, self.rows = pictures, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> Tensor:
        return self.pictures[self.rows[index]]

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.pictures.shape[1:]))

    @property
    def compressed(self) -> bool:
        """Whether looking a picture up takes work, so that worker processes pay."""
        return isinstance(self.pictures, Compressed)

    def to(self, device: torch.device | str) -> Shared:
        """The same on `device`; compressed pictures stay where they are, batch by batch they follow."""
        if self.compressed:
            return self
        return Shared(self.pictures.to(device), self.rows.to(device))  # type: ignore[arg-type]


class Compressed:
    """Pictures of one shape as PNG files in a row (`data` uint8, `ends` `[I]`), decoded when indexed."""

    def __init__(self, data: Tensor, ends: Tensor, shape: tuple[int, ...]) -> None:
        self.data, self.ends = data, ends
        self.shape = torch.Size((len(ends), *shape))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Index) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        if isinstance(index, int) or index.ndim == 0:
            return self._picture(int(index))
        if not len(index):
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        return torch.stack([self._picture(i) for i in index.tolist()])

    def _picture(self, i: int) -> Tensor:
        from PIL import Image

        i = range(len(self))[i]
        start = int(self.ends[i - 1]) if i else 0
        with Image.open(io.BytesIO(self.data[start : int(self.ends[i])].numpy().tobytes())) as image:
            return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())

    @staticmethod
    def pack(picture: np.ndarray) -> bytes:
        """One picture `[3, H, W]` uint8 as PNG, so that nothing of it is lost."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()
