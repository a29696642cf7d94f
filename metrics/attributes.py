"""Coherence in attributes: do a generated picture and a generated caption tell of the same scene?

Pictures are read by a trained judge, captions exactly. Joint: the two agree. Cross: the generated one agrees
with the labels of the one that was given. For every attribute, and for all of them together; a caption that
cannot be read is wrong in all. Beside them stand the agreement of real pairs, chance, and what the same
samples reach when they are paired at random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.spec import Oracle, Split, to_float
from metrics.coherence import Key, label_of
from metrics.intervals import interval
from metrics.protocol import Event, Score

Codes = NDArray[np.int64]
Bools = NDArray[np.bool_]
Pair = tuple[Codes, Codes]
"""What is shown, and the labels of what was given."""
Where = tuple[tuple[str, ...], str]
"""Given modalities (none for joint samples) and the target."""


class PictureJudges(Protocol):
    """The part of `metrics.attribute_judges.AttributeJudges` that this metric needs."""

    hash: str
    hashes: dict[str, str]

    def classify(self, name: str, images: Tensor) -> dict[str, Tensor]: ...


def chance_joint(codes: Codes) -> float:
    """How often two independent rows of codes `[N, A]` are equal: sum of the squared shares of all rows."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return float(((counts / counts.sum()) ** 2).sum())


def chance_cross(codes: Codes) -> float:
    """How often the best constant answer equals a row of codes `[N, A]`: the largest share of a row."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return float(counts.max() / counts.sum())


def chance_shuffled(codes: Sequence[Codes]) -> float:
    """How often rows of each of the codes `[N, A]`, drawn independently, are equal: the sum over all rows r
    of the product of r's shares, where a row that cannot be read (a code below 0) equals nothing."""
    rows, which = np.unique(np.concatenate(codes), axis=0, return_inverse=True)
    parts = np.split(which.reshape(-1), np.cumsum([len(c) for c in codes])[:-1])
    shares = [np.bincount(part, minlength=len(rows)) / len(part) for part in parts]
    return float(np.prod(shares, axis=0)[(rows >= 0).all(1)].sum())


