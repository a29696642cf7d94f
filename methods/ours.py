"""Multimodal EBM, shared generator and joint inference learned together through MCMC revision.

Cui, Lao, Yu, "Learning Multimodal Energy-Based Model with Multimodal Variational Auto-Encoder via MCMC
Revision", TMLR 2026, arXiv 2605.00644 (P1).

Models     p_a(X) = exp(-U_a(X)) / Z                                                  (Eqn 1)
           p_w(X, z) = p_0(z) prod_m N(x_m; G_m(z), sigma^2 I)                        (Eqn 4)
           q_f(z|X) = (1/M) sum_m q_m(z|x_m)                                          (Eqn 5)
Revision   x <- x - (s_x^2/2) dU/dx + n_x eps        K steps from X^ = G(z), z ~ p_0   (Eqn 3)
           z <- z + (s_z^2/2) dlog p_w(z|X)/dz + n_z eps   T steps from q_f(z|X)      (Eqn 8)
Losses     energy     E_data[U(x)] - E[U(x-)]                                         (Eqn 10)
           generator  -E[log p_w(x | z+)] - E[log p_w(x- | z)]                        (Eqn 11)
           inference  -E[log q_f(z+ | x)] - E[log q_f(z | x-)]                        (Eqn 12)

x- and z+ are the ends of the chains and constants for every loss; `Cooperative` transcribes the steps.

Not in P1: with `fit_prior` p_0(z) is fitted to the z+ of training, the M step of EM in closed form. One
normal distribution (`FittedNormal`) is for X the same model as N(0, I) with an affine map before the
generator. A mixture of `prior_components` (`FittedMixture`) is more than that: it follows the clusters of the
posterior, between which draws of a single normal fall. In short training gradients hardly move z+ from where
the warm start left it, and draws of N(0, I) fall beside it (docs/ablations.md, prior N(0, I)).

Off by default and not in P1 either (docs/tuning.md): `own_ends`, by which expert m learns the ends of the
chains that its draws started, the index of the mixture observed, and all experts learn z of x-;
`inference_on_bound`, the ELBO of the warm start for q_f alone while chains revise; and `prior_renewals`, a
mixture found anew while the posterior moves.
"""

from __future__ import annotations

from methods.parts.cooperative import Cooperative


class Ours(Cooperative):
    """`ours`: one latent z shared by all modalities (METHODS 2.14)."""

    citation = "Cui, Lao, Yu: Learning Multimodal EBM with Multimodal VAE via MCMC Revision. TMLR 2026"
