"""A process that has imported the readers and nothing else, and forks one for every file that is read.

A fork takes milliseconds; starting Python and importing the image libraries would take seconds. It reads
nothing itself, so that no file can harm it. `serve` describes the protocol.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import UserError
from ..imaging import native
from ..imaging.facts import ReadLimits, limit_to
from . import transport

logger = logging.getLogger(__name__)

READY, READ = b"!", b"r"
"""The message once everything is imported, and a request to read, which comes with a socket."""
FAILED = "failed"
OUT_OF_MEMORY = "memory"
CPU_FACTOR = 2
"""Seconds of processor time for each second that a reader may take, also where the server is gone."""


def serve(control: socket.socket, folder: Path | None) -> None:
    """Fork a reader for every socket received; end when every sender has closed its end.

    A reader takes its request from that socket and answers on it. It is killed once the other end of the
    socket is shut down. The end of the server, however it comes, ends this process and all readers.

    Args:
        control: a Unix stream socket; each byte that comes brings a socket with it.
        folder: the server's temporary folder, in which each reader has one of its own.
    """
    ended, notice = os.pipe()
    os.set_blocking(notice, False)
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    readers: dict[int, socket.socket] = {}
    try:
        while True:
            waited = select.poll()
            for handle in (control.fileno(), ended):
                waited.register(handle, select.POLLIN)
            for connection in readers.values():
                # The only event to wait for is the end of the other side.
                waited.register(connection.fileno(), 0)
            happened = dict(waited.poll())
            if ended in happened:
                os.read(ended, 4096)
            for process, connection in readers.items():
                if connection.fileno() in happened:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            _reap(readers, folder)
            if control.fileno() in happened and not _take(control, ended, notice, readers, folder):
                return
    finally:
        for process in readers:
            os.kill(process, signal.SIGKILL)


def _reap(readers: dict[int, socket.socket], folder: Path | None) -> None:
    while readers:
        process, _ = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        # Before the other end sees that it is closed. A reader that was killed has removed nothing itself.
        if folder is not None:
            shutil.rmtree(_own(folder, process), ignore_errors=True)
        readers.pop(process).close()


def _own(folder: Path, process: int) -> Path:
    """Where a reader puts its temporary files."""
    return folder / f"reader-{process}"


def _take(
    control: socket.socket, ended: int, notice: int, readers: dict[int, socket.socket], folder: Path | None
) -> bool:
    """Handle the next request; False once the control socket is closed."""
    try:
        asked, handles, _, _ = socket.recv_fds(control, 1, 1)
    except OSError:
        return False
    if not asked:
        return False
    connection = socket.socket(fileno=handles[0])
    try:
        process = os.fork()
    except OSError:
        # The other end sees that it is closed.
        connection.close()
        return True
    if process:
        readers[process] = connection
        return True
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    # An end that this process held would keep others from seeing that it is closed.
    for other in (control, *readers.values()):
        other.close()
    os.close(ended)
    os.close(notice)
    if folder is not None:
        own = _own(folder, os.getpid())
        with suppress(OSError):
            own.mkdir()
            tempfile.tempdir = str(own)
    _read(connection)


def _read(connection: socket.socket) -> NoReturn:
    """Answer one request, and end."""
    try:
        with suppress(OSError):
            # If memory runs out, the kernel shall end this process first.
            Path("/proc/self/oom_score_adj").write_text("1000")
        transport.send(connection, _answer(**transport.receive(connection)))
    except (transport.ClosedError, BrokenPipeError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _answer(
    name: str, args: tuple[Any, ...], limits: ReadLimits, memory: int, seconds: float
) -> tuple[str | None, Any]:
    """(None, the reader's result), or (an error's name, its message)."""
    limit_to(limits)
    _limit(memory, seconds)
    read: Callable[..., Any] = native.READERS[name]
    try:
        return None, read(*args)
    except UserError as error:
        return type(error).__name__, str(error)
    except MemoryError:
        return OUT_OF_MEMORY, ""
    except Exception:
        # Libraries raise nearly anything on files that they cannot read.
        traceback.print_exc()
        return FAILED, ""


def _limit(memory: int, seconds: float) -> None:
    # OpenBLAS takes its memory at its first use, and tries without end where there is none.
    np.linalg.det(np.eye(4))
    with suppress(OSError, ValueError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    most = int(CPU_FACTOR * seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(handle: int, modules: Sequence[str], folder: str | None) -> None:
    """Import the readers, then `serve` on a socket that this process was started with."""
    # A terminal's Ctrl+C and a service manager's SIGTERM reach the whole group: the server says when to end.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    from ..imaging import label_parts, series_nifti, volume  # noqa: F401

    for module in modules:
        importlib.import_module(module)
    gc.collect()
    # So that a fork does not copy what only the collector has touched.
    gc.freeze()
    control = socket.socket(fileno=handle)
    with suppress(BrokenPipeError):
        control.sendall(READY)
        serve(control, None if folder is None else Path(folder))
