"""Checks of the hyper-parameters: visible, with defaults, and each of them doing something."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.checks.registry import CheckFailed, check, require
from bench.checks.subject import Subject, losses, moments, trainable
from bench.config import class_signature
from methods.base import Diverged, Method

SIZES = (("width", 4), ("step", 2), ("latent", 8), ("private", 4), ("hidden", 8), ("samples", 2))
"""Whole numbers whose name contains the first word are cut to the second, to keep checks quick."""


def signature(kind: type[Method]) -> dict[str, inspect.Parameter]:
    """Named hyper-parameters, as the harness sees them."""
    return class_signature(kind)[0]


def literals(kind: type[Method], name: str) -> tuple[Any, ...]:
    """Values that the class lists in `choices`, or that the annotation spells as a Literal."""
    if name in kind.choices:
        return tuple(kind.choices[name])
    annotation = class_signature(kind)[1].get(name)
    options = typing.get_args(annotation) if typing.get_origin(annotation) in UNION else (annotation,)
    return tuple(v for o in options if typing.get_origin(o) is typing.Literal for v in typing.get_args(o))


UNION = (typing.Union, types.UnionType)


def small_hyper(kind: type[Method]) -> dict[str, Any]:
    """Small values for a quick instance: the class's own `small`, then sizes cut by name, else defaults."""
    out: dict[str, Any] = {}
    for name, parameter in signature(kind).items():
        value = parameter.default
        if name == "network" and "cnn" in literals(kind, name):
            out[name] = "cnn"
        elif isinstance(value, int) and not isinstance(value, bool):
            limit = next((size for word, size in SIZES if word in name), value)
            out[name] = min(value, limit)
    return out | dict(kind.small)


