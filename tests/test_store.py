"""Identity of runs, files that are whole or absent, records read back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.config import RunConfig, resolve
from bench.health import PATIENCE, Health
from bench.publish import LOG_LINES, publish, thin_log
from bench.safefiles import atomic, digest, write_json
from bench.store import RunFolder, find_runs, open_run, run_id, train_fingerprint
from datasets.spec import UserError
from metrics.protocol import Score


def config(*overrides: str, **keys: object) -> RunConfig:
    return resolve("tiny:TinyVAE", "tiny:TinyData", "quick", list(overrides), **keys)  # type: ignore[arg-type]


# -- identity


@pytest.mark.parametrize(
    "other",
    [
        config("beta=2"),
        config("train.steps=3"),
        config("train.ema=0.9"),
        config(seed=1),
        config(precision="bf16"),
        config(init_from="abc"),
    ],
    ids=["hyper", "steps", "ema", "seed", "precision", "init"],
)
def test_what_changes_the_weights_changes_both_hashes(other: RunConfig) -> None:
    assert train_fingerprint(other, "data") != train_fingerprint(config(), "data")
    assert run_id(other, "data") != run_id(config(), "data")


def test_other_data_is_another_run() -> None:
    assert train_fingerprint(config(), "a") != train_fingerprint(config(), "b")


def test_a_plan_changes_the_run_but_not_its_training() -> None:
    other = config("plan.joint=7")
    assert train_fingerprint(other, "data") == train_fingerprint(config(), "data")
    assert run_id(other, "data") != run_id(config(), "data")


@pytest.mark.parametrize(
    "other",
    [
        config("train.checkpoint_every=3", "train.validate_every=0"),
        config("plan.metrics=latent"),
        config(deterministic=True),
        config("train.memory=0.1"),
    ],
    ids=["saving", "metrics", "deterministic", "memory"],
)
def test_what_changes_no_number_changes_no_hash(other: RunConfig) -> None:
    assert run_id(other, "data") == run_id(config(), "data")


def test_a_hash_does_not_depend_on_order_or_container() -> None:
    assert digest({"a": (1, 2), "b": None}) == digest({"b": None, "a": [1, 2]})
    with pytest.raises(ValueError):
        digest({"a": math.nan})


def test_a_torch_of_another_minor_version_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for number in ("2.7.0", "2.7.1", "2.8.0+cpu"):
        monkeypatch.setattr("bench.store.version", lambda name, number=number: number)
        ids.append(run_id(config(), "data"))
    assert ids[0] == ids[1] != ids[2]


# -- files


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": math.nan})
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed here")
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    folder = open_run(tmp_path / "results", config(), "data")
    with pytest.raises(UserError, match="cannot be written .*--results") as caught, folder.locked():
        pass
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / "results" / "x" / "run.json", {})


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.safefiles.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    complaint = pytest.raises(UserError, match="another process is working on")
    with first.locked(), complaint, second.locked():
        pass
    with second.locked():
        pass


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_checkpoint_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint() is None
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match="the checkpoint .* is damaged .*--force") as caught:
        folder.load_checkpoint()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"method": pytest.raises}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="damaged"):
        RunFolder(tmp_path).load_checkpoint()


def test_a_truncated_checkpoint_and_truncated_weights(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"method": {"a": torch.ones(1000)}})
    folder.save_weights({"a": torch.ones(1000)})
    for name in ("checkpoint.pt", "weights.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        folder.load_checkpoint()
    with pytest.raises(UserError, match="damaged"):
        folder.load_weights()
    with pytest.raises(UserError, match="missing"):
        folder.load_weights("other.safetensors")


def test_weights_may_be_tied_and_strided(tmp_path: Path) -> None:
    a = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    folder = RunFolder(tmp_path)
    folder.save_weights({"a": a, "b": a, "c": a.transpose(0, 1)})
    back = folder.load_weights()
    assert (
        torch.equal(back["a"], a) and torch.equal(back["b"], a) and torch.equal(back["c"], a.transpose(0, 1))
    )


def test_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = {"m0>m1|gen": np.random.default_rng(0).random(1003) > 0.5, "empty": np.zeros(0, bool)}
    folder.write_outcomes(first)
    folder.write_outcomes({"more": np.array([True, False, True])})
    back = folder.read_outcomes()
    assert set(back) == {*first, "more"}
    for name, values in first.items():
        assert back[name].dtype == bool and np.array_equal(back[name], values)
    assert (tmp_path / "outcomes.npz").stat().st_size < 2000


def test_many_cells_cost_little_more_than_their_bits(tmp_path: Path) -> None:
    folder, bits = RunFolder(tmp_path), np.random.default_rng(0).random((60, 1000)) > 0.5
    folder.write_outcomes({f"coherence_cross/gen/m{i}": row for i, row in enumerate(bits)})
    assert (tmp_path / "outcomes.npz").stat().st_size < 1.2 * bits.size / 8


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_damaged_outcomes_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "outcomes.npz").write_bytes(content)
    with pytest.raises(UserError, match="outcomes.npz' cannot be read .*bench rescore"):
        RunFolder(tmp_path).read_outcomes()


def test_outcomes_as_they_were_written_before_are_read_and_published_anew(tmp_path: Path) -> None:
    folder, row = written(tmp_path, config()), np.random.default_rng(0).random(1003) > 0.5
    old = {"bits a/b": np.packbits(row), "n a/b": np.int64(1003), "bits c": np.packbits(row[:3]), "n c": 3}
    np.savez_compressed(folder.path / "outcomes.npz", **old)
    for found in (folder, RunFolder(publish(folder.path, tmp_path))):
        back = found.read_outcomes()
        assert list(back) == ["a/b", "c"]
        assert np.array_equal(back["a/b"], row) and np.array_equal(back["c"], row[:3])
    with np.load(publish(folder.path, tmp_path) / "outcomes.npz") as stored:
        assert set(stored.files) == {"cells", "lengths", "bits"}


def test_no_outcomes_at_all_come_back_as_none(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_outcomes({})
    assert RunFolder(tmp_path).read_outcomes() == {}


def test_the_log_skips_a_torn_line_and_is_cut_on_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "terms": {"loss": math.inf if step == 2 else 1.0}})
    with open(tmp_path / "train.jsonl", "a") as handle:
        handle.write('{"step": 4, "ter')
    assert [line["step"] for line in folder.read_log()] == [1, 2, 3]
    assert folder.read_log()[1]["terms"]["loss"] is None
    folder.cut_log(2)
    assert [line["step"] for line in folder.read_log()] == [1, 2]


# -- records


def written(root: Path, run: RunConfig, status: str = "done") -> RunFolder:
    folder = open_run(root, run, "data")
    record = {"run_id": folder.path.name, "method": run.method, "dataset": run.dataset, "seed": run.seed}
    record["status"] = status
    folder.write_record(record)
    folder.write_scores([Score("coherence_joint", 0.5, 10, "higher", low=math.nan)], {"metric_version": "1"})
    return folder


def test_records_are_found_sorted_and_whole(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        written(tmp_path, config(seed=seed))
    found = find_runs(tmp_path)
    assert len(found) == 3 and [r.folder for r in found] == sorted(r.folder for r in found)
    assert found[0].scores[0].value == 0.5 and found[0].scores[0].low is None
    assert find_runs(tmp_path / "runs") == found
    assert find_runs(tmp_path / "nowhere") == []


def test_an_unreadable_record_is_left_out_with_a_warning(tmp_path: Path) -> None:
    good, bad = written(tmp_path, config()), written(tmp_path, config(seed=1))
    (bad.path / "run.json").write_text('{"schema": 1, "me')
    with pytest.warns(UserWarning, match="left out: .*unreadable"):
        found = find_runs(tmp_path)
    assert [r.folder for r in found] == [good.path]
    with pytest.raises(UserError, match="unreadable"):
        bad.read_record()


def test_published_records_have_no_weights_and_count_once(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    folder.save_weights({"a": torch.ones(2)})
    Image.new("RGB", (3, 2)).save(folder.path / "grid.png")
    target = publish(folder.path, tmp_path)
    assert sorted(p.name for p in target.iterdir()) == ["grid.png", "run.json", "scores.json"]
    (only,) = find_runs(tmp_path)
    assert only.folder == folder.path and not only.published
    (there,) = find_runs(tmp_path / "published")
    assert there.scores == only.scores
    with pytest.raises(UserError, match="only a finished run"):
        publish(written(tmp_path, config(seed=5), status="failed").path, tmp_path)


def test_names_with_colons_make_plain_folders(tmp_path: Path) -> None:
    folder = open_run(tmp_path, dataclasses.replace(config(), method="a.b:C", dataset="x.y:Z"), "data")
    assert folder.path.parent == tmp_path / "runs" / "x.y-Z" / "a.b-C"


def test_a_published_grid_is_small_and_looks_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    ramp = np.linspace(0, 255, 300)[None, :, None] * np.ones((200, 1, 3))
    noise = np.random.default_rng(0).normal(0, 6, ramp.shape)
    Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(folder.path / "grid.png")
    target = publish(folder.path, tmp_path) / "grid.png"
    assert target.stat().st_size < 0.6 * (folder.path / "grid.png").stat().st_size
    before, after = (
        np.asarray(Image.open(p).convert("RGB"), dtype=float) for p in (folder.path / "grid.png", target)
    )
    assert np.abs(before - after).mean() < 6


def test_only_seed_0_of_a_preset_publishes_its_grid(tmp_path: Path) -> None:
    for seed, overrides in ((0, {}), (1, {}), (0, {"lr": 1.0})):
        folder = written(tmp_path, config(seed=seed))
        folder.write_record({"overrides": overrides})
        Image.new("RGB", (3, 2)).save(folder.path / "grid.png")
        kept = (publish(folder.path, tmp_path) / "grid.png").exists()
        assert kept == (seed == 0 and not overrides)


def test_published_scores_are_one_a_line_and_the_same(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    scores = [
        Score("coherence_joint", 0.0, 10, "higher", "joint", sampler="gen", low=0.0, high=0.25),
        Score("fid_uncond", None, 0, "", unavailable="no weights"),
        Score("coherence_cross", 0.5, 10, "higher", "cross", "a+b", "c", steps=0, attribute="n_given=2"),
    ]
    meta = {"metric_version": "1", "plan": {"joint": 10}}
    folder.write_scores(scores, meta)
    target = publish(folder.path, tmp_path)
    found, beside = RunFolder(target).read_scores()
    assert found == scores == folder.read_scores()[0]
    assert beside == folder.read_scores()[1]
    lines = (target / "scores.json").read_text().splitlines()
    assert sum('"metric":' in line for line in lines) == 3 and not any('"given":""' in line for line in lines)


def test_published_scores_are_rounded_below_what_tables_print(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    score = Score("fd_clf_uncond", 100 / 3, 10, "lower", "joint", low=1e-9 / 3, high=2 / 3)
    folder.write_scores([score], {"metric_version": "1", "plan": {}})
    [found], _ = RunFolder(publish(folder.path, tmp_path)).read_scores()
    assert (found.value, found.low, found.high) == (33.333333, 3.3333333e-10, 0.66666667)
    assert found.n == 10


def test_a_published_log_is_thinned_and_keeps_both_ends_and_every_validation(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = []
    for step in range(10, 10001, 10):
        entries.append({"kind": "train", "step": step, "terms": {"loss": 1 / (3 * step), "n": step}})
        if step % 1000 == 0:
            entries.append({"kind": "val", "step": step, "terms": {"loss": None}})
    thin = thin_log(entries)
    training = [e for e in thin if e["kind"] == "train"]
    assert LOG_LINES - PATIENCE <= len(training) <= LOG_LINES
    assert (training[0]["step"], training[-1]["step"]) == (10, 10000)
    assert [e["step"] for e in thin if e["kind"] == "val"] == list(range(1000, 10001, 1000))
    assert [e["step"] for e in thin] == sorted(e["step"] for e in thin)
    gaps = np.diff([e["step"] for e in training])[:-PATIENCE]
    assert gaps.max() - gaps.min() <= 10
    for e in training:
        assert (
            e["terms"]["loss"] == pytest.approx(1 / (3 * e["step"]), rel=1e-4)
            and e["terms"]["n"] == e["step"]
        )
    assert thin_log(entries[:50]) == thin_log(thin_log(entries[:50])) and len(thin_log(entries[:50])) == 50
    folder = written(tmp_path, config())
    for entry in entries:
        folder.log(entry)
    assert RunFolder(publish(folder.path, tmp_path)).read_log() == thin


def test_an_unfinished_working_copy_does_not_hide_a_published_record(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    publish(folder.path, tmp_path)
    folder.write_record({"status": "running"})
    (only,) = find_runs(tmp_path)
    assert only.published and only.record["status"] == "done"


@pytest.mark.parametrize("bad", [[195, 196, 197, 198, 199], [199], [20, 21, 22, 23], [0, 100, 101, 199]])
def test_a_thinned_log_ends_with_the_same_signs(bad: list[int]) -> None:
    """Two stages of 100 lines; in the second the prior has fewer components than at its own start."""
    entries = []
    for i in range(200):
        starved = i in bad
        terms = {"share.a": 0.001 if starved else 0.5, "share.b": 0.999 if starved else 0.5}
        terms["prior_components.z"] = 10.0 if i < 100 else 40.0 if i == 100 else 9.0
        entries.append({"kind": "train", "stage": "warm" if i < 100 else "mcmc", "step": i, "terms": terms})
    whole = Health(entries).lasting()
    assert "prior_components.z" in whole and ("share" in whole) == ({197, 198, 199} <= set(bad))
    assert Health(thin_log(entries)).lasting() == whole


def test_a_published_record_is_not_published_onto_itself(tmp_path: Path) -> None:
    folder = written(tmp_path, config())
    (folder.path / "refinement.json").write_text("{}")
    target = publish(folder.path, tmp_path)
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    with pytest.raises(UserError, match="published record already"):
        publish(target, tmp_path)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    folder.drop("refinement.json")
    publish(folder.path, tmp_path)
    assert not (target / "refinement.json").exists()
