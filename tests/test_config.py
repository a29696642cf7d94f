"""Presets, overrides, validation."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyVAE

from bench import config, preset_files
from bench.config import (
    Plan,
    RunConfig,
    TrainConfig,
    build,
    class_signature,
    hyper_signature,
    parse_override,
    resolve,
)
from bench.errors import UsageError
from bench.preset_files import PRESETS, preset_names
from bench.registry import load_method_class, method_names
from bench.store import train_fingerprint


@pytest.mark.parametrize("dataset", ["polydigits", "polymnist", "shapes", "cub", "cub256", "coco"])
@pytest.mark.parametrize("method", method_names())
def test_every_preset_resolves(method: str, dataset: str) -> None:
    names, later = preset_names(dataset), load_method_class(method).added
    assert {"quick", "fair", "paper"} <= set(names)
    for preset in names:
        found = resolve(method, dataset, preset)
        assert found.overrides == {}
        assert set(found.hyper) | set(later) == set(config.hyper_signature(method))


@pytest.mark.parametrize("dataset", ["polydigits", "polymnist", "shapes", "cub", "cub256", "coco"])
@pytest.mark.parametrize("preset", ["quick", "fair"])
def test_every_method_sees_the_same_number_of_examples(dataset: str, preset: str) -> None:
    budgets = {m: resolve(m, dataset, preset).train for m in method_names()}
    assert len({t.batch_size * t.steps for t in budgets.values()}) == 1
    # A method without encoders and decoders (`mle_ebm`) has no backbone.
    hyper = [h for m in budgets if "network" in (h := resolve(m, dataset, preset).hyper)]
    assert len(hyper) >= len(budgets) - 1
    assert len({(h["network"], h["width"]) for h in hyper}) == 1


def test_every_number_in_a_preset_has_a_source() -> None:
    files = sorted(PRESETS.rglob("*.toml"))
    assert files
    bare = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            setting, _, comment = line.partition("#")
            if any(c.isdigit() for c in setting.partition("=")[2]) and not comment.strip():
                bare.append(f"{file.relative_to(PRESETS)}:{number}: {line}")
    assert bare == []


def test_overrides_reach_their_tables_and_are_recorded() -> None:
    found = resolve("tiny:TinyVAE", "tiny:TinyData", "quick", ["beta=2.5", "train.steps=7", "plan.joint=11"])
    assert (found.hyper["beta"], found.train.steps, found.plan.joint) == (2.5, 7, 11)
    assert found.overrides == {"beta": 2.5, "plan.joint": 11, "train.steps": 7}


def test_an_override_that_changes_nothing_makes_no_other_row() -> None:
    usual = resolve("tiny:TinyVAE", "tiny:TinyData", "quick")
    same = [f"train.steps={usual.train.steps}", "beta=1", "train.validate_every=3", "plan.metrics=latent"]
    found = resolve("tiny:TinyVAE", "tiny:TinyData", "quick", same, precision="fp32")
    assert found.overrides == {}
    assert train_fingerprint(found, "x") == train_fingerprint(usual, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bta=1", "no hyper-parameter 'bta'; did you mean 'beta'"),
        ("train.stps=1", "unknown key 'train.stps'; did you mean 'train.steps'"),
        ("trian.steps=1", "unknown key 'trian.steps'; did you mean 'train'"),
        ("train.batch_size=-4", "train.batch_size = -4 is not possible, it must be greater than 0"),
        ("train.steps=many", "train.steps = 'many' is not possible"),
        ("train.precision=fp16", "must be 'fp32' or 'bf16'"),
        ("train.ema=1.5", "train.ema = 1.5"),
        ("train.memory=0", "train.memory = 0 is not possible, it must be greater than 0"),
        ("train.memory=inf", "train.memory = inf is not possible"),
        ("plan.metrics=coherenc", "unknown metric 'coherenc'; did you mean 'coherence'"),
        ("plan.subsets=some", "plan.subsets"),
        ("latent=big", "latent = 'big' is not possible"),
        ("mode=odd", "must be 'plain' or 'fancy'"),
        ("kind=lef", "kind = 'lef' is not possible; did you mean 'left'?"),
        ("beta", "--set needs KEY=VALUE"),
    ],
)
def test_a_bad_override_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve("tiny:TinyVAE", "tiny:TinyData", "quick", [text])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset_and_negative_seed() -> None:
    with pytest.raises(UsageError, match="no preset 'quik' for mmvae on polydigits; did you mean 'quick'"):
        resolve("mmvae", "polydigits", "quik")
    with pytest.raises(UsageError, match="seed -1 is negative"):
        resolve("mmvae", "polydigits", "quick", seed=-1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=2.5", ("a", 2.5)),
        ("a=3", ("a", 3)),
        ("a=true", ("a", True)),
        ("a=None", ("a", None)),
        ("a=dreg", ("a", "dreg")),
        ("a='x=y'", ("a", "x=y")),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=1e-4", ("a", 1e-4)),
    ],
)
def test_values_are_toml_or_bare_words(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


def write(folder: Path, name: str, text: str) -> None:
    (folder / "here").mkdir(exist_ok=True)
    (folder / "here" / f"{name}.toml").write_text(text)


def use_own_file(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `own.toml` be the file of every method."""
    found = (presets / "here" / "_common.toml", presets / "here" / "own.toml")
    monkeypatch.setattr(preset_files, "preset_files", lambda method, dataset: found)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(preset_files, "PRESETS", tmp_path)
    write(
        tmp_path,
        "_common",
        "[quick.train]\nsteps = 5\n[quick.hyper]\nwidth = 3\nnetwork = 'cnn'\n"
        "[fair.train]\nsteps = 50\n[fair.hyper]\nwidth = 6\n"
        "[more]\nextends = 'fair'\n[more.train]\nflops = 9.0\n"
        "[paper.plan]\njoint = 77\n",
    )
    return tmp_path


