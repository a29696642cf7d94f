"""The command line: exit codes, one sentence per error, results on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import FORMATS, cli, main

ROOT = Path(__file__).parent.parent
TINY = [
    "run",
    "--method",
    "tiny:TinyVAE",
    "--dataset",
    "tiny:TinyData",
    "--preset",
    "quick",
    "--device",
    "cpu",
]
SETTINGS = ["train.steps=20", "train.batch_size=40", "plan.metrics=latent", "plan.probe_train=60"]
SETS = [part for setting in SETTINGS for part in ("--set", setting)]
POLY = ["run", "--method", "mmvae", "--dataset", "polydigits", "--preset", "quick"]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name in ("BENCH_DATA", "BENCH_CACHE", "BENCH_RESULTS", "BENCH_INCEPTION"):
        monkeypatch.delenv(name, raising=False)
    return ["--results", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to stderr, which must be one sentence."""
    text = capsys.readouterr().err
    assert text.startswith("Error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--method", "our", "--dataset", "polydigits"], 2, "no method 'our'; did you mean 'ours'?"),
        (["run", "--method", "ours", "--dataset", "polydigit"], 2, "did you mean 'polydigits'?"),
        ([*POLY[:-1], "quik"], 2, "no preset 'quik' for mmvae on polydigits; did you mean 'quick'?"),
        ([*POLY, "--set", "betta=1"], 2, "no hyper-parameter 'betta'; did you mean 'beta'?"),
        ([*POLY, "--set", "beta"], 2, "--set needs KEY=VALUE"),
        (
            [*POLY, "--set", "plan.metrics=coherenc"],
            2,
            "unknown metric 'coherenc'; did you mean 'coherence'?",
        ),
        ([*POLY, "--set", "train.batch_size=-4"], 2, "train.batch_size = -4 is not possible"),
        ([*POLY, "--set", "train.steps=0"], 2, "train.steps = 0 is not possible"),
        ([*POLY, "--seed", "-1"], 2, "the seed -1 is negative"),
        ([*POLY, "--device", "tpu"], 2, "no device 'tpu'"),
        ([*POLY, "--precision", "fp8"], 2, "'fp8' is not one of"),
        ([*POLY, "--mehtod", "x"], 2, "No such option '--mehtod'"),
        (["run", "--method", "mmvae"], 2, "Missing option '--dataset'"),
        (["tabel"], 2, "Did you mean 'table'?"),
        (["table", "--results", "/nowhere/at/all"], 2, "there is no results folder"),
        (["plot", "scater"], 2, "'scater' is not one of"),
        (["plot", "scatter", "--run", "3fa1"], 2, "is drawn from all runs"),
        (["plot", "joint", "--kind", "data"], 2, "has no kinds of chains"),
        (["table", "7", "--preset", "qick"], 2, "no preset 'qick'; did you mean 'quick'?"),
        ([*POLY, "--set", "train.flops=inf"], 2, "train.flops = inf is not possible"),
        (["check", "mmvae", "--only", "nosuch"], 2, "no check is called 'nosuch'"),
        (["rescore", "0000", "--results", "/nowhere/at/all"], 2, "no run '0000'"),
        (["probe", "0000", "--results", "/nowhere/at/all"], 2, "no run '0000'"),
        (["check", "ourz"], 2, "no method 'ourz'"),
        (["data", "polydigts"], 2, "no data set 'polydigts'; did you mean 'polydigits'?"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, message: str, places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    extra = places if arguments[0] == "run" else []
    assert call(*arguments, *extra) == code
    assert message in complaint(capsys)


def test_an_unreadable_data_folder(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*TINY, *SETS, *places, "--data", str(tmp_path / "nowhere")) == 1
    assert "the data folder" in complaint(capsys)
    run = ["run", "--method", "mmvae", "--dataset", "polymnist", "--preset", "quick", *places]
    assert call(*run, "--data", str(tmp_path / "nowhere")) == 1
    assert "nowhere" in complaint(capsys)


def test_a_results_folder_that_cannot_be_written(
    tmp_path: Path, places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # Root may write anywhere, so a file in place of the folder stands for missing permission.
    (tmp_path / "file").write_text("")
    assert call(*TINY, *SETS, *places, "--results", str(tmp_path / "file")) == 1
    assert "cannot be written" in complaint(capsys)


def test_a_run_prints_where_things_are_and_is_reused(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*TINY, *SETS, *places) == 0
    out = capsys.readouterr().out
    for name in ("run.json", "grid.png"):
        (path,) = (tmp_path / "results").rglob(name)
        assert str(path) in out
    assert call(*TINY, *SETS, *places) == 0
    assert "reused" in capsys.readouterr().out
    (record,) = (tmp_path / "results").rglob("run.json")

    assert call("table", *places[:2]) == 0
    assert "tiny:TinyVAE" in capsys.readouterr().out
    assert call("table", *places[:2], "--format", "csv") == 0
    assert "latent_acc" in capsys.readouterr().out
    assert call("probe", record.parent.name, *places) == 0
    assert "latent_acc" in capsys.readouterr().out
    assert call("rescore", record.parent.name, *places) == 0
    assert "done in" in capsys.readouterr().out
    for extra in ([], ["--given", "a"]):
        picture = tmp_path / f"{len(extra)}.png"
        assert call("sample", record.parent.name, *extra, "--out", str(picture), *places) == 0
        assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    for figure in ("9", "cross", "interpolation", "training"):
        assert call("plot", figure, "--out", str(tmp_path / "figures"), *places) == 0
        made = [Path(line) for line in capsys.readouterr().out.split()]
        assert {p.suffix for p in made} == {".png", ".pdf"} and all(p.stat().st_size for p in made)
    assert call("plot", "chain", "--out", str(tmp_path / "figures"), *places) == 2
    assert "runs no Markov chain" in complaint(capsys)
    assert call("sample", record.parent.name, "--given", "c", *places) == 2
    assert "no modality 'c'; there are a, b" in complaint(capsys)
    assert call("sample", record.parent.name, "--sampler", "ebm", *places) == 2
    assert "no sampler 'ebm' for joint" in complaint(capsys)


def test_one_failure_makes_the_exit_code(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*TINY, *SETS, "--set", "crash=3", "--seed", "0", "--seed", "1", *places) == 1
    out = capsys.readouterr().out
    assert out.count("failed") == 2 and "Traceback" not in out
    for style in FORMATS:
        assert call("table", *places[:2], "--format", style) == 0
        assert "crash=3" in capsys.readouterr().out or style == "csv"  # which holds numbers alone


def test_a_corrupt_checkpoint(places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, *SETS, *places, "--set", "crash=9", "--set", "train.checkpoint_every=3"]
    assert call(*arguments) == 1
    (checkpoint,) = (tmp_path / "results").rglob("checkpoint.pt")
    checkpoint.write_bytes(b"rubbish")
    capsys.readouterr()
    assert call(*arguments) == 1
    captured = capsys.readouterr()
    assert "the checkpoint" in captured.out and "--force" in captured.out
    assert "Traceback" not in captured.out + captured.err


def test_debug_shows_the_traceback(places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, *SETS, *places, "--set", "crash=3", "--debug"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(KeyError, match="planted"):
        main(arguments)


def test_data_describes_what_was_prepared(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "tiny:TinyData", *places[2:], "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert "fingerprint" in out and "train: 200 tuples" in out and "judge of a: accuracy" in out


def test_cost_measures_without_training(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("cost", *TINY[1:], *places[2:]) == 0
    out = capsys.readouterr().out
    for quantity in (
        "parameters",
        "seconds per training step, median",
        "seconds per sample",
        "matrix product",
    ):
        assert quantity in out


def test_doctor_says_what_is_missing(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("doctor", *places) == 0
    assert "torch" in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert call("doctor", *places, "--data", str(tmp_path / "nowhere")) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("listing", ["methods", "datasets", "metrics"])
def test_lists(listing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(listing) == 0
    expected = {"methods": "mvebm_gen", "datasets": "polymnist", "metrics": "coherence"}
    assert expected[listing] in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *sorted(cli.commands)])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert "--debug" in out
    if command in ("", "run", "table", "plot", "probe", "sample", "cost", "check", "data"):
        assert f"bench {command}".strip() in out.partition("Options")[0].replace("Usage: bench", "")


def test_help_is_instant_because_it_does_not_import_torch() -> None:
    code = "import sys; from bench.cli import cli; cli.main(['run', '--help'], standalone_mode=False); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["datasets", "metrics"])
def test_a_foreign_package_of_our_name_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
    code += "import importlib.util, bench.guard as g; print(g.shadowed())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    sentence = done.stdout.strip()
    assert f"package '{name}' of this suite is shadowed by" in sentence and str(tmp_path) in sentence
    assert "\n" not in sentence
