import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode
from toy_data import ToyData

from bench.config import Plan
from bench.costing import cost_scores, step_cost
from bench.generate import events
from bench.sampling_cost import cross_case, protocol_scores
from datasets.spec import DataSpec, Modality
from methods.base import Loss, Method, ParamGroup, Stage
from metrics import cost as cost_module
from metrics.cost import count_flops, parameters, peak_call_mb, sampling_overhead, timed_call


class Energetic(Method):
    """A linear decoder, an encoder, and an energy network that one of two samplers uses."""

    samplers = {"gen": ("joint", "cross"), "ebm": ("joint",)}

    def __init__(self, spec):
        super().__init__(spec)
        self.size = spec["a"].size
        self.encoder = nn.Linear(self.size, 4)
        self.decoder = nn.Linear(4, self.size)
        self.energy = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(self.size, 8)), nn.Tanh(), nn.Linear(8, 1)
        )
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("steps_done", torch.zeros(()))

    @property
    def stages(self):
        return (Stage("vae", ("generator", "inference"), 0.75), Stage("ebm", ("energy", "prior"), 0.25))

    def param_groups(self):
        return {
            "generator": ParamGroup(list(self.decoder.parameters())),
            "inference": ParamGroup(list(self.encoder.parameters())),
            "energy": ParamGroup(list(self.energy.parameters())),
            "prior": ParamGroup([self.scale]),
        }

    def forward(self, x, progress):
        self.steps_done += 1
        flat = x["a"].flatten(1)
        if progress.stage == "vae":
            return Loss.of(rec=(self.decoder(self.encoder(flat)) - flat).square().sum())
        return Loss.of(energy=self.energy(flat).mean() + self.scale.square().sum())

    def decode(self, latent, targets):
        images = self.decoder(latent["z"]).view(-1, *self.spec["a"].shape)
        return {t: images for t in targets}

    def joint_generate(self, n, sampler=None, steps=None):
        out = self.decode({"z": torch.randn(n, 4) * self.scale}, self.spec.names)
        if sampler == "ebm":
            with torch.enable_grad():
                x = out["a"].detach().requires_grad_()
                (grad,) = torch.autograd.grad(self.energy(x.flatten(1)).sum(), x)
            out = {k: v - grad for k, v in out.items()}
        return out

    def cross_generate(self, given, targets, sampler=None, steps=None):
        return self.decode({"z": self.encoder(next(iter(given.values())).flatten(1))}, targets)

    def nfe(self, sampler, task, steps=None):
        return 2 if sampler == "ebm" else 1


@pytest.fixture
def data(tmp_path):
    return ToyData(tmp_path)


@pytest.fixture
def method(data):
    torch.manual_seed(0)
    return Energetic(data.spec)


def test_flops_equal_torch_s_own_counter():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.rand(5, 3, 8, 8)

    def step():
        net(x).sum().backward()

    with FlopCounterMode(display=False) as theirs:
        step()
    assert count_flops(step) == theirs.get_total_flops() > 0


def test_flops_count_gradients_with_respect_to_a_leaf():
    net = nn.Linear(6, 1)

    def langevin():
        x = torch.rand(3, 6, requires_grad=True)
        return torch.autograd.grad(net(x).sum(), x)

    # 2 * 3 * 6 forward, as many for the gradient of the input, none for the weights.
    assert count_flops(langevin) == 72


def test_overhead_is_what_the_sampler_reads(method):
    groups = {name: g.params for name, g in method.param_groups().items()}
    energy = parameters(method.energy)
    with torch.no_grad():
        assert sampling_overhead(groups, lambda: method.joint_generate(2, "gen")) == 4
        method.eval()
        assert sampling_overhead(groups, lambda: method.joint_generate(2, "ebm")) == 4 + energy
        assert (
            sampling_overhead(groups, lambda: method.cross_generate({"a": torch.rand(1, 3, 8, 8)}, ["b"]))
            == 0
        )
    assert sampling_overhead({"generator": groups["generator"]}, lambda: method.joint_generate(2)) == 0


