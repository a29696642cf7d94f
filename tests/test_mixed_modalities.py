"""Two images and a text go through the whole harness: train, score, tabulate, sample, probe."""

from __future__ import annotations

from pathlib import Path

import mixed_data  # puts this folder to the test: the registry finds it by module:Class
import pytest
import torch

from bench.config import resolve
from bench.run import Options, load_run, run_many
from bench.show import probe_text, sample_run, tables_text
from bench.store import find_runs

SMALL = [
    "train.steps=12",
    "train.batch_size=32",
    "train.validate_every=6",
    "plan.joint=40",
    "plan.cross=40",
    "plan.nested=40",
    "plan.probe_train=100",
    "plan.probe_repeats=1",
    "plan.metrics=coherence,latent,cost",
]
DATA = "mixed_data:MixedData"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Options]:
    root = tmp_path_factory.mktemp("mixed")
    options = Options(results=root / "results", cache=root / "cache", device="cpu")
    names = ["mmvaeplus", "mopoe", "ours"]
    outcomes = run_many(names, DATA, "quick", (0,), SMALL, options)
    status = {o.method: (o.status, o.reason) for o in outcomes}
    assert {name: status[name][0] for name in names} == dict.fromkeys(names, "done"), status
    return root, options


def test_scores_cover_all_modalities(results: tuple[Path, Options]) -> None:
    _, options = results
    for record in find_runs(options.results):
        if record.record["status"] != "done":
            continue
        joint = [s for s in record.scores if s.metric == "coherence_joint"]
        assert joint and all(s.value is not None and s.n == 40 for s in joint)
        cross = {(s.given, s.target) for s in record.scores if s.metric == "coherence_cross"}
        assert ("caption", "photo") in cross and ("photo", "sketch") in cross
        probed = {s.given for s in record.scores if s.metric == "latent_acc"}
        assert {"photo", "sketch", "caption"} <= probed


def test_the_table_shows_them(results: tuple[Path, Options]) -> None:
    text = tables_text(None, results[1].results, None, None, "markdown")
    assert all(name in text for name in ("mmvaeplus", "mopoe", "ours"))


@pytest.mark.parametrize("name", ["mopoe", "ours"])
def test_a_trained_run_captions_a_picture(name: str, results: tuple[Path, Options]) -> None:
    root, options = results
    (record,) = [r for r in find_runs(options.results) if r.record["method"] == name]
    method, data, _ = load_run(record.folder, options)
    x = data.split("test").batch(slice(0, 5))
    with torch.no_grad():
        out = method.cross_generate({"photo": x["photo"]}, ("caption", "sketch"))
    assert out["caption"].dtype == torch.int64 and out["caption"].shape == (5, mixed_data.LENGTH)
    assert out["sketch"].shape == (5, 3, mixed_data.SIDE, mixed_data.SIDE)
    assert "caption" in probe_text(record.folder.name, False, options)
    path = sample_run(str(record.folder), ("caption",), None, None, 4, 0, root / "grid.png", options)
    assert Path(path).stat().st_size > 1000


def test_every_preset_value_of_the_common_file_applies() -> None:
    config = resolve("mopoe", DATA, "quick", SMALL, 0)
    assert config.train.steps == 12 and config.hyper["network"] == "cnn"
