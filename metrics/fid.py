"""Frechet Inception distance with torch-fidelity's Inception-v3 and the published 2015 weights.

`fid` is only ever this network with these weights: a file whose SHA-256 does not begin with `6726825d`
is refused, and without a good file the score is `unavailable` with the command that gets one.
The network must be torch-fidelity's `FeatureExtractorInceptionV3`, 2048 pooled features, fed uint8.
torch-fidelity's own statistics cache is not used: its key knows neither content nor sample count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.spec import Split
from metrics.fd_clf import real_statistics
from metrics.frechet import FrechetMetric, as_rgb

SHA256 = "6726825d"
"""The first digits of the SHA-256 of the weights, which their file names carry too."""

FILE_NAMES = (f"weights-inception-2015-12-05-{SHA256}.pth", f"pt_inception-2015-12-05-{SHA256}.pth")
ENVIRONMENT = "BENCH_INCEPTION"
JUDGE = f"inception-{SHA256}"


class Unavailable(Exception):
    """The true weights are not at hand; the message says why and gives the command that gets them."""


def weights_url() -> str:
    """Where torch-fidelity publishes the weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def hub_folder() -> Path:
    """The folder in which torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def remedy() -> str:
    """The command that gets the weights. The home folder is written `~`: this text enters run records."""
    target = hub_folder() / FILE_NAMES[0]
    if target.is_relative_to(Path.home()):
        target = Path("~") / target.relative_to(Path.home())
    return f"curl -L --create-dirs -o {target} {weights_url()}"


def is_genuine(path: Path) -> bool:
    """Whether the file holds the published weights, by its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(SHA256)


def _download(target: Path, timeout: float) -> None:
    """Fetch the weights to `target` through a temporary file; raises OSError or Unavailable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(weights_url(), timeout=timeout) as reply:
            while block := reply.read(1 << 20):
                file.write(block)
        if not is_genuine(Path(temporary)):
            raise Unavailable("what was downloaded is not the published Inception file")
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def find_weights(path: Path | str | None = None, download: bool = True, timeout: float = 5.0) -> Path:
    """The Inception weights: `path`, else BENCH_INCEPTION, else torch's cache, else a download.

    A path that is named but wrong is an error, never skipped over. Raises Unavailable, whose message
    holds the command that gets the weights.
    """
    for source, named in (("the given path", path), (ENVIRONMENT, os.environ.get(ENVIRONMENT))):
        if not named:
            continue
        if not Path(named).is_file():
            raise Unavailable(f"{source} names no file ({named}); get the weights with: {remedy()}")
        if not is_genuine(Path(named)):
            raise Unavailable(
                f"{source} ({named}) is not the published Inception file, whose SHA-256 begins with "
                f"{SHA256}; get it with: {remedy()}"
            )
        return Path(named)
    for name in FILE_NAMES:
        cached = hub_folder() / name
        if cached.is_file() and is_genuine(cached):
            return cached
    if download:
        target = hub_folder() / FILE_NAMES[0]
        try:
            _download(target, timeout)
        except (OSError, ValueError, Unavailable) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(
                f"the Inception weights could not be fetched ({reason}); get them with: {remedy()}"
            ) from None
        return target
    raise Unavailable(f"the Inception weights are not on this machine; get them with: {remedy()}")


def inception(weights: Path, device: torch.device | str = "cpu") -> Callable[[str, Tensor], Tensor]:
    """Features of torch-fidelity's Inception-v3: (modality, uint8 `[B, C, H, W]`) -> float32 `[B, 2048]`.

    Raises Unavailable for a file that is not the published one.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not is_genuine(weights):
        raise Unavailable(f"'{weights}' is not the published Inception file; get it with: {remedy()}")
    # torch-fidelity unpickles without restriction; a file that also loads as plain weights runs no code.
    torch.load(weights, map_location="cpu", weights_only=True)
    # internal dtype stays float32: torch-fidelity 0.4 accepts "float64" but returns float32 features anyway.
    network: Any = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
    ).to(device)

    def features(_: str, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"FID takes uint8 images, got {images.dtype}")
        out: Tensor = network(as_rgb(images))[0]
        return out

    return features


def fid(
    test: Split,
    train: Split | None,
    *,
    fingerprint: str,
    split: str = "test",
    cache: Path,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    drawn: int | None = None,
    weights: Path | str | None = None,
    download: bool = True,
    features: Callable[[str, Tensor], Tensor] | None = None,
    judge: str = JUDGE,
) -> FrechetMetric:
    """The metric `fid` over all image modalities. Raises Unavailable without the true weights.

    `features` and `judge` replace the network in tests; a judge of another name keeps such values apart.
    """
    if features is None:
        features = inception(find_weights(weights, download), device)
    names = [m.name for m in test.spec.images]
    hashes = dict.fromkeys(names, judge)
    real, floor, beside = real_statistics(
        test,
        train,
        names,
        features,
        hashes,
        fingerprint=fingerprint,
        split=split,
        cache=cache,
        device=device,
        limit=limit,
        drawn=drawn,
        batch=64,
    )
    return FrechetMetric("fid", features, real, judge, floor, limit, beside)
