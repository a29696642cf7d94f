"""Every method of the suite, cut off in the middle of training, ends with the weights of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.checks.hyper import small_hyper
from bench.checks.subject import IMAGES, toy_batch
from bench.config import TrainConfig
from bench.randomness import forked
from bench.registry import load_method_class, method_names
from bench.store import RunFolder
from bench.train import train
from datasets.spec import Batch, Split, to_uint8
from methods.base import Method, Progress

STEPS = 12
CPU = torch.device("cpu")


class Crash(BaseException):
    """Stands for a power cut: nothing of ours may catch it."""


def run(
    kind: type[Method], folder: Path, precision: str = "fp32", **settings: Any
) -> dict[str, torch.Tensor]:
    """Train a tiny instance, from the checkpoint in `folder` where there is one; its state."""
    split = Split(IMAGES, {name: to_uint8(x) for name, x in toy_batch(IMAGES, 40).items()}, {})
    with forked(3):
        method = kind(IMAGES, **small_hyper(kind) | settings)
    config = TrainConfig(
        batch_size=8, steps=STEPS, precision=precision, validate_every=5, checkpoint_every=3, ema=0.9
    )
    folder.mkdir(parents=True, exist_ok=True)
    result = train(method, split, split, config, RunFolder(folder), seed=1, device=CPU)
    assert result.status == "done", result.reason
    return method.state_dict()


FITTED = {"fit_prior": True, "warm_start": 0.3}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in method_names()),
        ("ours", FITTED),
        ("ours", FITTED | {"prior_components": 3, "prior_renewals": 2}),
        ("ours_w", FITTED | {"private_from_prior": 0.5}),
    ],
)
def test_a_crash_changes_nothing(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.parts.fitted_mixture.RECENT", 40)  # components before the crash
    kind = load_method_class(name)
    whole = run(kind, tmp_path / "whole", **settings)
    original, calls = kind.forward, [0]

    def forward(self: Method, x: Batch, progress: Progress) -> Any:
        calls[0] += 1
        if calls[0] == STEPS - 1:
            raise Crash
        return original(self, x, progress)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", forward)
        with pytest.raises(Crash):
            run(kind, tmp_path / "cut", **settings)
    assert RunFolder(tmp_path / "cut").load_checkpoint() is not None
    resumed = run(kind, tmp_path / "cut", **settings)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
