"""Checks of encoding and sampling: keys, shapes, ranges, every subset, and nothing left behind."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.checks.registry import NotApplicable, check, require
from bench.checks.subject import BATCH, Subject, same, state_of, subsets
from datasets.spec import Batch, DataSpec
from methods.base import Chain


def assert_batch(spec: DataSpec, out: Batch, names: tuple[str, ...], n: int, what: str) -> None:
    """`out` holds exactly `names`, each `[n, *shape]`, float32 images or int64 tokens, sane and detached."""
    require(isinstance(out, dict), f"{what} returned {type(out).__name__}, not a dictionary")
    require(set(out) == set(names), f"{what} returned {sorted(out)}, asked for {sorted(names)}")
    for name in names:
        tensor, modality = out[name], spec[name]
        shape = (n, *modality.shape)
        require(
            tuple(tensor.shape) == shape, f"{what}: '{name}' has shape {tuple(tensor.shape)}, not {shape}"
        )
        kind = torch.float32 if modality.kind == "image" else torch.int64
        require(tensor.dtype == kind, f"{what}: '{name}' is {tensor.dtype}, not {kind}")
        require(not tensor.requires_grad, f"{what}: '{name}' still carries a graph")
        if modality.kind == "image":
            require(torch.isfinite(tensor).all(), f"{what}: '{name}' is not finite")
            low, high, mean = float(tensor.min()), float(tensor.max()), float(tensor.mean())
            require(
                low > -20 and high < 20 and -1 < mean < 2,
                f"{what}: '{name}' runs from {low:.2f} to {high:.2f} (mean {mean:.2f}), far outside [0, 1]",
            )
        else:
            good = (tensor >= 0).all() and (tensor < modality.vocabulary).all()
            require(good, f"{what}: '{name}' holds token ids outside the vocabulary")


@check("joint")
def joint_has_the_right_shape(subject: Subject) -> None:
    """Unconditional samples: all modalities, the asked number, right type and range, also one alone."""
    method = subject.fresh()
    for sampler, steps in subject.pairs(method, "joint"):
        for n in (1, 4):
            with torch.no_grad():
                out = method.joint_generate(n, sampler, steps)
            assert_batch(subject.spec, out, subject.spec.names, n, f"joint_generate({n}, '{sampler}')")


@check("cross")
def cross_serves_every_subset(subject: Subject) -> None:
    """Any non-empty subset, given by its present keys alone, yields exactly the asked targets."""
    method, x, names = subject.fresh(), subject.data(n=3), subject.spec.names
    for sampler, steps in subject.pairs(method, "cross"):
        for given in subsets(names):
            missing = tuple(name for name in names if name not in given)
            for targets in filter(None, (names, missing, given[-1:], names[::-1])):
                what = f"cross_generate({'+'.join(given)} -> {'+'.join(targets)}, '{sampler}')"
                with torch.no_grad():
                    out = method.cross_generate({k: x[k] for k in given}, targets, sampler, steps)
                assert_batch(subject.spec, out, tuple(targets), 3, what)


@check("cross", "encode")
def one_example_is_enough(subject: Subject) -> None:
    """A batch of one example works: the last batch of a split may be that small."""
    method, x, names = subject.fresh(), subject.data(n=1), subject.spec.names
    with torch.no_grad():
        for name, latent in method.encode(x).items():
            require(
                latent.dim() == 2 and len(latent) == 1, f"encode: '{name}' has shape {tuple(latent.shape)}"
            )
        for sampler, steps in subject.pairs(method, "cross"):
            out = method.cross_generate({names[0]: x[names[0]]}, names, sampler, steps)
            assert_batch(subject.spec, out, names, 1, f"cross_generate of one example ('{sampler}')")


@check("encode")
def encode_serves_every_subset(subject: Subject) -> None:
    """Any non-empty subset is encoded to `z` [B, D], and `w.<modality>` of the given ones if private."""
    method, x, names = subject.fresh(), subject.data(), subject.spec.names
    sizes: dict[str, int] = {}
    for given in subsets(names):
        with torch.no_grad():
            latents = method.encode({k: x[k] for k in given})
        what = f"encode({'+'.join(given)})"
        require("z" in latents, f"{what} has no 'z'")
        allowed = {"z", *(f"w.{name}" for name in given)}
        strangers = set(latents) - allowed
        require(not strangers, f"{what} returned {sorted(strangers)}; allowed are {sorted(allowed)}")
        for name, latent in latents.items():
            good = latent.dim() == 2 and len(latent) == BATCH and latent.dtype == torch.float32
            require(good, f"{what}: '{name}' is {latent.dtype} of shape {tuple(latent.shape)}")
            require(torch.isfinite(latent).all(), f"{what}: '{name}' is not finite")
            require(not latent.requires_grad, f"{what}: '{name}' still carries a graph")
            size = sizes.setdefault(name, latent.shape[1])
            require(size == latent.shape[1], f"{what}: '{name}' changes its size with the subset")


@check("interpolate")
def prior_draws_decode(subject: Subject) -> None:
    """Draws from the prior and encodings have the same layout, and decode to any targets."""
    method, names = subject.fresh(), subject.spec.names
    with torch.no_grad():
        latent = method.sample_prior(4)
        require("z" in latent, f"sample_prior returned {sorted(latent)} without 'z'")
        for name, block in latent.items():
            good = block.dim() == 2 and len(block) == 4 and torch.isfinite(block).all()
            require(good, f"sample_prior: '{name}' has shape {tuple(block.shape)} or is not finite")
        for targets in (names, names[-1:], names[:2]):
            for known in (latent, {"z": latent["z"]}):
                out = method.decode(known, targets)
                assert_batch(subject.spec, out, tuple(targets), 4, f"decode({sorted(known)} -> {targets})")
        if not type(method).unsupported(subject.spec, "encode"):
            for name, block in method.encode(subject.data()).items():
                require(
                    name in latent and latent[name].shape[1] == block.shape[1],
                    f"'{name}' differs in size between encode and sample_prior",
                )


@check()
def sampling_leaves_no_trace(subject: Subject) -> None:
    """Sampling and encoding change no parameter or buffer and fill no gradient, with or without no_grad."""
    method, x, names = subject.fresh(), subject.data(n=3), subject.spec.names
    kind = type(method)
    before = state_of(method)

    def look(what: str, out: dict[str, Tensor]) -> None:
        require(same(before, state_of(method)), f"{what} changed parameters or buffers")
        filled = [name for name, p in method.named_parameters() if p.grad is not None]
        require(not filled, f"{what} left gradients in {', '.join(filled[:3])}")
        if not torch.is_grad_enabled():
            held = [name for name, t in out.items() if t.requires_grad]
            require(not held, f"{what} returned tensors with a graph: {held}")

    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            if not kind.unsupported(subject.spec, "joint"):
                for sampler, steps in subject.pairs(method, "joint"):
                    look(f"joint_generate ({sampler})", method.joint_generate(2, sampler, steps))
            if not kind.unsupported(subject.spec, "cross"):
                for sampler, steps in subject.pairs(method, "cross"):
                    out = method.cross_generate({names[0]: x[names[0]]}, names, sampler, steps)
                    look(f"cross_generate ({sampler})", out)
            if not kind.unsupported(subject.spec, "encode"):
                look("encode", method.encode(x))


@check("chain")
def chains_are_recorded(subject: Subject) -> None:
    """A chain reports its states every few steps and one finite value per step and example."""
    method, x = subject.fresh(), subject.data(n=3)
    if not method.chains:
        raise NotApplicable("the method runs no Markov chain")
    for kind in method.chains:
        chain = method.chain(kind, x, 3, steps=4, every=2)
        what = f"chain('{kind}')"
        require(isinstance(chain, Chain), f"{what} returned {type(chain).__name__}")
        require(chain.kind == kind, f"{what} calls itself '{chain.kind}'")
        require(chain.quantity in ("energy", "log_likelihood"), f"{what} records '{chain.quantity}'")
        require(chain.at == [0, 2, 4], f"{what} kept frames at {chain.at} instead of 0, 2, 4")
        require(len(chain.frames) == len(chain.at), f"{what} has {len(chain.frames)} frames at {chain.at}")
        for frame in chain.frames:
            assert_batch(subject.spec, frame, subject.spec.names, 3, f"a frame of {what}")
        shape = tuple(chain.values.shape)
        require(shape == (5, 3), f"{what}: values of 4 steps and 3 examples have shape {shape}, not (5, 3)")
        require(torch.isfinite(chain.values).all(), f"{what}: values are not finite")
        require(not chain.values.requires_grad, f"{what}: values still carry a graph")
        still = same(chain.frames[0], chain.frames[-1])
        require(not still, f"{what}: the state does not move")
