"""Which measured columns stand beside a published one, and what stands in for what cannot be measured."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sheets import Sheet
from bench.summary import Query
from bench.table_columns import probe_size


@dataclass(frozen=True)
class Measured:
    """A measured column: its key, its title, the score that fills it."""

    key: str
    title: str
    query: Query


TASKS = {
    "coherence_joint": "joint",
    "fid_uncond": "joint",
    "clip_uncond": "joint",
    "sampling_time_s": "joint",
    "nfe": "joint",
    "param_overhead": "joint",
    "latent_acc": "",
    "train_time_s_per_iter": "",
}
"""Task a metric belongs to; `cross` for all others."""

DISTANCES = {
    "fid_uncond": Measured("fd_clf_uncond", "FD-clf joint", Query("fd_clf_uncond", "joint")),
    "fid_cond": Measured("fd_clf_cond", "FD-clf cond.", Query("fd_clf_cond", "cross")),
    "fid_t2i": Measured("fd_clf_cond_cross", "FD-clf cross", Query("fd_clf_cond_cross", "cross")),
}
"""The distance shown, under its own name, where no FID was measured."""

_T2I = Query("attribute_cross", "cross", given="caption", target="image")
_I2T = Query("attribute_cross", "cross", given="image", target="caption")
ATTRIBUTES = {
    "clip_uncond": Measured("attribute_joint", "attributes joint", Query("attribute_joint", "joint")),
    "clip_t2i": Measured("attribute_t2i", "attributes T2I", _T2I),
    "clip_i2t": Measured("attribute_i2t", "attributes I2T", _I2T),
}
"""Share of attributes on which picture and caption agree, beside CLIP scores, on data that have any."""

TIMES = (
    Measured("sampling_batch_s", "s/batch of 100", Query("sampling_batch_s", "joint")),
    Measured("sampling_sample_s", "s/sample", Query("sampling_sample_s", "joint")),
    Measured("sampling_peak_mb", "MB/batch of 100", Query("peak_memory_mb", "joint", ("sampling",))),
)
"""Sampling times and memory by the protocol of METHODS 3.8; the paper does not state its unit of work."""

EITHER = {"fid": ("fid_uncond", "fid_t2i")}
"""What may be meant where a source does not state it."""

CAPTIONED = ("shapes", "cub", "cub256", "coco")
"""Data sets with captions: their tables have columns for FID and CLIP also where the weights are missing."""

NOT_ASKED = "not among the metrics of these runs (fid in plan.metrics adds it, with the Inception weights)"


def measured_columns(sheet: Sheet, metric: str, title: str) -> list[Measured]:
    """The measured columns beside the published one of `metric`, whose title is `title`.

    Where FID has no value, the distance of the classifiers stands beside it; a FID that was not asked for has
    a column on captioned data only, where agreement in attributes stands beside CLIP in the same way.
    """
    if metric == "latent_acc":
        return _probes(sheet)
    if metric == "sampling_time_s" and any(_found(sheet, time.query) for time in TIMES):
        return [time for time in TIMES if _found(sheet, time.query)]
    if metric in EITHER:
        names = {name: sheet.book.quantities[name].title for name in EITHER[metric]}
        prefix = title.removesuffix(sheet.book.quantities[metric].title)
        return [c for name, said in names.items() for c in measured_columns(sheet, name, f"{prefix}{said}")]
    columns = [Measured(metric, title, Query(metric, TASKS.get(metric, "cross")))]
    if sheet.group is None:
        return columns
    asked = _found(sheet, columns[0].query, valued=False)
    if not _found(sheet, columns[0].query):
        beside = DISTANCES.get(metric) or ATTRIBUTES.get(metric)
        # Photographs with captions have no classifiers, and so neither of these.
        if beside and (_found(sheet, beside.query) or metric in DISTANCES and not captioned(sheet)):
            columns.append(beside)
    if metric in DISTANCES and not asked and sheet.group.runs and not captioned(sheet):
        sheet.notes.append(f"{sheet.book.quantities[metric].title}: {NOT_ASKED}.")
        return columns[1:]
    return columns


def captioned(sheet: Sheet) -> bool:
    """Whether the measured numbers are of pictures with captions."""
    return sheet.group is not None and sheet.group.key.dataset in CAPTIONED


def unasked(sheet: Sheet, metric: str, query: Query) -> bool:
    """Whether a column is there although none of these runs was asked for what fills it."""
    networks = metric.startswith(("fid", "clip")) or metric in EITHER
    return networks and captioned(sheet) and not _found(sheet, query, valued=False)


def _found(sheet: Sheet, query: Query, valued: bool = True) -> bool:
    """Whether any run of the group has that score (with a value)."""
    results = sheet.group.results if sheet.group else []
    scores = (
        query.find(run, s) for result in results for run in result.runs for s in result.samplers or [""]
    )
    return any(score is not None and (score.value is not None or not valued) for score in scores)


def _probes(sheet: Sheet) -> list[Measured]:
    """Latent accuracy by the small probe, and by that on all training data where it was made."""
    size = probe_size(sheet.group.key.plan if sheet.group else "")
    small = Query("latent_acc", attribute=(size, "z"))
    columns = [Measured("latent_acc", f"latent acc., {size} examples", small)]
    full = Query("latent_acc", attribute=("full", "z"))
    if sheet.group and any(full.find(run) for run in sheet.group.runs):
        columns.append(Measured("latent_acc_full", "latent acc., full data", full))
    return columns
