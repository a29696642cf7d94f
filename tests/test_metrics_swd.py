"""The sliced Wasserstein distance: pyramid, patches, quantiles against SciPy, and what it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve
from scipy.stats import wasserstein_distance
from torch import Tensor

from datasets.spec import DataSpec, Modality, Split
from metrics import swd as module
from metrics.protocol import Event
from metrics.swd import (
    PATCH,
    PATCHES,
    PICTURES,
    UNIT,
    Level,
    PatchMetric,
    PatchSample,
    directions,
    laplacian_pyramid,
    patches,
    quantiles,
    swd,
)


def photographs(n: int, seed: int, size: int = 28) -> Tensor:
    """uint8 pictures with structure at every scale."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [s for s in (4, 7, 14, 28, 56) if s <= size]
    layers = [
        torch.nn.functional.interpolate(torch.randn(n, 3, s, s, generator=generator), size, mode="bilinear")
        for s in sizes
    ]
    return (torch.stack(layers).sum(0) * 30 + 128).clamp(0, 255).to(torch.uint8)


def sample(images: Tensor, real: list[Level] | None = None, batch: int = 64) -> PatchSample:
    found = PatchSample(real or [])
    for part in images.split(batch):
        found.update(part)
    return found


@pytest.fixture(scope="module")
def real() -> list[Level]:
    return [Level.of(level) for level in sample(photographs(1000, 0)).levels()]


@pytest.mark.parametrize(("size", "sizes"), [(28, [28, 14]), (32, [32, 16]), (64, [64, 32, 16]), (27, [27])])
def test_the_pyramid_adds_up_to_the_image(size: int, sizes: list[int]):
    images = torch.rand(3, 2, size, size)
    levels = laplacian_pyramid(images)
    assert [level.shape[2] for level in levels] == sizes
    back = levels[-1]
    for level in reversed(levels[:-1]):
        back = level + module._doubled(back)
    torch.testing.assert_close(back, images)


def test_the_pyramid_is_that_of_a_plain_reference():
    """Burt and Adelson's REDUCE and EXPAND by SciPy, at sizes of which one halves to an odd number."""
    image = torch.rand(28, 34, dtype=torch.float64)
    row = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(row, row)
    smaller = convolve(image.numpy(), kernel, mode="mirror")[::2, ::2]
    spread = np.zeros((28, 34))
    spread[::2, ::2] = smaller
    fine, coarse = laplacian_pyramid(image[None, None])
    np.testing.assert_allclose(coarse[0, 0], smaller, atol=1e-12)
    detail = image.numpy() - convolve(spread, 4 * kernel, mode="mirror")
    np.testing.assert_allclose(fine[0, 0], detail, atol=1e-12)


def test_a_flat_image_has_no_detail():
    fine, coarse = laplacian_pyramid(torch.full((1, 3, 28, 28), 0.3))
    torch.testing.assert_close(fine, torch.zeros_like(fine), atol=1e-6, rtol=0)
    torch.testing.assert_close(coarse, torch.full_like(coarse, 0.3))


def test_patches_are_windows_of_their_own_image_and_lie_everywhere():
    images = torch.arange(2 * 9 * 9, dtype=torch.float32).reshape(2, 1, 9, 9)
    found = patches(images, 0).reshape(2, PATCHES, PATCH, PATCH)
    for image, windows in zip(images[:, 0], found, strict=True):
        for window in windows:
            y, x = divmod(int(window[0, 0] - image[0, 0]), 9)
            assert torch.equal(window, image[y : y + PATCH, x : x + PATCH])
    many = patches(images[:1].expand(200, -1, -1, -1), 0)[:, 0, 0, 0].unique()
    assert len(many) == 9, "every one of the 3 x 3 places"


