"""Readers that do what damaged files make libraries do; imported by the process that forks."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from dualclickmed.imaging import native


def crashes(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(path: str) -> None:
    """A temporary file, as a library that crashes leaves it."""
    (Path(tempfile.mkdtemp()) / "pixels").write_bytes(b"private")
    crashes(path)


def raises(path: str) -> None:
    raise KeyError(path)


def answers_nonsense(path: str) -> object:
    return object()


def sleeps(path: str) -> None:
    time.sleep(3600)


def computes(path: str) -> None:
    while True:
        pass


for reader in (crashes, leaves, raises, answers_nonsense, sleeps, computes):
    native.READERS[reader.__name__] = reader
