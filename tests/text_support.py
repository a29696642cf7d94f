"""Small data with a caption, and small methods for it."""

from __future__ import annotations

import torch
from cooperative_support import SMALL

from datasets.spec import DataSpec, Modality
from methods.base import Progress
from methods.indep_generators import IndepGenerators
from methods.indep_inference import IndepInference
from methods.ours import Ours
from methods.ours_w import OursW
from methods.parts.text_state import TextState

LENGTH, WORDS = 6, 11
SPEC = DataSpec(
    (
        Modality("photo", "image", (3, 12, 12)),
        Modality("caption", "text", (LENGTH,), vocabulary=WORDS),
    )
)
CUB = DataSpec((Modality("image", "image", (3, 64, 64)), Modality("caption", "text", (32,), vocabulary=1590)))
REVISION = Progress("revision", 1, 10)
COOPERATIVE = [Ours, OursW, IndepGenerators, IndepInference]


def make(cls=Ours, **settings):
    torch.manual_seed(0)
    extra = {"private": 2} if cls is OursW else {}
    return cls(SPEC, **{**SMALL, **extra, **settings})


def batch(n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "photo": torch.rand(n, 3, 12, 12, generator=generator),
        "caption": torch.randint(0, WORDS, (n, LENGTH), generator=generator),
    }


def state_of(option="embedding", scale=1.0, words=WORDS, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TextState(torch.randn(words, size, generator=generator), scale, option)


def logits(n=4, seed=2):
    return 2 * torch.randn(n, LENGTH, WORDS, generator=torch.Generator().manual_seed(seed))


def seeded(call, seed=3):
    torch.manual_seed(seed)
    with torch.no_grad():
        return call()
