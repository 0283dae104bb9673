"""Files that are on disk as a whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HALF_WRITTEN = re.compile(r"\..+\.(\d+)\.tmp")
"""Name of a file that is being written, with the number of the process that does; what a killed process left
is removed by `server.leftovers`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that readers find the old one or the new one, also after a power failure.

    Args:
        path: where the file shall be; its folder is made.

    Yields:
        Where to write it. It takes the place of `path` when the block ends, and is removed when that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not with the file's own name in it: that may be as long as a name can be.
    part = path.with_name(f".{uuid.uuid4().hex}.{os.getpid()}.tmp")
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
        flush_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def flush_folder(folder: Path) -> None:
    """Let the renames of a folder reach the disk."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
