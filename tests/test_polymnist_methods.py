"""Every method on PolyMNIST built from real MNIST: starts, is cut off, resumes, scores 1,000 tuples.

Ablations are left out: they run the code of `ours`, and half a minute each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.job import Options
from bench.progress import Reporter
from bench.reference import reference
from bench.registry import method_names
from bench.run import run_many
from bench.store import find_runs
from bench.train import Loop

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BUDGET = ["train.steps=50", "train.checkpoint_every=20", "train.validate_every=0", "train.batch_size=32"]
PLAN = ["plan.joint=1000", "plan.cross=50", "plan.subsets=singles", "plan.probe_repeats=1"]
CUT = {"diff_cmvae": ["diffusion_steps=2"]}
"""What makes 1,000 tuples affordable here: 25 steps of its U-Net a picture take many minutes on a core."""
METRICS = 'plan.metrics=["coherence", "fd_clf", "latent"]'


class Crash(BaseException):
    """Stands for a power cut: nothing of ours may catch it."""


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs the real MNIST in ../shared/data")
@pytest.mark.parametrize("method", sorted(set(method_names()) - reference().ablations))
def test_starts_resumes_and_scores(
    method: str, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(results=tmp_path, cache=shared_cache, data=SHARED, download=False)
    overrides = [*BUDGET, *PLAN, METRICS, *CUT.get(method, [])]
    with monkeypatch.context() as patch:
        step, count = Loop._one_step, [0]

        def cut_off(self: Loop, *args: object) -> None:
            count[0] += 1
            if count[0] == 33:
                raise Crash
            step(self, *args)

        patch.setattr(Loop, "_one_step", cut_off)
        with pytest.raises(Crash):
            run_many([method], "polymnist", "quick", (0,), overrides, options, Reporter(quiet=True))
    run_many([method], "polymnist", "quick", (0,), overrides, options, Reporter(quiet=True))
    (run,) = find_runs(tmp_path)
    assert run.record["status"] == "done"
    assert any("m1" in note for note in run.record["data"]["notes"])
    joint = [s for s in run.scores if s.metric == "coherence_joint"]
    assert joint and all(s.n == 1000 and s.value is not None and s.judge for s in joint)
    assert {s.metric for s in run.scores} >= {"coherence_cross", "fd_clf_uncond", "latent_acc"}