def test_measuring_a_step_leaves_no_trace(method, data):
    batch = data.split("train").batch(slice(0, 16))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    method.eval()
    cost = step_cost(method, batch, timed=True, warmup=1, repeats=2)
    assert torch.equal(torch.rand(2), expected)
    assert cost.flops > 0 and cost.seconds > 0 and cost.peak_mb > 1
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in method.parameters())
    assert not method.training


def test_flops_of_stages_are_weighted_by_their_share(method, data):
    batch = data.split("train").batch(slice(0, 16))
    d = method.size
    # vae: two products forward, for each of them the weights' gradient, and the input's for the second only.
    vae = 2 * 16 * d * 4 * 5
    found = step_cost(method, batch).flops
    assert 0.75 * vae < found < 0.75 * vae + 0.25 * 16 * d * 8 * 12


def test_all_cost_scores(method, data):
    usage = []
    plan = Plan(joint=40, cross=20, subsets="singles")
    list(events(method, data.split("test"), plan, batch_size=20, usage=usage))
    how = {"usage": usage, "device": torch.device("cpu"), "train_batch": 8}
    scores = cost_scores(method, data.split("train"), step_seconds=0.25, **how)
    by = {(s.metric, s.task, s.sampler): s for s in scores}
    assert by["parameters", "", ""].value == parameters(method)
    assert by["nfe", "joint", "ebm"].value == 2
    assert by["param_overhead", "joint", "gen"].value < by["param_overhead", "joint", "ebm"].value
    assert by["sampling_time_s", "joint", "gen"].n == 20  # the first batch warms up
    assert by["sampling_time_s", "cross", "gen"].attribute == "per tuple, batch 20"
    assert ("sampling_time_s", "cross", "ebm") not in by
    assert by["train_time_s_per_iter", "", ""].value == 0.25
    assert by["train_time_s_per_iter", "", ""].attribute == "training loop, batch 8"
    assert by["flops_per_step", "", ""].value > 0
    assert by["peak_memory_mb", "", ""].value > 1
    alone = cost_scores(method, data.split("train"), samplers=["gen"], device=torch.device("cpu"))
    by = {(s.metric, s.task, s.sampler): s for s in alone}
    assert by["sampling_time_s", "joint", "gen"].value > 0
    assert by["train_time_s_per_iter", "", ""].attribute.startswith("forward and backward")
    assert not any(s.sampler == "ebm" for s in alone)


class Clock:
    """A call that takes `seconds` on a clock of its own, and counts."""

    def __init__(self, seconds, monkeypatch):
        self.seconds, self.now, self.calls = seconds, 0.0, 0
        monkeypatch.setattr(cost_module.time, "perf_counter", lambda: self.now)

    def __call__(self):
        self.calls += 1
        self.now += self.seconds


@pytest.mark.parametrize(
    ("seconds", "budget", "calls", "text"),
    [
        (0.5, math.inf, 13, "3 warm-ups, mean of 10"),
        (1.0, 13.0, 13, "3 warm-ups, mean of 10"),
        (1.0, 5.0, 5, "1 warm-up, mean of 4"),
        (1.0, 12.5, 11, "1 warm-up, mean of 10"),
        (3.0, 6.0, 2, "1 warm-up, mean of 1"),
        (8.0, 6.0, 1, "0 warm-ups, mean of 1"),
    ],
)
def test_a_call_is_timed_as_often_as_the_budget_pays_for(seconds, budget, calls, text, monkeypatch):
    clock = Clock(seconds, monkeypatch)
    found = timed_call(clock, torch.device("cpu"), budget)
    assert (found.seconds, found.text, clock.calls) == (pytest.approx(seconds), text, calls)


