"""What a killed server leaves behind, and a place where nobody else can read what is uploaded."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic_files import HALF_WRITTEN

logger = logging.getLogger(__name__)

PREFIX = "dualclickmed-server-"
OLD_SECONDS = 3600.0
"""Nothing that this package writes takes so long."""
_LOCK = ".lock"

_held: list[FileLock] = []


def private_temporary_folder() -> Path:
    """Make a folder for temporary files that this server's user alone can read, and let Python use it.

    MONAI Label stores uploads where every user of the machine can read them. Folders of servers that were
    killed are removed; each living server holds a lock in its own.
    """
    base = Path(tempfile.gettempdir())
    for other in base.glob(f"{PREFIX}*"):
        lock = FileLock(other / _LOCK, blocking=False)
        try:
            with lock:
                shutil.rmtree(other, ignore_errors=True)
        # Its server lives, or it belongs to another user.
        except (Timeout, OSError):
            continue
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    _held.append(lock)
    tempfile.tempdir = str(folder)
    atexit.register(shutil.rmtree, folder, True)
    return folder


def clear_half_written(folder: Path) -> None:
    """Remove files of a folder that a process began to write and did not live to finish."""
    for path in folder.glob(".*.tmp"):
        found = HALF_WRITTEN.fullmatch(path.name)
        try:
            if found and (not _lives(int(found[1])) or time.time() - path.stat().st_mtime > OLD_SECONDS):
                path.unlink(missing_ok=True)
                logger.info("Removed %s, which was never finished", path)
        except OSError:
            logger.warning("Could not remove %s, which was never finished", path)


def _lives(process: int) -> bool:
    """Whether another process of that number lives; this one has written nothing yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
