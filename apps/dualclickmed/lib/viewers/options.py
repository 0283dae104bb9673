"""What ``--conf name value`` may set about viewers' protocols."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError
from ..server.limits import number

KEY_VARIABLE = "DUALCLICKMED_VIEWERS_KEY"
"""Names the key where others may read the command line."""
NNINTERACTIVE_PORT, ITKSNAP_PORT = 1527, 8911
"""The viewers' default ports."""
OFF = "off"
_GIB = 1 << 30


@dataclass(frozen=True)
class ViewerOptions:
    """Which protocols are answered, and what their sessions may take.

    Attributes:
        nninteractive, itksnap: ports (``--conf nninteractive 1527``, ``--conf itksnap 8911``); None: off.
        host: address that they listen on (``--conf viewers_host``).
        key: what nnInteractive's clients have to send (``--conf viewers_key`` or `KEY_VARIABLE`); empty for
            nothing.
        sessions: at once, for each protocol (``--conf viewers_sessions``).
        idle_seconds: after which a session ends (``--conf viewers_idle``).
        liveness_seconds: without a sign of life after which a session ends; of viewers that give none, if
            another one needs its place.
        memory_bytes: held by all sessions together (``--conf viewers_gb``).
        learn: whether masks become labels that trainings use (``--conf learn_from_viewers true``).
    """

    nninteractive: int | None = None
    itksnap: int | None = None
    host: str = "127.0.0.1"
    key: str = ""
    sessions: int = 8
    idle_seconds: float = 1800.0
    liveness_seconds: float = 120.0
    memory_bytes: int = 2 * _GIB
    learn: bool = False

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> ViewerOptions:
        """Read MONAI Label's configuration; other names are left alone.

        Raises:
            UserError: a value cannot be used.
        """
        learn = str(conf.get("learn_from_viewers", "false")).strip().lower()
        if learn not in ("true", "false"):
            raise UserError(f"--conf learn_from_viewers must be true or false, but it is {learn!r}.")
        return cls(
            nninteractive=_port(conf, "nninteractive"),
            itksnap=_port(conf, "itksnap"),
            host=conf.get("viewers_host", cls.host),
            key=conf.get("viewers_key", os.environ.get(KEY_VARIABLE, "")),
            sessions=int(number(conf, "viewers_sessions", cls.sessions, 1, 1000, whole=True)),
            idle_seconds=number(conf, "viewers_idle", cls.idle_seconds, 10, 86_400),
            memory_bytes=int(number(conf, "viewers_gb", cls.memory_bytes / _GIB, 0.01, 1024) * _GIB),
            learn=learn == "true",
        )


def _port(conf: Mapping[str, str], name: str) -> int | None:
    if str(conf.get(name, OFF)).strip().lower() in (OFF, "false", "0", ""):
        return None
    return int(number(conf, name, 0, 1, 65_535, whole=True))
