"""Checks of the loss: finite, additive, repeatable, true to the gradient table, and able to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.checks.registry import NotApplicable, check, require
from bench.checks.subject import Subject, groups_of, losses, moments, train, trainable
from methods.base import Loss, Method, Progress


def every_loss(subject: Subject, method: Method, seed: int = 1) -> list[tuple[str, Loss]]:
    """The losses of all stages at their beginning, middle and end; needs a method in training mode."""
    x, found = subject.data(), []
    for stage in method.stages:
        trainable(method, stage)
        for progress in moments(stage):
            torch.manual_seed(seed)
            found += [(stage.name, loss) for loss in losses(method(x, progress))]
    method.requires_grad_(True)
    return found


@check()
def loss_is_finite(subject: Subject) -> None:
    """The loss is a finite float32 scalar with a graph, and its terms are finite numbers."""
    found = every_loss(subject, subject.fresh().train())
    require(found, "forward returned no loss")
    for stage, loss in found:
        total = loss.total
        require(total.dim() == 0, f"the loss of stage '{stage}' has shape {tuple(total.shape)}, not a scalar")
        require(total.requires_grad, f"the loss of stage '{stage}' has no graph to descend")
        require(total.dtype == torch.float32, f"the loss of stage '{stage}' is {total.dtype}")
        require(torch.isfinite(total), f"the loss of stage '{stage}' is {total.item()}")
        for name, term in loss.terms.items():
            require(term.numel() == 1, f"term '{name}' has shape {tuple(term.shape)}, not one number")
            require(torch.isfinite(term).all(), f"term '{name}' of stage '{stage}' is not finite")


@check()
def parts_sum_to_total(subject: Subject) -> None:
    """The parts of a loss add up to what is descended."""
    for stage, loss in every_loss(subject, subject.fresh().train()):
        total, parts = float(loss.total.detach()), [float(p.detach()) for p in loss.parts.values()]
        scale = max(1.0, *map(abs, parts))
        require(
            abs(total - sum(parts)) <= 1e-4 * scale,
            f"stage '{stage}': the parts {dict(zip(loss.parts, parts, strict=True))} do not sum to {total:g}",
        )


@check()
def terms_are_detached(subject: Subject) -> None:
    """Terms for the log hold no graph, which would keep every step's activations alive."""
    for stage, loss in every_loss(subject, subject.fresh().train()):
        attached = [name for name, term in loss.terms.items() if term.requires_grad]
        require(not attached, f"stage '{stage}': the terms {attached} still carry a graph")


@check()
def gradients_match_the_table(subject: Subject) -> None:
    """Each part of the loss sends gradient to exactly the groups that `gradients` declares."""
    method = subject.fresh()
    # A few steps first: layers that start at zero pass no gradient on before they have moved.
    train(method, [subject.data(seed=s) for s in (0, 1)], 2, lr=1e-4)
    method.train()
    table, owner, x = method.gradients, groups_of(method), subject.data()
    for stage in method.stages:
        require(stage.name in table, f"the gradient table has no stage '{stage.name}'")
        trainable(method, stage)
        parameters = [p for p in method.parameters() if p.requires_grad]
        seen: dict[str, set[str]] = {}
        for progress in moments(stage):
            torch.manual_seed(1)
            for loss in losses(method(x, progress)):
                for part, value in loss.parts.items():
                    groups = seen.setdefault(part, set())
                    if not value.requires_grad:
                        continue
                    grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
                    groups |= {
                        owner[id(p)]
                        for p, g in zip(parameters, grads, strict=True)
                        if g is not None and g.abs().max() > 0
                    }
        declared = {part: set(groups) for part, groups in table[stage.name].items()}
        require(
            seen == declared,
            f"stage '{stage.name}': gradient reaches {_readable(seen)}, declared is {_readable(declared)}",
        )


def _readable(table: dict[str, set[str]]) -> str:
    return "{" + ", ".join(f"{part}: {'+'.join(sorted(g)) or 'nothing'}" for part, g in table.items()) + "}"


@check()
def loss_repeats_with_the_seed(subject: Subject) -> None:
    """The same seed, weights and batch give the same loss: all randomness is torch's."""
    import random

    import numpy as np

    method, values = subject.fresh().train(), []
    state = {name: t.clone() for name, t in method.state_dict().items()}
    for other in (1, 2):
        np.random.seed(other)
        random.seed(other)
        method.load_state_dict(state)
        values.append([loss.total.item() for _, loss in every_loss(subject, method)])
    require(values[0] == values[1], f"two passes with one torch seed gave {values[0]} and {values[1]}")