def alternatives(kind: type[Method], name: str, value: Any) -> list[Any]:
    """Other values worth trying for a hyper-parameter, by its type; `choices` come first."""
    listed = [v for v in literals(kind, name) if v != value]
    if listed:
        return listed
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [v for v in dict.fromkeys([2 * value, value + 1, value // 2, 1, 0]) if v != value]
    if isinstance(value, float):
        tries = [2 * value, value / 2, 0.5, 1.0, 0.0, 1e-6 * value, 1e6 * value]
        return [v for v in dict.fromkeys(tries) if v != value]
    if value is None:
        hint = class_signature(kind)[1].get(name)
        kinds = typing.get_args(hint) or (hint,)
        return ([True] if bool in kinds else []) + ([0.5, 1e-3] if float in kinds else []) + [2]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            dataclasses.replace(value, **{f.name: other})
            for f in dataclasses.fields(value)
            for other in alternatives(kind, "", getattr(value, f.name))
        ]
    if isinstance(value, tuple):
        return [
            (*value[:i], other, *value[i + 1 :])
            for i, item in enumerate(value)
            for other in alternatives(kind, "", item)
        ]
    return []


def _numbers(tensor: Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().double().flatten()
    return (tuple(tensor.shape), float(flat.sum()), float(flat.square().sum()))


def fingerprint(subject: Subject, hyper: Mapping[str, Any]) -> Iterator[Any]:
    """What hyper-parameters can change, cheapest first: settings, losses, gradients, encodings, samples.

    Weights themselves are left out: a value that is only stored changes nothing.
    """
    method = subject.fresh(**hyper)
    kind, spec, x = type(method), subject.spec, subject.data()
    yield [dataclasses.astuple(stage) for stage in method.stages]
    yield [
        (name, [tuple(p.shape) for p in g.params], [getattr(g, f.name) for f in dataclasses.fields(g)[1:]])
        for name, g in method.param_groups().items()
    ]
    yield method.gradients
    pairs = [(task, s) for task in ("joint", "cross") for s, _ in subject.pairs(method, task)]
    yield [(task, s, method.nfe(s, task), method.nfe(s, task, 3)) for task, s in pairs]

    method.train()
    for stage in method.stages:
        trainable(method, stage)
        for progress in moments(stage):
            torch.manual_seed(2)
            try:
                for loss in losses(method(x, progress)):
                    yield (stage.name, progress.step, _numbers(loss.total))
                    parameters = [p for p in method.parameters() if p.requires_grad]
                    grads = torch.autograd.grad(loss.total, parameters, allow_unused=True)
                    yield [None if g is None else _numbers(g) for g in grads]
            except Diverged:
                yield (stage.name, progress.step, "diverged")
    method.requires_grad_(True).eval()

    def sampled(call: Callable[[], Mapping[str, Tensor]]) -> list[Any]:
        torch.manual_seed(2)
        with torch.no_grad():
            return [(name, _numbers(t)) for name, t in call().items()]

    first, last = spec.names[0], spec.names[-1]
    if not kind.unsupported(spec, "encode"):
        yield sampled(lambda: method.encode(x))
        yield sampled(lambda: method.encode({first: x[first]}))
    for task, s in pairs:
        if kind.unsupported(spec, task):
            continue
        if task == "joint":
            yield sampled(lambda s=s: method.joint_generate(3, s))
        else:
            yield sampled(lambda s=s: method.cross_generate({first: x[first], last: x[last]}, spec.names, s))
    if not kind.unsupported(spec, "chain"):
        for name in method.chains:
            yield sampled(lambda name=name: {"values": method.chain(name, x, 3).values})


class Recorded:
    """The fingerprint of one setting, computed as far as it is asked for and then kept."""

    def __init__(self, subject: Subject, hyper: Mapping[str, Any]) -> None:
        self.source, self.parts = fingerprint(subject, hyper), []

    def __iter__(self) -> Iterator[Any]:
        position = 0
        while True:
            while position < len(self.parts):
                yield self.parts[position]
                position += 1
            try:
                self.parts.append(next(self.source))
            except StopIteration:
                return


def differs(base: Recorded, subject: Subject, hyper: Mapping[str, Any]) -> bool | None:
    """Whether another setting shows anywhere; None if the method refuses it."""
    other, nothing = fingerprint(subject, hyper), object()
    mine = iter(base)
    while True:
        # The base first: if it cannot be computed, that is a fault, not a refusal.
        expected = next(mine, nothing)
        try:
            found = next(other, nothing)
        except Exception:
            return None
        if repr(found) != repr(expected):
            return True
        if found is nothing:
            return False


def _contexts(kind: type[Method], subject: Subject, name: str) -> Iterator[dict[str, Any]]:
    """The plain setting, then each switch flipped: some hyper-parameters only act beside another."""
    yield {}
    # A switch that shares a word with the hyper-parameter is the likeliest to matter.
    related = sorted(signature(kind), key=lambda other: not set(other.split("_")) & set(name.split("_")))
    for other in related:
        value = subject.hyper.get(other, signature(kind)[other].default)
        if other != name and (isinstance(value, bool | str) or value in (None, 0)):
            for flipped in alternatives(kind, other, value)[:4]:
                yield {other: flipped}


def acts(subjects: list[Subject], kind: type[Method], name: str, cache: dict[str, Recorded]) -> str | None:
    """None if the hyper-parameter changes something somewhere, else what is wrong with it."""
    default = signature(kind)[name].default
    tried = refused = 0
    plans = [(subject, list(_contexts(kind, subject, name))) for subject in subjects]
    for i in range(max(len(contexts) for _, contexts in plans)):
        for subject, contexts in plans:
            if i >= len(contexts):
                continue
            value = subject.hyper.get(name, default)
            others = alternatives(kind, name, value)
            if not others:
                return f"{name} (no other value known for {value!r}; list some in `choices`)"
            key = f"{subject.name} {contexts[i]}"
            if key not in cache:
                cache[key] = Recorded(subject, contexts[i])
            for other in others:
                try:
                    answer = differs(cache[key], subject, {**contexts[i], name: other})
                except Exception:
                    if not contexts[i]:
                        raise
                    break  # the method refuses this context
                if answer:
                    return None
                tried += 1
                refused += answer is None
    if tried == refused:
        return f"{name} (every other value is refused; list allowed ones in `choices`)"
    return f"{name} ({tried - refused} other values, nothing changed)"


@check(everywhere=True)
def hyper_parameters_are_visible(subjects: list[Subject]) -> None:
    """Hyper-parameters are named in the signature of `__init__`, or of the parent they go on to."""
    kind = type(subjects[0].fresh())
    for base in kind.__mro__[: kind.__mro__.index(Method)]:
        if "__init__" not in vars(base):
            continue
        kinds = [p.kind for p in inspect.signature(base.__init__).parameters.values()]
        starred = inspect.Parameter.VAR_POSITIONAL in kinds
        require(not starred, "__init__ takes starred arguments, so that its hyper-parameters have no names")
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    else:
        raise CheckFailed(
            "__init__ takes keywords that no parent names, so that they cannot be listed or set"
        )
    bare = [name for name, p in signature(kind).items() if p.default is inspect.Parameter.empty]
    require(not bare, f"hyper-parameters without default: {', '.join(bare)}")


@check(everywhere=True)
def hyper_parameters_act(subjects: list[Subject]) -> None:
    """Every hyper-parameter changes the settings, the loss, the gradients, the encodings or the samples."""
    kind = type(subjects[0].fresh())
    for subject in subjects:
        stable = differs(Recorded(subject, {}), subject, {})
        require(stable is False, "two identical instances behave differently, so no effect can be measured")
    cache: dict[str, Recorded] = {}
    dead = [
        found
        for name in signature(kind)
        if f"hyper_parameters_act[{name}]" not in subjects[0].excused
        and (found := acts(subjects, kind, name, cache))
    ]
    require(not dead, f"hyper-parameters without effect: {'; '.join(dead)}")
