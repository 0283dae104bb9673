"""The server's limits, as ``--conf`` sets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError

WORKING = 2
"""Requests that work at the same time: while one computes, another reads its image or writes its mask."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the server.

    Attributes:
        queue: requests for a segmentation that may wait (``--conf queue``).
        timeout: seconds that a request may wait, and again that it may compute (``--conf timeout``).
        upload_bytes: size of an upload (``--conf upload_gb``).
        hosts: names under which the server is reached besides this machine's own (``--conf hosts a,b``);
            "*" for any.
        image_bytes: memory of one image's voxels as its file stores them (``--conf image_gb``).
        session_bytes: all sessions' images together (``--conf sessions_gb``).
        logs: whether /logs may be read without log-in (``--conf logs true``).
    """

    queue: int = 32
    timeout: float = 300.0
    upload_bytes: int = 2 << 30
    hosts: tuple[str, ...] = ()
    logs: bool = False
    image_bytes: int = 4 << 30
    session_bytes: int = 20 << 30

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> Limits:
        """Read MONAI Label's configuration; other names are left alone.

        Raises:
            UserError: a value cannot be used.
        """
        names = (name.strip().lower() for name in conf.get("hosts", "").split(","))
        logs = str(conf.get("logs", "false")).strip().lower()
        if logs not in ("true", "false"):
            raise UserError(f"--conf logs must be true or false, but it is {logs!r}.")
        return cls(
            queue=int(number(conf, "queue", cls.queue, 0, 10_000, whole=True)),
            timeout=number(conf, "timeout", cls.timeout, 1, 86_400),
            upload_bytes=_gigabytes(conf, "upload_gb", cls.upload_bytes),
            image_bytes=_gigabytes(conf, "image_gb", cls.image_bytes),
            session_bytes=_gigabytes(conf, "sessions_gb", cls.session_bytes),
            hosts=tuple(name for name in names if name),
            logs=logs == "true",
        )


def _gigabytes(conf: Mapping[str, str], name: str, default: int) -> int:
    return int(number(conf, name, default / (1 << 30), 0.001, 1024) * (1 << 30))


def number(
    conf: Mapping[str, str], name: str, default: float, least: float, most: float, whole: bool = False
) -> float:
    """A number that ``--conf`` sets.

    Raises:
        UserError: it is none, or not from `least` to `most`.
    """
    text = conf.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise UserError(f"--conf {name} must be {kind} from {least:g} to {most:g}, but it is {text!r}.")
    return value