@check()
def loss_survives_bfloat16(subject: Subject) -> None:
    """Under bfloat16 autocast the loss stays finite and close to the one in float32."""
    method, x = subject.fresh().train(), subject.data()
    for stage in method.stages:
        trainable(method, stage)
        found: dict[bool, list[float]] = {False: [], True: []}
        scale = 1e-6
        for seed in range(5):
            for enabled, values in found.items():
                torch.manual_seed(seed)
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    outcome = list(losses(method(x, moments(stage)[0])))
                values.append(sum(float(loss.total.detach()) for loss in outcome))
                if not enabled:
                    parts = [abs(float(p.detach())) for loss in outcome for p in loss.parts.values()]
                    scale = max(scale, *parts)
        exact, rough = (sum(values) / len(values) for values in found.values())
        # Noise drawn in bfloat16 is other noise: the gap is judged against the spread over seeds.
        spread = max(found[False]) - min(found[False])
        require(
            abs(exact - rough) <= 0.05 * scale + spread,
            f"stage '{stage.name}': the loss is {exact:g} in float32 and {rough:g} under bfloat16 autocast",
        )


@check()
def inputs_are_left_alone(subject: Subject) -> None:
    """Training, encoding and sampling do not write into the tensors they are given."""
    method = subject.fresh().train()
    x = subject.data()
    before = {name: t.clone() for name, t in x.items()}

    def unchanged(what: str) -> None:
        changed = [name for name in x if not torch.equal(x[name], before[name])]
        require(not changed and list(x) == list(before), f"{what} changed its input {changed or list(x)}")

    stage = method.stages[-1]
    for _ in losses(method(x, Progress(stage.name, 0, 100))):
        unchanged("forward")
    method.eval()
    with torch.no_grad():
        if not type(method).unsupported(subject.spec, "encode"):
            method.encode(x)
            unchanged("encode")
        if not type(method).unsupported(subject.spec, "cross"):
            for sampler, steps in subject.pairs(method, "cross"):
                method.cross_generate(x, subject.spec.names, sampler, steps)
                unchanged(f"cross_generate ({sampler})")


@check()
def modes_are_restored(subject: Subject) -> None:
    """Training and evaluation mode, and whether parameters require gradient, are as before a call."""
    method, x = subject.fresh(), subject.data()
    stage = method.stages[-1]

    def flags() -> list[bool]:
        return [m.training for m in method.modules()] + [p.requires_grad for p in method.parameters()]

    method.train()
    before = flags()
    for _ in losses(method(x, Progress(stage.name, 0, 100))):
        pass
    require(flags() == before, "forward left a module in another mode, or a parameter frozen")
    method.eval()
    before = flags()
    kind, names = type(method), subject.spec.names
    with torch.no_grad():
        if not kind.unsupported(subject.spec, "joint"):
            for sampler, steps in subject.pairs(method, "joint"):
                method.joint_generate(2, sampler, steps)
                require(flags() == before, f"joint_generate ({sampler}) left a module in another mode")
        if not kind.unsupported(subject.spec, "cross"):
            for sampler, steps in subject.pairs(method, "cross"):
                method.cross_generate({names[0]: x[names[0]]}, names[1:], sampler, steps)
                require(flags() == before, f"cross_generate ({sampler}) left a module in another mode")
        if not kind.unsupported(subject.spec, "encode"):
            method.encode(x)
            require(flags() == before, "encode left a module in another mode")
    require(torch.is_grad_enabled(), "sampling left gradients switched off")


@check("cross")
def training_improves_reconstruction(subject: Subject) -> None:
    """A few steps on dark pictures bring reconstructions nearer: range and sign of the loss are right."""
    images = [m.name for m in subject.spec.images]
    if not images:
        raise NotApplicable("there is no image modality")
    method = subject.fresh()
    batches = [subject.data(seed=s, bright=0.12) for s in range(3)]

    def error() -> Tensor:
        torch.manual_seed(3)
        with torch.no_grad():
            out = method.cross_generate(batches[0], images)
        return torch.stack([(out[name] - batches[0][name]).abs().mean() for name in images]).mean()

    before = error()
    train(method, batches, 25, lr=2e-3)
    after = error()
    require(
        after < 0.98 * before,
        f"the mean absolute error of reconstructions of dark pictures went from {before:.3f} to {after:.3f}; "
        "the loss is not descended, or images leave the method in another range than [0, 1]",
    )
