"""`bench scores` prints what stands in the records, no more and no less."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from records import coherence_scores, method_scores, write_run

from bench.cli import main
from bench.errors import UsageError
from bench.score_list import score_lines, scores_text
from bench.store import find_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in (1, 0):
        write_run(tmp_path, "mmvae", [*coherence_scores(joint=0.5 + seed / 10), *method_scores()], seed=seed)
    write_run(tmp_path, "ours", coherence_scores(sampler="ebm"), preset="fair", overrides={"data_steps": 3})
    write_run(tmp_path, "mopoe", [], status="failed", reason="no disk")
    return tmp_path


def test_a_choice_of_scores_by_seed(root: Path) -> None:
    lines = score_lines(find_runs(root), ["coherence_joint"], dataset="polydigits")
    assert [(x["method"], x["seed"], x["value"]) for x in lines] == [
        ("ours", 0, 0.4),
        ("mmvae", 0, 0.5),
        ("mmvae", 1, 0.6),
    ]
    assert lines[0]["overrides"] == "data_steps=3" and lines[0]["sampler"] == "ebm"
    assert (lines[1]["low"], lines[1]["high"], lines[1]["n"]) == (0.47, 0.53, 1000)
    assert {x["method"] for x in score_lines(find_runs(root), methods=["mm*"])} == {"mmvae"}
    assert {x["preset"] for x in score_lines(find_runs(root), preset="fair")} == {"fair"}


def test_details_are_asked_for(root: Path) -> None:
    short = score_lines(find_runs(root), ["coherence_cross*"], ["ours"])
    assert [(x["metric"], x["given"], x["attribute"]) for x in short] == [("coherence_cross", "", "")]
    every = score_lines(find_runs(root), ["coherence_cross*"], ["ours"], details=True)
    assert len(every) == 10 and ("m0", "m1") in [(x["given"], x["target"]) for x in every]


def test_scores_without_a_value_are_details(tmp_path: Path) -> None:
    write_run(tmp_path)
    (line,) = score_lines(find_runs(tmp_path), ["fid_uncond"], details=True)
    assert line["value"] is None
    with pytest.raises(UsageError, match="no finished run has such an average"):
        score_lines(find_runs(tmp_path), ["fid_uncond"])


def test_seconds_and_the_end_of_the_log(root: Path) -> None:
    (run,) = (r for r in find_runs(root) if r.record["method"] == "ours")
    run.record["timing"] = {"train_s": 12.5}
    entries = [
        {"kind": "train", "terms": {"loss": 3.0}},
        {"kind": "train", "terms": {"loss": 2.0}},
        {"kind": "val", "terms": {"loss": 9.0}},
    ]
    (run.folder / "train.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    lines = score_lines([run], ["train*"], details=True)
    assert [(x["metric"], x["value"]) for x in lines] == [("train_s", 12.5), ("train.loss", 2.0)]
    assert [x["metric"] for x in score_lines([run], ["train*"])] == ["train_s"]


def test_csv_has_every_digit_and_the_terminal_no_empty_column(root: Path) -> None:
    lines = score_lines(find_runs(root), ["latent_acc"], ["mmvae"], details=True)
    rows = list(csv.DictReader(io.StringIO(scores_text(lines, "csv"))))
    assert [float(row["value"]) for row in rows] == [x["value"] for x in lines]
    head = scores_text(lines, "terminal").splitlines()[0].split()
    assert head == ["method", "dataset", "preset", "seed", "run", "metric", "given", "attribute",
                    "value", "low", "high", "n"]  # fmt: skip


def test_no_two_lines_are_about_the_same(root: Path) -> None:
    lines = score_lines(find_runs(root), details=True)
    about = [tuple(v for k, v in x.items() if k not in ("value", "low", "high", "n")) for x in lines]
    assert len(set(about)) == len(about) > 50


def test_scores_of_another_split_say_so(tmp_path: Path) -> None:
    write_run(tmp_path, "mmvae", overrides={"plan.split": "val", "beta": 2.0})
    assert {x["overrides"] for x in score_lines(find_runs(tmp_path))} == {"beta=2, plan.split=val"}


def test_nothing_that_fits_is_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        score_lines(find_runs(root), ["no_such_metric"])
    with pytest.raises(SystemExit) as ended:
        main(["scores", "--results", str(root / "nowhere")])
    assert ended.value.code == 2 and "there is no results folder" in capsys.readouterr().err


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["scores", "--results", str(root), "--metric", "nfe", "--method", "ours"])
    assert not ended.value.code
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[6:9] for line in printed[1:]] == [["nfe", "joint", "ebm"], ["nfe", "cross", "ebm"]]
