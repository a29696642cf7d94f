"""Checks of chance and dependence: what must repeat, vary, follow the batch, or follow the input."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.checks.registry import CheckFailed, NotApplicable, check, require
from bench.checks.subject import BATCH, Subject, close, losses, moments, same, trainable
from datasets.spec import Batch


class PermutedNoise(TorchDispatchMode):
    """Inside, every random draw is permuted along the batch together with the batch itself.

    Draws are recognised by the tag that torch gives to seeded random operations, the batch dimension by
    its size BATCH, or a multiple of it where samples and examples are folded together; `fastest` says
    whether examples vary fastest there. A draw that depends on its inputs (multinomial, dropout) gets
    them in the old order, so that each example meets the same noise as before.
    """

    def __init__(self, order: Tensor, fastest: bool) -> None:
        super().__init__()
        self.order, self.back, self.fastest = order, torch.argsort(order), fastest

    def reorder(self, value: object, order: Tensor) -> object:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        sizes = list(value.shape)
        folded = [d for d, size in enumerate(sizes) if size and size % BATCH == 0]
        if not folded:
            return value
        dim = next((d for d in folded if sizes[d] == BATCH), folded[0])
        inner = [sizes[dim] // BATCH, BATCH] if self.fastest else [BATCH, sizes[dim] // BATCH]
        split = value.reshape(*sizes[:dim], *inner, *sizes[dim + 1 :])
        return split.index_select(dim + int(self.fastest), order).reshape(sizes)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        changed = [self.reorder(a, self.back) for a in args]
        if func._schema.is_mutable:
            # Draws fill memory in the order of the strides, which reordering must not change.
            changed[0] = torch.empty_like(args[0]).copy_(changed[0])
        out = func(*changed, **{k: self.reorder(v, self.back) for k, v in kwargs.items()})
        if func._schema.is_mutable:
            return args[0].copy_(self.reorder(changed[0], self.order))
        if isinstance(out, tuple):
            return tuple(self.reorder(o, self.order) for o in out)
        return self.reorder(out, self.order)


def follows(
    compute: Callable[[Batch], dict[str, Tensor]], x: Batch, tolerance: float, per_example: bool
) -> bool:
    """Whether permuting the batch, and the noise with it, permutes (or keeps) what is computed."""
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(4))
    moved = {name: t[order] for name, t in x.items()}
    torch.manual_seed(3)
    straight = compute(x)
    wanted = {name: t[order] for name, t in straight.items()} if per_example else straight
    for fastest in (True, False):
        torch.manual_seed(3)
        with PermutedNoise(order, fastest):
            found = compute(moved)
        if close(wanted, found, tolerance):
            return True
    return False


@check()
def loss_follows_a_permuted_batch(subject: Subject) -> None:
    """Permuting the batch and the noise with it keeps the loss: no example is treated by its position."""
    method = subject.fresh().train()
    for stage in method.stages:
        trainable(method, stage)
        parameters = {n: p for n, p in method.named_parameters() if p.requires_grad}

        def compute(x: Batch, stage=stage, parameters=parameters) -> dict[str, Tensor]:
            state = {name: t.clone() for name, t in method.state_dict().items()}
            found: dict[str, Tensor] = {}
            for i, loss in enumerate(losses(method(x, moments(stage)[1]))):
                grads = torch.autograd.grad(
                    loss.total, list(parameters.values()), allow_unused=True, retain_graph=True
                )
                found |= {f"{i} {n}": g for n, g in zip(parameters, grads, strict=True) if g is not None}
                found[f"{i}"] = loss.total.detach()
            method.load_state_dict(state)
            return {name: t for name, t in found.items() if t.abs().max() > 1e-7}

        require(
            follows(compute, subject.data(), 5e-3, per_example=False),
            f"stage '{stage.name}': loss or gradients change with the order of the batch",
        )


@check("encode")
def encode_follows_a_permuted_batch(subject: Subject) -> None:
    """Encodings do not depend on the position in the batch, nor on the other examples."""
    method, x = subject.fresh(), subject.data()
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        straight = method.encode(x)
        permuted = method.encode({name: t[order] for name, t in x.items()})
        alone = method.encode({name: t[:2] for name, t in x.items()})
    require(
        close({k: t[order] for k, t in straight.items()}, permuted),
        "permuting the batch does not permute the encodings",
    )
    require(
        close({k: t[:2] for k, t in straight.items()}, alone), "encodings depend on the rest of the batch"
    )


@check("cross")
def cross_follows_a_permuted_batch(subject: Subject) -> None:
    """Permuting the given examples, and the noise with them, permutes the samples."""
    method, x, names = subject.fresh(), subject.data(), subject.spec.names
    with torch.no_grad():
        for sampler, steps in subject.pairs(method, "cross"):
            require(
                follows(
                    lambda given, s=sampler, n=steps: method.cross_generate(given, names[-1:], s, n),
                    {name: x[name] for name in names[:-1]},
                    2e-2,
                    per_example=True,
                ),
                f"cross_generate ({sampler}) treats examples by their position in the batch",
            )


@check("encode")
def encode_is_deterministic(subject: Subject) -> None:
    """`encode` gives the same latents whatever the seed."""
    method, x, found = subject.fresh(), subject.data(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(method.encode(x))
    require(same(*found), "two calls of encode on the same batch differ")


@check()
def same_seed_same_samples(subject: Subject) -> None:
    """torch's seed fixes the samples of every sampler; no other generator has a say."""
    method, x, names = subject.fresh(), subject.data(), subject.spec.names

    def twice(draw: Callable[[], Batch], what: str) -> None:
        found = []
        for other in (1, 2):
            np.random.seed(other)
            random.seed(other)
            torch.manual_seed(11)
            with torch.no_grad():
                found.append(draw())
        require(same(*found), f"{what} differs between two calls with one torch seed")

    if not type(method).unsupported(subject.spec, "joint"):
        for s, n in subject.pairs(method, "joint"):
            twice(lambda s=s, n=n: method.joint_generate(4, s, n), f"joint_generate ({s})")
    if not type(method).unsupported(subject.spec, "cross"):
        given = {name: x[name] for name in names[:2]}
        for s, n in subject.pairs(method, "cross"):
            # Several draws: a generator of NumPy or Python that picks one of two experts would agree by luck.
            for _ in range(4):
                twice(lambda s=s, n=n: method.cross_generate(given, names, s, n), f"cross_generate ({s})")