def test_sampling_is_timed_by_the_protocol_and_leaves_no_trace(method, data, monkeypatch):
    drawn = []
    for name in ("joint_generate", "cross_generate"):
        before = getattr(method, name)

        def call(*args, before=before, name=name):
            out = before(*args)
            drawn.append((name, {k: len(t) for k, t in out.items()}, method.training))
            return out

        monkeypatch.setattr(method, name, call)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    cpu = torch.device("cpu")
    scores = protocol_scores(method, data.split("train"), "gen", "joint", cpu, "fp32")
    assert drawn == 14 * [("joint_generate", {"a": 100, "b": 100, "c": 100}, False)]  # one for the memory
    drawn.clear()
    scores += protocol_scores(method, data.split("val"), "gen", "cross", cpu, "fp32")
    assert drawn == 14 * [("cross_generate", {"b": 100, "c": 100}, False)]
    assert torch.equal(torch.rand(2), expected) and method.training
    by = {(s.metric, s.task): s for s in scores}
    for task in ("joint", "cross"):
        batch, sample = by["sampling_batch_s", task], by["sampling_sample_s", task]
        given = ", given a" if task == "cross" else ""
        assert batch.attribute == sample.attribute == f"batch 100, 3 warm-ups, mean of 10{given}"
        assert by["peak_memory_mb", task].value > 0
        assert batch.value == pytest.approx(100 * sample.value) and batch.n == 10


def test_fitted_numbers_count_where_a_sampler_reads_them():
    weight, table, unread = nn.Parameter(torch.ones(3)), torch.ones(4, 4), torch.ones(9)
    found = sampling_overhead(
        {"prior": [weight]}, lambda: weight.sum() + table[1].sum(), [(table, 10), (unread, 9)]
    )
    assert found == 13


def test_memory_is_that_of_the_tensors_alive_at_once():
    module, cpu = torch.nn.Linear(256, 1024), torch.device("cpu")
    weights, row = (256 * 1024 + 1024) / 2**18, 1024 * 1024 / 2**18  # MB of float32

    def call(keep):
        kept = []
        for _ in range(5):
            kept = kept[-keep:]
            kept.append(torch.zeros(1024, 1024))
            kept[-1].view(-1).add_(1)  # a view is no further memory

    assert peak_call_mb(lambda: call(1), module, cpu) == pytest.approx(weights + 2 * row)
    assert peak_call_mb(lambda: call(3), module, cpu) == pytest.approx(weights + 4 * row)
    with torch.no_grad():
        # Input of 1 MB, output of 4 MB.
        peak = peak_call_mb(lambda: module(torch.zeros(1024, 256)), module, cpu)
    assert peak == pytest.approx(weights + row / 4 + row)


def test_a_chain_keeps_no_more_memory_the_longer_it_is():
    module, cpu = torch.nn.Linear(64, 64), torch.device("cpu")

    def chain(steps):
        x = torch.zeros(128, 64)
        for _ in range(steps):
            x.requires_grad_()
            (slope,) = torch.autograd.grad(module(x).tanh().sum(), x)
            x = (x - 0.1 * slope).detach()

    short, long = (peak_call_mb(lambda n=n: chain(n), module, cpu) for n in (3, 30))
    assert long == pytest.approx(short)


def test_of_captioned_pictures_the_caption_is_given():
    picture, caption = Modality("image", "image", (3, 8, 8)), Modality("caption", "text", (32,), 50)
    assert cross_case(DataSpec((picture, caption))) == ("caption", ("image",))
    assert cross_case(DataSpec((picture, Modality("other", "image", (3, 8, 8))))) == ("image", ("other",))
    assert cross_case(DataSpec((caption, Modality("more", "text", (32,), 50)))) == ("caption", ("more",))


def test_a_step_that_fails_is_an_unavailable_cost(method, data, monkeypatch):
    def broken(self, x, progress):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Energetic, "forward", broken)
    scores = cost_scores(method, data.split("train"), device=torch.device("cpu"))
    failed = [s for s in scores if s.value is None]
    assert {s.metric for s in failed} == {"flops_per_step", "train_time_s_per_iter", "peak_memory_mb"}
    assert all("out of luck" in s.unavailable for s in failed)
