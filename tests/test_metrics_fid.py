import hashlib
import urllib.request
from dataclasses import replace

import pytest
import torch
from toy_data import ToyData

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


@pytest.mark.slow
def test_the_network_is_torch_fidelity_s_and_takes_bytes_only(tmp_path, monkeypatch):
    """The whole path through the real architecture, with random weights declared to be the right ones."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        blank = module.FeatureExtractorInceptionV3("blank", ["2048"])
    path = tmp_path / "weights.pth"
    torch.save(blank.state_dict(), path)
    declared = replace(WEIGHTS, digest=hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    monkeypatch.setattr(fid_module, "WEIGHTS", declared)
    features = fid_module.inception(path)
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    out = features("m0", images)
    assert out.shape == (2, 2048) and bool(torch.isfinite(out).all())
    torch.testing.assert_close(out, blank(images)[0])
    assert features("m0", images[:, :1]).shape == (2, 2048)
    with pytest.raises(TypeError, match="uint8"):
        features("m0", images.float())
