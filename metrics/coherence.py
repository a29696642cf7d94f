"""Coherence: do generated modalities show the same digit, and the digit of what was given?

Judged by one classifier per modality in evaluation mode. Beside every coherence stand the accuracy of
the judges, the coherence of real test tuples (its ceiling), and how diverse the predicted digits are: a
generator that always draws the same digit has joint coherence 1.
Protocol: METHODS 3.2 to 3.4.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import Split, to_float
from metrics.intervals import interval, wilson
from metrics.protocol import Event, Score

Bools = NDArray[np.bool_]
Key = tuple[str, int | None]
"""Sampler and number of refinement steps."""


class Classifiers(Protocol):
    """The part of `metrics.judges.Judges` that this metric needs."""

    hash: str
    hashes: dict[str, str]

    def classify(self, name: str, images: Tensor) -> Tensor: ...


class _Cell:
    """Outcomes of one (given, target, sampler): correct or not, and which tuple of the test order."""

    def __init__(self) -> None:
        self.correct: list[NDArray[np.bool_]] = []
        self.index: list[NDArray[np.int64]] = []

    def add(self, correct: Bools, index: NDArray[np.int64]) -> None:
        self.correct.append(correct)
        self.index.append(index)

    def close(self) -> tuple[Bools, NDArray[np.int64]]:
        return np.concatenate(self.correct), np.concatenate(self.index)


def _numpy(tensor: Tensor) -> NDArray[np.int64]:
    return tensor.detach().cpu().numpy().astype(np.int64)


class CoherenceMetric:
    """Joint and cross coherence over events.

    joint: share of tuples whose predictions are all equal. cross: share of test tuples whose generated
    target is classified as the label of the given modalities; a target that is also given
    (reconstruction) is never counted. Cross averages run over targets within a given subset, then over
    subsets.

    test: the split that is scored, for ceiling, accuracies and the source pictures behind the intervals
    (clusters: the pictures of the given modalities, see `metrics.intervals`). label: the attribute that
    coherence is about. Modalities without a judge take no part; with fewer than two judges nothing can
    be coherent, and ValueError is raised.
    """

    name = "coherence"

    def __init__(
        self,
        judges: Classifiers,
        test: Split,
        device: torch.device | str = "cpu",
        label: str = "digit",
        seed: int = 0,
    ) -> None:
        self.judges, self.test, self.device, self.label, self.seed = judges, test, device, label, seed
        self.names = tuple(name for name in test.spec.names if name in judges.hashes)
        if len(self.names) < 2:
            raise ValueError("coherence needs judges of at least two modalities")
        self.groups = {name: _numpy(ids) for name, ids in test.groups.items()}
        self._joint: dict[Key, list[NDArray[np.int64]]] = defaultdict(list)
        self._cross: dict[Key, dict[tuple[tuple[str, ...], str], _Cell]] = defaultdict(dict)

    def update(self, event: Event) -> None:
        key = (event.sampler, event.steps)
        if event.task == "joint":
            if all(name in event.generated for name in self.names):
                self._joint[key].append(np.stack([self._classify(n, event) for n in self.names], axis=1))
            return
        labels = _numpy(event.labels[self.label])
        for target in event.targets:
            if target in self.names and target not in event.given:
                cell = self._cross[key].setdefault((event.given, target), _Cell())
                cell.add(self._classify(target, event) == labels, _numpy(event.index))

    def _classify(self, name: str, event: Event) -> NDArray[np.int64]:
        return _numpy(self.judges.classify(name, event.generated[name]))

    # -- scores ------------------------------------------------------------------------------------

    def compute(self) -> list[Score]:
        scores = self._reference()
        for (sampler, steps), parts in self._joint.items():
            scores += self._joint_scores(np.concatenate(parts), sampler, steps)
        for (sampler, steps), cells in self._cross.items():
            scores += self._cross_scores(cells, sampler, steps)
        return scores

    def outcomes(self) -> dict[str, Bools]:
        """`coherence_joint/<sampler>` and `coherence_cross/<sampler>/<given>/<target>`, in test order."""
        out: dict[str, Bools] = {}
        for (sampler, steps), parts in self._joint.items():
            predicted = np.concatenate(parts)
            out[f"coherence_joint/{label_of(sampler, steps)}"] = _agree(predicted)
        for (sampler, steps), cells in self._cross.items():
            for (given, target), cell in cells.items():
                name = f"coherence_cross/{label_of(sampler, steps)}/{'+'.join(given)}/{target}"
                out[name] = cell.close()[0]
        return out

    def _score(
        self, metric: str, value: float, n: int, low_high: Sequence[float] | None, **key: object
    ) -> Score:
        low, high = low_high if low_high is not None else (None, None)
        key.setdefault("judge", self.judges.hash)
        key.setdefault("better", "higher")
        # NumPy's numbers are turned into built-in ones, which JSON can hold.
        return Score(metric, float(value), n, low=low, high=high, **key)  # type: ignore[arg-type]

    def _clusters(self, names: Iterable[str], index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [self.groups[name][index] for name in names if name in self.groups]

    def _reference(self) -> list[Score]:
        """Judge accuracies and the coherence of real tuples, on all tuples of the scored split."""
        labels = _numpy(self.test.labels[self.label])
        every = np.arange(len(labels))
        predicted = np.stack([self._predict_real(name) for name in self.names], axis=1)
        right = predicted == labels[:, None]
        scores = []
        for i, name in enumerate(self.names):
            low_high = interval(right[:, i], self._clusters([name], every), self.seed)
            judge = self.judges.hashes[name]
            scores.append(
                self._score(
                    "judge_accuracy", right[:, i].mean(), len(every), low_high, target=name, judge=judge
                )
            )
        low_high = interval(right.mean(1), self._clusters(self.names, every), self.seed)
        scores.append(self._score("judge_accuracy", right.mean(), len(every), low_high))
        # The generated target is compared with the label, so the accuracy is the ceiling of cross coherence.
        scores.append(self._score("coherence_ceiling", right.mean(), len(every), low_high, task="cross"))
        agree = _agree(predicted)
        low_high = interval(agree, self._clusters(self.names, every), self.seed)
        scores.append(self._score("coherence_ceiling", agree.mean(), len(every), low_high, task="joint"))
        return scores

    def _predict_real(self, name: str, batch: int = 500) -> NDArray[np.int64]:
        rows = self.test.stored[name].split(batch)
        return np.concatenate(
            [_numpy(self.judges.classify(name, to_float(part.to(self.device)))) for part in rows]
        )

    def _joint_scores(self, predicted: NDArray[np.int64], sampler: str, steps: int | None) -> list[Score]:
        n = len(predicted)
        agree = _agree(predicted)
        key = {"task": "joint", "sampler": sampler, "steps": steps}
        scores = [self._score("coherence_joint", agree.mean(), n, wilson(float(agree.mean()), n), **key)]
        if self.names != self.test.spec.names:
            scores[0] = replace(scores[0], attribute=f"of {'+'.join(self.names)}")

        def diversity(digits: NDArray[np.int64], n: int, suffix: str = "", **key: object) -> list[Score]:
            shares = np.bincount(digits.ravel()) / max(1, digits.size)
            entropy = -sum(p * math.log(p) for p in shares.tolist() if p > 0) + 0.0
            return [
                self._score(f"digit_entropy{suffix}", entropy, n, None, **key),
                self._score(f"digits_present{suffix}", int((shares > 0).sum()), n, None, **key),
                self._score(
                    f"largest_share{suffix}", shares.max(initial=0.0), n, None, better="lower", **key
                ),
            ]

        for i, name in enumerate(self.names):
            scores += diversity(predicted[:, i], n, **{**key, "target": name})
        entropy, present, _ = diversity(predicted, n, **key)
        # One stuck modality is a collapse, whatever the others do: the overall share is the worst one.
        worst = max(s.value for s in scores if s.metric == "largest_share" and s.value is not None)
        scores += [entropy, present, self._score("largest_share", worst, n, None, better="lower", **key)]
        scores += diversity(predicted[agree, 0], int(agree.sum()), "_coherent", **key)
        return scores

    def _cross_scores(
        self, cells: dict[tuple[tuple[str, ...], str], _Cell], sampler: str, steps: int | None
    ) -> list[Score]:
        key = {"task": "cross", "sampler": sampler, "steps": steps}
        subsets: dict[tuple[str, ...], list[tuple[Bools, NDArray[np.int64]]]] = defaultdict(list)
        scores = []
        for (given, target), cell in cells.items():
            correct, index = cell.close()
            subsets[given].append((correct, index))
            if len(given) == 1:
                low_high = interval(correct, self._clusters(given, index), self.seed)
                where = {"given": given[0], "target": target}
                scores.append(
                    self._score("coherence_cross", correct.mean(), len(correct), low_high, **key, **where)
                )

        def average(metric: str, chosen: list[tuple[str, ...]], **more: object) -> None:
            parts = [subsets[given] for given in chosen]
            value = float(np.mean([np.mean([c.mean() for c, _ in part]) for part in parts]))
            flat = [pair for part in parts for pair in part]
            low_high, n = None, min(len(c) for c, _ in flat)
            if all(np.array_equal(index, flat[0][1]) for _, index in flat):
                per_tuple = np.mean([np.mean([c for c, _ in part], axis=0) for part in parts], axis=0)
                sources = sorted({name for given in chosen for name in given})
                low_high = interval(per_tuple, self._clusters(sources, flat[0][1]), self.seed)
            scores.append(self._score(metric, value, n, low_high, **key, **more))

        singles = [given for given in subsets if len(given) == 1]
        if singles:
            average("coherence_cross", singles)
        spec = self.test.spec.names
        for size in range(1, len(spec)):
            chosen = [given for given in subsets if len(given) == size]
            # Part of the subsets of a size is no average over them.
            if len(chosen) == sum(
                1 for given in itertools.combinations(spec, size) if set(self.names) - set(given)
            ):
                average("coherence_cross_n", chosen, attribute=f"n_given={size}")
            for given in chosen if size > 1 else []:
                average("coherence_cross_n", [given], given="+".join(given), attribute=f"n_given={size}")
            if spec[:size] in subsets:
                average("coherence_cross_n", [spec[:size]], attribute=f"nested n_given={size}")
        return scores


def _agree(predicted: NDArray[np.int64]) -> Bools:
    """Whether all predictions of a tuple are equal: `[N, M]` -> `[N]`."""
    equal: Bools = (predicted == predicted[:, :1]).all(1)
    return equal


def label_of(sampler: str, steps: int | None) -> str:
    """How outcomes name a sampler and its steps: `ebm`, `ebm@60`."""
    return sampler if steps is None else f"{sampler}@{steps}"
