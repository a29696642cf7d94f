"""Every method that ships with the suite passes the conformance checks."""

from __future__ import annotations

import pytest

from bench.check import check_method, report
from bench.registry import load_method_class, method_names


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_the_method_passes_every_check(name: str) -> None:
    results = check_method(name)
    failed = [r for r in results if not r.ok]
    assert not failed, report(failed)
    # Without latents (`mle_ebm`) there is nothing to encode or to condition on.
    least = 30 if load_method_class(name).latents else 25
    assert sum(r.status == "ok" for r in results) >= least
