"""Reads files in separate processes with limits of time and memory, which end with the request.

No native library reads a byte of a request in the server's process. Each file has a fresh process, forked in
milliseconds by one that has imported the readers (`forks`); its voxels come back through shared memory. It is
killed when it takes too long, when the request's time is over, when its client leaves, and when the server
ends, in whatever way.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..cancellation import check
from ..errors import TooLargeError, UserError, VolumeError
from ..imaging.facts import ReadLimits
from . import forks, transport

logger = logging.getLogger(__name__)

AT_ONCE = 3
"""Files that are read side by side."""
BASE_SECONDS = 15.0
BYTES_PER_SECOND = 1 << 20
"""A file may take `BASE_SECONDS`, and one second more for each of these bytes."""
BASE_BYTES = 256 << 20
FACTOR = 2
"""A reader may take `BASE_BYTES` of memory and this many times an image's: its voxels as they are stored, and
as they are kept."""
STUCK_SECONDS = 5.0
"""A reader that should have ended so long ago is stuck."""
START_SECONDS = 120.0
"""Importing the image libraries may take so long."""
_LOOK_SECONDS = 0.1


class Reader:
    """Reads files elsewhere; a `native.Runner`. Thread-safe.

    Args:
        most_bytes: memory of an image's voxels as its file stores them.
        most_seconds: that it may take, whatever the file's size.
        folder: the server's temporary folder, where each reader puts its own.
        modules: further modules with readers.
    """

    def __init__(
        self,
        most_bytes: int,
        most_seconds: float,
        folder: Path | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        self.most_bytes, self.most_seconds, self.folder = most_bytes, most_seconds, folder
        self._modules = list(modules)
        self._slots = threading.Semaphore(AT_ONCE)
        self._starting = threading.Lock()
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._running: dict[int, tuple[float, float]] = {}

    def __call__(self, name: str, args: tuple[Any, ...]) -> Any:
        """Run the reader of that name in a process and return its result; the first argument is a path.

        Raises:
            UserError: as the reader does; a VolumeError too where it needs more time or memory than it may
                take, or crashes.
            Stopped: the request that it reads for is over.
        """
        path = Path(args[0])
        seconds = min(self.most_seconds, BASE_SECONDS + _size(path) / BYTES_PER_SECOND)
        with self._slot(), self._connection() as connection:
            until = time.monotonic() + seconds
            self._running[id(connection)] = time.monotonic(), until
            try:
                asked = {
                    "name": name,
                    "args": args,
                    "limits": self._limits(path),
                    "memory": BASE_BYTES + FACTOR * self.most_bytes,
                    "seconds": seconds,
                }
                problem, found = self._answer(connection, asked, until)
            except TimeoutError as error:
                raise VolumeError(
                    f"{path.name} could not be read within the {seconds:.0f} seconds that a file of its size "
                    "may take: it is damaged, or the server is overloaded."
                ) from error
            except (transport.ClosedError, OSError, ValueError) as error:
                raise VolumeError(
                    f"{path.name} could not be read: it is damaged in a way that ends its reader, or needs "
                    f"more memory than an image may take ({self.most_bytes / (1 << 30):.3g} GiB)."
                ) from error
            finally:
                self._running.pop(id(connection), None)
        if problem is None:
            return found
        raise self._error(problem, found, path)

    def start(self) -> None:
        """Start the process that forks, so that the first file need not wait for it.

        Raises:
            OSError: it cannot be started, or `stop` was called.
        """
        with self._starting:
            if self._over.is_set():
                raise OSError("The server is ending.")
            if self._control is None or (self._process is not None and self._process.poll() is not None):
                self._stop()
                self._start()

    def stop(self) -> None:
        """End every reader, for good; also while the process that forks is being started."""
        self._over.set()
        with self._starting:
            self._stop()

    @property
    def running(self) -> list[float]:
        """For how many seconds each reader has been at work."""
        now = time.monotonic()
        return [now - begun for begun, _ in list(self._running.values())]

    @property
    def stuck(self) -> int:
        """Readers that should have ended and have not."""
        late = time.monotonic() - STUCK_SECONDS
        return sum(until < late for _, until in list(self._running.values()))

    @contextmanager
    def _slot(self) -> Iterator[None]:
        while not self._slots.acquire(timeout=_LOOK_SECONDS):
            check()
        try:
            yield
        finally:
            self._slots.release()

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        """A socket to a new reader, which is killed when the ``with`` block ends, if it still lives."""
        own, other = socket.socketpair()
        try:
            with other:
                self._hand_over(forks.READ, other)
            yield own
        finally:
            # Also where a process that was forked meanwhile holds the socket too.
            with suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)
            own.close()

    def _hand_over(self, what: bytes, connection: socket.socket) -> None:
        for attempt in (1, 2):
            self.start()
            with self._starting:
                try:
                    if self._control is None:
                        raise ConnectionAbortedError("The server is ending.")
                    socket.send_fds(self._control, [what], [connection.fileno()])
                    return
                except OSError:
                    # It was killed, perhaps for its memory.
                    self._stop()
                    if attempt == 2:
                        raise

    def _start(self) -> None:
        own, other = socket.socketpair()
        package = (__package__ or "").rpartition(".")[0]
        # MONAI Label imports the app's ``lib`` from a folder that is in the path for that moment alone.
        home = Path(sys.modules[package].__file__ or __file__).parents[1]
        found = [str(home), *sys.path]
        folder = None if self.folder is None else str(self.folder)
        code = (
            f"import sys; sys.path[:] = {found!r}; "
            f"from {package}.server.forks import main; "
            f"main({other.fileno()}, {self._modules!r}, {folder!r})"
        )
        # One thread each: several would take address space, which is counted, and gain nothing.
        threads = dict.fromkeys(
            (
                *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
                "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
            ),
            "1",
        )
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[other.fileno()], env=os.environ | threads
            )
        self._control = own
        if not self._is_ready(own):
            # It reads nothing yet.
            self._process.kill()
            self._stop()
            raise OSError("The process that reads files did not start.")

    def _is_ready(self, control: socket.socket) -> bool:
        """Wait until the process that forks has imported the readers."""
        until = time.monotonic() + START_SECONDS
        waiting = select.poll()
        waiting.register(control, select.POLLIN)
        while not waiting.poll(1000 * _LOOK_SECONDS):
            if self._over.is_set() or time.monotonic() > until:
                return False
        return bool(control.recv(1))

    def _stop(self) -> None:
        if self._control is not None:
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control.close()
            self._control = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            self._process = None

    def _answer(self, connection: socket.socket, asked: Any, until: float) -> Any:
        transport.send(connection, asked)
        waiting = select.poll()
        waiting.register(connection, select.POLLIN)
        while not waiting.poll(1000 * _LOOK_SECONDS):
            check()
            if time.monotonic() > until:
                raise TimeoutError
        connection.settimeout(max(1.0, until - time.monotonic()))
        return transport.receive(connection)

    def _limits(self, path: Path) -> ReadLimits:
        # Beside a file that was uploaded alone lie those of other requests.
        alone = self.folder is not None and path.parent == self.folder
        return ReadLimits(image_bytes=self.most_bytes, siblings=not alone)

    def _error(self, name: str, message: str, path: Path) -> UserError:
        if name == forks.OUT_OF_MEMORY:
            return TooLargeError(
                f"{path.name} needs more memory than an image may take "
                f"({self.most_bytes / (1 << 30):.3g} GiB, --conf image_gb)."
            )
        if name == forks.FAILED:
            return VolumeError(f"{path.name} could not be read: it is damaged, or of an unknown kind.")
        kinds = [UserError]
        for kind in kinds:
            kinds.extend(kind.__subclasses__())
        found = [kind for kind in kinds if kind.__name__ == name]
        return (found[0] if found else UserError)(message)


def _size(path: Path) -> int:
    """Bytes of a file, or of a folder's files; 0 where there are none."""
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir())
        return path.stat().st_size
    except OSError:
        return 0


def available() -> bool:
    """Whether this system can read files in processes of their own: Linux and macOS, not Windows."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds")
