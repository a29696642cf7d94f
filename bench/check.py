"""The conformance suite: small named checks that run over any method, also over somebody else's.

`bench check METHOD` calls `check_method` and prints `report`. The checks are in `bench/checks/`; each is
proved able to fail by a planted fault in the tests.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bench.checks.registry import Check
    from bench.checks.subject import Subject
    from datasets.spec import DataSpec
    from methods.base import Method

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check on one spec (`images`, `mixed`, or `all`); `detail` is the fault or the reason."""

    name: str
    spec: str
    status: Status
    detail: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status != "failed"


def check_method(method: str | type[Method], only: Iterable[str] | None = None) -> list[CheckResult]:
    """Run the suite over a method given by name, `package.module:Class`, or class.

    Raises UserError for a name that leads to no method.
    """
    if isinstance(method, str):
        from bench.registry import load_method_class

        method = load_method_class(method)
    return run_checks(method, only=only)


def run_checks(
    kind: type[Method],
    *,
    hyper: Mapping[str, Any] | None = None,
    specs: Mapping[str, DataSpec] | None = None,
    only: Iterable[str] | None = None,
) -> list[CheckResult]:
    """Run the checks (all, or those named in `only`) over a method class on small specs.

    `hyper` are hyper-parameters on top of the automatic small ones. A check that needs what the method
    declares unsupported, or that the class lists in `excused`, is skipped with the reason.
    Raises UsageError for a check that does not exist.
    """
    import torch

    from bench.checks import CHECKS
    from bench.checks.hyper import small_hyper
    from bench.checks.subject import SPECS, Subject, own_generators
    from bench.errors import UsageError
    from datasets.spec import UserError

    unknown = sorted(set(only or ()) - set(CHECKS))
    if unknown:
        raise UsageError(f"no check is called '{unknown[0]}'; the checks are {', '.join(CHECKS)}")
    for key in kind.excused:
        if key.split("[")[0] not in CHECKS:
            raise UserError(f"{kind.__name__} excuses itself from '{key}', which is no check; mend `excused`")
    wanted = [c for name, c in CHECKS.items() if only is None or name in set(only)]
    values = small_hyper(kind) | dict(hyper or {})
    subjects, results = [], []
    excused = dict(kind.excused)
    for name, spec in (SPECS if specs is None else specs).items():

        def make(spec: DataSpec = spec, **overrides: Any) -> Method:
            return kind(spec, **(values | overrides))

        subjects.append(Subject(make, spec, values, name, excused))
    with own_generators(), torch.enable_grad():
        usable, hopeless = [], {}
        for subject in subjects:
            reason = _hopeless(kind, subject.spec)
            if reason:
                hopeless[subject.name] = reason
            else:
                usable.append(subject)
        for check in wanted:
            if check.everywhere:
                results.append(_run(check, "all", excused, partial(_everywhere, check, usable, hopeless)))
                continue
            for subject in subjects:
                if subject.name in hopeless:
                    results.append(CheckResult(check.name, subject.name, "skipped", hopeless[subject.name]))
                else:
                    results.append(_run(check, subject.name, excused, partial(_single, check, subject, kind)))
    return results


def _hopeless(kind: type[Method], spec: DataSpec) -> str | None:
    """Why the method can do nothing at all on this spec."""
    reasons = [kind.unsupported(spec, task) for task in ("joint", "cross", "encode")]
    return reasons[0] if all(isinstance(reason, str) for reason in reasons) else None


def _everywhere(check: Check, usable: list[Subject], hopeless: Mapping[str, str]) -> str | None:
    if not usable:
        return next(iter(hopeless.values()))
    return check.run(usable)


def _single(check: Check, subject: Subject, kind: type[Method]) -> str | None:
    for task in check.tasks:
        reason = kind.unsupported(subject.spec, task)
        if reason:
            return str(reason)
    return check.run(subject)


def _run(check: Check, spec: str, excused: Mapping[str, str], call: partial[str | None]) -> CheckResult:
    """Call a check; a returned string is the reason why it was skipped, any other exception a failure."""
    from bench.checks.registry import CheckFailed, NotApplicable

    if check.name in excused:
        return CheckResult(check.name, spec, "skipped", f"excused by the method: {excused[check.name]}")
    start = time.perf_counter()
    status: Status = "ok"
    detail = ""
    try:
        reason = call()
        if reason is not None:
            status, detail = "skipped", reason
    except NotApplicable as error:
        status, detail = "skipped", str(error)
    except CheckFailed as error:
        status, detail = "failed", str(error)
    except Exception as error:
        status, detail = "failed", f"{type(error).__name__}: {error}{_place(error)}"
    if status == "ok":
        items = [f"{key} ({why})" for key, why in excused.items() if key.startswith(f"{check.name}[")]
        detail = "excused by the method: " + ", ".join(items) if items else ""
    return CheckResult(check.name, spec, status, detail, time.perf_counter() - start)


def _place(error: BaseException) -> str:
    """Where in the method's own code an exception started, as ` (file:line)`."""
    trace = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [f for f in trace if "site-packages" not in f.filename and "/bench/check" not in f.filename]
    return f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno})" if own else ""


def report(results: list[CheckResult]) -> str:
    """A plain text table: one line per check, faults and reasons below, the count last."""
    marks = {"ok": "ok", "failed": "FAILED", "skipped": "skipped"}
    specs = list(dict.fromkeys(r.spec for r in results if r.spec != "all"))
    names = list(dict.fromkeys(r.name for r in results))
    width = max((len(name) for name in names), default=0)
    lines = [f"{'check':<{width}}  " + "  ".join(f"{spec:<8}" for spec in specs)]
    for name in names:
        by_spec = {r.spec: r for r in results if r.name == name}
        if "all" in by_spec:
            cells = [marks[by_spec["all"].status]]
        else:
            cells = [marks[by_spec[spec].status] if spec in by_spec else "" for spec in specs]
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:<8}" for cell in cells).rstrip())
    failed = [r for r in results if r.status == "failed"]
    reasons: dict[tuple[str, str], list[str]] = {}
    for r in results:
        if r.status == "skipped":
            reasons.setdefault((r.spec, r.detail), []).append(r.name)
    lines += [""] + [f"FAILED {r.name} ({r.spec}): {r.detail}" for r in failed]
    lines += [f"{r.name} ({r.spec}): {r.detail}" for r in results if r.status == "ok" and r.detail]
    for (spec, reason), skipped in reasons.items():
        what = skipped[0] if len(skipped) == 1 else f"{len(skipped)} checks"
        lines.append(f"skipped {what} ({spec}): {reason}")
    count = {status: sum(r.status == status for r in results) for status in marks}
    lines.append(f"{count['ok']} ok, {count['failed']} failed, {count['skipped']} skipped")
    return "\n".join(lines)
