"""Frames of the page, taken apart."""

from __future__ import annotations

import gzip
import json
import struct
from typing import Any

import numpy as np


def unframed(frame: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A frame's header, and each part (x, y, z) as the page sees it."""
    (length,) = struct.unpack_from("<I", frame)
    header = json.loads(frame[4 : 4 + length])
    parts, at = {}, 4 + length
    for part in header["parts"]:
        body = gzip.decompress(frame[at : at + part["bytes"]]) if part["bytes"] else b""
        at += part["bytes"]
        sides = [part["box"][2 * axis + 1] - part["box"][2 * axis] for axis in range(3)]
        parts[part["name"]] = np.frombuffer(body, np.uint8).reshape(sides, order="F")
    assert at == len(frame)
    return header, parts
