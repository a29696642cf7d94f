"""Judges of attributes: one network per image modality that names every attribute of a picture.

Captions need none, since what they say is read exactly. Accuracy per attribute on real test pictures and a
hash of the weights go into every record.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.spec import DataSpec, Modality, Split, to_float
from metrics.judges import batches, joint_hash, one_thread, read_judges, save_judges, weights_hash

log = logging.getLogger(__name__)

FEATURES = 128
VERSION = 1  # of the training recipe: a change makes new judges
BATCH, PASSES, RATE, WIDTH, SHIFT = 100, 14, 3e-3, 16, 2  # our choice, on val of `shapes`
FLOOR = 0.97
"""A judge below this accuracy on an attribute is no oracle; it is named in the log."""
_CHUNK = 500

Values = dict[str, tuple[str, ...]]
"""Attribute -> names of its values."""


class AttributeNet(nn.Module):
    """Images `[B, C, H, W]` in [0, 1] -> one row of scores per attribute, over 128 shared features."""

    def __init__(self, shape: tuple[int, ...], values: Values) -> None:
        super().__init__()
        channels, height, width = shape
        flat = 4 * WIDTH * -(-height // 8) * -(-width // 8)
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 5, 2, 2), nn.ReLU(),
            nn.Conv2d(WIDTH, 3 * WIDTH, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(3 * WIDTH, 4 * WIDTH, 3, 2, 1), nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(v)) for name, v in values.items()})

    def features(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the `[B, 128]` activations after the last ReLU."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass
class AttributeJudges:
    """One network per image modality, always in evaluation mode.

    accuracy, validation: on test and val, by `<modality> <attribute>`; source: always `trained`. hashes: of
    the weights, by modality; hash: of all of them.
    """

    nets: dict[str, AttributeNet]
    accuracy: dict[str, float]
    validation: dict[str, float]
    source: dict[str, str]
    hashes: dict[str, str] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        for net in self.nets.values():
            net.eval().requires_grad_(False)
        self.hashes = {name: weights_hash(net) for name, net in self.nets.items()}
        self.hash = joint_hash(self.hashes)

    def to(self, device: torch.device | str) -> AttributeJudges:
        """The same judges, moved to `device`."""
        for net in self.nets.values():
            net.to(device)
        return self

    @torch.no_grad()
    def classify(self, name: str, images: Tensor) -> dict[str, Tensor]:
        """Attribute -> codes `[B]` int64 seen in float images `[B, C, H, W]`, clamped to [0, 1] first."""
        if not images.is_floating_point():
            raise TypeError(f"classify takes float images in [0, 1], not {images.dtype}")
        net = self.nets[name]
        device = next(net.parameters()).device
        with torch.autocast(device.type, enabled=False):
            parts = [net(x.to(device).float().clamp(0, 1)) for x in images.split(_CHUNK)]
        return {a: torch.cat([p[a].argmax(1) for p in parts]).to(images.device) for a in net.heads}

    @torch.no_grad()
    def features(self, name: str, images: Tensor) -> Tensor:
        """Activations `[B, 128]` float32 after the last ReLU, of uint8 images `[B, C, H, W]`."""
        if images.dtype != torch.uint8:
            raise TypeError(f"features takes uint8 images, not {images.dtype}; use datasets.spec.to_uint8")
        net = self.nets[name]
        device = next(net.parameters()).device
        with torch.autocast(device.type, enabled=False):
            parts = [net.features(to_float(x.to(device))) for x in images.split(_CHUNK)]
        return torch.cat(parts).to(images.device)

    def report(self) -> dict[str, Any]:
        """What the run record keeps: hashes, accuracies and sources."""
        return {
            "hash": self.hash,
            "accuracy": self.accuracy,
            "validation": self.validation,
            "source": self.source,
            "hashes": self.hashes,
        }


def train_attribute_net(
    modality: Modality, split: Split, values: Values, device: torch.device | str = "cpu", seed: int = 0
) -> AttributeNet:
    """Train one judge on `split` by the summed cross-entropy of all attributes.

    AdamW at a one-cycle rate, each batch shifted by up to two pixels. As with the digit judges the outcome
    depends on seed and data only, and the caller's random state is left as it was.
    """
    device = torch.device(device)
    batch = min(BATCH, len(split))
    steps = max(PASSES * len(split) // batch, 2)
    with (
        one_thread(device),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(deterministic=True, benchmark=False),
        torch.autocast(device.type, enabled=False),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        net = AttributeNet(modality.shape, values).to(device, memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
        for index in batches(len(split), batch, steps):
            x = to_float(split.stored[modality.name][index].to(device))
            x = x.roll(torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist(), (2, 3))
            scores = net(x.contiguous(memory_format=torch.channels_last))
            loss = torch.stack(
                [F.cross_entropy(scores[a], split.labels[a][index].to(device)) for a in values]
            ).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def accuracies(net: AttributeNet, name: str, split: Split) -> dict[str, float]:
    """Attribute -> share of the pictures of modality `name` on which `net` is right."""
    device = next(net.parameters()).device
    right = dict.fromkeys(net.heads, 0)
    for index in torch.arange(len(split)).split(_CHUNK):
        scores = net(to_float(split.stored[name][index].to(device)))
        for a in right:
            right[a] += int((scores[a].argmax(1).cpu() == split.labels[a][index].cpu()).sum())
    return {a: n / len(split) for a, n in right.items()}


def attribute_judges(
    spec: DataSpec,
    values: Values,
    train: Split,
    val: Split,
    test: Split,
    fingerprint: str,
    cache: Path,
    device: torch.device | str = "cpu",
) -> AttributeJudges:
    """The judges of a data set with attributes, trained once and kept under `cache/judges`.

    A damaged copy is made again. Raises UserError where the cache cannot be written.
    """
    key = hashlib.sha256(repr((VERSION, BATCH, PASSES, RATE, WIDTH, SHIFT, values)).encode()).hexdigest()
    path = Path(cache) / "judges" / f"{fingerprint}-{key[:8]}.safetensors"
    judges = read_judges(path, lambda m: AttributeNet(m.shape, values), spec, AttributeJudges)
    if judges is None:
        nets, found, validation = {}, {}, {}
        for modality in spec.images:
            net = train_attribute_net(modality, train, values, device)
            nets[modality.name] = net
            found |= {f"{modality.name} {a}": v for a, v in accuracies(net, modality.name, test).items()}
            validation |= {f"{modality.name} {a}": v for a, v in accuracies(net, modality.name, val).items()}
        for name, value in found.items():
            log.log(
                logging.INFO if value >= FLOOR else logging.WARNING, "judge of %s: test %.4f", name, value
            )
        judges = AttributeJudges(nets, found, validation, dict.fromkeys(found, "trained"))
        save_judges(path, judges)
    return judges.to(device)
