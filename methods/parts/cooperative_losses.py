"""The losses of the cooperative scheme (P1 Eqn 10 to 12; METHODS 2.14.2): what `Cooperative.forward` returns.

Hats are first draws, `revised` and `negatives` the ends of chains; the latter are constants for every loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.spec import Batch
from methods.base import Loss
from methods.parts.chain_health import check_chains, displacement
from methods.parts.langevin import State, frozen
from methods.parts.latents import Expert
from methods.parts.posteriors import mixture_log_prob

if TYPE_CHECKING:
    from methods.parts.cooperative import Cooperative


@dataclass(frozen=True)
class Ends:
    """Where the chains of an iteration end, constants for every loss: x-, with the z it came from, and z+.

    `unobserved` as in `Cooperative.training_start`; `chosen` `[B]`, the experts whose draws became z+, with
    `own_ends`.
    """

    latent: State
    negatives: State
    revised: State
    unobserved: Mapping[str, Tensor]
    chosen: Tensor | None = None


def revision_loss(model: Cooperative, x: Batch, check: bool) -> Loss | Iterator[Loss]:
    """One iteration of METHODS 2.14.2: draw, revise, then the three losses; images `x` in [-1, 1], tokens.

    Raises Diverged where `check` finds a chain that ran away.
    """
    latent = model.prior_draw(len(next(iter(x.values()))))
    first = model.first_images(latent)
    start = {name: state.detach() for name, state in first.items()}
    negatives, energies = model.revise_data(start)
    experts = model.experts(x)
    completed = model.own_ends and not model.apart
    chosen = one_expert_each(len(experts), latent) if completed else None
    first_latents, unobserved = model.training_start(experts, chosen)
    revised, latent_energies = model.revise_latent(first_latents, x, unobserved=unobserved)
    model.priors.track(revised)
    ends = Ends(latent, negatives, revised, unobserved, chosen)

    generator, terms = generator_loss(model, x, ends, first)
    inference, infer_terms = inference_loss(model, x, experts, ends)
    log_posterior = model.log_prior(revised).mean() - terms["on_data"]
    terms |= infer_terms | {
        "moved": displacement(model.texts.embed(start), model.texts.embed(negatives)),
        "log_posterior_start": -latent_energies[0].mean() if len(latent_energies) else log_posterior,
        "log_posterior_end": log_posterior,
        "energy_start": energies[0].mean() if len(energies) else torch.zeros(()),
        **(expert_shares(experts, revised["z"]) if "z" in revised and not completed else {}),
        **model.priors.terms(),
    }
    parts = {"generator": generator, "inference": inference}
    if model.resample_negatives or model.repeats:
        return _in_turns(model, x, ends, Loss.of(terms, **parts), check)
    energy, energy_terms = model.energy_loss(x, negatives)
    terms |= energy_terms
    if check:
        check_chains(terms, model.entries, model.data_start)
    return Loss.of(terms, **parts, energy=energy)


def generator_loss(
    model: Cooperative, x: Batch, ends: Ends, first: State
) -> tuple[Tensor, dict[str, Tensor]]:
    """-a_d log p_w(x | z+) - a_s log p_w(x- | z) (P1 Eqn 11), and both terms; `first` is the generator at z.

    A data chain that starts from noise leaves no pair (z, x-), so the second term is left out then.
    """
    on_data = -model.log_likelihood(x, model.generate(ends.revised)).mean()
    if model.data_start != "generator":
        return model.generator_on_data * on_data, {"on_data": on_data}
    on_revised = -model.log_likelihood_of_revised(ends.negatives, first).mean()
    loss = model.generator_on_data * on_data + model.generator_on_revised * on_revised
    return loss, {"on_data": on_data, "on_revised": on_revised}


def inference_loss(
    model: Cooperative, x: Batch, experts: Mapping[str, Expert], ends: Ends
) -> tuple[Tensor, dict[str, Tensor]]:
    """-b_d log q_f(z+ | x) - b_s log q_f(z | x-) (P1 Eqn 12), and both terms; `experts` are those of x.

    Not in P1: with `own_ends` log q_m of the expert m whose draw became z+ stands for the first logarithm,
    the mean of log q_m for the second; with `inference_on_bound` b_e > 0 there is also -b_e ELBO(x), in which
    the generators are constants.
    """
    on_data = -model.log_joint_posterior(experts, ends.revised, ends.unobserved, ends.chosen).mean()
    loss, terms = model.inference_on_data * on_data, {"infer_data": on_data}
    if model.data_start == "generator":
        seen = model.experts(model.texts.read(ends.negatives))
        on_revised = -model.log_joint_posterior(seen, ends.latent).mean()
        loss, terms["infer_revised"] = loss + model.inference_on_revised * on_revised, on_revised
    if model.inference_on_bound:
        with frozen(model.generators):
            terms["infer_bound"] = -model.elbo(x, experts)[0]
        loss = loss + model.inference_on_bound * terms["infer_bound"]
    return loss, terms


def _in_turns(model: Cooperative, x: Batch, ends: Ends, first: Loss, check: bool) -> Iterator[Loss]:
    """The losses of an iteration one after the other, for `resample_negatives` and `updates`.

    Generator and inference step first, each as often as `updates` says; then the energy, with
    `resample_negatives` on X- drawn again from the generator that has learned. Only the first loss of each
    network has terms, so that the log shows the curves of a single turn.
    """
    yield first
    repeats, negatives = model.repeats, ends.negatives
    for turn in range(1, max(repeats.get("generator", 1), repeats.get("inference", 1))):
        parts = {}
        if turn < repeats.get("generator", 1):
            parts["generator"] = generator_loss(model, x, ends, model.first_images(ends.latent))[0]
        if turn < repeats.get("inference", 1):
            parts["inference"] = inference_loss(model, x, model.experts(x), ends)[0]
        yield Loss(torch.stack(list(parts.values())).sum(), {}, parts)
    if model.resample_negatives:
        with torch.no_grad():
            start = model.first_images(ends.latent)
        negatives = model.revise_data(start)[0]
    energy, terms = model.energy_loss(x, negatives)
    if check:
        check_chains(first.terms | terms, model.entries, model.data_start)
    yield Loss.of(terms, energy=energy)
    for _ in range(1, repeats.get("energy", 1)):
        energy = model.energy_loss(x, negatives)[0]
        yield Loss(energy, {}, {"energy": energy})


def elbo(
    model: Cooperative, x: Batch, experts: Mapping[str, Expert]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """MMVAE(+) ELBO of a batch, scalar, and the latents drawn for it; images `x` in [-1, 1].

    (1/M) sum_m E_{q_m}[ sum_n log p_n(x_n | z, w_n) + warm_beta (log p(z, w_m) - log q(z, w_m | X)) ];
    private latents of the other modalities come from the prior, as in cross generation.
    """
    bounds, draws = [], []
    for name, expert in experts.items():
        own = {"z": expert.z.rsample()}
        if expert.w is not None:
            own[f"w.{name}"] = expert.w.rsample()
        log_q = mixture_log_prob([e.z for e in experts.values()], own["z"])
        draws.append(own)
        kl = log_q + log_private({name: expert}, own) - model.log_prior(own)
        drawn = model.generate(model.prior_draw(len(own["z"])) | own)
        bounds.append(model.log_likelihood(x, drawn) - model.warm_beta * kl)
    return torch.stack(bounds).mean(), draws


def log_mixture(
    experts: Mapping[str, Expert],
    latent: Mapping[str, Tensor],
    mean_share: float = 0.0,
    unobserved: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """l = lse_m log q_m(z|x_m) - log M, plus log q_m(w_m|x_m) for private latents (P1 Eqn 12) `[B]`.

    `mean_share` > 0 mixes in that share of the mean of log q_m, so that no expert starves.
    """
    shared = [e.z for e in experts.values()]
    log_q = mixture_log_prob(shared, latent["z"])
    if mean_share:
        mean = torch.stack([q.log_prob(latent["z"]) for q in shared]).mean(0)
        log_q = (1 - mean_share) * log_q + mean_share * mean
    return log_q + log_private(experts, latent, unobserved)


def log_own(
    experts: Mapping[str, Expert],
    latent: Mapping[str, Tensor],
    chosen: Tensor | None = None,
    unobserved: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """log q_m(z|x_m), m = `chosen` `[B]`, or its mean over m, plus log q_m(w_m|x_m) `[B]`.

    With m given, log q_m = log q_f(m, z | X) + log M, the mixture of P1 Eqn 5 with its component observed, so
    that log q_m - log M <= log q_f (Eqn 12). The mean over m lies below log q_f as it is (Jensen). Unlike the
    log-sum-exp both teach every expert.
    """
    logs = torch.stack([e.z.log_prob(latent["z"]) for e in experts.values()])
    log_q = logs.mean(0) if chosen is None else logs.gather(0, chosen.unsqueeze(0)).squeeze(0)
    return log_q + log_private(experts, latent, unobserved)


def one_expert_each(experts: int, like: Mapping[str, Tensor]) -> Tensor:
    """Which expert draws for every example `[B]`: all equally often, in an order that starts anywhere."""
    block = next(iter(like.values()))
    rows = torch.arange(len(block), device=block.device)
    return (rows + torch.randint(experts, (1,), device=block.device)) % experts


def expert_shares(experts: Mapping[str, Expert], z: Tensor) -> dict[str, Tensor]:
    """Mean share `share.<modality>` of each expert in the mixture at z, q_m(z|x_m) / sum_n q_n(z|x_n).

    The log-sum-exp trains the nearest expert most (METHODS 2.14.7): a share near 0 is one that starves. With
    `own_ends` it would say nothing of what an expert learns, and is not logged.
    """
    with torch.no_grad():
        share = torch.stack([e.z.log_prob(z) for e in experts.values()]).softmax(0).mean(1)
    return {f"share.{name}": value for name, value in zip(experts, share, strict=True)}


def log_private(
    experts: Mapping[str, Expert],
    latent: Mapping[str, Tensor],
    unobserved: Mapping[str, Tensor] | None = None,
) -> Tensor | float:
    """sum_m log q_m(w_m | x_m) `[B]`; 0 where there are no private latents and for rows `unobserved`."""
    logs = {f"w.{k}": e.w.log_prob(latent[f"w.{k}"]) for k, e in experts.items() if e.w is not None}
    for name, rows in (unobserved or {}).items():
        logs[name] = logs[name].masked_fill(rows, 0.0)
    return torch.stack(list(logs.values())).sum(0) if logs else 0.0
