"""The PolyMNIST recipe and the data set `polydigits`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import polydigits, recipe
from datasets.polydigits import PolyDigits
from datasets.spec import UserError

TINY = {"train": 200, "val": 60, "test": 105}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polydigits, "COUNTS", TINY)


@pytest.fixture(scope="module")
def data(shared_cache: Path) -> PolyDigits:
    return PolyDigits(cache=shared_cache)


def test_composite_inverts_where_the_digit_exceeds_the_threshold() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (31, 40, 3)).astype(np.uint8)
    digits = np.zeros((50, 28, 28), np.uint8)
    digits[:, 5, 6], digits[:, 7, 8] = 129, 128
    out = recipe.composite(digits, photo, np.random.default_rng(1))
    assert out.shape == (50, 3, 28, 28) and out.dtype == np.uint8
    plain = recipe.composite(np.zeros_like(digits), photo, np.random.default_rng(1))
    assert np.array_equal(out[:, :, 5, 6], 255 - plain[:, :, 5, 6])
    rest = np.ones((28, 28), bool)
    rest[5, 6] = False
    assert np.array_equal(out[:, :, rest], plain[:, :, rest])
    corners = {
        (x, y)
        for crop in plain
        for x in range(13)
        for y in range(4)
        if np.array_equal(crop.transpose(1, 2, 0), photo[y : y + 28, x : x + 28])
    }
    assert corners and max(x for x, _ in corners) <= 11 and max(y for _, y in corners) <= 2


def test_composite_refuses_a_photograph_of_28_pixels() -> None:
    with pytest.raises(UserError, match="too small"):
        recipe.composite(
            np.zeros((1, 28, 28), np.uint8), np.zeros((28, 60, 3), np.uint8), np.random.default_rng()
        )


def test_exact_pairing_uses_every_picture_once_and_shares_only_the_label() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    source, digit = recipe.exact_pairing(labels, np.random.default_rng(1))
    for index in source.values():
        assert np.array_equal(np.sort(index), np.arange(500))
        assert np.array_equal(labels[index], digit)
    assert (source["m0"] == source["m1"]).mean() < 0.2


def test_balanced_pairing_spreads_over_pictures_and_classes() -> None:
    labels = np.arange(100) % 10
    allowed = np.arange(0, 60)
    source, digit = recipe.balanced_pairing(labels, allowed, 207, np.random.default_rng(1))
    assert set(np.bincount(digit)) == {20, 21}
    for index in source.values():
        assert np.array_equal(labels[index], digit) and set(index) == set(allowed)
        assert np.bincount(index)[allowed].min() >= 3 and np.bincount(index).max() <= 4


def test_counts_shapes_and_labels(data: PolyDigits) -> None:
    for name, n in polydigits.COUNTS.items():
        split = data.split(name)
        assert len(split) == n
        assert torch.equal(split.labels["digit"].bincount(), torch.full((10,), n // 10))
        assert all(t.shape == (n, 3, 28, 28) and t.dtype == torch.uint8 for t in split.stored.values())
        batch = split.batch(slice(0, 4))
        assert batch["m3"].dtype == torch.float32 and 0 <= batch["m3"].min() <= batch["m3"].max() <= 1
    assert data.notes == ()


def test_no_handwriting_leaks_between_splits(data: PolyDigits) -> None:
    from sklearn.datasets import load_digits

    target = torch.from_numpy(load_digits().target)
    seen = {}
    for name in polydigits.COUNTS:
        split = data.split(name)
        assert set(split.groups) == set(split.spec.names)
        for group in split.groups.values():
            assert torch.equal(target[group], split.labels["digit"])
        seen[name] = set(torch.cat(list(split.groups.values())).tolist())
    assert not (seen["train"] & seen["test"] or seen["train"] & seen["val"] or seen["val"] & seen["test"])
    sizes = {name: len(pictures) for name, pictures in seen.items()}
    assert sum(sizes.values()) == 1797
    for name, share in polydigits.SHARES.items():
        assert abs(sizes[name] / 1797 - share) < 0.01


def test_modalities_share_only_the_label(data: PolyDigits) -> None:
    groups = data.split("train").groups
    assert (groups["m0"] == groups["m1"]).float().mean() < 0.05


def test_deterministic_from_the_seed_and_cached(tmp_path: Path, tiny: None) -> None:
    first, again = PolyDigits(tmp_path / "a"), PolyDigits(tmp_path / "b")
    other = PolyDigits(tmp_path / "a", seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(first.split("val").stored["m2"], again.split("val").stored["m2"])
    stamp = (first.folder / "train.safetensors").stat().st_mtime_ns
    reopened = PolyDigits(tmp_path / "a")
    reopened.prepare()
    assert reopened.fingerprint == first.fingerprint
    assert (first.folder / "train.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_damaged_cache_is_built_anew_with_a_warning(
    tmp_path: Path, tiny: None, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    first = PolyDigits(tmp_path)
    path = first.folder / "test.safetensors"
    raw = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(raw[:-100])
    else:
        raw[-1] ^= 255
        path.write_bytes(raw)
    again = PolyDigits(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert len(again.split("test")) == TINY["test"]
    assert caplog.text.count("not used") == 1


def test_interrupted_build_leaves_nothing(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(polydigits, "composite", stopped)
        PolyDigits(tmp_path).prepare()
    assert [p.name for p in (tmp_path / "polydigits").iterdir()] == [".lock"]
    PolyDigits(tmp_path).prepare()


def test_unknown_split_is_refused(data: PolyDigits) -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        data.split("dev")
