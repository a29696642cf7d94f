"""Every method on the partial CUB and COCO folders: starts, is cut off, resumes, samples, scores.

Ablations are left out, as on PolyMNIST.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from bench import sampling_cost
from bench.job import Options
from bench.progress import Reporter
from bench.reference import reference
from bench.registry import method_names
from bench.run import run_many
from bench.show import sample_run
from bench.store import find_runs
from bench.train import Loop

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BUDGET = ["train.steps=20", "train.checkpoint_every=8", "train.validate_every=0", "train.batch_size=8"]
PLAN = ["plan.joint=8", "plan.cross=8", "plan.fid_n=8", "plan.metrics=fid,clip,cost"]
CUT = {"diff_cmvae": ["diffusion_steps=2"]}


class Crash(BaseException):
    """Stands for a power cut: nothing of ours may catch it."""


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cub", "coco"])
@pytest.mark.parametrize("method", sorted(set(method_names()) - reference().ablations))
def test_starts_resumes_samples_and_scores(
    method: str, dataset: str, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (SHARED / dataset).is_dir():
        pytest.skip(f"needs the partial {dataset} in ../shared/data")
    for module in ("metrics.fid", "bench.feature_metrics"):  # the weights that this machine may have
        monkeypatch.setattr(f"{module}.WEIGHTS", replace(import_module(module).WEIGHTS, digest="0" * 8))
    monkeypatch.setattr(sampling_cost, "SAMPLED", 4)
    monkeypatch.setitem(sampling_cost.BUDGET, "cpu", 0.0)
    options = Options(results=tmp_path, cache=shared_cache, data=SHARED, download=False)
    how = ([method], dataset, "quick", (0,), [*BUDGET, *PLAN, *CUT.get(method, [])], options)
    with monkeypatch.context() as patch:
        step, count = Loop._one_step, [0]

        def cut_off(self: Loop, *args: object) -> None:
            count[0] += 1
            if count[0] == 14:
                raise Crash
            step(self, *args)

        patch.setattr(Loop, "_one_step", cut_off)
        with pytest.raises(Crash):
            run_many(*how, Reporter(quiet=True))
    (outcome,) = run_many(*how, Reporter(quiet=True))
    assert outcome.status == "done", outcome.reason
    (run,) = find_runs(tmp_path)
    steps = (run.folder / "train.jsonl").read_text(encoding="utf-8").count('"step"')
    assert steps >= 20
    assert 8 <= run.record["training"]["resumed_at"] < 14
    assert any("partial" in note for note in run.record["data"]["notes"])
    timed = {s.task for s in run.scores if s.metric == "sampling_sample_s"}
    assert timed == {"joint", "cross"}
    # Without the weights of Inception and CLIP the scores say how to get them.
    absent = {s.metric: s.unavailable for s in run.scores if s.value is None}
    assert {"fid_uncond", "fid_t2i", "clip_uncond", "clip_t2i", "clip_i2t"} <= absent.keys()
    assert all("curl" in reason for name, reason in absent.items() if name.startswith(("fid", "clip")))
    grid = sample_run(str(run.folder), ("caption",), None, None, 3, 0, tmp_path / "grid.png", options)
    assert grid.stat().st_size > 1000