def test_layers_of_a_preset(presets: Path) -> None:
    quick = resolve("tiny:TinyVAE", "here", "quick")
    assert (quick.train.steps, quick.hyper["width"]) == (5, 3)
    assert "network" not in quick.hyper  # a shared value goes only to methods that have the keyword
    more = resolve("tiny:TinyVAE", "here", "more")
    assert (more.train.steps, more.train.flops, more.hyper["width"]) == (50, 9.0, 6)
    paper = resolve("tiny:TinyVAE", "here", "paper")
    assert (paper.train.steps, paper.plan.joint, paper.hyper["width"]) == (50, 77, 6)


def test_a_method_refines_the_common_file(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_file(presets, monkeypatch)
    text = "[quick.hyper]\nbeta = 4.0\n[quick.train]\nema = 0.9\n"
    write(presets, "own", text + "[paper.train]\nsteps = 123\n[fair.hyper]\nlr = 0.5\n")
    quick = resolve("tiny:TinyVAE", "here", "quick")
    assert (quick.hyper["beta"], quick.hyper["width"], quick.train.ema, quick.train.steps) == (4.0, 3, 0.9, 5)
    paper = resolve("tiny:TinyVAE", "here", "paper")
    assert (paper.train.steps, paper.plan.joint, paper.hyper["width"]) == (123, 77, 8)
    more = resolve("tiny:TinyVAE", "here", "more")
    assert (more.hyper["lr"], more.hyper["width"], more.train.flops) == (0.5, 6, 9.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[quick.hyper]\nbata = 1\n", "no hyper-parameter 'bata'; did you mean 'beta'"),
        ("[quick.trian]\nsteps = 1\n", "unknown table 'quick.trian'; did you mean 'train'"),
        ("[quick\n", "cannot be read"),
        ("[quick]\nextends = 'quick'\n", "extends itself"),
    ],
)
def test_a_fault_in_a_preset_file_is_named(
    text: str, message: str, presets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_own_file(presets, monkeypatch)
    write(presets, "own", text)
    with pytest.raises(UsageError, match=message):
        resolve("tiny:TinyVAE", "here", "quick")


def test_a_configuration_survives_its_record() -> None:
    found = resolve("tiny:TinyVAE", "tiny:TinyData", "quick", ["plan.samplers=ancestral", "beta=3"], seed=4)
    record = {
        "method": found.method,
        "dataset": found.dataset,
        "preset": found.preset,
        "seed": found.seed,
        "overrides": found.overrides,
        "config": found.to_json(),
    }
    assert RunConfig.from_record(record) == found


def test_settings_handed_on_count_as_keywords() -> None:
    class Child(TinyVAE):
        def __init__(
            self, spec: object, *, latent: int = 9, extra: float = 0.5, **settings: object
        ) -> None: ...

    signature, hints = class_signature(Child)
    assert signature["latent"].default == 9 and signature["beta"].default == 1.0
    assert {"extra", "two_losses"} <= set(signature) and "rest" not in signature
    assert hints["two_losses"] is bool


def test_plain_values_only() -> None:
    with pytest.raises(UsageError, match="unknown key 'train.batchsize'"):
        build(TrainConfig, {"batchsize": 3}, "train.")
    assert build(Plan, {"samplers": ["a"]}).samplers == ("a",)


@pytest.mark.parametrize("method", ["ours", "ours_w"])
def test_a_hyper_parameter_that_came_later_renames_no_older_run(method: str) -> None:
    usual, same, other = (
        resolve(method, "polydigits", "quick", overrides)
        for overrides in ((), ("updates=1:1:1",), ("updates=1:2:1",))
    )
    assert "updates" not in usual.hyper and same == usual
    assert other.hyper == {**usual.hyper, "updates": "1:2:1"} and other.overrides == {"updates": "1:2:1"}


@pytest.mark.parametrize("method", method_names())
def test_what_was_added_later_stands_at_its_default(method: str) -> None:
    signature = hyper_signature(method)
    for name, value in load_method_class(method).added.items():
        assert signature[name].default == value


@pytest.mark.parametrize("method", method_names())
def test_every_method_has_a_citation_and_a_polymnist_file_of_its_own(method: str) -> None:
    assert "," in load_method_class(method).citation
    own = tomllib.loads((PRESETS / "polymnist" / f"{method}.toml").read_text(encoding="utf-8"))
    assert {"quick", "fair", "paper"} <= set(own)


@pytest.mark.parametrize(("setting", "value"), [("own_ends", False), ("prior_renewals", 0)])
def test_what_came_later_and_a_preset_has_is_an_override_where_it_is_set_back(
    setting: str, value: Any
) -> None:
    usual, back = (resolve("ours", "polydigits", "fair", more) for more in ((), (f"{setting}={value}",)))
    assert not usual.overrides and back.overrides == {setting: value}
    assert setting in usual.hyper and setting not in back.hyper


@pytest.mark.parametrize("dataset", ["polydigits", "polymnist"])
def test_quick_gives_every_method_that_has_one_rate_the_common_one(dataset: str) -> None:
    hyper = {method: resolve(method, dataset, "quick").hyper for method in method_names()}
    assert {h["lr"] for h in hyper.values() if "lr" in h} == {3e-3}
    assert {h["lr_generator"] for h in hyper.values() if "lr_generator" in h} == {3e-3}
