"""Linear probes on the latents: how well does a logistic regression read the digit from an encoding?

Protocol (METHODS 3.5): multinomial logistic regression (lbfgs, at most 1000 iterations, scikit-learn's
default L2), trained on the deterministic encodings of 500 training examples drawn with replacement,
scored on the whole test split, five repetitions; optionally also one probe on the full training split.
One probe per modality with that modality alone given, their mean, and one with all modalities given.
"""

from __future__ import annotations

import warnings
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metrics.intervals import interval
from metrics.protocol import Encodings, Score

Features = NDArray[np.float64]


def probe_rows(total: int, size: int, repeats: int, seed: int) -> list[NDArray[np.int64]]:
    """Training rows of each repetition: `repeats` arrays of `size` positions, drawn with replacement."""
    return [np.random.default_rng([seed, r]).integers(0, total, size) for r in range(repeats)]


def probe(train: Features, labels: NDArray[np.int64], test: Features, seed: int = 0) -> NDArray[np.int64]:
    """Labels that a logistic regression fitted on `train` `[N, D]` predicts for `test` `[N', D]`.

    A training draw that holds a single class predicts that class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) == 1:
        return np.full(len(test), labels[0])
    model = LogisticRegression(solver="lbfgs", max_iter=1000, random_state=seed)
    with warnings.catch_warnings():
        # The protocol stops at 1000 iterations whether or not they suffice.
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted: NDArray[np.int64] = model.fit(train, labels).predict(test)
    return predicted


def latent_views(latents: dict[str, Tensor]) -> dict[str, Features]:
    """What is probed: `z`, and where there are private latents `w` (all of them) and `z+w`."""

    def numpy(names: list[str]) -> Features:
        parts = [latents[n].detach().float().cpu().numpy().astype(np.float64) for n in names]
        return np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)

    private = sorted(name for name in latents if name.startswith("w."))
    views = {"z": numpy(["z"])} if "z" in latents else {}
    if private:
        views["w"] = numpy(private)
        if "z" in latents:
            views["z+w"] = numpy(["z", *private])
    return views


class LatentMetric:
    """Accuracy of linear probes (`latent_acc`), one `update` per given subset.

    attribute: `<examples> <latent>`, for example `500 z` or `full z+w`. Intervals are over test tuples
    (clusters: source pictures of the given modalities), with the outcome averaged over repetitions.
    """

    name = "latent"

    def __init__(self, label: str = "digit", seed: int = 0) -> None:
        self.label, self.seed = label, seed
        # (given, attribute) -> correct [repeats, N]
        self._correct: dict[tuple[tuple[str, ...], str], NDArray[np.bool_]] = {}
        self._groups: dict[str, NDArray[np.int64]] = {}

    def update(
        self, train: Encodings, test: Encodings, rows: list[NDArray[np.int64]], kind: str | None = None
    ) -> None:
        """Fit one probe per array of `rows` (positions in `train`), and score each on `test`.

        kind: the first word of the attribute; the number of rows if not given.
        Raises ValueError for encodings that are not finite.
        """
        if train.given != test.given:
            raise ValueError(f"encodings of {train.given} and {test.given} do not belong together")
        labels = train.labels[self.label].cpu().numpy()
        truth = test.labels[self.label].cpu().numpy()
        tested = latent_views(test.latents)
        for view, features in latent_views(train.latents).items():
            if not (np.isfinite(features).all() and np.isfinite(tested[view]).all()):
                raise ValueError(f"the encoding '{view}' given {'+'.join(test.given)} is not finite")
            correct = [
                probe(features[r], labels[r], tested[view], self.seed + i) == truth
                for i, r in enumerate(rows)
            ]
            self._correct[test.given, f"{kind or len(rows[0])} {view}"] = np.stack(correct)
        self._groups.update({name: ids.cpu().numpy() for name, ids in test.groups.items()})

    def compute(self) -> list[Score]:
        scores = []
        singles: dict[str, list[tuple[str, NDArray[np.float64]]]] = defaultdict(list)
        for (given, attribute), correct in self._correct.items():
            per_tuple = correct.mean(0)
            scores.append(self._score(per_tuple, given, "+".join(given), attribute))
            if len(given) == 1:
                singles[attribute].append((given[0], per_tuple))
        for attribute, found in singles.items():
            mean = np.mean([values for _, values in found], axis=0)
            scores.append(self._score(mean, tuple(name for name, _ in found), "", attribute))
        return scores

    def _score(
        self, values: NDArray[np.float64], sources: tuple[str, ...], given: str, attribute: str
    ) -> Score:
        clusters = [self._groups[name] for name in sources if name in self._groups]
        low, high = interval(values, clusters, self.seed)
        return Score(
            "latent_acc",
            float(values.mean()),
            len(values),
            "higher",
            task="encode",
            given=given,
            attribute=attribute,
            low=low,
            high=high,
        )

    def outcomes(self) -> dict[str, NDArray[np.bool_]]:
        """`latent_acc/<given>/<attribute>/<repetition>`, in test order."""
        return {
            f"latent_acc/{'+'.join(given)}/{attribute}/{i}": row
            for (given, attribute), correct in self._correct.items()
            for i, row in enumerate(correct)
        }
