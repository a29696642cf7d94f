"""What was tried for speed, beside what it would replace, in turns in one process.

    python tests/variants_speed.py

Energy: forward and input-gradient pass of `ours`' energy network as it is (pooled stride-2 kernels, one
convolution for all stems) and in its plain form (every convolution and pooling by itself). Channels last:
a whole training step with weights and batch laid out so, and as they come. Decoder: a step with torch's
transposed convolutions, and with `DoublingConv`. Rows: a step that decodes the draws of every expert in
pieces, and in one call per network. Memory: a step where glibc gives every large block back to
the system, and where the process keeps it; the first comes before all else, since there is no way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import click
import torch
import torch.nn.functional as F
from speed_data import CPU, PICTURES, tuples
from test_parts_energy import plain_energy
from torch import Tensor
from torch.nn.utils import parametrize

from bench.benchmark_step import Subject, subject, training_steps
from bench.config import resolve
from bench.listing import columns
from bench.memory import keep_freed_memory
from bench.timing import CLOCKS, Timing, alternate
from datasets.spec import Modality
from methods.parts.langevin import frozen
from methods.parts.networks.energy import JointEnergy
from methods.parts.networks.upsampling import DoublingConv
from methods.parts.vae import MultimodalVAE

Energy = Callable[[dict[str, Tensor]], Tensor]


def input_gradient(energy: Energy, x: dict[str, Tensor]) -> None:
    leaves = {name: image.detach().requires_grad_() for name, image in x.items()}
    torch.autograd.grad(energy(leaves).sum(), list(leaves.values()))


def energies(
    width: int, stem: int, stride: int, batch_size: int, clock: str, warmup: int, repeats: int
) -> dict[str, Timing]:
    """Ten passes of both forms of the energy network at one batch, spectral norms computed once."""
    net = JointEnergy(PICTURES, width, stem, stride)
    x = {name: 2 * image - 1 for name, image in tuples(batch_size).batch(slice(None)).items()}

    def passes(energy: Energy) -> Callable[[], None]:
        def run() -> None:
            with frozen(net), parametrize.cached():
                for _ in range(10):
                    input_gradient(energy, x)

        return run

    calls = {"plain": passes(lambda leaves: plain_energy(net, leaves, (2, 2, 2, 2))), "as it is": passes(net)}
    return alternate(calls, CPU, warmup, repeats, clock)


def channels_last(s: Subject) -> Subject:
    """The same with weights and pictures laid out channels last."""
    s.method.to(memory_format=torch.channels_last)
    batch = {name: t.contiguous(memory_format=torch.channels_last) for name, t in s.batch.items()}
    return Subject("channels last", s.config, s.method, batch, s.train, s.device)


def layouts(
    method: str, preset: str, sets: Sequence[str], clock: str, warmup: int, repeats: int
) -> dict[str, Timing]:
    """The last stage's training step in both layouts."""
    config = resolve(method, "polydigits", preset, sets)
    train = tuples(config.train.batch_size)
    usual = subject("as they come", config, train, CPU)
    last = channels_last(subject("", config, train, CPU))
    with training_steps(usual) as one, training_steps(last) as other:
        calls = {"as they come": [*one.values()][-1], "channels last": [*other.values()][-1]}
        return alternate(calls, CPU, warmup, repeats, clock)


def replaced(
    owner: type, name: str, function: Callable[..., Tensor], step: Callable[[], object]
) -> Callable[[], None]:
    """`step` with `function` in place of `owner`'s method `name`."""

    def run() -> None:
        with mock.patch.object(owner, name, function):
            step()

    return run


def torchs_own(self: DoublingConv, x: Tensor) -> Tensor:
    """What `DoublingConv` replaces."""
    return F.conv_transpose2d(x, self.weight, self.bias, 2, 1, self.output_padding)


def decoders(
    method: str, preset: str, sets: Sequence[str], clock: str, warmup: int, repeats: int
) -> dict[str, Timing]:
    """The last stage's training step with either transposed convolution."""
    config = resolve(method, "polydigits", preset, sets)
    with training_steps(subject("", config, tuples(config.train.batch_size), CPU)) as steps:
        step = [*steps.values()][-1]
        plain = replaced(DoublingConv, "forward", torchs_own, step)
        return alternate({"torch's": plain, "as it is": step}, CPU, warmup, repeats, clock)


def pieces(
    method: str, preset: str, sets: Sequence[str], size: int, clock: str, warmup: int, repeats: int
) -> dict[str, Timing]:
    """The last stage's training step with decoder calls of at most `size` rows, and with whole ones."""
    config = resolve(method, "polydigits", preset, sets)

    def in_pieces(self: MultimodalVAE, modality: Modality, x: Tensor, latent: Tensor) -> Tensor:
        example = torch.arange(len(x)).repeat(latent[..., 0, 0].numel())
        parts = zip(latent.flatten(0, -2).split(size), example.split(size), strict=True)
        found = [self.likelihood(modality, x[e], self._location(modality.name, z)) for z, e in parts]
        return torch.cat(found).view(latent.shape[:-1])

    with training_steps(subject("", config, tuples(config.train.batch_size), CPU)) as steps:
        step = [*steps.values()][-1]
        divided = replaced(MultimodalVAE, "_log_likelihood", in_pieces, step)
        return alternate({"in pieces": divided, "whole": step}, CPU, warmup, repeats, clock)


def kept_memory(
    method: str, preset: str, sets: Sequence[str], clock: str, warmup: int, repeats: int
) -> dict[str, Timing]:
    """The last stage's training step before and after the process keeps freed memory; once per process."""
    config = resolve(method, "polydigits", preset, sets)
    with training_steps(subject("", config, tuples(config.train.batch_size), CPU)) as steps:
        step = [*steps.values()][-1]
        before = alternate({"given back": step}, CPU, warmup, repeats, clock)
        keep_freed_memory()
        return before | alternate({"kept": step}, CPU, warmup, repeats, clock)


def line(what: str, found: dict[str, Timing]) -> list[str]:
    (first, before), (second, after) = found.items()
    times = f"{before.median / after.median:.2f}"
    return [what, f"{first} {before.median:.4g} s", f"{second} {after.median:.4g} s", times]


@click.command()
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="processor", show_default=True)
@click.option("--warmup", default=1, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(**how) -> None:
    """Print every pair and how many times as fast the second is."""
    rows = [["", "first", "second", "1st / 2nd"]]
    rows.append(line("step of mmvae, paper, memory", kept_memory("mmvae", "paper", [], **how)))
    for method, preset in (("mmvae", "quick"), ("mmvae", "paper"), ("ours", "quick"), ("moe_ebm", "quick")):
        rows.append(line(f"step of {method}, {preset}, decoder", decoders(method, preset, [], **how)))
    for size in (128, 64, 32):
        what = f"step of mmvae, paper, K = 1, {size} rows"
        rows.append(line(what, pieces("mmvae", "paper", ["samples=1"], size, **how)))
    for preset, *form in (("quick", 32, 8, 2, 64), ("wide", 64, 16, 1, 64)):
        what = f"energy network of {preset}, batch {form[-1]}"
        rows.append(line(what, energies(*form, **how)))
    for method, preset in (("ours", "quick"), ("mmvae", "paper")):
        for precision in ("fp32", "bf16"):
            found = layouts(method, preset, [f"train.precision={precision}"], **how)
            rows.append(line(f"step of {method}, {preset}, {precision}", found))
    click.echo(f"{torch.get_num_threads()} threads, {how}\n{columns(rows)}")


if __name__ == "__main__":
    main()
