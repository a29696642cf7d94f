"""Settings of a small `ours` and its relatives, for the tests that build one."""

from __future__ import annotations

ENERGY = dict(energy_width=8, stem_width=4, data_steps=3)
SMALL = dict(
    **ENERGY,
    network="cnn",
    width=4,
    latent=5,
    latent_steps=4,
    latent_step_size=0.01,
    latent_noise=0.01,
)