@check()
def samples_vary(subject: Subject) -> None:
    """Draws differ within a batch and from call to call: no constant tuple, no seed set inside."""
    method, x, names = subject.fresh(), subject.data(), subject.spec.names
    images = [m.name for m in subject.spec.images] or list(names)
    torch.manual_seed(1)
    with torch.no_grad():
        if not type(method).unsupported(subject.spec, "joint"):
            for sampler, steps in subject.pairs(method, "joint"):
                first, second = (method.joint_generate(4, sampler, steps) for _ in range(2))
                for name in images:
                    within = not torch.equal(first[name][0], first[name][1])
                    require(within, f"joint_generate ({sampler}) repeats one '{name}' within a batch")
                    again = torch.equal(first[name], second[name])
                    require(not again, f"joint_generate ({sampler}) draws the same '{name}' at every call")
        if not type(method).unsupported(subject.spec, "cross"):
            for sampler, steps in subject.pairs(method, "cross"):
                given = {names[0]: x[names[0]]}
                first, second = (method.cross_generate(given, names, sampler, steps) for _ in range(2))
                again = all(torch.equal(first[name], second[name]) for name in images)
                require(not again, f"cross_generate ({sampler}) draws the same tuple at every call")


@check("cross")
def cross_depends_on_the_given(subject: Subject) -> None:
    """With one seed, other observations give other samples."""
    method, names = subject.fresh(), subject.spec.names
    images = [m.name for m in subject.spec.images] or list(names)
    bright, dark = subject.data(seed=1, bright=0.8), subject.data(seed=2, bright=0.2)
    with torch.no_grad():
        for sampler, steps in subject.pairs(method, "cross"):
            for given in names:
                found = []
                for x in (bright, dark):
                    torch.manual_seed(1)
                    found.append(method.cross_generate({given: x[given]}, images, sampler, steps))
                for target in images:
                    blind = torch.equal(found[0][target], found[1][target])
                    require(not blind, f"cross_generate ({sampler}): '{target}' does not depend on '{given}'")


@check("cross")
def targets_are_not_copied(subject: Subject) -> None:
    """A target is generated, also when it is given: never the input, its own or another modality's."""
    method, names = subject.fresh(), subject.spec.names
    # Noise that an untrained network cannot reproduce.
    generator = torch.Generator().manual_seed(6)
    x: Batch = {}
    for m in subject.spec:
        if m.kind == "image":
            x[m.name] = torch.rand(BATCH, *m.shape, generator=generator)
        else:
            x[m.name] = torch.randint(0, m.vocabulary, (BATCH, *m.shape), generator=generator)
    compared = 0
    with torch.no_grad():
        for sampler, steps in subject.pairs(method, "cross"):
            for given in ((names[0],), names[1:], names):
                out = method.cross_generate({k: x[k] for k in given}, names, sampler, steps)
                for source in given:
                    for target in names:
                        if x[source].shape != out[target].shape or x[source].dtype != out[target].dtype:
                            continue
                        compared += 1
                        _refuse_copy(x[source], out[target], f"{sampler}: {source} -> {target}")
    if not compared:
        raise NotApplicable("nothing to compare")


def _refuse_copy(source: Tensor, target: Tensor, what: str) -> None:
    if source.is_floating_point():
        copied = (source - target).abs().mean() < 0.02
    else:
        copied = (source == target).float().mean() > 0.9
    if copied:
        raise CheckFailed(f"cross_generate ({what}) returns its input")
