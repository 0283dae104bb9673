"""Experts from weight files; those that learning trained come with the weights that it began with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..byte_cache import ByteCache
from ..errors import WeightsError
from ..weights.files import Kind, load_expert
from ..weights.lineage import origin_of
from .dual import DualExpert
from .global_expert import GlobalExpert
from .local_expert import LocalExpert
from .scope import ScopedGlobalExpert, ScopedLocalExpert, TrainingScope, training_scope_of

logger = logging.getLogger(__name__)

_CLASSES: dict[Kind, tuple[Any, Any]] = {
    "global": (GlobalExpert, ScopedGlobalExpert),
    "local": (LocalExpert, ScopedLocalExpert),
}
"""The expert of either kind, and the one with a training scope."""


def load_experts(
    global_path: Path | None,
    local_path: Path | None,
    device: str | torch.device,
    cache: ByteCache,
    precision: str = "float32",
) -> DualExpert:
    """Both experts, or one, from their weight files; retrained weights with their origin.

    Args:
        global_path, local_path: weight files; None leaves that expert out.
        device, cache, precision: as for `NetworkExpert`.

    Raises:
        WeightsError: a file is missing, damaged, or of another network.
    """
    return DualExpert(
        None if global_path is None else _loaded("global", global_path, device, cache, precision),
        None if local_path is None else _loaded("local", local_path, device, cache, precision),
        cache,
    )


def load_alone(kind: Kind, path: Path, device: str | torch.device, cache: ByteCache) -> DualExpert:
    """One expert from its weight file, without a training scope: it answers everything itself.

    Args:
        kind: of the weights.
        path: weight file.
        device, cache: as for `NetworkExpert`.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    expert = _CLASSES[kind][0](load_expert(kind, path), device, cache)
    return DualExpert(expert, None, cache) if kind == "global" else DualExpert(None, expert, cache)


def _loaded(kind: Kind, path: Path, *settings: Any) -> Any:
    """The expert of a weight file; with a training scope, one that leaves the rest to its origin."""
    plain, scoped = _CLASSES[kind]
    network = load_expert(kind, path)
    found = _scope_and_origin(path)
    if found is None:
        return plain(network, *settings)
    scope, origin = found
    return scoped(_loaded(kind, origin, *settings), scope, network, *settings)


def _scope_and_origin(path: Path) -> tuple[TrainingScope, Path] | None:
    scope = training_scope_of(path)
    if scope is None:
        return None
    try:
        origin = origin_of(path)
    except WeightsError as error:
        logger.warning(
            "'%s' answers everything, in its training's scope or not: its origin can't be used. %s",
            path,
            error,
        )
        return None
    if origin is None or not origin.is_file():
        logger.warning(
            "'%s' answers everything, in its training's scope or not: its origin is not there", path
        )
        return None
    return scope, origin
