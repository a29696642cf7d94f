import hashlib
import json
import subprocess
import sys
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_data import ToyData

from datasets.packed import Shared
from datasets.spec import DataSpec, Modality, Split, to_float
from metrics import fid as fid_module
from metrics.fid import WEIGHTS, fid
from metrics.protocol import Event
from metrics.weights import Unavailable


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No weights in torch's cache, none in the environment, no network."""
    monkeypatch.delenv("BENCH_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def no_network(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def random_weights(path):
    """A file with the right tensors and the right name, but not the published content."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    assert module.FeatureExtractorInceptionV3
    return path


def test_other_weights_are_refused_however_they_are_named(tmp_path, monkeypatch):
    fake = random_weights(tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    assert not WEIGHTS.is_genuine(fake)
    with pytest.raises(Unavailable, match="not the published Inception file"):
        WEIGHTS.find(fake)
    with pytest.raises(Unavailable, match="not the published Inception file"):
        fid_module.inception(fake)
    monkeypatch.setenv("BENCH_INCEPTION", str(fake))
    with pytest.raises(Unavailable, match="BENCH_INCEPTION"):
        WEIGHTS.find()


def test_a_file_that_cannot_be_read_is_answered_with_the_command(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x")

    def refused(self, path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(WEIGHTS), "is_genuine", refused)
    with pytest.raises(Unavailable, match="cannot be read \\(Permission denied\\).*curl"):
        WEIGHTS.find(path)


def test_what_is_missing_is_answered_with_the_command(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(Unavailable, match="names no file") as missing:
        WEIGHTS.find(tmp_path / "nowhere.pth")
    remedy = WEIGHTS.remedy()
    assert remedy in str(missing.value) and "curl" in remedy and "6726825d" in remedy
    with pytest.raises(Unavailable, match="no network in this test.*curl"):
        WEIGHTS.find()
    with pytest.raises(Unavailable, match="not on this machine"):
        WEIGHTS.find(download=False)


def test_a_file_in_the_cache_is_used_only_if_genuine(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    cached = folder / "pt_inception-2015-12-05-6726825d.pth"
    cached.write_bytes(b"weights")
    with pytest.raises(Unavailable):
        WEIGHTS.find(download=False)
    # Pretend these very bytes are the published ones.
    these = replace(WEIGHTS, digest=hashlib.sha256(b"weights").hexdigest()[:8])
    assert these.find(download=False) == cached


def test_a_download_is_verified_before_it_is_kept(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    import io

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"an error page"))
    with pytest.raises(Unavailable, match="not the published Inception file"):
        WEIGHTS.find()
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    these = replace(WEIGHTS, digest=hashlib.sha256(b"an error page").hexdigest()[:8])
    assert these.find().read_bytes() == b"an error page"


def fake_features(_, images):
    """Eight channel statistics in place of Inception's 2048."""
    assert images.dtype == torch.uint8 and images.shape[1] == 3
    x = images.float() / 255
    return torch.cat(
        [x.mean((2, 3)), x.std((2, 3)), x.amax((1, 2, 3))[:, None], x.amin((1, 2, 3))[:, None]], 1
    )


def metric_of(data, cache, limit=None):
    test, train = data.split("test"), data.split("train")
    return fid(
        test,
        train,
        fingerprint=data.fingerprint,
        cache=cache,
        limit=limit,
        features=fake_features,
        judge="fake",
    )


def feed(metric, split, targets=("a", "b", "c"), change=lambda x: x):
    for given in (("a",), ("b",), ("c",)):
        for start in range(0, len(split), 50):
            rows = torch.arange(start, min(start + 50, len(split)))
            generated = {n: change(split.batch(rows)[n]) for n in targets}
            metric.update(Event("cross", given, targets, "s", None, rows, generated, {}))
    return {(s.metric, s.given, s.target): s for s in metric.compute()}


def test_fid_of_real_pictures_is_zero_and_of_others_is_not(tmp_path):
    data = ToyData(tmp_path, {"train": 400, "val": 20, "test": 400})
    real = feed(metric_of(data, tmp_path), data.split("test"))
    assert real["fid_cond", "", ""].value == pytest.approx(0, abs=1e-9)
    assert real["fid_cond_cross", "", ""].judge == "fake"
    dark = feed(metric_of(data, tmp_path), data.split("test"), change=lambda x: x / 2)
    assert dark["fid_cond", "", ""].value > 100 * real["fid_floor", "", ""].value > 0
    assert len([k for k in dark if k[0] == "fid_cond" and k[1]]) == 9


def test_real_statistics_are_computed_once_per_content_and_count(tmp_path):
    data = ToyData(tmp_path)
    metric_of(data, tmp_path / "cache", limit=100)
    files = {f.name for f in (tmp_path / "cache" / "features").iterdir()}
    assert len(files) == 6  # three modalities, test and train
    metric_of(data, tmp_path / "cache", limit=100)
    assert {f.name for f in (tmp_path / "cache" / "features").iterdir()} == files
    metric_of(data, tmp_path / "cache", limit=200)
    other = ToyData(tmp_path, {"train": 601, "val": 100, "test": 401})
    metric_of(other, tmp_path / "cache", limit=100)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 18


def test_pictures_that_captions_share_count_once(tmp_path):
    """600 captions of 40 test pictures and of 50 training pictures, beside these pictures alone."""
    pictures = {
        "test": torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1)),
        "train": torch.randint(0, 256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(2)),
    }
    spec = DataSpec((Modality("image", "image", (3, 8, 8)), Modality("text", "text", (4,), vocabulary=5)))
    alone, captioned = {}, {}
    for name, pixels in pictures.items():
        pixels, rows = pixels.to(torch.uint8), torch.arange(600) % len(pixels)
        texts = torch.zeros(600, 4, dtype=torch.long)
        alone[name] = Split(DataSpec(spec.images), {"image": pixels}, {})
        captioned[name] = Split(spec, {"image": Shared(pixels, rows), "text": texts}, {})
    found = {}
    for kind, splits in (("alone", alone), ("captioned", captioned)):
        cache = tmp_path / kind
        metric = fid(splits["test"], splits["train"], fingerprint="x", cache=cache, features=fake_features)
        made = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        for given in ((), ("image",), ("text",)):
            task = "cross" if given else "joint"
            metric.update(Event(task, given, ("image",), "s", None, torch.arange(80), {"image": made}, {}))
        found[kind] = {(s.metric, s.given, s.target): s for s in metric.compute()}
    for key in (
        ("fid_uncond", "", ""),
        ("kid_uncond", "", ""),
        ("fid_floor", "", ""),
        ("recall_ceiling", "", ""),
    ):
        assert found["captioned"][key].value == pytest.approx(found["alone"][key].value), key
    both = found["captioned"]
    assert both["fid_real_images", "", ""].value == 40 and both["fid_uncond", "", ""].n == 80
    assert both["fid_floor", "", ""].n == 40
    assert both["fid_t2i", "", ""].value == both["fid_cond", "text", "image"].value
    assert ("fid_t2i", "", "") not in found["alone"] or found["alone"]["fid_t2i", "", ""].value is None


