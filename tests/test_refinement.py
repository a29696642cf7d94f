"""Quality against revision steps: which samplers, common random numbers, what is kept and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from records import ours_scores, write_run
from toy_data import ToyData, ToyJudges

import bench.refinement
from bench.cli import main
from bench.config import Plan, RunConfig
from bench.errors import UsageError
from bench.figure_refinement import plot_refinement
from bench.generate import events
from bench.progress import Reporter
from bench.refinement import keep, kept, measure_refinement, refinement_draws, refining_samplers
from methods.mopoe import MoPoE
from methods.ours import Ours

PLAN = Plan(joint=40, cross=30)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ToyData:
    return ToyData(tmp_path_factory.mktemp("toy"))


def small(data: ToyData) -> Ours:
    torch.manual_seed(0)
    form = dict(network="cnn", width=4, latent=5, energy_width=8, stem_width=4)
    return Ours(data.spec, **form, data_steps=3, latent_steps=4, data_step_size=2.0).eval()


def test_samplers_whose_cost_grows_with_steps(data: ToyData) -> None:
    assert refining_samplers(small(data)) == {"ebm": ("joint", "cross"), "gen_revised": ("cross",)}
    assert refining_samplers(MoPoE(data.spec, latent=3, width=4)) == {}


def test_no_step_is_the_generators_draw_and_all_lengths_begin_alike(data: ToyData) -> None:
    method = small(data)
    todo = [d for d in refinement_draws(method, PLAN, 100, (0, 1, 4)) if d.task == "joint"]
    assert [d.steps for d in todo] == [0, 1, 4] and len({d.name for d in todo}) == 1
    first, one, four = (e.generated for e in events(method, data.split("test"), PLAN, only=todo))
    plain = [replace(todo[0], sampler="gen", steps=None, paired=False)]
    other = next(events(method, data.split("test"), PLAN, only=plain)).generated
    name = data.spec.names[0]
    near, far = ((x[name] - first[name]).square().mean() for x in (one, four))
    assert 0 < near < far < (other[name] - first[name]).square().mean()


def test_every_measure_is_kept_with_its_cost(
    data: ToyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.refinement, "find_judges", lambda *_: (ToyJudges(), ""))
    config = RunConfig("ours", data.name, "quick", 0, plan=PLAN)
    entries = measure_refinement(small(data), data, config, tmp_path, Reporter(quiet=True), (0, 4))
    keys = {(e["measure"], e["sampler"], e["steps"]) for e in entries}
    joint = {(m, "ebm", k) for m in ("coherence_joint", "fd_clf_uncond") for k in (0, 4)}
    cross = {
        (m, s, k)
        for m in ("coherence_cross", "fd_clf_cond_cross")
        for s in ("ebm", "gen_revised")
        for k in (0, 4)
    }
    assert keys == joint | cross
    assert {e["nfe"] for e in entries if e["steps"] == 4} == {5} and all(e["seconds"] > 0 for e in entries)
    keep(tmp_path, entries)
    assert kept(tmp_path) == entries and kept(tmp_path / "elsewhere") is None
    stored = json.loads((tmp_path / "refinement.json").read_text())
    (tmp_path / "refinement.json").write_text(json.dumps(stored | {"metric_version": "0"}))
    assert kept(tmp_path) is None
    files = plot_refinement(entries, tmp_path / "steps", "title")
    assert [f.name for f in files] == ["steps.png", "steps.pdf"] and files[0].stat().st_size > 5000
    with pytest.raises(UsageError, match="no sampler that revises"):
        method = MoPoE(data.spec, latent=3, width=4)
        measure_refinement(method, data, config, tmp_path, Reporter(quiet=True))


def test_a_published_record_is_drawn_without_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, "ours", ours_scores())
    with pytest.raises(SystemExit) as ended:
        main(["plot", "steps", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert ended.value.code == 2 and "no finished run with" in capsys.readouterr().err
    shared = {"measure": "coherence_joint", "task": "joint", "sampler": "ebm", "n": 20, "seconds": 0.01}
    keep(folder, [{**shared, "steps": k, "value": 0.5, "low": 0.4, "high": 0.6} for k in (0, 5)])
    with pytest.raises(SystemExit) as ended:
        main(["plot", "steps", "--results", str(tmp_path), "--out", str(tmp_path / "figures")])
    assert not ended.value.code
    assert (tmp_path / "figures" / f"steps-polydigits-ours-{folder.name}.png").stat().st_size > 5000
