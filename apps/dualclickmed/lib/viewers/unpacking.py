"""Compressed arrays from requests, unpacked by a process of their own.

The libraries that unpack are native code, and what they are given comes from outside. So they run in a child
process with limits of memory and time: whatever a damaged stream does to it, the server answers with a
sentence and starts another one.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .. import cancellation
from ..errors import UserError
from .unpacker import ANSWER, BLOSC2, DONE, GZIP

__all__ = ["BLOSC2", "GZIP", "UnpackError", "Unpacker"]
MOST_SECONDS = 120.0
"""For one array; the largest that a server takes needs a few."""
_CHILD = Path(__file__).with_name("unpacker.py")
_LOOK_SECONDS = 0.25
_BLOCK = 1 << 20


class UnpackError(UserError):
    """A stream that cannot be unpacked, or not in time."""


class Unpacker:
    """Hands streams to a child process, one after the other. Thread-safe.

    Args:
        most_bytes: of one array, unpacked; bounds the child's memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def unpack(
        self, kind: str, data: bytes, nbytes: int, chunks: Sequence[tuple[int, int, int]] = ()
    ) -> bytearray:
        """What a stream holds.

        Args:
            kind: `BLOSC2`, or `GZIP` for the whole of `data`.
            data: as it came.
            nbytes: how long it has to be once unpacked.
            chunks: with `BLOSC2`, the start, stop and unpacked length of each, which sum up to `nbytes`.

        Raises:
            UnpackError: it is damaged, or of another length; the child ended or took too long.
            Stopped: the request was cancelled.
        """
        if nbytes > self.most_bytes:
            raise UnpackError(f"An array may have {self.most_bytes} bytes here, but it has {nbytes}.")
        job = {"kind": kind, "length": len(data), "nbytes": nbytes, "chunks": list(chunks)}
        with self._lock:
            child = self._running()
            try:
                found, problem = self._ask(child, job, data)
            except OSError as error:
                self._end()
                raise UnpackError("The array is damaged: unpacking it failed.") from error
            except BaseException:
                # Ended in the middle of an answer; the next job needs a new child.
                self._end()
                raise
        if problem:
            raise UnpackError(f"The array is damaged: {problem}.")
        return found

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            command = [sys.executable, "-I", str(_CHILD), str(self.most_bytes)]
            # Unbuffered, because select() does not see buffered bytes.
            self._child = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], job: dict[str, Any], data: bytes) -> tuple[bytearray, str]:
        """What the child found, and what is wrong with the stream, of which one is empty."""
        assert child.stdin is not None and child.stdout is not None
        deadline = time.monotonic() + MOST_SECONDS
        _send(child.stdin, json.dumps(job).encode() + b"\n")
        _send(child.stdin, data)
        status, length = ANSWER.unpack(_received(child.stdout, ANSWER.size, deadline))
        if status == DONE and length != job["nbytes"]:
            raise OSError("the child answered for another stream")
        found = _received(child.stdout, length, deadline)
        return (found, "") if status == DONE else (bytearray(), found.decode("utf-8", "replace"))

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def _send(stream: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        cancellation.check()
        view = view[stream.write(view[:_BLOCK]) :]


def _received(stream: IO[bytes], length: int, deadline: float) -> bytearray:
    """A number of bytes of an answer.

    Raises:
        OSError: the child ended, or the deadline passed.
        Stopped: the request was cancelled.
    """
    found = bytearray(length)
    view, at = memoryview(found), 0
    while at < length:
        cancellation.check()
        if time.monotonic() > deadline:
            raise OSError("the child took too long")
        if not select.select([stream], [], [], _LOOK_SECONDS)[0]:
            continue
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise OSError("the child ended")
        at += count
    return found
