"""Kernel Inception distance, precision and recall, by torch-fidelity's own functions, of given features.

KID (Binkowski et al., ICLR 2018): the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3,
unbiased, averaged over 100 random subsets of 1,000 (or of as many as there are). It may fall below 0.
Precision: share of generated features within the reach of a real one's third neighbour; recall: the reverse
(Kynkaanniemi et al., NeurIPS 2019). Those authors, and torch-fidelity unless told otherwise, take features of
VGG-16; here all stand beside FID, of the same Inception features.
"""

from __future__ import annotations

from torch import Tensor

SUBSET = 1000
NEIGHBOURS = 3


def kid(generated: Tensor, real: Tensor) -> float:
    """Kernel Inception distance of features `[N, D]` and `[M, D]`, at least two each."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET, len(generated), len(real))
    found = kid_features_to_metric(generated.float(), real.float(), kid_subset_size=size, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def precision_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Precision and recall of features `[N, D]` and `[M, D]`, more than three each."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    # In parts: whole matrices of distances of 10,000 examples would take 1.6 GB.
    found = prc_features_to_metric(
        generated.float(),
        real.float(),
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    return float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])


def kid_and_neighbours(generated: Tensor, real: Tensor) -> dict[str, float]:
    """`kid`, `precision` and `recall`; only what so few examples allow."""
    values = {"kid": kid(generated, real)}
    if min(len(generated), len(real)) > NEIGHBOURS:
        values["precision"], values["recall"] = precision_recall(generated, real)
    return values
