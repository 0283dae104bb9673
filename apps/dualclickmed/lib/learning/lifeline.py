"""A process that ends with the server that started it, whatever ends the server.

MONAI Label starts trainings, scorings and batch inferences as processes of their own. A server that is
killed cannot end them, so they do it themselves: on Linux the kernel sends SIGKILL when the parent is gone
(PR_SET_PDEATHSIG), and a thread that looks at the parent's number does the same on every system.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time

logger = logging.getLogger(__name__)

SERVER = "DUALCLICKMED_SERVER"
"""Environment variable that tells processes the number of the server that they belong to."""
LOOK_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


def announce() -> None:
    """Processes that are started from now on belong to this one; called by the server."""
    os.environ[SERVER] = str(os.getpid())


def follow_server() -> bool:
    """Let this process end with the server that started it; called by every process early.

    Returns:
        Whether a server has started this process.
    """
    named = os.environ.get(SERVER, "")
    if not named.isdecimal() or int(named) == os.getpid():
        return False
    follow(int(named))
    return True


def follow(parent: int) -> None:
    """Let this process end with its parent; it ends at once if that one is gone already.

    Args:
        parent: number of the process that started this one.
    """
    if sys.platform == "linux":
        # The result is not looked at: where the kernel refuses, the thread below is enough.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _end()
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    _end()


def _end() -> None:
    # Without clean-up, which could hang; files on disk are complete at any moment.
    os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
