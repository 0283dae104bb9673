"""Experts from weight files; those that learning trained come with the weights that it began with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch

from ..byte_cache import ByteCache
from ..errors import WeightsError
from ..networks.global_network import RegionNetwork
from ..networks.local_network import LocalNetwork
from ..weights.files import load_expert
from ..weights.lineage import origin_of
from .dual import DualExpert
from .global_expert import GlobalExpert
from .local_expert import LocalExpert
from .scope import ScopedGlobalExpert, ScopedLocalExpert, TrainingScope, training_scope_of

logger = logging.getLogger(__name__)


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
        device, cache, precision: as for `GlobalExpert`.

    Raises:
        WeightsError: a file is missing, damaged, or of another network.
    """
    return DualExpert(
        None if global_path is None else _global(global_path, device, cache, precision),
        None if local_path is None else _local(local_path, device, cache, precision),
    )


def _global(path: Path, device: Any, cache: ByteCache, precision: str) -> GlobalExpert:
    network = cast(RegionNetwork, load_expert("global", path))
    found = _scope_and_origin(path)
    if found is None:
        return GlobalExpert(network, device, cache, precision)
    scope, origin = found
    return ScopedGlobalExpert(
        _global(origin, device, cache, precision), scope, network, device, cache, precision
    )


def _local(path: Path, device: Any, cache: ByteCache, precision: str) -> LocalExpert:
    network = cast(LocalNetwork, load_expert("local", path))
    found = _scope_and_origin(path)
    if found is None:
        return LocalExpert(network, device, cache, precision)
    scope, origin = found
    return ScopedLocalExpert(
        _local(origin, device, cache, precision), scope, network, device, cache, precision
    )


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
