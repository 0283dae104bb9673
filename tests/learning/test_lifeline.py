"""A process that ends with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from dualclickmed.learning import lifeline

CHILD = """
import sys, time
from dualclickmed.learning import lifeline
{change}
print(lifeline.follow_server(), flush=True)
time.sleep(600)
"""
SERVER = """
import os, subprocess, sys, time
from dualclickmed.learning.lifeline import announce
announce()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode().strip(), flush=True)
time.sleep(600)
"""
WITHOUT_KERNEL = "sys.platform = 'another'"


@pytest.mark.parametrize("change", ["", WITHOUT_KERNEL], ids=["kernel", "thread"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_server(change: str, end: signal.Signals) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, CHILD.format(change=change)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        number, follows = server.stdout.readline().split()
        assert follows == "True"
        child = psutil.Process(int(number))
        assert child.is_running()
        server.send_signal(end)
        server.wait(30)
        _, alive = psutil.wait_procs([child], timeout=10)
        assert alive == []
    finally:
        server.kill()


def test_nobody_follows_who_was_not_started_by_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(lifeline.SERVER, raising=False)
    assert not lifeline.follow_server()
    monkeypatch.setenv(lifeline.SERVER, str(os.getpid()))
    assert not lifeline.follow_server()


def test_who_comes_after_its_parent_ends_at_once() -> None:
    begin = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", "from dualclickmed.learning.lifeline import follow; follow(1 << 21)"],
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL
    assert time.monotonic() - begin < 60