# -- the real architecture, with random weights ------------------------------------------------------


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """A file of fixed random weights in Inception's shapes, and the network that it was saved from.

    He's initialisation, so that the features neither die out nor explode on the way.
    """
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("inception with random weights", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("weights") / "inception-with-random-weights.pth"
    torch.save(network.state_dict(), path)
    return path, network


def declare(path, monkeypatch):
    """Let the file of random weights be the published one."""
    declared = replace(WEIGHTS, digest=hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    monkeypatch.setattr(fid_module, "WEIGHTS", declared)


@pytest.mark.slow
def test_the_network_is_torch_fidelity_s_and_takes_bytes_only(random_inception, monkeypatch):
    path, network = random_inception
    declare(path, monkeypatch)
    features = fid_module.inception(path)
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    out = features("m0", images)
    assert out.shape == (2, 2048) and bool(torch.isfinite(out).all())
    torch.testing.assert_close(out, network(images)[0])
    assert features("m0", images[:, :1]).shape == (2, 2048)
    with pytest.raises(TypeError, match="uint8"):
        features("m0", images.float())


def fidelity_command(generated, real, weights):
    """What torch-fidelity's own command says of two folders of pictures."""
    options = ["--cpu", "--fid", "--kid", "--prc", "--json", "--silent", "--no-cache", "--save-cpu-ram"]
    named = {
        "input1": generated,
        "input2": real,
        "kid-subset-size": 16,
        "feature-extractor": "inception-v3-compat",  # else precision and recall would be VGG-16's
        "feature-extractor-weights-path": weights,
    }
    options += [word for name, value in named.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-c", "from torch_fidelity.fidelity import main; main()", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.slow
def test_scores_are_those_of_torch_fidelity_on_the_same_files(random_inception, tmp_path, monkeypatch):
    """FID, KID, precision, recall of two folders of PNG files; both sides read these and one weight file."""
    path, _ = random_inception
    declare(path, monkeypatch)
    rng = np.random.default_rng(0)
    sets = {
        "generated": rng.integers(0, 256, (20, 24, 24, 3)).astype(np.uint8),
        "real": np.repeat(np.repeat(rng.integers(0, 200, (16, 6, 6, 3)), 4, 1), 4, 2).astype(np.uint8),
    }
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03d}.png")
    theirs = fidelity_command(tmp_path / "generated", tmp_path / "real", path)
    read = {k: [np.asarray(Image.open(f)) for f in sorted((tmp_path / k).iterdir())] for k in sets}
    tensors = {k: torch.from_numpy(np.stack(v).transpose(0, 3, 1, 2).copy()) for k, v in read.items()}
    spec = DataSpec((Modality("image", "image", (3, 24, 24)),))
    real = Split(spec, {"image": tensors["real"]}, {})
    metric = fid(real, None, fingerprint="x", cache=tmp_path, weights=path, judge="random weights")
    made = {"image": to_float(tensors["generated"])}
    metric.update(Event("joint", (), ("image",), "s", None, torch.arange(20), made, {}))
    ours = {s.metric: s.value for s in metric.compute() if not s.target}
    assert ours["fid_uncond"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["fid_uncond"] > 1e-2
    assert ours["kid_uncond"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["precision_uncond"] == theirs["precision"] and ours["recall_uncond"] == theirs["recall"]
    assert ours["fid_real_images"] == 16
