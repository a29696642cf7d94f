"""The judges: network, training, official weights, cache, and the promises of `classify` and `features`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.polydigits import PolyDigits
from datasets.polymnist import PolyMNIST
from datasets.spec import DataSpec, Modality, Split, UserError, to_float
from metrics import judges as module
from metrics.judges import DigitNet, Judges, accuracy, digit_judges, read_official, train_digit_classifier

SPEC = DataSpec((Modality("a", "image", (3, 28, 28)), Modality("b", "image", (3, 28, 28))))


def split(n: int, seed: int) -> Split:
    """Pictures of ten patterns in noise: easily told apart."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.rand(10, 3, 7, 7, generator=torch.Generator().manual_seed(0)).mul(200)
    patterns = patterns.repeat_interleave(4, 2).repeat_interleave(4, 3)
    digit = torch.arange(n) % 10
    stored = {
        name: (patterns[digit] + torch.rand(n, 3, 28, 28, generator=g) * 50).to(torch.uint8)
        for name in SPEC.names
    }
    return Split(SPEC, stored, {"digit": digit})


TRAIN, VAL, TEST = split(400, 1), split(60, 2), split(100, 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(module, "BATCH", 50)


def made(cache: Path, official: Path | None = None, fingerprint: str = "f") -> Judges:
    return digit_judges(SPEC, TRAIN, VAL, TEST, fingerprint, cache, official, "cpu")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 50)
        return made(tmp_path_factory.mktemp("judges"))


def test_network_is_the_published_one() -> None:
    net = DigitNet((3, 28, 28))
    shapes = {key: tuple(t.shape) for key, t in net.state_dict().items()}
    assert shapes == {
        "encoder.0.weight": (10, 3, 4, 4), "encoder.0.bias": (10,),
        "encoder.3.weight": (20, 10, 4, 4), "encoder.3.bias": (20,),
        "encoder.7.weight": (128, 980), "encoder.7.bias": (128,),
        "encoder.10.weight": (10, 128), "encoder.10.bias": (10,),
    }  # fmt: skip
    dropouts = [type(m).__name__ for m in net.modules() if "Dropout" in type(m).__name__]
    assert dropouts == ["Dropout2d", "Dropout2d", "Dropout"]


