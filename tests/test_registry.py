"""Names to classes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import registry
from bench.errors import UsageError
from bench.registry import dataset_names, expand_methods, load_dataset, load_method_class, method_names
from datasets.spec import UserError
from methods.base import Method


def test_every_listed_method_is_a_method() -> None:
    names = method_names()
    assert {"mmvae", "mmvaeplus", "mopoe", "mvebm_base", "mvebm_gen", "ours", "ours_w"} <= set(names)
    assert "base" not in names
    for name in names:
        assert issubclass(load_method_class(name), Method)


def test_aliases_expand_and_nothing_comes_twice() -> None:
    assert expand_methods(["mvebm", "ours", "mvebm_gen"]) == ["mvebm_base", "mvebm_gen", "ours"]


@pytest.mark.parametrize(("wrong", "right"), [("our", "ours"), ("mmvaplus", "mmvaeplus"), ("mvbm", "mvebm")])
def test_a_wrong_method_gets_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(UsageError, match=f"no method '{wrong}'; did you mean '{right}"):
        expand_methods([wrong])


def test_a_wrong_data_set_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'polymnits'; did you mean 'polymnist'"):
        load_dataset("polymnits", tmp_path)
    assert {"polydigits", "polymnist"} <= set(dataset_names())


def test_module_and_class(tmp_path: Path) -> None:
    assert load_method_class("tiny:TinyVAE").__name__ == "TinyVAE"
    assert load_dataset("tiny:TinyData", tmp_path).name == "tiny"
    with pytest.raises(UsageError, match="module 'tiny' has no class 'Tinny'"):
        load_method_class("tiny:Tinny")
    with pytest.raises(UserError, match="no module 'nowhere'"):
        load_method_class("nowhere:Method")
    with pytest.raises(UserError, match="is not a Method"):
        load_method_class("tiny:TinyData")
    with pytest.raises(UserError, match="is not a Dataset"):
        load_dataset("tiny:TinyVAE", tmp_path)


SOURCE = "from methods.base import Method\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SOURCE, "it defines none"),
        (SOURCE + "class A(Method): pass\nclass B(Method): pass\n", "it defines A, B"),
        ("import not_there_at_all\n", "no module 'not_there_at_all'"),
        ("def broken(:\n", "cannot be loaded"),
        ("nonsense\n", "cannot be loaded \\(NameError: name 'nonsense' is not defined\\)"),
    ],
)
def test_a_bad_method_file_is_one_sentence(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import methods

    (tmp_path / "strange.py").write_text(text)
    monkeypatch.setattr(registry, "METHODS", tmp_path)
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "methods.strange", raising=False)
    with pytest.raises(UserError, match=message) as caught:
        load_method_class("strange")
    assert "\n" not in str(caught.value)
    sys.modules.pop("methods.strange", None)


def test_one_file_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import methods

    text = SOURCE + "class _Helper(Method): pass\nclass Mine(_Helper): pass\n"
    (tmp_path / "mine_own.py").write_text(text)
    monkeypatch.setattr(registry, "METHODS", tmp_path)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "mine_own" in method_names()
    assert load_method_class("mine_own").__name__ == "Mine"
    sys.modules.pop("methods.mine_own", None)


def test_entry_points_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import EntryPoint

    points = {
        registry.METHOD_GROUP: [EntryPoint("theirs", "tiny:TinyVAE", registry.METHOD_GROUP)],
        registry.DATASET_GROUP: [EntryPoint("their_data", "tiny:TinyData", registry.DATASET_GROUP)],
    }
    monkeypatch.setattr(registry, "entry_points", lambda group: points[group])
    assert "theirs" in method_names() and "their_data" in dataset_names()
    assert load_method_class("theirs").__name__ == "TinyVAE"
    assert load_dataset("their_data", tmp_path).name == "tiny"
    points[registry.METHOD_GROUP].append(EntryPoint("mmvae", "tiny:TinyVAE", registry.METHOD_GROUP))
    with pytest.raises(UserError, match="calls itself 'mmvae'"):
        load_method_class("mmvae")
