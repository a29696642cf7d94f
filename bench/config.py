"""What a run is made of: hyper-parameters, training budget, evaluation plan; presets and overrides.

A preset is a table in `presets/<dataset>/_common.toml` (budget, plan and shared backbone for every
method) that `presets/<dataset>/<method>.toml` refines. Importing this module imports neither torch
nor pydantic.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from bench.names import DEFAULT_PRESET, closest
from metrics import DRAWN, METRICS

PRESETS = Path(__file__).parent / "presets"
TABLES = ("train", "plan", "hyper")
FALLBACK_PRESET = "fair"
"""The budget of a method whose own `paper` preset nobody has written."""

NEUTRAL = ("validate_every", "checkpoint_every", "deterministic", "memory")
"""Settings of the training loop that change no number: they neither name a run nor split rows of a table."""

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class TrainConfig:
    """The training budget.

    steps: optimiser steps over all stages. flops: where set, `steps` is replaced by as many steps as
    this many floating-point operations pay for. ema: decay of the averaged weights that are then the
    ones scored. schedule: of every learning rate within a stage, beside the per-epoch decay of a group.
    memory: GB that encoders and decoders may keep for the backward pass of one step; what exceeds it runs
    in chunks and is computed twice, which changes rounding only.
    """

    __pydantic_config__ = _FORBID

    batch_size: Annotated[int, Gt(0)] = 64
    steps: Annotated[int, Gt(0)] = 1000
    flops: Annotated[float, Gt(0)] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    validate_every: Annotated[int, Ge(0)] = 500
    checkpoint_every: Annotated[int, Gt(0)] = 500
    deterministic: bool = False
    memory: Annotated[float, Gt(0), Lt(1e6)] = 1.0

    def identity(self) -> dict[str, Any]:
        """The part of the budget that changes the weights."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in NEUTRAL}


@dataclass(frozen=True)
class Plan:
    """What is drawn and scored.

    joint: unconditional tuples. cross: test tuples per given subset. subsets: `singles`; `nested`, the
    singles and one chain {first}, {first, second}, ... with `nested` tuples each; `all`, every subset.
    samplers: names to draw with (None: all that the method has). probe_train, probe_repeats: examples
    and repetitions of the small latent probe; probe_full: also one on the whole training split.
    fid_n: pictures per side of `fid` (`fd_clf` takes all there are, `swd` 1,000). split: `test`, or `val`
    while a preset is tuned. metrics: which families to compute; does not enter the identity of a run.
    """

    __pydantic_config__ = _FORBID

    joint: Annotated[int, Gt(1)] = 1000
    cross: Annotated[int, Gt(1)] = 500
    subsets: Literal["singles", "nested", "all"] = "nested"
    nested: Annotated[int, Gt(0)] = 500
    samplers: tuple[str, ...] | None = None
    probe_train: Annotated[int, Gt(0)] = 500
    probe_repeats: Annotated[int, Gt(0)] = 5
    probe_full: bool = False
    metrics: tuple[str, ...] = tuple(METRICS)
    fid_n: Annotated[int, Gt(1)] = 1000
    split: Literal["test", "val"] = "test"

    def identity(self) -> dict[str, Any]:
        """The part of the plan that changes the numbers."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "metrics"}


@dataclass(frozen=True)
class RunConfig:
    """One run, fully resolved: `hyper` holds every keyword of the method but those of `Method.added`."""

    method: str
    dataset: str
    preset: str
    seed: int
    hyper: Mapping[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    plan: Plan = field(default_factory=Plan)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    init_from: str = ""
    """Hash of the weights that replace the first stage (`--init-from`), or ""."""

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration as it stands in run.json."""
        return {
            "hyper": plain(self.hyper),
            "train": plain(dataclasses.asdict(self.train)),
            "plan": plain(dataclasses.asdict(self.plan)),
            "init_from": self.init_from,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RunConfig:
        """The configuration of a run record. Raises UserError where it does not fit this version."""
        try:
            config = record["config"]
            hyper = check_hyper(record["method"], config["hyper"])
            train = build(TrainConfig, config["train"], "train.")
            plan = build(Plan, config["plan"], "plan.")
            names = (record["method"], record["dataset"], record["preset"], int(record["seed"]))
        except (KeyError, TypeError) as error:
            raise _error(f"this run record has no usable '{error}'; run it again with --force") from error
        return cls(*names, hyper, train, plan, record.get("overrides", {}), config.get("init_from", ""))


def _error(message: str) -> Exception:
    from bench.errors import UsageError

    return UsageError(message)


def plain(value: Any) -> Any:
    """The same value in JSON's own types (tuples become lists, dataclasses objects)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def build(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """`kind(**values)`, validated. Raises UsageError for an unknown key or a value out of range."""
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise _error(f"unknown key '{prefix}{key}'{closest(key, known, prefix)}")
    try:
        result = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise _error(_sentence(prefix, error)) from error
    for name in getattr(result, "metrics", ()):
        if name not in METRICS:
            raise _error(f"unknown metric '{name}'{closest(name, METRICS)}")
    if "ex_post" in getattr(result, "metrics", ()) and not set(DRAWN) & set(result.metrics):
        raise _error(f"ex_post draws samples that nothing scores; name one of {', '.join(DRAWN)} too")
    return result


def _sentence(prefix: str, error: Any) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if prefix.endswith(".") else ""
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{prefix}{key} = {first['input']!r} is not possible, it must be {wanted}"


def class_signature(kind: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The keyword hyper-parameters of a method class and their annotations, in order.

    A class that hands `**settings` on has the keywords of its parent too.
    """
    own: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        found = list(inspect.signature(base.__init__).parameters.values())[2:]
        own = {p.name: p for p in found if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)} | own
        hints = typing.get_type_hints(base.__init__, include_extras=True) | hints
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            break
    return own, {name: hint for name, hint in hints.items() if name in own}


