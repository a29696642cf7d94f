"""Checks of the state: all of it registered, trained, saved, restored and copied."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from bench.checks.registry import check, require
from bench.checks.subject import Subject, losses, moments, same, state_of, train, trainable
from methods.base import Method, Progress

ROUNDING = 1e-6
"""A gradient smaller than this share of the largest one of the method is a rounding error."""


def reachable(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from an object through attributes, containers and closures."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("method", root)]
    while stack:
        path, thing = stack.pop()
        if id(thing) in seen or isinstance(
            thing, type | ModuleType | str | bytes | int | float | torch.Generator
        ):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield path, thing
        elif isinstance(thing, dict):
            stack += [(f"{path}[{key!r}]", value) for key, value in list(thing.items())]
        elif isinstance(thing, list | tuple | set | frozenset):
            stack += [(f"{path}[{i}]", value) for i, value in enumerate(thing)]
        elif isinstance(thing, functools.partial):
            stack += [(f"{path}.func", thing.func), (f"{path}.args", (thing.args, thing.keywords))]
        elif isinstance(thing, MethodType):
            stack += [(path, thing.__self__), (path, thing.__func__)]
        elif isinstance(thing, FunctionType):
            for cell in thing.__closure__ or ():
                try:
                    stack.append((f"{path}.{thing.__name__}", cell.cell_contents))
                except ValueError:  # an empty cell holds nothing
                    continue
        elif hasattr(thing, "__dict__"):
            stack += [(f"{path}.{key}", value) for key, value in vars(thing).items()]


def leaves(value: Tensor) -> list[Tensor]:
    """The leaf tensors that the graph behind `value` would send gradient to."""
    found, seen, stack = [], set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return found


def _derived(method: nn.Module) -> set[int]:
    """Tensors that old-style weight or spectral norm recomputes from registered ones."""
    found = set()
    for module in method.modules():
        for name in module._parameters:
            for suffix in ("_orig", "_g"):
                if name.endswith(suffix):
                    found.add(id(vars(module).get(name.removesuffix(suffix))))
    return found


@check()
def tensors_are_registered(subject: Subject) -> None:
    """No tensor hides in a list or a plain attribute, where it is neither trained, saved nor moved."""
    method, x = subject.fresh().train(), subject.data()
    known = {id(t) for t in [*method.parameters(), *method.buffers()]}
    for stage in method.stages:
        trainable(method, stage)
        for loss in losses(method(x, Progress(stage.name, 0, 100))):
            strangers = [leaf for leaf in leaves(loss.total) if id(leaf) not in known]
            shapes = [tuple(leaf.shape) for leaf in strangers]
            require(
                not strangers,
                f"the loss depends on {len(strangers)} tensors that are not parameters of the method "
                f"(shapes {shapes[:4]}); keep them in nn.Parameter, nn.ModuleList or nn.ParameterList",
            )
    method.requires_grad_(True)
    known |= _derived(method)
    hidden = [(path, t) for path, t in reachable(method) if id(t) not in known]
    require(
        not hidden,
        "tensors that are neither parameters nor buffers: "
        + ", ".join(f"{path} {tuple(t.shape)}" for path, t in hidden[:4]),
    )


@check()
def every_parameter_is_trained(subject: Subject) -> None:
    """Each parameter receives gradient in some stage."""
    method = subject.fresh()
    batches = [subject.data(seed=s) for s in range(4)]
    missing = dict(method.named_parameters())

    def look(_: object) -> None:
        sizes = {n: float(p.grad.abs().max()) for n, p in method.named_parameters() if p.grad is not None}
        # What cancels exactly leaves rounding errors behind, which train nothing.
        least = ROUNDING * max(sizes.values(), default=0.0)
        for name in [n for n in missing if sizes.get(n, 0.0) > least]:
            del missing[name]

    for _ in range(3):
        train(method, batches, 4, lr=1e-3, after=look)
        if not missing:
            return
    names = sorted(n for n in missing if f"every_parameter_is_trained[{n}]" not in subject.excused)
    require(not names, f"{len(names)} parameters never receive gradient: {', '.join(names[:6])}")


def behaviour(subject: Subject, method: Method) -> dict[str, Tensor]:
    """What a method does at a fixed seed: losses of all stages, samples, encodings."""
    x, names = subject.data(), subject.spec.names
    kind, out = type(method), {}
    with torch.no_grad():
        if not kind.unsupported(subject.spec, "encode"):
            out |= {f"encode {k}": t for k, t in method.encode(x).items()}
        if not kind.unsupported(subject.spec, "joint"):
            for sampler, steps in subject.pairs(method, "joint"):
                torch.manual_seed(7)
                out |= {
                    f"joint {sampler} {k}": t for k, t in method.joint_generate(3, sampler, steps).items()
                }
        if not kind.unsupported(subject.spec, "cross"):
            for sampler, steps in subject.pairs(method, "cross"):
                torch.manual_seed(7)
                drawn = method.cross_generate({names[0]: x[names[0]]}, names, sampler, steps)
                out |= {f"cross {sampler} {k}": t for k, t in drawn.items()}
    for stage in method.stages:
        torch.manual_seed(7)
        for i, loss in enumerate(losses(method(x, moments(stage)[1]))):
            out[f"loss {stage.name} {i}"] = loss.total.detach()
    return out


def _differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if name not in b or not torch.equal(a[name], b[name])]


@check()
def weights_hold_everything(subject: Subject) -> None:
    """Saved as safetensors and loaded into another instance, the method does exactly the same."""
    method = subject.fresh(seed=1)
    train(method, [subject.data(seed=s) for s in (0, 1)], 2)
    saved = save({name: t.contiguous() for name, t in method.state_dict().items()})
    other = subject.fresh(seed=2)
    other.load_state_dict(load(saved))
    require(same(method.state_dict(), other.state_dict()), "the loaded state differs from the saved one")
    wrong = _differences(behaviour(subject, method), behaviour(subject, other))
    require(not wrong, f"after a round trip through the saved weights these differ: {', '.join(wrong[:5])}")


@check()
def copies_are_independent(subject: Subject) -> None:
    """A deep copy (as for averaged weights) behaves the same, and training it leaves the original alone."""
    method = subject.fresh(seed=1)
    before = state_of(method)
    twin = copy.deepcopy(method)
    wrong = _differences(behaviour(subject, method), behaviour(subject, twin))
    require(not wrong, f"a deep copy differs in {', '.join(wrong[:5])}")
    method.load_state_dict(before, strict=False)
    train(twin, [subject.data()], 2, lr=1e-2)
    require(same(before, state_of(method)), "training a deep copy changed the original: they share tensors")
