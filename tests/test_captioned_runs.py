"""Pictures with captions go through the whole harness: train, resume, score, tabulate, sample."""

from __future__ import annotations

from pathlib import Path

import captioned_support as mini
import pytest

from bench.config import resolve
from bench.errors import Interrupted
from bench.plots import plot_figure
from bench.run import Options, load_run, run_many
from bench.show import data_text, sample_run, tables_text
from bench.store import find_runs
from datasets import shapes
from datasets.scenes import ATTRIBUTES
from metrics import attribute_judges

SMALL = [
    "train.steps=8",
    "train.batch_size=16",
    "train.validate_every=4",
    "train.checkpoint_every=2",
    "width=8",
    "plan.joint=20",
    "plan.cross=20",
]

pytestmark = pytest.mark.slow


def test_shapes_from_training_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 600, "val": 50, "test": 60})
    monkeypatch.setattr(attribute_judges, "PASSES", 2)
    options = Options(results=tmp_path / "results", cache=tmp_path / "cache", device="cpu")
    small = [*SMALL, "plan.probe_train=50", "plan.probe_repeats=1"]
    outcomes = run_many(["mmvaeplus", "mopoe"], "shapes", "quick", (0,), small, options)
    assert [o.status for o in outcomes] == ["done", "done"], outcomes
    for run in find_runs(options.results):
        values = {(s.metric, s.given, s.target, s.attribute): s.value for s in run.scores}
        for name in ("coherence_joint", "coherence_cross", "attribute_joint", "attribute_cross"):
            assert 0 <= values[name, "", "", ""] <= 1
        for given, target in (("image", "caption"), ("caption", "image")):
            assert all(0 <= values["coherence_cross", given, target, a] <= 1 for a in ATTRIBUTES)
        assert values["fd_clf_uncond", "", "", ""] > 0 and values["fd_clf_cond", "caption", "image", ""] > 0
        assert set(run.record["judges"]["accuracy"]) == {f"image {a}" for a in ATTRIBUTES}
        assert (run.folder / "grid.png").stat().st_size > 1000
    text = tables_text(None, options.results, "shapes", None, "markdown")
    assert "attributes joint" in text and "mmvaeplus" in text and "attribute joint chance" in text
    assert "stand-in for CUB" in text
    for name in ("1", "2", "cub"):
        paper = tables_text(name, options.results, "shapes", None, "markdown")
        assert "FD-clf cross" in paper and "n/a" in paper and "FID" in paper
    path = sample_run(str(run.folder), ("caption",), None, None, 4, 0, tmp_path / "grid.png", options)
    assert path.stat().st_size > 1000
    for figure in ("joint", "cross", "interpolation", "5", "7", "8"):
        assert plot_figure(figure, (), tmp_path / "figures", "shapes", None, None, options)
    described = data_text("shapes", options)
    assert (
        "judge of image colour_1: accuracy" in described and "all attributes: real pairs agree" in described
    )


@pytest.mark.parametrize("name", ["cub", "cub256", "coco"])
def test_photographs_run_and_resume_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini.shrink(monkeypatch)
    files = mini.coco_files() if name == "coco" else mini.cub_files()
    data = mini.write(tmp_path / "data", files)
    small = [*SMALL, "train.batch_size=4", "plan.joint=8", "plan.cross=8", "plan.metrics=cost"]
    runs = {}
    for kind in ("whole", "parts"):
        options = Options(results=tmp_path / kind, cache=tmp_path / "cache", data=data, device="cpu")
        if kind == "parts":
            stop_after(5, monkeypatch)
            with pytest.raises(Interrupted):
                run_many(["mopoe"], name, "quick", (0,), small, options)
            monkeypatch.undo()
            mini.shrink(monkeypatch)
        (outcome,) = run_many(["mopoe"], name, "quick", (0,), small, options)
        assert outcome.status == "done", outcome.reason
        runs[kind] = load_run(outcome.folder, options)[0].state_dict()
    assert all(runs["whole"][k].equal(v) for k, v in runs["parts"].items())


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM in the middle of training."""
    import signal

    from bench.train import Loop

    before = Loop._one_step

    def one(self: Loop, *args: object) -> None:
        before(self, *args)  # type: ignore[arg-type]
        if self.done == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_one_step", one)


def test_quick_fits_a_partial_folder() -> None:
    for name in ("cub", "cub256", "coco"):
        assert resolve("mopoe", name, "quick").train.batch_size <= 16
