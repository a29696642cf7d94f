"""From a configuration to a method with weights: building, loading, and a stage taken from another run."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.config import RunConfig, TrainConfig
from bench.device import fetch
from bench.errors import UsageError
from bench.optimise import stage_file
from bench.randomness import derive, forked
from bench.registry import load_method_class
from bench.safefiles import file_hash, load_tensors
from bench.store import RECORD, WEIGHTS, RunFolder, find_runs
from datasets.spec import DataSpec, Split, UserError
from methods.base import Method


def build_method(config: RunConfig, spec: DataSpec, device: torch.device | str = "cpu") -> Method:
    """A freshly initialised method, the same for the same seed on every device.

    Raises UserError for hyper-parameters that the method refuses.
    """
    kind = load_method_class(config.method)
    with forked(derive(config.seed, "init")):
        try:
            method = kind(spec, **config.hyper)
        except ValueError as error:
            raise UserError(
                f"{config.method} refuses these hyper-parameters ({error}); change them"
            ) from error
    method.memory = config.train.memory
    # Tensor cores want channels last; on a CPU the narrow networks of `quick` lose a third of their speed.
    wide = torch.device(device).type == "cuda"
    return method.to(device, memory_format=torch.channels_last if wide else torch.preserve_format)


def load_weights(method: Method, tensors: dict[str, Tensor], where: Path) -> None:
    """Put stored weights into `method`. Raises UserError where they belong to another one."""
    try:
        method.load_state_dict(tensors)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], 120, placeholder=" ...")
        raise UserError(
            f"the weights in '{where}' do not fit this method ({reason}); train it again"
        ) from error


def parameter_counts(method: Method) -> dict[str, int]:
    """Parameters in all, by group, and the overhead beyond encoders and decoders."""
    groups = {name: sum(p.numel() for p in group.params) for name, group in method.param_groups().items()}
    extra = sum(groups.get(name, 0) for name in ("prior", "energy", "diffusion"))
    return {"total": sum(p.numel() for p in method.parameters()), "overhead": extra, **groups}


@dataclass(frozen=True)
class Initial:
    """Weights of another run that stand in for the first stages of this one."""

    path: Path
    hash: str
    run_id: str
    first_stage: int
    stages: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"hash": self.hash, "run_id": self.run_id, "stages": list(self.stages)}

    def load(self, method: Method) -> None:
        """Copy the parameters of the stages that this replaces.

        A method whose stage is another method (`diff_cmvae.cmvae`) finds them in a run of that one too.
        Raises UserError where the other run lacks one of them or has it in another shape.
        """
        stored = load_tensors(self.path)
        for part, child in method.named_children():
            if isinstance(child, Method) and not any(name.startswith(f"{part}.") for name in stored):
                stored = {f"{part}.{name}": tensor for name, tensor in stored.items()}
        groups = method.param_groups()
        wanted = {
            id(p) for s in method.stages[: self.first_stage] for g in s.groups for p in groups[g].params
        }
        with torch.no_grad():
            for name, parameter in method.named_parameters():
                if id(parameter) not in wanted:
                    continue
                if name not in stored or stored[name].shape != parameter.shape:
                    raise UserError(
                        f"run {self.run_id} has no '{name}' of shape {tuple(parameter.shape)}; "
                        "give --init-from a run with the same networks"
                    )
                parameter.copy_(stored[name])
            for name, buffer in method.named_buffers():
                if name in stored and stored[name].shape == buffer.shape:
                    buffer.copy_(stored[name])


def find_initial(source: Path, method: Method) -> Initial:
    """What run folder `source` can replace: the last stage it kept of ours, else our first stage.

    Raises UsageError for a method of a single stage, UserError for a run without weights.
    """
    stages = method.stages
    if len(stages) < 2:
        raise UsageError(
            f"{type(method).__name__} has one stage, so --init-from has nothing to replace; drop it"
        )
    run = RunFolder(source)
    name = str(run.read_record().get("run_id", source.name))
    for i in range(len(stages) - 2, -1, -1):
        path = source / stage_file(stages[i].name)
        if path.exists():
            return Initial(path, file_hash(path), name, i + 1, tuple(s.name for s in stages[: i + 1]))
    path = source / WEIGHTS
    if not path.exists():
        raise UserError(f"run '{source}' has no weights to start from; finish its training first")
    known = [run.record.get(part) or {} for part in ("training", "init_from")]
    passed = {stage for part in known for stage in part.get("stages") or ()}
    if gone := [s.name for s in stages[:-1] if s.name in passed]:
        raise UserError(
            f"run '{source}' has no weights of the end of its stage '{gone[-1]}', its last ones come from a "
            "later stage; give the run that trained this stage, or train this one again with --force"
        )
    return Initial(path, file_hash(path), name, 1, (stages[0].name,))


def find_run(results: Path, name: str) -> Path:
    """The folder of a run given by path or by its id (or the start of it).

    Raises UsageError where there is none or more than one.
    """
    if (Path(name) / RECORD).is_file():
        return Path(name)
    found = [r.folder for r in find_runs(results) if r.folder.name.startswith(name)] if name else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"'{name}' is the start of {len(found)} run ids under '{results}'; give more of it")
    raise UsageError(
        f"no run '{name}' under '{results}'; give a run folder or a run id, `bench table` lists them"
    )


def steps_for_flops(method: Method, train: Split, config: TrainConfig, device: torch.device) -> int:
    """How many steps `config.flops` pays for: FLOPs / (mean FLOPs of a step over the stages)."""
    from bench.costing import step_cost

    assert config.flops is not None
    size = min(config.batch_size, len(train))
    method.memory = math.inf  # what is decoded twice to save memory must not shorten the training
    cost = step_cost(method, fetch(train, slice(0, size), device))
    method.memory = config.memory
    return max(1, round(config.flops / max(1.0, cost.flops)))
