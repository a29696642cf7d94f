"""Ranges of the settings of `Cooperative`, checked before they cost a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POSITIVE = ("latent", "width", "energy_width", "stem_width", "stem_stride", "data_step_size",
            "latent_step_size", "sigma", "lr_energy", "lr_generator", "lr_inference",
            "warm_rate", "text_scale", "prior_components")  # fmt: skip
NOT_NEGATIVE = ("energy_penalty", "data_steps", "data_noise", "latent_steps", "latent_noise",
                "latent_max_drift", "generator_on_data", "generator_on_revised", "inference_on_data",
                "inference_on_revised", "inference_on_bound", "weight_decay", "decay", "clip",
                "warm_beta", "text_weight", "prior_renewals")  # fmt: skip


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting outside its range, before it costs a run."""
    for name in POSITIVE:
        if not settings[name] > 0:
            raise ValueError(f"{name}={settings[name]} is impossible; give more than 0")
    for name in NOT_NEGATIVE:
        if settings[name] < 0:
            raise ValueError(f"{name}={settings[name]} is impossible; give 0 or more")
    for name in ("expert_mean", "warm_start"):
        if not 0 <= settings[name] <= 1:
            raise ValueError(f"{name}={settings[name]} is no share; give one in [0, 1]")
    for name in ("beta1", "beta2"):
        if not 0 <= settings[name] < 1:
            raise ValueError(f"{name}={settings[name]} is impossible; give one in [0, 1)")
    check_log_variances(settings["log_variance_low"], settings["log_variance_high"])
    if settings["fit_prior"] and settings["prior"] != "gaussian":
        raise ValueError("fit_prior fits a normal prior; give prior=gaussian, or fit_prior=false")
    if settings["prior_renewals"] and not (settings["fit_prior"] and settings["prior_components"] > 1):
        raise ValueError("prior_renewals is for a fitted mixture; give fit_prior=true, prior_components > 1")
    for name in ("own_ends", "inference_on_bound", "prior_renewals"):
        if settings["warm_start"] == 1 and settings[name]:
            raise ValueError(f"{name} acts while chains revise; leave it, or give warm_start < 1")
    if settings["own_ends"] and settings["latent_start"] != "inference":
        raise ValueError(
            "own_ends needs chains that experts start; give latent_start=inference, or own_ends=false"
        )
    if settings["own_ends"] and settings["expert_mean"]:
        raise ValueError("expert_mean weighs a mixture that own_ends does not use; leave one of them")
    if settings["temper_energy_loss"] and not settings["data_noise"]:
        raise ValueError("temper_energy_loss divides by data_noise; give data_noise > 0")


def check_log_variances(low: float, high: float, of: str = "") -> None:
    """Raises ValueError unless the bounds on log-variances, of private latents or of z, are in order."""
    if low >= high:
        raise ValueError(f"log_variance_low={low} must lie below {of}log_variance_high={high}")


def repeats_of(updates: str) -> dict[str, int]:
    """`1:2:1` -> how often energy, generator and inference step per iteration; {} where each does so once.

    Raises ValueError for anything but three whole numbers of at least 1.
    """
    parts = updates.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(f"updates={updates} is no ratio; give energy:generator:inference, for example 1:2:1")
    counts = dict(zip(("energy", "generator", "inference"), map(int, parts), strict=True))
    return counts if set(counts.values()) != {1} else {}
