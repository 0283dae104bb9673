"""The lock on training in a studies folder: one process at a time, named in a file beside the lock.

The lock is the operating system's, which releases it when its process ends. Where it does not, on a
network file system or when a child has inherited it, the name beside it tells that its holder is gone, and
the lock is taken over.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ..atomic_files import write_text
from ..errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".training.lock"
HOLDER = ".training.json"
WAIT_SECONDS = 3.0
"""Reading the lock's state takes it for a moment; a training waits that long."""


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock.

    Attributes:
        pid, host: which process, on which machine.
        born: when the process started, in seconds since the epoch: numbers of processes are used again.
        run: the training that it carries out.
        since: when it took the lock, in seconds since the epoch.
    """

    pid: int
    host: str
    born: float
    run: str
    since: float

    @classmethod
    def this(cls, run: str) -> Holder:
        """This process."""
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time(), run, time.time())

    @property
    def gone(self) -> bool:
        """Whether the process has certainly ended; False for a process of another machine."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.born or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    def __str__(self) -> str:
        minutes = max(0.0, time.time() - self.since) / 60
        return f"process {self.pid} on {self.host}, for {minutes:.0f} minutes ({self.run})"


def holder(folder: Path) -> Holder | None:
    """The process that trains in a folder; None if there is none."""
    if not (folder / LOCK).exists():
        return None
    try:
        with FileLock(str(folder / LOCK)).acquire(timeout=0):
            return None
    except Timeout:
        named = _named(folder)
        # The lock is taken and the holder's name not written yet.
        found = Holder(0, socket.gethostname(), 0.0, "starting", time.time()) if named is None else named
        return None if named is not None and named.gone else found


@contextmanager
def training_lock(folder: Path, run: str, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """The only training of a folder, as long as the ``with`` block lasts.

    Args:
        folder: beside the studies.
        run: the training's name, for messages of others.
        wait: seconds.

    Raises:
        UserError: another process is training; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder, wait)
    try:
        write_text(folder / HOLDER, json.dumps(dataclasses.asdict(Holder.this(run))))
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _acquired(folder: Path, wait: float) -> FileLock:
    lock = FileLock(str(folder / LOCK))
    try:
        lock.acquire(timeout=wait)
        return lock
    except Timeout:
        return _taken_over(folder)


def _taken_over(folder: Path) -> FileLock:
    """A new lock in the place of one whose holder is gone.

    Raises:
        UserError: the holder is running, or may be.
    """
    path = folder / LOCK
    # One at a time: the second one must not remove the lock that the first one has just made.
    with FileLock(str(folder / f"{LOCK}.takeover")):
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            found = _named(folder)
        if found is None or not found.gone:
            who = "" if found is None else f" ({found})"
            raise UserError(
                f"A training is running already{who}; wait until it has ended, or stop it (DELETE /train/)."
            )
        logger.warning("The training lock is taken over: its holder is gone (%s)", found)
        path.unlink(missing_ok=True)
        lock = FileLock(str(path))
        lock.acquire(timeout=0)
        return lock


def _named(folder: Path) -> Holder | None:
    try:
        return Holder(**json.loads((folder / HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
