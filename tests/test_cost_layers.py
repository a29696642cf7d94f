"""Networks alone: the recorded passes are those that the method makes, and cost what the method counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mixed_data import MixedData
from tiny import TinyData
from torch import nn

from bench.benchmark_step import subject, training_steps
from bench.config import class_signature, resolve
from bench.cost_report import measure
from bench.cost_text import table_text, to_json
from bench.layers import CHAIN_STEPS, Call, Passes, chain_steps, recording, step_passes
from bench.registry import load_method_class
from bench.timing import alternate
from metrics.cost import count_flops

CPU = torch.device("cpu")
SMALL = ("latent=4", "width=8", "train.batch_size=6")
CHAINS = (*SMALL, "energy_width=8", "stem_width=4", "data_steps=3", "latent_steps=2")


@pytest.fixture
def make(tmp_path: Path):
    train = TinyData(tmp_path).split("train")
    return lambda method, *sets: subject(method, resolve(method, "tiny:TinyData", "quick", sets), train, CPU)


def counted(passes: Passes) -> dict[str, float]:
    """Class of network -> calls in all."""
    out: dict[str, float] = {}
    for call, count in zip(passes.firsts, passes.counts, strict=True):
        name = type(call.module).__name__
        out[name] = out.get(name, 0) + count
    return out


def flops(passes: Passes) -> float:
    """Operations of all recorded passes, made again."""
    calls = passes.calls().values()
    each = zip(calls, passes.counts, passes.repeats, strict=True)
    return sum(count_flops(call) * count / times for call, count, times in each)


def test_encoders_once_and_decoders_as_often_as_the_method_decodes(make) -> None:
    s = make("mmvae", *SMALL)
    with training_steps(s) as steps:
        passes = step_passes(s, s.method.stages[0])
        # A decoder takes the draws of both experts in one call.
        assert counted(passes) == {"CnnEncoder": 2, "CnnDecoder": 2}
        assert flops(passes) == pytest.approx(count_flops(steps["train"]), rel=1e-3)


def test_what_is_computed_twice_to_save_memory_counts_once(make) -> None:
    s = make("mmvae", *SMALL)
    s.method.memory = 1e-7
    with training_steps(s) as steps:
        passes = step_passes(s, s.method.stages[0])
        assert counted(passes)["CnnDecoder"] > 2
        assert flops(passes) < 0.9 * count_flops(steps["train"])
    whole = make("mmvae", *SMALL)
    with training_steps(whole):
        assert flops(passes) == pytest.approx(flops(step_passes(whole, whole.method.stages[0])))


def test_every_pass_of_both_chains_is_recorded(make) -> None:
    s = make("ours", *CHAINS)
    with training_steps(s) as steps:
        passes = step_passes(s, s.method.stages[-1])
        found = counted(passes)
        assert found["JointEnergy"] == 3 + 1  # K steps of the data chain, one contrast
        assert found["CnnDecoder"] == 2 * (2 + 2)  # T steps, X^ and the reconstruction, for two modalities
        assert flops(passes) == pytest.approx(count_flops(steps["revision"]), rel=0.02)
        chain = [c for c in passes.firsts if c.frozen]
        assert {type(c.module).__name__ for c in chain} == {"JointEnergy", "CnnDecoder"}
        assert all(c.grad and not any(c.trained) for c in chain)


def test_a_chain_step_is_one_energy_and_one_pass_of_every_generator(make) -> None:
    s = make("ours", *CHAINS)
    with training_steps(s):
        chains = chain_steps(s)
        assert counted(chains["energy step"].passes) == {"JointEnergy": 1}
        assert counted(chains["posterior step"].passes) == {"CnnDecoder": 2}
        for chain in chains.values():
            assert CHAIN_STEPS * flops(chain.passes) == pytest.approx(count_flops(chain.call), rel=0.02)
    assert chain_steps(make("mmvae", *SMALL)) == {}


def test_seconds_add_up(make) -> None:
    (found,) = measure([make("ours", *CHAINS)], warmup=0, repeats=2, layers=True, sampling=False)
    assert set(found.alone) == {"revision", "energy step", "posterior step"}
    for alone in found.alone.values():
        assert alone.networks.median > 0 and alone.step.median > 0
    assert found.alone["revision"].step.seconds == found.stages["revision"].seconds


class Halves(nn.Module):
    """A network whose output is no tensor, around one whose output is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> set:
        self.inner(x)
        return {"not a tensor", len(self.inner(x))}


def test_the_outermost_networks_that_give_tensors_are_recorded() -> None:
    outer = nn.Sequential(Halves())
    method = nn.Module()
    method.net, method.plain = outer, nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with recording(method) as recorder:
        outer(torch.rand(4, 3))  # not yet on
        recorder.on = True
        outer(torch.rand(4, 3))
        method.plain(torch.rand(5, 3, requires_grad=True))
    names = [type(call.module).__name__ for call in recorder.calls()]
    assert names == ["Linear", "Linear", "Sequential"]
    passes = Passes(recorder.calls(), CPU, "fp32")
    assert passes.counts == [2, 1] and passes.firsts[1].arguments[0].requires_grad
    before = [p.requires_grad for p in method.parameters()]
    total = passes.total(alternate(passes.calls(), CPU, 0, 2))
    assert len(total.seconds) == 2 and [p.requires_grad for p in method.parameters()] == before
    assert all(p.grad is None for p in method.parameters())


def test_a_call_without_gradient_has_no_backward_pass() -> None:
    net, x = nn.Linear(3, 2), torch.rand(4, 3)
    with torch.no_grad():
        bare = Call(net, (x,))
    assert count_flops(bare.again) == 2 * 4 * 3 * 2
    assert count_flops(Call(net, (x,)).again) == 2 * 2 * 4 * 3 * 2


@pytest.mark.parametrize("method", ["mvae", "moe_ebm", "ours_w"])
def test_pictures_and_captions(tmp_path: Path, method: str) -> None:
    """Token ids, continuous captions, chains in learned priors: everything can be made again."""
    known = class_signature(load_method_class(method))[0]
    sizes = {"latent": 4, "private": 3, "width": 8, "energy_width": 8, "stem_width": 4, "data_steps": 2}
    steps = {"latent_steps": 2, "prior_steps": 2, "posterior_steps": 2, "train.batch_size": 4}
    sets = [f"{k}={v}" for k, v in (sizes | steps).items() if k in known or "." in k]
    config = resolve(method, "mixed_data:MixedData", "quick", sets)
    s = subject(method, config, MixedData(tmp_path).split("train"), CPU)
    (found,) = measure([s], warmup=0, repeats=1, layers=True)
    assert set(found.alone) >= {stage.name for stage in s.method.stages}
    json.dumps(to_json(found), allow_nan=False)
    assert len(table_text([found]).splitlines()) > 15
