"""A tiny MNIST folder, a tiny PolyMNIST archive and a local web server, for tests of the data sets."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import polymnist

COUNTS = {"train": 60, "test": 20}
VAL = 10
NAMES = ("m0", "m1", "m2", "m3", "m4")


def idx(array: np.ndarray) -> bytes:
    """Bytes of an IDX file of unsigned bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures, each unlike the others, with balanced labels."""
    rng = np.random.default_rng(len(split))
    n = COUNTS[split]
    return rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), np.arange(n) % 10


def jpeg(seed: int, size: tuple[int, int] = (60, 45)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let polymnist expect the tiny sources of this module, no local folder, and no network."""
    patch.delenv("BENCH_DATA", raising=False)
    patch.setattr(polymnist, "COUNTS", COUNTS)
    patch.setattr(polymnist, "VAL", VAL)
    patch.setattr("datasets.archive.URL", "http://127.0.0.1:9/PolyMNIST.zip")  # nobody listens there
    patch.setattr("datasets.archive.TIMEOUT", (2, 2))


def local_folder(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """A data folder as `--data` takes it; its files are declared to be the published ones."""
    (root / "mnist").mkdir(parents=True)
    photos = root / "polymnist" / "backgrounds_original"
    photos.mkdir(parents=True)
    sums = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pictures, labels = digits(split)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            name, raw = f"{prefix}-{kind}-ubyte.gz", idx(array)
            (root / "mnist" / name).write_bytes(gzip.compress(raw))
            sums[name] = hashlib.md5(raw).hexdigest()
    known = dict(polymnist.BACKGROUNDS)
    for modality, (name, _) in polymnist.BACKGROUNDS.items():
        if modality != "m1":
            content = jpeg(int(name[0]))
            (photos / name).write_bytes(content)
            known[modality] = (name, hashlib.sha256(content).hexdigest())
    patch.setattr(polymnist, "MNIST_MD5", sums)
    patch.setattr(polymnist, "BACKGROUNDS", known)
    return root


def png(seed: int, size: int = 28) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture_members() -> dict[str, bytes]:
    """Members of an archive of pictures, in no particular order; the picture tells tuple and modality."""
    members = {}
    for split, n in COUNTS.items():
        for k, name in enumerate(NAMES):
            for i in reversed(range(n)):
                members[f"PolyMNIST/{split}/{name}/{i}.{i % 10}.png"] = png(1000 * k + i)
    return members


def tensor_members() -> dict[str, bytes]:
    """Members of an archive of tensors, with classifiers."""

    def saved(value: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    members = {}
    for split, n in COUNTS.items():
        g = torch.Generator().manual_seed(n)
        for name in NAMES:
            images = torch.randint(0, 256, (n, 3, 28, 28), generator=g).float() / 255
            members[f"{split}/{name}.pt"] = saved(images)
        members[f"{split}/labels.pt"] = saved(torch.arange(n) % 10)
    members["clf/pretrained_img_to_digit_clf_m0"] = saved({"encoder.0.bias": torch.ones(10)})
    return members


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Site:
    """What the server does: the content, its version, and how many bytes it sends before breaking off."""

    def __init__(self, content: bytes) -> None:
        self.content, self.status = content, 200
        self.break_after: int | None = None
        self.starts: list[int] = []

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:8]}"'


@contextmanager
def serving(site: Site) -> Iterator[str]:
    """Serve `site` on 127.0.0.1 with byte ranges; yields the address of the archive."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if site.status != 200:
                self.send_error(site.status)
                return
            start = 0
            wanted = self.headers.get("Range")
            if wanted and self.headers.get("If-Range") == site.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            site.starts.append(start)
            if start >= len(site.content):
                self.send_error(416)
                return
            body = site.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", site.etag)
            self.end_headers()
            if site.break_after is not None:
                body = body[: site.break_after]
                self.close_connection = True
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/PolyMNIST.zip"
    finally:
        server.shutdown()
        server.server_close()