def hyper_signature(method: str) -> dict[str, inspect.Parameter]:
    """The keyword hyper-parameters of a method given by name."""
    from bench.registry import load_method_class

    return class_signature(load_method_class(method))[0]


def check_hyper(method: str, values: Mapping[str, Any], complete: bool = True) -> dict[str, Any]:
    """All hyper-parameters of `method`: its defaults with `values` on top, checked by annotation.

    One that was `added` later is left out at its default, so that it renames no run from before it.
    Raises UsageError for an unknown key, a wrong type, or (where the result must be `complete`) a
    keyword without default left unset.
    """
    from pydantic import TypeAdapter, ValidationError

    from bench.registry import load_method_class

    kind = load_method_class(method)
    signature, hints = class_signature(kind)
    choices, added = getattr(kind, "choices", {}), getattr(kind, "added", {})
    for key in values:
        if key not in signature:
            known = [*signature, *(f"train.{f.name}" for f in dataclasses.fields(TrainConfig))]
            known += [f"plan.{f.name}" for f in dataclasses.fields(Plan)]
            raise _error(f"{method} has no hyper-parameter '{key}'{closest(key, known)}")
    out: dict[str, Any] = {}
    for name, parameter in signature.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            if not complete:
                continue
            raise _error(f"{method} needs a value for '{name}'; give it with --set {name}=VALUE")
        if name in values and name in hints:
            try:
                value = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise _error(_sentence(name, error)) from error
            allowed = choices.get(name)
            if allowed is not None and value not in allowed:
                raise _error(f"{name} = {value!r} is not possible{closest(str(value), map(str, allowed))}")
        if name not in added or value != added[name]:
            out[name] = value
    return out


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _error(f"the preset file '{path}' cannot be read ({error}); mend or remove it") from error


def _chain(files: Sequence[Mapping[str, Any]], preset: str, seen: tuple[str, ...] = ()) -> list[str]:
    """The presets that `preset` extends, the most basic first, and itself."""
    if preset in seen:
        raise _error(f"preset '{preset}' extends itself; name another one in its file")
    base = next((f[preset]["extends"] for f in files if "extends" in f.get(preset, {})), None)
    return [*(_chain(files, base, (*seen, preset)) if base else []), preset]


