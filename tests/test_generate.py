import time
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_data import NAMES, ToyData, ToyJudges

from bench.config import Plan
from bench.generate import Draw, Usage, draws, events, subsets
from datasets.spec import UserError
from methods.base import Diverged, Method
from metrics.coherence import CoherenceMetric
from metrics.fd_clf import fd_clf

PLAN = Plan(joint=30, cross=20, nested=10, subsets="nested")


class Noise(Method):
    """Uniform noise; records how it was called."""

    samplers = {"plain": ("joint", "cross"), "joint_only": ("joint",)}

    def __init__(self, spec):
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = []

    def _draw(self, n, names):
        self.calls.append((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return {name: torch.rand(n, *self.spec[name].shape, device=self.device) for name in names}

    def joint_generate(self, n, sampler=None, steps=None):
        return self._draw(n, self.spec.names)

    def cross_generate(self, given, targets, sampler=None, steps=None):
        with torch.enable_grad():  # what a Langevin sampler does
            x = next(iter(given.values())).clone().requires_grad_()
            torch.autograd.grad(x.square().sum(), x)
        return self._draw(len(x), targets)


@pytest.fixture
def data(tmp_path):
    return ToyData(tmp_path, {"train": 60, "val": 20, "test": 50})


@pytest.fixture
def method(data):
    return Noise(data.spec)


def collect(method, split, plan=PLAN, **how):
    return list(events(method, split, plan, **how))


def test_given_subsets_of_each_kind():
    names = ("a", "b", "c", "d")
    assert subsets(names, "singles") == [("a",), ("b",), ("c",), ("d",)]
    assert subsets(names, "nested")[4:] == [("a", "b"), ("a", "b", "c")]
    assert len(subsets(names, "all")) == 4 + 6 + 4
    assert subsets(("a", "b"), "all") == [("a",), ("b",)]


def test_draws_of_a_plan(method):
    found = draws(method, PLAN, available=15)
    joint = [d for d in found if d.task == "joint"]
    cross = [d for d in found if d.task == "cross"]
    assert [d.sampler for d in joint] == ["plain", "joint_only"] and {d.n for d in joint} == {30}
    assert {d.sampler for d in cross} == {"plain"}
    assert all(d.targets == NAMES and d.n == 15 for d in cross if len(d.given) == 1)
    assert [(d.given, d.targets, d.n) for d in cross if len(d.given) > 1] == [(("a", "b"), ("c",), 10)]


def test_a_plan_may_restrict_the_samplers(method):
    assert {d.sampler for d in draws(method, replace(PLAN, samplers=("joint_only",)), 50)} == {"joint_only"}
    with pytest.raises(UserError, match=r"no sampler 'palin'.*plain"):
        draws(method, replace(PLAN, samplers=("palin",)), 50)


def test_what_a_method_cannot_do_is_not_drawn(method, monkeypatch):
    monkeypatch.setattr(
        Noise, "unsupported", classmethod(lambda cls, spec, task: "no joint" if task == "joint" else None)
    )
    assert {d.task for d in draws(method, PLAN, 50)} == {"cross"}


def test_events_hold_the_right_tuples(method, data):
    split = data.split("test")
    found = collect(method, split, batch_size=8)
    assert sum(len(e.index) for e in found if e.given == ("a",)) == 20
    for event in found:
        rows = event.index % len(split)
        for name in NAMES:
            torch.testing.assert_close(event.real[name], split.batch(rows)[name])
        torch.testing.assert_close(event.labels["digit"], split.labels["digit"][rows])
        torch.testing.assert_close(event.groups["b"], split.groups["b"][rows])
        assert tuple(event.generated) == event.targets
    # The same test tuples whatever is given, in test order, so that outcomes can be paired.
    indices = {
        e.given: torch.cat([f.index for f in found if f.given == e.given]) for e in found if len(e.given) == 1
    }
    assert all(torch.equal(i, indices["a",]) for i in indices.values())
    assert bool((indices["a",].diff() > 0).all())


def test_the_method_runs_in_evaluation_mode_without_inference_mode(method, data):
    method.train()
    collect(method, data.split("test"))
    assert set(method.calls) == {(False, False, False)}
    assert method.training


def test_same_seed_same_samples_in_any_order(method, data):
    split = data.split("test")

    def samples(seed, only=None):
        torch.rand(seed + 3)  # the surroundings draw too
        return {
            (e.given, e.sampler, int(e.index[0])): e.generated["c"]
            for e in events(method, split, PLAN, seed=seed, batch_size=8, only=only)
        }

    every = samples(0)
    backwards = samples(0, list(reversed(draws(method, PLAN, len(split)))))
    assert every.keys() == backwards.keys()
    assert all(torch.equal(every[key], backwards[key]) for key in every)
    other = samples(1)
    assert not any(torch.equal(every[key], other[key]) for key in every)
    distinct = [t[:2] for t in every.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_drawing_leaves_the_random_state_alone(method, data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    collect(method, data.split("test"))
    assert torch.equal(torch.rand(3), expected)


def test_usage_leaves_out_the_warm_up_batch():
    usage = Usage(Draw("joint", (), ("a",), "s", 30), 10)
    for seconds in (5.0, 1.0, 1.0):
        usage.add(10, seconds)
    assert (usage.tuples, usage.batches, usage.seconds, usage.total_seconds) == (20, 2, 2.0, 7.0)
    single = Usage(Draw("joint", (), ("a",), "s", 30), 30)
    single.add(30, 5.0)
    assert (single.tuples, single.seconds) == (30, 5.0)


def test_usage_is_measured_for_every_draw(method, data, monkeypatch):
    plain = Noise.joint_generate
    monkeypatch.setattr(
        Noise, "joint_generate", lambda self, *a, **k: (time.sleep(0.02), plain(self, *a, **k))[1]
    )
    usage = []
    collect(method, data.split("test"), batch_size=10, usage=usage)
    joint = next(u for u in usage if u.draw.task == "joint")
    assert joint.tuples == 20 and joint.seconds >= 0.04 and joint.total_seconds >= 0.06
    assert len(usage) == len(draws(method, PLAN, 50))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda x: x.pop("b"), UserError, "returned no 'b'"),
        (lambda x: x.update(b=x["b"][:, :1]), UserError, "of shape"),
        (lambda x: x.update(b=x["b"] * float("nan")), Diverged, "not finite in 'b'"),
    ],
)
def test_unusable_samples_are_named(method, data, monkeypatch, spoil, error, message):
    plain = Noise.joint_generate

    def spoilt(self, n, sampler=None, steps=None):
        out = plain(self, n)
        spoil(out)
        return out

    monkeypatch.setattr(Noise, "joint_generate", spoilt)
    with pytest.raises(error, match=message):
        collect(method, data.split("test"))


def test_a_method_cannot_change_what_it_is_compared_with(method, data, monkeypatch):
    def greedy(self, given, targets, sampler=None, steps=None):
        for tensor in given.values():
            tensor.zero_()
        return self._draw(len(tensor), targets)

    monkeypatch.setattr(Noise, "cross_generate", greedy)
    assert all(float(e.real["a"].min()) > 0 for e in collect(method, data.split("test")))


def test_only_one_batch_is_alive_at_a_time(method, data, tmp_path):
    split = data.split("test")
    judges = ToyJudges()
    metrics = [
        CoherenceMetric(judges, split),
        fd_clf(judges, split, None, fingerprint=data.fingerprint, cache=tmp_path),
    ]
    alive, most = [], 0
    for event in events(method, split, replace(PLAN, joint=200), batch_size=5):
        alive.append(weakref.ref(event.generated["c"]))
        for metric in metrics:
            metric.update(event)
        del event
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) > 40 and most <= 2
    assert all(metric.compute() for metric in metrics)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_draws_on_a_gpu_are_reproducible_and_leave_its_random_state_alone(method, data):
    method.to("cuda")
    torch.cuda.manual_seed(1)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(1)
    usage = []
    first = collect(method, data.split("test"), device="cuda", usage=usage)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    assert first[0].real["a"].device.type == "cuda"
    again = collect(method, data.split("test"), device="cuda")
    assert all(
        torch.equal(a.generated[n], b.generated[n])
        for a, b in zip(first, again, strict=True)
        for n in a.targets
    )
