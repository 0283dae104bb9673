"""What all tests share: real volumes where they lie on this machine, and repeatable property tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Threads that wait for work must not keep a core from the servers that tests start, nor from other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Processes that test in parallel ignore Ctrl+C, and so would the servers and trainings that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run and no limit on a single one: two cores are often shared with other work.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that DUALCLICKMED_REAL_DATA names; tests that ask for it are skipped where it is not set."""
    folder = os.environ.get("DUALCLICKMED_REAL_DATA")
    if not folder:
        pytest.skip("DUALCLICKMED_REAL_DATA is not set")
    path = Path(folder)
    assert path.is_dir(), f"DUALCLICKMED_REAL_DATA names '{folder}', which is not a folder"
    return path