def test_an_image_without_a_patch_is_an_error():
    with pytest.raises(ValueError, match="no patch of 7"):
        patches(torch.rand(1, 1, 6, 20), 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_batches_do_not_matter(batch: int):
    images = photographs(40, 3)
    for one, other in zip(sample(images).levels(), sample(images, batch=batch).levels(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_directions_are_unit_vectors_and_fixed():
    found = directions(3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    assert torch.equal(found, directions(3)) and found.shape == (128, 3 * 49)


def test_quantiles_give_the_wasserstein_distance_of_scipy():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 200, generator=generator), 2 * torch.rand(5, 200, generator=generator)
    exact = [wasserstein_distance(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    found = (quantiles(a, 200) - quantiles(b, 200)).abs().mean(1)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float32))
    # Sets of other sizes, at a thousand points.
    a, b = (
        torch.randn(5, 16_000, generator=generator),
        torch.randn(5, 40_000, generator=generator) * 1.3 + 0.2,
    )
    exact = [wasserstein_distance(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    found = (quantiles(a) - quantiles(b)).abs().mean(1)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=torch.float32), rtol=0.02, atol=0)


def test_a_level_averages_scipy_over_directions_in_units_of_the_real_patches():
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(1000, 2, PATCH, PATCH, generator=generator) * 3 + 5
    right = torch.rand(1000, 2, PATCH, PATCH, generator=generator)
    mean, deviation = left.mean((0, 2, 3)), left.std((0, 2, 3))
    units = [((x - mean[:, None, None]) / deviation[:, None, None]).flatten(1) for x in (left, right)]
    along = [(directions(2) @ x.T).numpy() for x in units]
    exact = sum(wasserstein_distance(a, b) for a, b in zip(*along, strict=True)) / len(along[0])
    assert Level.of(left).distance(right) == pytest.approx(UNIT * exact, rel=1e-4)


def test_fresh_pictures_of_the_same_kind_are_near_and_a_change_of_texture_is_far(real: list[Level]):
    def distance(images: Tensor) -> dict[str, float]:
        return sample(images, real).values()

    fresh = photographs(1000, 1)
    floor = distance(fresh)
    blurred = (module._blurred(fresh.float())).round().to(torch.uint8)
    noisy = (fresh.float() + 20 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))).clamp(
        0, 255
    )
    darker = (fresh.float() - 40).clamp(0, 255).to(torch.uint8)
    assert distance(blurred)["swd_fine"] > 20 * floor["swd_fine"]
    assert distance(noisy.to(torch.uint8))["swd_fine"] > 5 * floor["swd_fine"]
    assert (
        distance(darker)["swd"] > 20 * floor["swd"] and distance(darker)["swd_fine"] < 10 * floor["swd_fine"]
    )
    pale = (128 + (fresh.float() - 128) / 2).to(torch.uint8)
    assert distance(pale)["swd"] > 5 * floor["swd"], "its own units would hide half of the contrast"


@pytest.mark.parametrize("grey", [5, 77])
def test_a_channel_without_change_keeps_its_unit(grey: int):
    flat = [
        Level.of(level) for level in sample(torch.full((20, 3, 28, 28), grey, dtype=torch.uint8)).levels()
    ]
    one_more = sample(torch.full((20, 3, 28, 28), grey + 1, dtype=torch.uint8), flat)
    # Along a unit vector of 147 numbers a step of 1/255 is at most 12/255 long.
    assert one_more.values()["swd"] < UNIT * 12.2 / 255


def test_only_pictures_spread_over_a_draw_count():
    metric = PatchMetric({"a": []}, {"a": 9}, {}, 9, {"joint": 3000, "cross": 500})
    found = torch.cat([metric.rows("joint", start, 250) + start for start in range(0, 3000, 250)])
    assert len(found) == PICTURES == len(found.unique()) and 2000 < found[-300].item() < 2999
    assert torch.equal(metric.rows("cross", 250, 250), torch.arange(250))


def test_the_metric_names_its_scores_and_uses_the_cache(tmp_path, monkeypatch):
    spec = DataSpec((Modality("a", "image", (3, 28, 28)), Modality("b", "image", (3, 28, 28))))
    labels = {"digit": torch.zeros(300, dtype=torch.long)}
    test = Split(spec, {"a": photographs(300, 0), "b": photographs(300, 1)}, labels)
    train = Split(spec, {"a": photographs(300, 2), "b": photographs(300, 3)}, labels)
    metric = swd(test, train, fingerprint="f", cache=tmp_path, joint=1200, cross=200)
    files = list((tmp_path / "patches").iterdir())
    assert len(files) == 2
    drawn = {"a": photographs(1200, 4) / 255, "b": torch.rand(1200, 3, 28, 28)}
    for start in (0, 700):  # of 1,200 tuples 1,000 count
        rows = slice(start, start + 700)
        batch = {name: images[rows] for name, images in drawn.items()}
        index = torch.arange(1200)[rows]
        metric.update(Event("joint", (), ("a", "b"), "gen", None, index, batch, {}))
    cross = {"b": drawn["b"][:100]}
    metric.update(Event("cross", ("a",), ("b",), "gen", None, torch.arange(100), cross, {}))
    found = {(s.metric, s.given, s.target): s for s in metric.compute()}
    assert found["swd_uncond", "", "a"].n == PICTURES and found["swd_floor", "", ""].n == 200
    assert found["swd_uncond", "", "b"].value > 5 * found["swd_uncond", "", "a"].value
    mean = (found["swd_uncond", "", "a"].value + found["swd_uncond", "", "b"].value) / 2
    assert found["swd_uncond", "", ""].value == pytest.approx(mean)
    assert found["swd_cond_cross", "", ""].value == found["swd_cond", "a", "b"].value
    assert found["swd_fine_uncond", "", ""].value > 0 and found["swd_real_images", "", ""].value == 300
    monkeypatch.setattr(Level, "of", None)  # the second time they come from the cache
    again = swd(test, train, fingerprint="f", cache=tmp_path, joint=1200, cross=200)
    assert list((tmp_path / "patches").iterdir()) == files
    for name, levels in metric.real.items():
        for one, other in zip(levels, again.real[name], strict=True):
            assert torch.equal(one.quantiles, other.quantiles)


def test_data_without_images_is_an_error(tmp_path):
    spec = DataSpec((Modality("caption", "text", (5,), vocabulary=10),))
    split = Split(spec, {"caption": torch.zeros(4, 5, dtype=torch.long)}, {})
    with pytest.raises(ValueError, match="no image modality"):
        swd(split, split, fingerprint="f", cache=tmp_path)
