"""Fixtures shared by the whole suite."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Idle OpenMP threads that spin slow a busy two-core machine several times over; must precede torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A busy machine is no failure of an example. The same examples every time make a failure the change's own;
# `pytest --hypothesis-profile=explore` draws others.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", PATIENT)
settings.register_profile("suite", PATIENT, derandomize=True)
settings.load_profile("suite")

SHARED_DATA = Path(os.environ.get("BELVEDERE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real development data sets; tests that need it are skipped, loudly, where it is absent."""
    if not SHARED_DATA.is_dir():
        warnings.warn(f"{SHARED_DATA} is absent: a test on real data was NOT run", stacklevel=1)
        pytest.skip(f"real data absent: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go to a folder of the test session, never to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BELVEDERE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run torch on one thread, so that results do not depend on the machine's core count."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
