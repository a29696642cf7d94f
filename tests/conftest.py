"""Shared by all tests: GPU tests are skipped with a reason, prepared data is kept between sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers share the cores: threads of each would wait for those of the others.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, torch sees none"))


@pytest.fixture(scope="session")
def shared_cache(request: pytest.FixtureRequest) -> Path:
    """A cache folder for prepared data and judges that outlives the session (git-ignored)."""
    assert request.config.cache is not None
    return Path(request.config.cache.mkdir("suite"))
