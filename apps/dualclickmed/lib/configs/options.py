"""What ``--conf name value`` may set when the server starts."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from ..experts import DEFAULT_STRATEGY, STRATEGIES
from ..experts.devices import CUDA, gpus, resolved_device
from ..experts.precision import PRECISIONS
from ..imaging.label_map import DEFAULT_NAMES, LabelMap
from ..networks.configs import PRESETS
from .consensus import CONSENSUS
from .wire import RESERVED

logger = logging.getLogger(__name__)

DEFAULT_CACHE_GB = 2.0
_GIB = 1 << 30


@dataclass(frozen=True)
class ServerOptions:
    """The server's settings.

    Attributes:
        labels: names and values of ``dualclickmed``'s labels.
        strategy: used by requests that name none.
        device: "cpu" or "cuda:N"; used by requests that name none.
        cache_bytes: held at most by loaded volumes and embeddings together.
        model_dir: the folder of weights; None means ``weights.model_dir()``.
        preset: which weights of that folder; None: what 'weights use' chose, else the compact.
        precision: of the networks, one of `experts.precision.PRECISIONS`.
        consensus: which label trains where several annotators have labelled an image, one of
            `consensus.CONSENSUS`.
        retrain_after: new final labels after which a training starts by itself; 0 for never.
        review: only show images and labels; nothing is segmented, stored or trained, and no weights are
            needed.
    """

    labels: LabelMap = field(default_factory=lambda: LabelMap(DEFAULT_NAMES, RESERVED))
    strategy: str = DEFAULT_STRATEGY
    device: str = "cpu"
    cache_bytes: int = int(DEFAULT_CACHE_GB * _GIB)
    model_dir: Path | None = None
    preset: str | None = None
    precision: str = PRECISIONS[0]
    retrain_after: int = 0
    consensus: str = CONSENSUS[0]
    review: bool = False

    @classmethod
    def from_conf(cls, conf: Mapping[str, str]) -> ServerOptions:
        """Read MONAI Label's configuration; names that are not ours are left to MONAI Label.

        Raises:
            UserError: a value cannot be used.
        """
        labels = conf.get("labels")
        model_dir = conf.get("model_dir")
        preset = conf.get("preset")
        return cls(
            labels=LabelMap(DEFAULT_NAMES, RESERVED) if labels is None else LabelMap.parse(labels, RESERVED),
            strategy=_one_of("strategy", conf.get("strategy", DEFAULT_STRATEGY), STRATEGIES),
            device=resolved_device(conf.get("device", "auto")),
            cache_bytes=_bytes("cache_gb", conf.get("cache_gb", str(DEFAULT_CACHE_GB))),
            model_dir=Path(model_dir) if model_dir else None,
            preset=None if preset is None else _one_of("preset", preset, tuple(PRESETS)),
            precision=_one_of("precision", conf.get("precision", PRECISIONS[0]), PRECISIONS),
            consensus=_one_of("consensus", conf.get("consensus", CONSENSUS[0]), CONSENSUS),
            retrain_after=_count("retrain_after", conf.get("retrain_after", "0")),
            review=_one_of("review", conf.get("review", "false"), ("true", "false")) == "true",
        )

    def strategies(self) -> list[str]:
        """All strategies, the default first, as MONAI Label's clients expect of a choice."""
        return [self.strategy, *(name for name in STRATEGIES if name != self.strategy)]

    def device_for(self, name: str | None) -> str:
        """The device for a request; the CPU where a GPU is asked for and there is none.

        MONAI Label does the same, and its batch inference asks for "cuda" unless told otherwise.

        Raises:
            UserError: the name is unknown, or that one of several GPUs is not there.
        """
        if name is None:
            return self.device
        if re.fullmatch(CUDA, name) and not gpus():
            logger.warning("A request asked for %s, but there is no GPU: using the CPU", name)
            return "cpu"
        return resolved_device(name)

    def devices(self) -> list[str]:
        """Every device of this machine, the default first."""
        return list(dict.fromkeys([self.device, *gpus(), "cpu"]))


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UserError(f"--conf {name} must be one of {', '.join(choices)}, but it is {value!r}.")
    return value


def _count(name: str, value: str) -> int:
    if not value.strip().isdecimal():
        raise UserError(f"--conf {name} must be a whole number, 0 or more, but it is {value!r}.")
    return int(value)


def _bytes(name: str, value: str) -> int:
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = math.nan
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise UserError(f"--conf {name} must be a number of gigabytes, 0 or more, but it is {value!r}.")
    return int(gigabytes * _GIB)
