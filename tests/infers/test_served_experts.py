"""The thread that computes is the only one with workers of OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import torch

from dualclickmed.configs.options import ServerOptions
from dualclickmed.imaging.geometry import Box, Roi, paste_from_grid
from dualclickmed.infers.served_experts import ServedExperts
from dualclickmed.short_thread import in_short_thread

def threads():
    return psutil.Process().num_threads()

def paste():
    roi = Roi(Box((0, 0, 0), (64, 64, 64)), (64, 64, 64))
    return paste_from_grid(torch.ones(64, 64, 64), roi, (64, 64, 64))

before = threads()
with ThreadPoolExecutor(1) as request:
    work = {
        "weights": ServedExperts(ServerOptions()).problem,
        "short": lambda: in_short_thread(paste),
        "plain": paste,
    }[sys.argv[1]]
    request.submit(work).result()
    # The request's thread is there still, with what belongs to it; what is told to end takes a moment.
    deadline = time.monotonic() + 5
    while threads() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    print(threads() - before - 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as Linux does")
@pytest.mark.parametrize(("work", "workers"), [("weights", 0), ("short", 0), ("plain", 1)])
def test_work_beside_the_thread_that_computes_leaves_no_workers(work: str, workers: int) -> None:
    """With more workers than processors all of them would sleep, and each click take longer."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, work],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) == workers
