"""The data set `polymnist`: its three sources, their order, and everything that can be wrong with them."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data_support import COUNTS, VAL, digits, idx, jpeg, local_folder, picture_members, shrink, zipped

from datasets import polymnist
from datasets.polymnist import PolyMNIST, stand_in_background
from datasets.spec import UserError

SIZES = {"train": COUNTS["train"] - VAL, "val": VAL, "test": COUNTS["test"]}


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shrink(monkeypatch)
    return local_folder(tmp_path / "data", monkeypatch)


def test_rebuild_follows_the_recipe(tmp_path: Path, local: Path) -> None:
    data = PolyMNIST(tmp_path / "cache", data=local)
    used = []
    for name, n in SIZES.items():
        split = data.split(name)
        assert len(split) == n
        pictures, labels = digits("test" if name == "test" else "train")
        for m in data.spec.names:
            index = split.groups[m].numpy()
            assert np.array_equal(labels[index], split.labels["digit"].numpy())
            # The inverted part is complementary to the crop, so inverting it back gives a smooth m1.
            mask = torch.from_numpy(pictures[index] > 128)[:, None]
            restored = torch.where(mask, 255 - split.stored[m], split.stored[m])
            if m == "m1":
                steps = restored.int().diff(dim=-1).abs()
                assert steps.max() < 16 and split.stored[m].int().diff(dim=-1).abs().max() > 16
        used.append(split.groups["m0"])
    both = torch.cat(used[:2]).sort().values
    assert torch.equal(both, torch.arange(COUNTS["train"]))


def test_rebuild_is_deterministic_and_names_the_stand_in(tmp_path: Path, local: Path) -> None:
    first, again = (PolyMNIST(tmp_path / name, data=local) for name in "ab")
    assert first.fingerprint == again.fingerprint
    assert "stand-in background for m1" in first.notes[0]
    assert PolyMNIST(tmp_path / "a", data=local, seed=1).fingerprint != first.fingerprint


def test_own_m1_photograph_gives_another_build_without_the_note(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    first = PolyMNIST(tmp_path / "cache", data=local)
    first.prepare()
    content = jpeg(2)
    (local / "polymnist" / "backgrounds_original" / "2.jpg").write_bytes(content)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setitem(polymnist.BACKGROUNDS, "m1", ("2.jpg", blob))
    second = PolyMNIST(tmp_path / "cache", data=local)
    assert second.fingerprint != first.fingerprint and second.folder != first.folder
    assert not any("stand-in" in note for note in second.notes)


def test_prepared_copy_serves_without_any_source(tmp_path: Path, local: Path) -> None:
    fingerprint = PolyMNIST(tmp_path / "cache", data=local).fingerprint
    assert PolyMNIST(tmp_path / "cache").fingerprint == fingerprint


def test_environment_folder_serves_when_the_archive_is_out_of_reach(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(local))
    for data in (None, local):  # the command line passes the environment's folder on as `data`
        cache = tmp_path / f"cache{data is None}"
        build = PolyMNIST(cache, data=data)
        assert "stand-in" in build.notes[0]
        assert "cannot be reached" in caplog.text
        caplog.clear()
        PolyMNIST(cache, data=data).prepare()
        assert caplog.text == ""  # the second time the prepared copy serves and nothing is asked


def test_explicit_folder_goes_before_the_archive(
    tmp_path: Path, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PolyMNIST(tmp_path / "cache", data=local).prepare()
    assert "cannot be reached" not in caplog.text


def test_archive_put_into_the_folder_by_hand_is_used(tmp_path: Path, local: Path) -> None:
    (local / "PolyMNIST.zip").write_bytes(zipped(picture_members()))
    data = PolyMNIST(tmp_path / "cache", data=local)
    assert data.notes == () and data.folder.name.startswith("archive")
    assert data.split("test").groups == {}


def test_another_archive_by_hand_is_not_taken_for_the_first(tmp_path: Path, local: Path) -> None:
    members = picture_members()
    (local / "PolyMNIST.zip").write_bytes(zipped(members))
    first = PolyMNIST(tmp_path / "cache", data=local)
    other = tmp_path / "other"
    other.mkdir()
    pictures = sorted(name for name in members if name.endswith(".png"))
    changed = dict(members) | {pictures[0]: members[pictures[1]]}
    (other / "PolyMNIST.zip").write_bytes(zipped(changed))
    second = PolyMNIST(tmp_path / "cache", data=other)
    assert first.fingerprint != second.fingerprint
    assert PolyMNIST(tmp_path / "cache", data=local).fingerprint == first.fingerprint


def test_several_rebuilds_and_no_folder_is_a_question(tmp_path: Path, local: Path) -> None:
    first = PolyMNIST(tmp_path / "cache", data=local).folder
    first.with_name(first.name + "-other").mkdir()
    with pytest.raises(UserError, match="holds 2 copies.*--data"):
        PolyMNIST(tmp_path / "cache").prepare()


def test_no_source_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    with pytest.raises(UserError, match="no source.*cannot be reached.*--data or BENCH_DATA") as caught:
        PolyMNIST(tmp_path).prepare()
    assert "\n" not in str(caught.value)


def rewrite_labels(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    labels = change(np.arange(COUNTS["train"]) % 10)
    path.write_bytes(gzip.compress(idx(labels)))


LABELS, IMAGES, PHOTO = (
    "mnist/train-labels-idx1-ubyte.gz",
    "mnist/t10k-images-idx3-ubyte.gz",
    "polymnist/backgrounds_original/4.jpg",
)
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (IMAGES, Path.unlink, "is missing: put the original MNIST file there"),
    "truncated": (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:-50]), "cannot be read"),
    "no gzip": (LABELS, lambda p: p.write_text("hello"), "cannot be read"),
    "altered": (LABELS, lambda p: rewrite_labels(p, lambda x: x[::-1]), "MD5 differs"),
    "photograph missing": (PHOTO, Path.unlink, "is missing: put the published photograph there"),
    "photograph truncated": (PHOTO, lambda p: p.write_bytes(p.read_bytes()[:-500]), "cannot be read"),
    "not an image": (PHOTO, lambda p: p.write_text("hello"), "is not an image"),
    "another image": (PHOTO, lambda p: p.write_bytes(jpeg(99)), "checksum differs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_source_is_one_sentence_and_leaves_nothing(tmp_path: Path, local: Path, fault: str) -> None:
    name, damage, message = FAULTS[fault]
    damage(local / name)
    with pytest.raises(UserError, match=message) as caught:
        PolyMNIST(tmp_path / "cache", data=local).prepare()
    assert "\n" not in str(caught.value) and Path(name).name in str(caught.value)
    assert [p.name for p in (tmp_path / "cache").rglob("*")] in ([], ["polymnist", ".lock"])


def test_labels_and_pictures_of_unequal_length(
    tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    raw = idx(np.arange(COUNTS["train"] - 1) % 10)
    (local / LABELS).write_bytes(gzip.compress(raw))
    monkeypatch.setitem(polymnist.MNIST_MD5, Path(LABELS).name, hashlib.md5(raw).hexdigest())
    with pytest.raises(UserError, match="60 'train' pictures and 59 labels"):
        PolyMNIST(tmp_path / "cache", data=local).prepare()


def test_missing_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    with pytest.raises(UserError, match="nowhere' does not exist.*--data"):
        PolyMNIST(tmp_path / "cache", data=tmp_path / "nowhere").prepare()


def test_full_disk(tmp_path: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no space left"):
        patch.setattr("datasets.files.os.fsync", full)
        PolyMNIST(tmp_path / "cache", data=local).prepare()
    assert [p.name for p in (tmp_path / "cache" / "polymnist").iterdir()] == [".lock"]
    PolyMNIST(tmp_path / "cache", data=local).prepare()


def test_official_classifiers_stay_beside_the_prepared_copy(tmp_path: Path, local: Path) -> None:
    plain = PolyMNIST(tmp_path / "a", data=local)
    assert plain.official_classifiers is None
    path = local / "polymnist" / polymnist.CLASSIFIERS
    np.savez(path, **{"m0.encoder.0.bias": np.zeros(10)})
    assert plain.official_classifiers == path  # put there after the build
    PolyMNIST(tmp_path / "b", data=local).prepare()
    path.unlink()
    kept = PolyMNIST(tmp_path / "b").official_classifiers
    assert kept is not None and "m0.encoder.0.bias" in np.load(kept)


def test_stand_in_is_smooth_and_legible() -> None:
    photo = stand_in_background()
    crops = np.lib.stride_tricks.sliding_window_view(photo, (28, 28), axis=(0, 1))[::31, ::31].astype(float)
    spread = crops.std((3, 4))
    assert 3 < np.median(spread) < 13  # of the real tiles: mostly 4 to 13 levels
    contrast = np.abs(255 - 2 * crops.mean((3, 4))).max(-1)
    assert contrast.min() > 64


@pytest.mark.slow
def test_rebuild_from_the_shared_folder(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (shared / "mnist").is_dir():
        pytest.skip("needs the real MNIST in ../shared/data")
    monkeypatch.delenv("BENCH_DATA", raising=False)
    data = PolyMNIST(shared_cache, data=shared)
    counts = {name: data.split(name).labels["digit"].bincount().tolist() for name in SIZES}
    assert [len(data.split(name)) for name in SIZES] == [55_000, 5_000, 10_000]
    known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert [a + b for a, b in zip(counts["train"], counts["val"], strict=True)] == known
    assert counts["test"] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for m in data.spec.names:
        both = torch.cat([data.split(name).groups[m] for name in ("train", "val")])
        assert torch.equal(both.sort().values, torch.arange(60_000))