class AttributeMetric:
    """Joint and cross coherence of attributes over events.

    Scores, for one attribute each (`attribute=<name>`) and for all together (`attribute=""`):
    `coherence_joint`, and `coherence_cross` by (given, target) and averaged over them; the same averaged
    over the attributes as `attribute_joint` and `attribute_cross`; `..._ceiling` of real test pairs and
    `..._chance` of real scenes and of the best constant; `..._shuffled`, what the same samples reach when
    they are paired at random, so by a taste for some values alone. `caption_read`: share of generated
    captions that can be read. `largest_share`: of one scene among the joint samples, which tells a collapse.

    test: the split that is scored, with a label for every attribute. Modalities take part that have a judge
    or are text. Raises ValueError without both kinds, or without a label.
    """

    name = "coherence"

    def __init__(
        self,
        judges: PictureJudges,
        oracle: Oracle,
        test: Split,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.judges, self.oracle, self.test, self.device, self.seed = judges, oracle, test, device, seed
        self.attributes = tuple(oracle.attributes)
        self.texts = tuple(m.name for m in test.spec.texts)
        self.names = tuple(n for n in test.spec.names if n in judges.hashes or n in self.texts)
        if len(self.names) < 2:
            raise ValueError("coherence of attributes needs a judged picture and a caption")
        if set(self.attributes) - set(test.labels):
            raise ValueError("the data set lacks labels for some of its attributes")
        self._joint: dict[Key, dict[str, list[Codes]]] = defaultdict(lambda: defaultdict(list))
        self._cross: dict[Key, dict[Where, list[Pair]]] = defaultdict(lambda: defaultdict(list))
        self._read: dict[tuple[Key, str, Where], list[Bools]] = defaultdict(list)

    def _codes(self, name: str, values: Tensor) -> Codes:
        """What modality `name` shows or says, `[N, A]`."""
        found = self.oracle.read(values) if name in self.texts else self.judges.classify(name, values)
        return np.stack([found[a].cpu().numpy().astype(np.int64) for a in self.attributes], axis=1)

    def _labels(self, labels: dict[str, Tensor]) -> Codes:
        return np.stack([labels[a].cpu().numpy().astype(np.int64) for a in self.attributes], axis=1)

    def update(self, event: Event) -> None:
        key: Key = (event.sampler, event.steps)
        if event.task == "joint":
            if all(name in event.generated for name in self.names):
                for name in self.names:
                    codes = self._codes(name, event.generated[name])
                    self._joint[key][name].append(codes)
                    if name in self.texts:
                        self._read[key, "joint", ((), name)].append((codes >= 0).all(1))
            return
        labels = self._labels(event.labels)
        for target in event.targets:
            if target in self.names and target not in event.given:
                codes = self._codes(target, event.generated[target])
                self._cross[key][event.given, target].append((codes, labels))
                if target in self.texts:
                    self._read[key, "cross", (event.given, target)].append((codes >= 0).all(1))

    def compute(self) -> list[Score]:
        scores = self._reference()
        for (sampler, steps), found in self._joint.items():
            shown = {name: np.concatenate(parts) for name, parts in found.items()}
            how = {"task": "joint", "sampler": sampler, "steps": steps}
            scores += self._agreement(_equal(list(shown.values())), "joint", **how)
            scores += self._shuffled(list(shown.values()), "joint", **how)
            scores += self._diversity(shown, **how)
        for (sampler, steps), cells in self._cross.items():
            how = {"task": "cross", "sampler": sampler, "steps": steps}
            right, shuffled = [], []
            for (given, target), parts in cells.items():
                where = {"given": "+".join(given), "target": target, **how}
                codes, labels = (np.concatenate(side) for side in zip(*parts, strict=True))
                right.append(codes == labels)
                scores += self._agreement(right[-1], "cross", **where)
                shuffled.append(self._shuffled([codes, labels], "cross", **where))
                scores += shuffled[-1]
            n = min(len(each) for each in right)
            scores += self._averages(right, n, **how)
            for same in zip(*shuffled, strict=True):
                mean = float(np.mean([score.value for score in same]))  # type: ignore[misc]
                scores.append(replace(same[0], value=mean, n=n, given="", target=""))
        for ((sampler, steps), task, (given, target)), parts in self._read.items():
            read = np.concatenate(parts)
            where = {"task": task, "given": "+".join(given), "target": target}
            scores.append(self._score("caption_read", read, sampler=sampler, steps=steps, **where))
        return scores

    def outcomes(self) -> dict[str, Bools]:
        """`coherence_joint/<sampler>` and `coherence_cross/<sampler>/<given>/<target>` of all attributes
        together, and each with `/<attribute>`; in test order."""
        out: dict[str, Bools] = {}

        def add(name: str, right: Bools) -> None:
            out[name] = right.all(1)
            out.update({f"{name}/{a}": right[:, i] for i, a in enumerate(self.attributes)})

        for (sampler, steps), found in self._joint.items():
            equal = _equal([np.concatenate(parts) for parts in found.values()])
            add(f"coherence_joint/{label_of(sampler, steps)}", equal)
        for (sampler, steps), cells in self._cross.items():
            for (given, target), parts in cells.items():
                name = f"coherence_cross/{label_of(sampler, steps)}/{'+'.join(given)}/{target}"
                add(name, np.concatenate([codes == labels for codes, labels in parts]))
        return out

    # -- scores ------------------------------------------------------------------------------------

    def _score(self, metric: str, values: NDArray[np.float64] | Bools, **key: object) -> Score:
        low, high = interval(values, (), self.seed)
        key.setdefault("judge", self.judges.hash)
        value = float(np.mean(values))
        return Score(metric, value, len(values), "higher", low=low, high=high, **key)  # type: ignore[arg-type]

    def _agreement(self, right: Bools, kind: str, suffix: str = "", **key: object) -> list[Score]:
        """Of `[N, A]`: all attributes together, each, and their mean."""
        each = [
            self._score(f"coherence_{kind}{suffix}", right[:, i], attribute=a, **key)
            for i, a in enumerate(self.attributes)
        ]
        return [
            self._score(f"coherence_{kind}{suffix}", right.all(1), **key),
            self._score(f"attribute_{kind}{suffix}", right.mean(1), **key),
            *each,
        ]

    def _shuffled(self, codes: list[Codes], kind: str, **key: object) -> list[Score]:
        """`chance_shuffled` of all attributes together, of each, and its mean: what habits alone reach."""
        each = [chance_shuffled([c[:, i : i + 1] for c in codes]) for i in range(len(self.attributes))]
        found = [
            ("coherence", "", chance_shuffled(codes)),
            ("attribute", "", float(np.mean(each))),
            *(("coherence", a, value) for a, value in zip(self.attributes, each, strict=True)),
        ]
        n, judge = len(codes[0]), self.judges.hash
        return [
            Score(f"{name}_{kind}_shuffled", value, n, "", attribute=a, judge=judge, **key)  # type: ignore[arg-type]
            for name, a, value in found
        ]

    def _averages(self, cells: list[Bools], n: int, **key: object) -> list[Score]:
        """The same, averaged over the cells; with an interval where they hold the same tuples."""
        views = {("coherence_cross", ""): [c.all(1) for c in cells]}
        views["attribute_cross", ""] = [c.mean(1) for c in cells]
        views |= {("coherence_cross", a): [c[:, i] for c in cells] for i, a in enumerate(self.attributes)}
        scores = []
        for (metric, attribute), parts in views.items():
            if all(len(part) == n for part in parts):
                scores.append(self._score(metric, np.mean(parts, axis=0), attribute=attribute, **key))
            else:
                value = float(np.mean([part.mean() for part in parts]))
                judge = self.judges.hash
                scores.append(Score(metric, value, n, "higher", attribute=attribute, judge=judge, **key))  # type: ignore[arg-type]
        return scores

    def _diversity(self, codes: dict[str, Codes], **key: object) -> list[Score]:
        """Scenes that can be read in the joint samples, and the share of the most frequent one among all."""
        scores = []
        for name, found in codes.items():
            known = found[(found >= 0).all(1)]
            # Of all samples: three readable captions of a thousand are no sign of a collapse.
            share = chance_cross(known) * len(known) / len(found) if len(known) else 0.0
            scenes = len(np.unique(known, axis=0))
            where = {**key, "target": name, "judge": self.judges.hash}
            scores += [
                Score("scenes_present", float(scenes), len(found), "higher", **where),  # type: ignore[arg-type]
                Score("largest_share", share, len(found), "lower", **where),  # type: ignore[arg-type]
            ]
        worst = max(s.value for s in scores if s.metric == "largest_share" and s.value is not None)
        n = min(len(found) for found in codes.values())
        scores.append(Score("largest_share", worst, n, "lower", judge=self.judges.hash, **key))  # type: ignore[arg-type]
        return scores

    def _reference(self) -> list[Score]:
        """Accuracy of the judges, agreement of real pairs, and chance, on all of the scored split."""
        labels = self._labels(self.test.labels)
        codes = {name: self._real(name) for name in self.names}
        scores = []
        for name, found in codes.items():
            judge = self.judges.hashes.get(name, "")
            right = found == labels
            where = {"target": name, "judge": judge}
            scores.append(self._score("judge_accuracy", right.all(1), **where))
            scores += [
                self._score("judge_accuracy", right[:, i], attribute=a, **where)
                for i, a in enumerate(self.attributes)
            ]
        scores += self._agreement(_equal(list(codes.values())), "joint", "_ceiling", task="joint")
        # The generated target is compared with the labels: its judge's accuracy is the ceiling.
        right = np.concatenate([found == labels for found in codes.values()])
        scores += self._agreement(right, "cross", "_ceiling", task="cross")
        for kind, chance in (("joint", chance_joint), ("cross", chance_cross)):
            each = {a: chance(labels[:, i : i + 1]) for i, a in enumerate(self.attributes)}
            found = [
                ("coherence", "", chance(labels)),
                ("attribute", "", float(np.mean(list(each.values())))),
            ]
            found += [("coherence", a, value) for a, value in each.items()]
            scores += [
                Score(f"{name}_{kind}_chance", value, len(labels), "", task=kind, attribute=a)
                for name, a, value in found
            ]
        return scores

    def _real(self, name: str, batch: int = 500) -> Codes:
        parts = []
        for index in torch.arange(len(self.test)).split(batch):
            rows = self.test.stored[name][index]
            parts.append(self._codes(name, rows if name in self.texts else to_float(rows.to(self.device))))
        return np.concatenate(parts)


def _equal(codes: list[Codes]) -> Bools:
    """Which attributes all modalities agree on, `[N, A]`; what cannot be read agrees with nothing."""
    first = codes[0]
    equal: Bools = (first >= 0) & np.all([other == first for other in codes[1:]], axis=0)
    return equal
