"""The README keeps its word: its commands run, its baseline is complete, its claims fit the code.

Commands run in order, in one process and one scratch folder, with small budgets. `make` is only asked
what it would do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import data_support
import pytest

from bench.cli import cli, main
from bench.store import find_runs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "train.steps=4",
    "train.batch_size=16",
    "train.validate_every=2",
    "plan.joint=20",
    "plan.cross=20",
    "plan.subsets=singles",
    "plan.probe_train=60",
    "plan.probe_repeats=1",
    "plan.probe_full=false",
    "plan.metrics=coherence,fd_clf,ex_post",
]
PAPER = ["network=cnn", "width=8", "energy_width=8", "data_steps=2", "latent_steps=2"]
"""What makes a run in each paper's own networks affordable here."""


def blocks(language: str) -> list[str]:
    """The contents of the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
(BASELINE,) = blocks("python")


def call(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def cut(arguments: list[str], run: str) -> list[str]:
    """The same command with a small budget and a real run in place of RUN."""
    arguments = [run if a == "RUN" else a for a in arguments]
    if arguments[0] in ("run", "cost"):
        given = [a.split("=")[0] for a in arguments if "=" in a and a.split("=")[0] != "train.steps"]
        more = SMALL + (PAPER if "--preset" not in arguments else [])
        arguments += [part for s in more if s.split("=")[0] not in given for part in ("--set", s)]
    return arguments


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_support.shrink(monkeypatch)
    sources = data_support.local_folder(tmp_path / "sources", monkeypatch)
    scratch = tmp_path / "work"
    scratch.mkdir()
    monkeypatch.chdir(scratch)
    monkeypatch.syspath_prepend(str(scratch))
    monkeypatch.setenv("BENCH_CACHE", str(shared_cache))
    for name in ("BENCH_RESULTS", "BENCH_INCEPTION"):
        monkeypatch.delenv(name, raising=False)
    (scratch / "mean_vae.py").write_text(BASELINE, encoding="utf-8")
    seen = set()
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] == "export":
            name, _, _ = words[1].partition("=")
            monkeypatch.setenv(name, str(sources))
            continue
        if words[0] != "bench":
            continue
        # The stand-in for PolyMNIST has no business in the shared cache.
        cache = tmp_path / "cache" if "polymnist" in line else shared_cache
        monkeypatch.setenv("BENCH_CACHE", str(cache))
        # The file is beside us here; the next test puts it under methods/.
        words = ["mean_vae:MeanVAE" if w == "mean_vae" else w for w in words]
        mine = [r for r in find_runs(scratch / "results") if r.record["method"] == "ours"]
        run = str(mine[0].folder) if mine else ""
        code = call(cut(words[1:], run))
        printed = capsys.readouterr()
        assert code == 0, f"`{line}` ended with {code}:\n{printed.out}{printed.err}"
        assert printed.out.strip(), f"`{line}` printed nothing"
        seen.add(words[1])
    assert seen >= set(cli.commands), "the README leaves out a command"
    done = {r.record["method"] for r in find_runs(scratch / "results") if r.record["status"] == "done"}
    assert done == {"mmvae", "mopoe", "ours", "mean_vae:MeanVAE"}


def test_make_targets_do_what_the_readme_says() -> None:
    asked = [shlex.split(line)[1] for line in COMMANDS if line.startswith("make ")]
    assert asked == ["run", "test"]
    plans = {}
    for target in (*asked, "install"):
        plans[target] = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    assert "bench run --method ours --dataset polydigits --preset quick" in plans["run"]
    assert plans["run"].index("bench run") < plans["run"].index("bench table")
    assert "pytest" in plans["test"]
    other = [line for line in COMMANDS if line.split()[0] not in ("make", "bench", "export")]
    assert other == ["source .venv/bin/activate"]
    assert ".venv" in (ROOT / "Makefile").read_text(encoding="utf-8")


def environment(copy: Path, cache: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy), "BENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_baseline_is_one_file_that_runs_resumes_scores_and_passes(
    tmp_path: Path, shared_cache: Path
) -> None:
    copy = tmp_path / "suite"
    for folder in ("bench", "datasets", "methods", "metrics"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "methods" / "mean_vae.py").write_text(BASELINE, encoding="utf-8")
    how = {"cwd": copy, "env": environment(copy, shared_cache), "text": True}
    bench = [sys.executable, "-m", "bench"]
    quick = [
        "train.steps=100",
        "train.checkpoint_every=5",
        "train.validate_every=50",
        "plan.metrics=coherence",
    ]
    small = quick + [s for s in SMALL if s.split("=")[0] not in {q.split("=")[0] for q in quick}]
    run = [*bench, "run", "--method", "mean_vae", "--dataset", "polydigits", "--preset", "quick"]
    run += ["--device", "cpu", *(part for s in small for part in ("--set", s))]

    first = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    while first.poll() is None and not list(copy.glob("results/runs/*/mean_vae/*/checkpoint.pt")):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate()
    assert first.returncode == 130, errors
    second = subprocess.run(run, capture_output=True, **how)
    assert second.returncode == 0, second.stderr
    assert "resuming at step" in second.stderr

    (record,) = find_runs(copy / "results")
    assert record.record["status"] == "done"
    values = {s.metric: s.value for s in record.scores if not s.given and not s.target}
    assert values["coherence_joint"] is not None
    script = "\n".join(
        [
            "from bench.cli import main",
            "for arguments in (['table'], ['check', 'mean_vae']):",
            "    try: main(arguments)",
            "    except SystemExit as end: assert not end.code, end.code",
        ]
    )
    last = subprocess.run([sys.executable, "-c", script], capture_output=True, **how)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "mean_vae" in last.stdout and " 0 failed" in last.stdout


def test_the_baseline_is_short() -> None:
    code = [
        line for line in BASELINE.splitlines() if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(code) <= 30


def test_the_method_table_names_every_method() -> None:
    files = {p.stem for p in (ROOT / "methods").glob("*.py")} - {"base", "__init__"}
    table = README.split("## Methods")[1].split("##")[0]
    assert files == set(re.findall(r"`([a-z_]+)`", table)) - {"mvebm"}


def headings_of(page: str) -> set[str]:
    """Names of the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_and_files_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("https://arxiv.org/abs/"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in headings_of(path.read_text(encoding="utf-8")), target
    for name in re.findall(r"`((?:methods|bench|results)/[\w/.]*)`", prose):
        assert "<" in name or name == "methods/mean_vae.py" or (ROOT / name).exists(), name


def test_the_table_shown_is_that_of_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    """`bench table --results results/published --dataset polydigits` must print what the README shows."""
    shown = README[README.index("<!-- run-output -->") : README.index("<!-- /run-output -->")]
    (block,) = re.findall(r"^```text\n(.*?)^```$", shown, re.M | re.S)
    assert call(["table", "--results", str(ROOT / "results" / "published"), "--dataset", "polydigits"]) == 0
    assert block.strip() == capsys.readouterr().out.strip()