def test_training_learns_and_is_deterministic() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    modality, labels = SPEC["a"], TRAIN.labels["digit"]
    one, two = (train_digit_classifier(modality, TRAIN.stored["a"], labels, examples=2500) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert module.weights_hash(one) == module.weights_hash(two)
    other = train_digit_classifier(modality, TRAIN.stored["a"], labels, examples=2500, seed=1)
    assert module.weights_hash(one) != module.weights_hash(other)
    assert accuracy(one, TEST.stored["a"], TEST.labels["digit"]) > 0.9
    untrained = accuracy(DigitNet(modality.shape), TEST.stored["a"], TEST.labels["digit"])
    assert untrained < 0.5


def test_training_works_under_no_grad() -> None:
    with torch.no_grad():
        net = train_digit_classifier(SPEC["a"], TRAIN.stored["a"], TRAIN.labels["digit"], examples=2000)
    assert accuracy(net, TEST.stored["a"], TEST.labels["digit"]) > 0.5


def test_report_names_source_accuracy_and_hash(judges: Judges) -> None:
    report = judges.report()
    assert report["source"] == {"a": "trained", "b": "trained"}
    assert set(report["hashes"]) == {"a", "b"} and report["hash"] == judges.hash
    assert judges.hashes["a"] != judges.hashes["b"]
    for name in SPEC.names:
        real = judges.classify(name, to_float(TEST.stored[name]))
        right = (real == TEST.labels["digit"]).float().mean().item()
        assert report["accuracy"][name] == pytest.approx(right) and right > 0.9


def test_classify_clamps_and_answers_digits(judges: Judges) -> None:
    images = to_float(TEST.stored["a"]) * 3 - 1
    found = judges.classify("a", images)
    assert found.dtype == torch.int64 and found.shape == (100,)
    assert torch.equal(found, judges.classify("a", images.clamp(0, 1)))
    assert judges.classify("a", images[:0]).shape == (0,)
    with pytest.raises(TypeError, match="float"):
        judges.classify("a", TEST.stored["a"])
    with pytest.raises(KeyError, match="no judge for 'c'"):
        judges.classify("c", images)


def test_features_are_the_activations_after_the_last_relu(judges: Judges) -> None:
    found = judges.features("b", TEST.stored["b"])
    assert found.shape == (100, 128) and found.dtype == torch.float32 and found.min() >= 0
    scores = judges.nets["b"].encoder[-1](found).argmax(1)
    assert torch.equal(scores, judges.classify("b", to_float(TEST.stored["b"])))
    with pytest.raises(TypeError, match="uint8"):
        judges.features("b", to_float(TEST.stored["b"]))


def test_dropout_is_off_and_training_mode_is_refused(judges: Judges) -> None:
    images = to_float(TEST.stored["a"])
    assert torch.equal(judges.classify("a", images), judges.classify("a", images))
    judges.nets["a"].encoder[4].train()  # one layer alone would already spoil the scores
    try:
        with pytest.raises(RuntimeError, match="training mode"):
            judges.classify("a", images)
        with pytest.raises(RuntimeError, match="training mode"):
            judges.features("a", TEST.stored["a"])
    finally:
        judges.nets["a"].eval()


def test_autocast_around_the_evaluation_changes_nothing(judges: Judges) -> None:
    plain = judges.features("a", TEST.stored["a"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(judges.features("a", TEST.stored["a"]), plain)


def test_cache_is_read_back_and_keyed_by_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_digit_classifier", None)  # calling it would fail
        again = made(tmp_path)
        with pytest.raises(TypeError):
            made(tmp_path, fingerprint="other data")
    assert again.report() == first.report() and caplog.text == ""


@pytest.mark.parametrize("how", ["truncated", "altered", "empty"])
def test_damaged_cache_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    first = made(tmp_path)
    (path,) = (tmp_path / "judges").iterdir()
    raw = bytearray(path.read_bytes())
    if how == "altered":
        raw[-3] ^= 255
    path.write_bytes({"truncated": raw[:-9], "altered": raw, "empty": b""}[how])
    assert made(tmp_path).hash == first.hash
    assert "damaged" in caplog.text


def test_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="judges cannot be stored.*No space left"):
        made(tmp_path)
    assert list((tmp_path / "judges").iterdir()) == []


def npz(path: Path, nets: dict[str, DigitNet]) -> Path:
    arrays = {f"{n}.{k}": t.numpy() for n, net in nets.items() for k, t in net.state_dict().items()}
    np.savez(path, **arrays)
    return path


def test_official_serves_only_where_it_suits_the_build(tmp_path: Path, judges: Judges) -> None:
    poor = DigitNet((3, 28, 28))
    path = npz(tmp_path / "clf.npz", {"a": judges.nets["a"], "b": poor})
    mixed = made(tmp_path, path)
    assert mixed.source == {"a": "official", "b": "trained"}
    assert mixed.hashes["a"] == judges.hashes["a"]
    assert mixed.accuracy["b"] > 0.9
    npz(path, {"b": judges.nets["b"]})  # another file under the same name is not mistaken for the first
    assert made(tmp_path, path).source == {"a": "trained", "b": "official"}


def test_unreadable_official_file(tmp_path: Path) -> None:
    path = tmp_path / "clf.npz"
    with pytest.raises(UserError, match="clf.npz' cannot be read"):
        made(tmp_path, path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="clf.npz' cannot be read.*trains its own"):
        made(tmp_path, path)
    np.savez(path, **{"a.encoder.0.weight": np.zeros((2, 3, 4, 4), np.float32)})
    with pytest.raises(UserError, match="classifier 'a' in .*other layers"):
        made(tmp_path, path)


@pytest.mark.slow
def test_every_modality_of_polydigits_is_judged_well(shared_cache: Path) -> None:
    data = PolyDigits(shared_cache)
    parts = [data.split(name) for name in ("train", "val", "test")]
    found = digit_judges(data.spec, *parts, data.fingerprint, shared_cache)
    assert min(found.accuracy.values()) >= 0.95, found.accuracy
    assert set(found.source.values()) == {"trained"}


@pytest.mark.slow
def test_official_classifiers_judge_the_rebuild(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (shared / "polymnist" / "polymnist_digit_classifiers.npz").exists():
        pytest.skip("needs the official classifiers in ../shared/data")
    monkeypatch.delenv("BENCH_DATA", raising=False)
    data = PolyMNIST(shared_cache, data=shared)
    assert data.official_classifiers is not None
    test = data.split("test")
    nets = read_official(data.official_classifiers, data.spec)
    assert set(nets) == set(data.spec.names)
    for name in ("m0", "m2", "m3", "m4"):  # over their own photographs
        assert accuracy(nets[name], test.stored[name][:4000], test.labels["digit"][:4000]) > 0.92
