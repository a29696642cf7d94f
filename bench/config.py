"""What a run is made of: hyper-parameters, training budget, evaluation plan; preset and overrides.

Importing this module imports neither torch nor pydantic.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from bench.names import DEFAULT_PRESET, closest
from bench.preset_files import TABLES, load_preset, misuse
from metrics import DRAWN, METRICS

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
    flops: Annotated[float, Gt(0), Lt(1e30)] | None = None
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
            raise misuse(f"this run record has no usable '{error}'; run it again with --force") from error
        return cls(*names, hyper, train, plan, record.get("overrides", {}), config.get("init_from", ""))


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
            raise misuse(f"unknown key '{prefix}{key}'{closest(key, known, prefix)}")
    try:
        result = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise misuse(_sentence(prefix, error)) from error
    for name in getattr(result, "metrics", ()):
        if name not in METRICS:
            raise misuse(f"unknown metric '{name}'{closest(name, METRICS)}")
    if "ex_post" in getattr(result, "metrics", ()) and not set(DRAWN) & set(result.metrics):
        raise misuse(f"ex_post draws samples that nothing scores; name one of {', '.join(DRAWN)} too")
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
            raise misuse(f"{method} has no hyper-parameter '{key}'{closest(key, known)}")
    out: dict[str, Any] = {}
    for name, parameter in signature.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            if not complete:
                continue
            raise misuse(f"{method} needs a value for '{name}'; give it with --set {name}=VALUE")
        if name in values and name in hints:
            try:
                value = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise misuse(_sentence(name, error)) from error
            allowed = choices.get(name)
            if allowed is not None and value not in allowed:
                raise misuse(f"{name} = {value!r} is not possible{closest(str(value), map(str, allowed))}")
        if name not in added or value != added[name]:
            out[name] = value
    return out


def parse_override(text: str) -> tuple[str, Any]:
    """`beta=2.5` -> ("beta", 2.5). The value is TOML, or a bare string where it is not."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise misuse(f"--set needs KEY=VALUE, got '{text}'; write for example --set beta=2.5")
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
    from bench.registry import load_method_class

    tables = load_preset(method, dataset, preset, hyper_signature(method))
    usual = _assemble(method, tables, complete=False)
    changed = dict(parse_override(text) for text in overrides)
    if precision is not None:
        changed["train.precision"] = precision
    if deterministic:
        changed["train.deterministic"] = True
    if seed < 0:
        raise misuse(f"the seed {seed} is negative; seeds are 0, 1, 2, ...")
    for key, value in changed.items():
        table, dot, name = key.partition(".")
        if not dot:
            tables["hyper"][key] = value
        elif table in TABLES:
            tables[table][name] = value
        else:
            raise misuse(f"unknown key '{key}'{closest(table, TABLES)}")
    hyper, train, plan = _assemble(method, tables)
    try:
        json.dumps(plain(hyper), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise misuse(f"a hyper-parameter of {method} cannot be stored ({error}); use plain values") from error
    # A key set to what the preset says anyway makes no other row in a table.
    kept = _differences(usual, (hyper, train, plan), getattr(load_method_class(method), "added", {}))
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


def _differences(
    usual: tuple[Any, Any, Any], actual: tuple[Any, Any, Any], added: Mapping[str, Any]
) -> dict[str, Any]:
    """What `actual` has otherwise than `usual`. added: what `check_hyper` leaves out at these values."""

    def flat(hyper: Mapping[str, Any], train: TrainConfig, plan: Plan) -> dict[str, Any]:
        budget = {f"train.{k}": v for k, v in train.identity().items()}
        return {
            **plain(added),
            **plain(hyper),
            **plain(budget),
            **{f"plan.{k}": plain(v) for k, v in plan.identity().items()},
        }

    before = flat(*usual)
    return {k: v for k, v in sorted(flat(*actual).items()) if k not in before or v != before[k]}
