"""The scripts behind docs/performance.md measure both sides of every pair."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import compiled_speed
import loop_speed
import pytest
import speed_data
import torch
import torch._dynamo
import variants_speed

from bench.build import build_method
from bench.cli import cli
from bench.config import resolve
from bench.timing import Timing
from datasets.spec import Batch
from methods.base import Loss, Progress
from methods.mmvae import MMVAE
from methods.parts.langevin import frozen
from methods.parts.networks.build import build_decoder
from methods.parts.networks.upsampling import DoublingConv
from methods.parts.vae import MultimodalVAE

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"


def test_both_forms_of_the_energy_network_are_timed() -> None:
    found = variants_speed.energies(4, 2, 1, 3, "processor", warmup=0, repeats=2)
    assert list(found) == ["plain", "as it is"] and all(len(t.seconds) == 2 for t in found.values())
    what, plain, fast, times = variants_speed.line("energy", found)
    assert plain.startswith("plain ") and fast.startswith("as it is ") and float(times) > 0


def test_both_layouts_are_timed() -> None:
    sets = ["train.batch_size=4", "width=8", "latent=4"]
    found = variants_speed.layouts("mmvae", "quick", sets, "wall", warmup=0, repeats=1)
    assert list(found) == ["as they come", "channels last"]


def test_both_decoders_are_timed_and_the_fast_one_stays() -> None:
    fast, sets = DoublingConv.forward, ["train.batch_size=4", "width=8", "latent=4"]
    found = variants_speed.decoders("mmvae", "quick", sets, "wall", warmup=0, repeats=1)
    assert list(found) == ["torch's", "as it is"] and DoublingConv.forward is fast


def test_pieces_are_timed_give_the_same_loss_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sets = MultimodalVAE._log_likelihood, ["train.batch_size=4", "width=8", "latent=4", "samples=1"]
    seen: list[torch.Tensor] = []

    def alternate(calls: dict[str, Callable[[], None]], *_: object) -> dict[str, Timing]:
        for call in calls.values():
            torch.manual_seed(0)
            call()
        return {name: Timing([1.0]) for name in calls}

    def spied(self: MMVAE, x: Batch, progress: Progress) -> Loss:
        loss = forward(self, x, progress)
        seen.append(loss.total.detach())
        return loss

    forward = MMVAE.forward
    monkeypatch.setattr(MMVAE, "forward", spied)
    monkeypatch.setattr(variants_speed, "alternate", alternate)
    found = variants_speed.pieces("mmvae", "quick", [*sets, "lr=1e-12"], 7, "wall", warmup=0, repeats=1)
    assert list(found) == ["in pieces", "whole"] and MultimodalVAE._log_likelihood is whole
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=0)


def test_memory_is_timed_before_and_after() -> None:
    sets = ["train.batch_size=4", "width=8", "latent=4"]
    found = variants_speed.kept_memory("mmvae", "quick", sets, "wall", warmup=0, repeats=1)
    assert list(found) == ["given back", "kept"]


def test_the_steps_of_a_loop_are_part_of_its_training_time() -> None:
    steps, timing = loop_speed.measure("mvae", "quick", 2)
    assert 0 < steps < timing["train_s"] < timing["wall_s"]


@pytest.mark.parametrize("case", ["mvae", "mmvae K=1 dreg", "mmvaeplus K=1 iwae"])
def test_both_libraries_are_timed(case: str) -> None:
    pytest.importorskip("multivae", reason="needs MultiVae: pip install '.[peers]'")
    import peers_speed

    found = peers_speed.compare(case, 2, "fp32", "processor", warmup=0, repeats=1)
    assert found.ours.median > 0 and found.theirs.median > 0 and found.speed > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to count a peak anew")
def test_memory_of_both_libraries_is_that_of_processes_of_their_own() -> None:
    pytest.importorskip("multivae", reason="needs MultiVae: pip install '.[peers]'")
    import peers_memory

    found = peers_memory.compare("mvae", 2)
    assert list(found) == ["ours", "multivae"]
    assert all(0 < memory.before <= memory.peak for memory in found.values())


def test_every_command_of_the_page_is_one_of_ours() -> None:
    """Options and scripts exist; the commands themselves take minutes."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\d+", word)]
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), line
        elif words == ["bench", "--help"]:
            continue
        elif words[0] == "bench":
            command = cli.commands[words[1]]
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            assert {word for word in words[2:] if word.startswith("--")} <= known, line
        else:
            assert words[:2] == ["pip", "install"], line


def test_compiled_networks_learn_what_others_do_even_after_a_chain_that_froze_them() -> None:
    sets = ["train.batch_size=4", "width=4", "latent=4", "energy_width=4", "stem_width=2", "latent_steps=2"]
    config = resolve("ours", "polydigits", "quick", [*sets, "data_steps=2", "warm_start=0"])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(compiled_speed.NO_WAY_BACK):
        sides = compiled_speed.both_sides(config, torch.device("cpu"), "aot_eager", None)
        for chain in compiled_speed.chains(sides["compiled"]).values():
            chain()
        stage = next(s for s in sides["compiled"].method.stages if s.name == "revision")
        plain, fast = (compiled_speed.gradients(s, stage) for s in sides.values())
    assert compiled_speed.deviation(plain, fast) < 1e-4
    assert len(plain) > 50
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 3
    fast.pop(next(iter(fast)))
    assert compiled_speed.deviation(plain, fast) == float("inf")


def test_a_graph_of_a_chain_is_not_taken_for_training() -> None:
    torch._dynamo.reset()
    network = build_decoder(speed_data.PICTURES["m0"], 4, "cnn", 4)
    compiled_speed.compile_alone(network, "aot_eager", None)
    z = torch.randn(2, 4, requires_grad=True)
    with frozen(network):
        network(z).sum().backward()
    network(z).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_networks_that_are_compiled_are_the_outermost_and_all_of_them() -> None:
    method = build_method(resolve("ours", "polydigits", "quick"), speed_data.PICTURES)
    found = list(compiled_speed.networks(method))
    assert len(found) == 5 + 5 + 1
    below = {id(p) for network in found for p in network.parameters()}
    assert below == {id(p) for p in method.parameters()}
