"""CLIP scores: their definition, their references, and the whole path through open_clip's architecture.

No test needs the published weights: `random_clip` is open_clip's ViT with fixed random weights, and its judge
says so.
"""

import hashlib
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixed_data import MixedData

from bench.config import Plan
from bench.evaluate import evaluate
from datasets.packed import Shared
from datasets.spec import Dataset, DataSpec, Modality, Split
from methods.mopoe import MoPoE
from metrics import clip as clip_module
from metrics.clip import WEIGHTS, ClipMetric, OpenClip, agreement, applies, openai_clip, shuffled
from metrics.protocol import Event
from metrics.weights import Unavailable

SPEC = DataSpec((Modality("image", "image", (3, 8, 8)), Modality("caption", "text", (4,), vocabulary=9)))
WORDS = ("<unk>", "<pad>", "<end>", "a", "red", "green", "blue", "bird", "square")


def sentence(tokens):
    return " ".join(WORDS[int(i)] for i in tokens if int(i) > 2)


def mopoe():
    torch.manual_seed(0)
    return MoPoE(SPEC, latent=4, network="cnn", width=8)


def split_of(n=60, pictures=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    light = torch.rand(pictures or n, 1, 1, 1, generator=generator)
    images = (255 * light * torch.rand(pictures or n, 3, 8, 8, generator=generator)).to(torch.uint8)
    captions = torch.randint(3, 9, (n, 4), generator=generator)
    if pictures is None:
        return Split(SPEC, {"image": images, "caption": captions}, {})
    rows = torch.arange(n) % pictures
    return Split(SPEC, {"image": Shared(images, rows), "caption": captions}, {}, {"image": rows})


class Captioned(Dataset):
    """Noise with captions of four words."""

    name, spec, fingerprint = "captioned", SPEC, "captioned-1"

    def prepare(self):
        pass

    def sentence(self, tokens):
        return sentence(tokens)

    def split(self, name):
        return split_of(60, seed=len(name))


class Fake:
    """Unit vectors in the plane: pictures by their mean brightness, sentences by their length."""

    judge = "fake"

    def __init__(self):
        self.encoded = 0

    def images(self, images):
        assert images.dtype == torch.uint8
        self.encoded += len(images)
        angle = images.float().flatten(1).mean(1) / 255 * 3
        return torch.stack([angle.cos(), angle.sin()], 1)

    def texts(self, sentences):
        angle = torch.tensor([float(len(s)) / 10 for s in sentences])
        return torch.stack([angle.cos(), angle.sin()], 1)


def metric_of(test, cache, encoder=None, n=60):
    return ClipMetric(encoder or Fake(), test, sentence, n, fingerprint="data-1", cache=cache)


def feed(metric, test, size=25):
    """Joint and both cross draws of the test tuples themselves, in batches."""
    for task, given in (("joint", ()), ("cross", ("image",)), ("cross", ("caption",))):
        for index in torch.arange(len(test)).split(size):
            real = test.batch(index)
            groups = {k: g[index] for k, g in test.groups.items()}
            metric.update(Event(task, given, SPEC.names, "s", None, index, real, real, {}, groups))
    return {(s.metric, s.task): s for s in metric.compute()}


def test_agreement_is_the_cosine_and_never_negative():
    a = torch.nn.functional.normalize(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    b = torch.nn.functional.normalize(torch.randn(50, 7, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = torch.nn.functional.cosine_similarity(a, b).clamp(min=0)
    np.testing.assert_allclose(agreement(a, b), expected, atol=1e-6)
    assert agreement(a, a) == pytest.approx(np.ones(50)) and not agreement(a, -a).any()


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_shuffling_leaves_nothing_in_its_place(n):
    order = shuffled(n)
    assert order.sort().values.equal(torch.arange(n)) and not (order == torch.arange(n)).any()
    assert order.equal(shuffled(n))


def test_real_pairs_score_as_their_ceiling(tmp_path):
    test = split_of()
    scores = feed(metric_of(test, tmp_path), test)
    for metric, task in (("clip_uncond", "joint"), ("clip_t2i", "cross"), ("clip_i2t", "cross")):
        found, ceiling = scores[metric, task], scores["clip_ceiling", task]
        assert found.value == pytest.approx(ceiling.value, abs=1e-6)
        assert (found.n, found.judge, found.better) == (60, "fake", "higher")
        assert found.low < found.value < found.high
        assert scores["clip_floor", task].n == ceiling.n == 60
        assert scores["clip_floor", task].value != ceiling.value


def test_directions_compare_what_was_given_with_what_was_made(tmp_path):
    test, encoder = split_of(), Fake()
    metric, index = metric_of(test, tmp_path, encoder), torch.arange(20)
    real, made = test.batch(index), {k: t.flip(0) for k, t in test.batch(index).items()}
    for given in (("image",), ("caption",)):
        metric.update(Event("cross", given, SPEC.names, "s", None, index, made, real))
    scores = {s.metric: s.value for s in metric.compute()}
    pictures = test.stored["image"][index]
    texts = [sentence(row) for row in test.stored["caption"][index]]
    t2i = agreement(encoder.images(pictures.flip(0)), encoder.texts(texts)).mean()
    i2t = agreement(encoder.images(pictures), encoder.texts(texts[::-1])).mean()
    assert scores["clip_t2i"] == pytest.approx(t2i) and scores["clip_i2t"] == pytest.approx(i2t)
    assert "clip_uncond" not in scores


def test_real_pairs_are_encoded_once_per_content(tmp_path):
    test, first, second, other = split_of(), Fake(), Fake(), Fake()
    other.judge = "another"
    metric_of(test, tmp_path, first)
    metric_of(test, tmp_path, second)
    metric_of(test, tmp_path, other)
    assert (first.encoded, second.encoded, other.encoded) == (60, 0, 60)


def test_intervals_know_that_captions_share_pictures(tmp_path):
    alone, shared = split_of(120), split_of(120, pictures=6)
    wide = feed(metric_of(shared, tmp_path / "a", n=120), shared)["clip_i2t", "cross"]
    narrow = feed(metric_of(alone, tmp_path / "b", n=120), alone)["clip_i2t", "cross"]
    assert wide.high - wide.low > narrow.high - narrow.low


def test_data_without_one_picture_and_one_caption_have_no_clip():
    assert applies(SPEC) and not applies(MixedData.spec)


# -- the real architecture, with random weights ------------------------------------------------------


def random_model(small=True):
    """open_clip's ViT with fixed random weights; small: two layers of width 64."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    cut = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}}
    cut["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.create_model(clip_module.MODEL, pretrained=None, **(cut if small else {}))
    for weight in model.parameters():
        weight.data = weight.data.half().float()  # OpenAI's file holds half precision
    return model


def random_clip(small=True):
    return OpenClip(random_model(small), "open_clip with random weights")


def test_the_encoder_is_open_clip_s_own_path():
    encoder = random_clip()
    pictures = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    found = encoder.images(pictures)
    assert found.shape == (3, 32)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    # Independently: torchvision's bicubic resize, CLIP's published mean and deviation.
    from torchvision.transforms.functional import InterpolationMode, normalize, resize

    ready = resize(pictures, [32, 32], InterpolationMode.BICUBIC, antialias=True).float() / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    direct = encoder.model.encode_image(normalize(ready, mean, deviation))
    cosine = torch.nn.functional.cosine_similarity(found, direct)
    assert (cosine > 0.999).all()
    texts = encoder.texts(["A red bird.", "a red bird.", "", "a bird " * 100])
    torch.testing.assert_close(texts[0], texts[1])
    assert texts.shape == (4, 32) and bool(torch.isfinite(texts).all())
    assert encoder.images(pictures[:, :1]).shape == (3, 32)
    with pytest.raises(TypeError, match="uint8"):
        encoder.images(pictures.float())


def declared(path, monkeypatch):
    """The file of random weights, declared to be the published one."""
    torch.save(random_model().state_dict(), path)
    these = replace(WEIGHTS, digest=hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    for module in ("metrics.clip", "bench.feature_metrics"):
        monkeypatch.setattr(f"{module}.WEIGHTS", these)
    monkeypatch.setattr(clip_module, "JUDGE", "open_clip with random weights")
    return path


def test_a_file_of_weights_gives_the_network_that_it_was_saved_from(tmp_path, monkeypatch):
    encoder = openai_clip(declared(tmp_path / "ViT-B-32.pt", monkeypatch))
    assert encoder.judge == "open_clip with random weights"
    pictures = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    torch.testing.assert_close(encoder.images(pictures), random_clip().images(pictures))
    torch.testing.assert_close(encoder.texts(["a bird"]), random_clip().texts(["a bird"]))


def test_the_metric_is_scored_through_the_harness(tmp_path, monkeypatch):
    path, data = declared(tmp_path / "ViT-B-32.pt", monkeypatch), Captioned(tmp_path)
    plan = Plan(joint=30, cross=20, metrics=("clip",), subsets="singles")
    found = evaluate(mopoe(), data, plan, cache=tmp_path, clip=path, judges=None)
    scores = {(s.metric, s.task): s for s in found.scores}
    assert {m for m, _ in scores} == {"clip_uncond", "clip_t2i", "clip_i2t", "clip_ceiling", "clip_floor"}
    assert scores["clip_uncond", "joint"].n == 30 and scores["clip_t2i", "cross"].n == 20
    assert scores["clip_ceiling", "joint"].n == 30 and scores["clip_floor", "cross"].n == 20
    assert all(0 <= s.value <= 1 and s.judge == "open_clip with random weights" for s in found.scores)


def test_without_weights_the_scores_say_how_to_get_them(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.delenv("BENCH_CLIP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    plan = Plan(joint=10, cross=10, metrics=("clip", "fid"), subsets="singles")
    found = evaluate(mopoe(), Captioned(tmp_path), plan, cache=tmp_path, judges=None)
    by = {s.metric: s for s in found.scores}
    for name in ("clip_uncond", "clip_t2i", "clip_i2t"):
        assert by[name].value is None
        assert "curl -L --create-dirs -o ~/.cache/clip/ViT-B-32.pt https" in by[name].unavailable
    assert {"fid_t2i", "kid_uncond", "recall_t2i"} <= set(by)
    wrong = tmp_path / "ViT-B-32.pt"
    wrong.write_bytes(b"other weights")
    with pytest.raises(Unavailable, match="not the published CLIP file"):
        openai_clip(wrong)
    with pytest.raises(Unavailable, match="the given path .* is not the published CLIP file"):
        WEIGHTS.find(wrong)


@pytest.mark.slow
def test_vit_b_32_itself_fits(tmp_path):
    test = split_of(8)
    scores = feed(metric_of(test, tmp_path, random_clip(small=False), n=8), test)
    assert scores["clip_t2i", "cross"].value == pytest.approx(scores["clip_ceiling", "cross"].value, abs=1e-5)
