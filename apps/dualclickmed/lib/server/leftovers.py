"""Removal of files that a killed server left, and a private folder for uploads."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic_files import HALF_WRITTEN

logger = logging.getLogger(__name__)

PREFIX = "dualclickmed-server-"
OLD_SECONDS = 3600.0
"""Age after which a half-written file counts as abandoned: no write takes so long."""
_LOCK = ".lock"

# Signals of the server's group do not end it. Processes that are ending may still write: it tries again.
_REMOVING = """
trap "" HUP INT TERM
read -r nothing
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$0" && exit
    sleep 0.5
done
"""

_held: list[FileLock] = []
_removing: list[subprocess.Popen[bytes]] = []


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
        # Its server is running, or the folder belongs to another user.
        except (Timeout, OSError):
            continue
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    _held.append(lock)
    tempfile.tempdir = str(folder)
    _remove_in_the_end(folder)
    return folder


def _remove_in_the_end(folder: Path) -> None:
    """Remove a folder once this process is gone, in whatever way.

    A signal ends a server without its ``atexit``, and a thread that still runs would write anew what was
    removed before the end. So a shell waits for the end of this process, which closes a pipe.
    """
    if os.name != "posix":
        atexit.register(shutil.rmtree, folder, True)
        return
    _removing.append(
        subprocess.Popen(
            ["/bin/sh", "-c", _REMOVING, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    )


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
