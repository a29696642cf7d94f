"""Checks of the plain declarations: signature, groups, stages, samplers, network evaluations."""

from __future__ import annotations

import math

import torch

from bench.checks.registry import NotApplicable, check, require
from bench.checks.subject import Subject

GROUPS = ("generator", "inference", "prior", "energy", "diffusion")
TASKS = ("joint", "cross", "encode", "interpolate", "chain")


@check()
def unknown_keyword_is_refused(subject: Subject) -> None:
    """A misspelt hyper-parameter is an error, never silently ignored."""
    try:
        subject.fresh(no_such_hyper_parameter=1)
    except Exception:
        return
    require(False, "the constructor took the unknown keyword 'no_such_hyper_parameter' without a word")


@check()
def unsupported_gives_reasons(subject: Subject) -> None:
    """`unsupported` answers None or a sentence for every task."""
    kind = type(subject.fresh())
    for task in TASKS:
        reason = kind.unsupported(subject.spec, task)
        require(
            reason is None or (isinstance(reason, str) and reason.strip()),
            f"unsupported(spec, '{task}') returned {reason!r} instead of None or a reason",
        )


@check()
def groups_are_named(subject: Subject) -> None:
    """Parameter groups carry the agreed names and are not empty."""
    groups = subject.fresh().param_groups()
    require(groups, "param_groups() is empty")
    for name, group in groups.items():
        require(name in GROUPS, f"group '{name}' is none of {', '.join(GROUPS)}")
        require(len(group.params) > 0, f"group '{name}' holds no parameters")


@check()
def groups_cover_the_parameters(subject: Subject) -> None:
    """Every parameter stands in exactly one group."""
    method = subject.fresh()
    listed = [id(p) for group in method.param_groups().values() for p in group.params]
    for name, parameter in method.named_parameters():
        count = listed.count(id(parameter))
        require(count == 1, f"parameter '{name}' stands in {count} groups instead of one")
    strangers = set(listed) - {id(p) for p in method.parameters()}
    require(not strangers, f"{len(strangers)} tensors of the groups are not parameters of the method")


@check()
def stages_are_consistent(subject: Subject) -> None:
    """Stages have their own names, known groups and shares that sum to 1; every group trains in one."""
    method = subject.fresh()
    stages, groups = method.stages, method.param_groups()
    names = [stage.name for stage in stages]
    require(names, "there are no stages")
    require(len(set(names)) == len(names), f"stage names repeat: {names}")
    share = sum(stage.share for stage in stages)
    require(math.isclose(share, 1, abs_tol=1e-6), f"the shares of the stages sum to {share:g} instead of 1")
    require(all(stage.share > 0 for stage in stages), "a stage has no share of the budget")
    for stage in stages:
        unknown = set(stage.groups) - set(groups)
        require(not unknown, f"stage '{stage.name}' trains groups that do not exist: {sorted(unknown)}")
    idle = set(groups) - {name for stage in stages for name in stage.groups}
    require(not idle, f"no stage trains the groups {sorted(idle)}")


@check()
def samplers_are_declared(subject: Subject) -> None:
    """Samplers serve joint or cross, and a sampler that does not exist is refused."""
    method, x = subject.fresh(), subject.data()
    require(method.samplers, "there are no samplers")
    for name, tasks in method.samplers.items():
        require(tasks and set(tasks) <= {"joint", "cross"}, f"sampler '{name}' serves {tasks}")
    first = subject.spec.names[0]
    calls = {
        "joint": lambda: method.joint_generate(2, "no_such_sampler"),
        "cross": lambda: method.cross_generate({first: x[first]}, subject.spec.names, "no_such_sampler"),
    }
    for task, call in calls.items():
        if type(method).unsupported(subject.spec, task):
            continue
        try:
            call()
        except Exception:
            continue
        require(False, f"{task} generation accepted the sampler 'no_such_sampler'")


@check()
def nfe_counts_steps(subject: Subject) -> None:
    """Network evaluations are positive whole numbers, and grow where `steps` changes the samples."""
    method, x = subject.fresh(), subject.data()
    first, *rest = subject.spec.names
    asked = 0
    for task in ("joint", "cross"):
        if type(method).unsupported(subject.spec, task):
            continue
        for sampler, _ in subject.pairs(method, task):
            asked += 1
            counts, samples = [], []
            for steps in (None, 2, 5):
                count = method.nfe(sampler, task, steps)
                require(
                    isinstance(count, int) and not isinstance(count, bool) and count >= 1,
                    f"nfe('{sampler}', '{task}', steps={steps}) is {count!r}, not a positive whole number",
                )
                counts.append(count)
                torch.manual_seed(5)
                with torch.no_grad():
                    out = (
                        method.joint_generate(3, sampler, steps)
                        if task == "joint"
                        else method.cross_generate({first: x[first]}, rest, sampler, steps)
                    )
                samples.append(torch.cat([t.double().flatten() for t in out.values()]))
            moved = not torch.equal(samples[1], samples[2])
            require(
                counts[2] > counts[1] if moved else counts[2] >= counts[1],
                f"sampler '{sampler}' ({task}) changes its samples between 2 and 5 steps, "
                f"but nfe goes from {counts[1]} to {counts[2]}",
            )
    if not asked:
        raise NotApplicable("no sampler serves this data")
