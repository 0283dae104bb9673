"""The child process of `unpacking`: jobs come from standard input, what streams hold goes to standard output.

It is run as a script, apart from the package, and imports no more than it needs.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import zlib
from typing import Any

BLOSC2, GZIP = "blosc2", "gzip"
"""What streams may be packed with."""
ANSWER = struct.Struct("<BQ")
"""Before each answer: `DONE` or `REFUSED`, and the length of what follows, the array's bytes or a reason."""
DONE, REFUSED = 0, 1
_OWN_BYTES = 2 << 30
"""Address space of the interpreter and its libraries."""


def main(most_bytes: int) -> None:
    """Answer jobs until standard input ends."""
    # The packed stream, which is hardly ever longer than the array, and the array.
    most = _OWN_BYTES + 3 * most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := jobs.readline():
        job = json.loads(line)
        data = jobs.read(job["length"])
        try:
            found: Any = _unpacked(job, data)
            status = DONE
        except Exception as error:
            found, status = f"{type(error).__name__}: {error}"[:300].encode(), REFUSED
        answers.write(ANSWER.pack(status, len(found)))
        answers.write(found)
        answers.flush()
        del found, data


def _unpacked(job: dict[str, Any], data: bytes) -> bytearray:
    if job["kind"] == GZIP:
        return _gunzipped(data, job["nbytes"])
    import blosc2

    blosc2.set_nthreads(1)
    found = bytearray(job["nbytes"])
    source, target, at = memoryview(data), memoryview(found), 0
    for start, stop, nbytes in job["chunks"]:
        blosc2.decompress2(source[start:stop], dst=target[at : at + nbytes])
        at += nbytes
    return found


def _gunzipped(data: bytes, nbytes: int) -> bytearray:
    """The whole of a gzip stream, whose check sum is looked at."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    found = bytearray(stream.decompress(data, nbytes + 1))
    if len(found) <= nbytes and not stream.eof:
        found += stream.decompress(stream.unconsumed_tail, nbytes + 1 - len(found))
    if len(found) > nbytes:
        raise ValueError(f"it holds more than {nbytes} bytes")
    if len(found) < nbytes or not stream.eof:
        raise ValueError(f"it ends after {len(found)} of {nbytes} bytes")
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