def _layers(tables: Mapping[str, Any], presets: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """Those of a file's tables that are named, in this order."""
    out = []
    for preset in presets:
        table = {k: v for k, v in tables.get(preset, {}).items() if k not in ("extends", "like")}
        for key in table:
            if key not in TABLES:
                raise _error(f"'{path.name}' has an unknown table '{preset}.{key}'{closest(key, TABLES)}")
        out.append(table)
    return out


def preset_files(method: str, dataset: str) -> tuple[Path, Path]:
    """The common file and the method's own; a data set without a folder takes `presets/_common.toml`."""
    common = PRESETS / dataset / "_common.toml"
    if not common.is_file():
        common = PRESETS / "_common.toml"
    return common, PRESETS / dataset / f"{method}.toml"


def preset_names(dataset: str) -> list[str]:
    """Presets that every method has on `dataset`."""
    return list(_read_toml(preset_files("", dataset)[0]))


def load_preset(method: str, dataset: str, preset: str) -> dict[str, dict[str, Any]]:
    """The merged tables `train`, `plan`, `hyper`; in `hyper` the common part has only known keywords.

    A preset that the method's file lacks is the common budget alone, `fair`'s where it is `paper`. In a
    method's file, `like = "ours"` in a preset takes the values of that method first: an ablation then
    differs in what its file names and nowhere else.
    """
    common_path, own_path = preset_files(method, dataset)
    common, own = _read_toml(common_path), _read_toml(own_path)
    names = {*common, *own}
    if preset not in names:
        raise _error(f"no preset '{preset}' for {method} on {dataset}{closest(preset, names)}")
    signature = hyper_signature(method)
    out: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    chain = _chain((own, common), preset)
    if preset == DEFAULT_PRESET and preset not in own:
        chain = [*_chain((own, common), FALLBACK_PRESET), preset]
    for layer in _layers(common, chain, common_path):
        for table, values in layer.items():
            out[table].update({k: v for k, v in values.items() if table != "hyper" or k in signature})
    for name in chain:
        like = own.get(name, {}).get("like")
        if like is not None:
            for table, values in _of_model(str(like), dataset, name, own_path).items():
                out[table].update({k: v for k, v in values.items() if table != "hyper" or k in signature})
        for layer in _layers(own, [name], own_path):
            for table, values in layer.items():
                out[table].update(values)
    return out


def _of_model(model: str, dataset: str, preset: str, path: Path) -> dict[str, Any]:
    """The preset of the method that another takes its values from (`like = "ours"`), own layers only."""
    tables = _read_toml(preset_files(model, dataset)[1])
    if preset not in tables:
        raise _error(f"'{path.name}' takes '{preset}' from '{model}', which has none; name another method")
    return _layers(tables, [preset], path)[0]


def parse_override(text: str) -> tuple[str, Any]:
    """`beta=2.5` -> ("beta", 2.5). The value is TOML, or a bare string where it is not."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise _error(f"--set needs KEY=VALUE, got '{text}'; write for example --set beta=2.5")
    value = value.strip()
    if value.lower() in ("none", "null"):
        return key.strip(), None
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), {"True": True, "False": False}.get(value, value)


def resolve(
    method: str,
    dataset: str,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    seed: int = 0,
    precision: str | None = None,
    deterministic: bool = False,
    init_from: str = "",
) -> RunConfig:
    """Preset, then `--set` overrides, then the method's own defaults for what is left.

    Raises UsageError for an unknown preset, key or value.
    """
    tables = load_preset(method, dataset, preset)
    usual = _assemble(method, tables, complete=False)
    changed = dict(parse_override(text) for text in overrides)
    if precision is not None:
        changed["train.precision"] = precision
    if deterministic:
        changed["train.deterministic"] = True
    if seed < 0:
        raise _error(f"the seed {seed} is negative; seeds are 0, 1, 2, ...")
    for key, value in changed.items():
        table, dot, name = key.partition(".")
        if not dot:
            tables["hyper"][key] = value
        elif table in TABLES:
            tables[table][name] = value
        else:
            raise _error(f"unknown key '{key}'{closest(table, TABLES)}")
    hyper, train, plan = _assemble(method, tables)
    try:
        json.dumps(plain(hyper), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _error(f"a hyper-parameter of {method} cannot be stored ({error}); use plain values") from error
    # A key set to what the preset says anyway makes no other row in a table.
    kept = _differences(usual, (hyper, train, plan))
    return RunConfig(method, dataset, preset, seed, hyper, train, plan, kept, init_from)


def _assemble(
    method: str, tables: Mapping[str, Any], complete: bool = True
) -> tuple[dict[str, Any], TrainConfig, Plan]:
    plan = dict(tables["plan"])
    for key in ("metrics", "samplers"):
        if isinstance(plan.get(key), str):
            plan[key] = plan[key].split(",")
    return (
        check_hyper(method, tables["hyper"], complete),
        build(TrainConfig, tables["train"], "train."),
        build(Plan, plan, "plan."),
    )


def _differences(usual: tuple[Any, Any, Any], actual: tuple[Any, Any, Any]) -> dict[str, Any]:
    def flat(hyper: Mapping[str, Any], train: TrainConfig, plan: Plan) -> dict[str, Any]:
        budget = {f"train.{k}": v for k, v in train.identity().items()}
        return {
            **plain(hyper),
            **plain(budget),
            **{f"plan.{k}": plain(v) for k, v in plan.identity().items()},
        }

    before = flat(*usual)
    return {k: v for k, v in sorted(flat(*actual).items()) if k not in before or v != before[k]}
