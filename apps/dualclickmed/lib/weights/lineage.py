"""The ancestry of weights by their cards, and the way back to a parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import WeightsError
from .files import (
    SUFFIX,
    Kind,
    card_path,
    model_dir,
    read_card,
    save_expert,
    select,
    selection,
    shipped_name,
)

MOST_ANCESTORS = 1000
LINEAGE = ("sha256", "command", "steps", "samples", "hours")
"""What the card of weights that were made from others says of each, None where the parent's card lacks it."""


def require_new(out: Path) -> None:
    """Refuse to write weights over others.

    Raises:
        WeightsError: the file or its card exists.
    """
    for taken in (out, card_path(out)):
        if taken.exists():
            raise WeightsError(f"'{taken}' exists; remove it or choose another file.")


def save_derived(network: nn.Module, kind: Kind, out: Path, card: Mapping[str, Any]) -> None:
    """Write weights that were made from others, as `save_expert` does.

    Raises:
        WeightsError: as `save_expert`, or the file can't be written.
    """
    try:
        save_expert(network, kind, out, card)
    except OSError as error:
        raise WeightsError(f"'{out}' can't be written: {error.strerror or error}.") from error


def roll_back(kind: Kind, directory: Path | None = None) -> tuple[str, str]:
    """Serve an expert from the parent of the weights that it is served from now.

    Returns:
        The names before and after.

    Raises:
        WeightsError: the weights that are served have no parent, or it is no longer there.
    """
    folder = model_dir(directory)
    now = selection(folder).get(kind, shipped_name(kind))
    parent = read_card(folder / f"{now}{SUFFIX}").get("parent")
    if not isinstance(parent, Mapping) or not isinstance(parent.get("name"), str):
        raise WeightsError(f"The {kind} expert is served from '{now}', which was not made from others here.")
    select(parent["name"], folder)
    return now, parent["name"]


def trained_images(weights: Path) -> set[str]:
    """The images that weights and all their ancestors in the same folder were trained on."""
    images: set[str] = set()
    path = weights
    for _ in range(MOST_ANCESTORS):
        try:
            card = read_card(path)
        except WeightsError:
            break
        data = card.get("data")
        if isinstance(data, Mapping):
            images |= {str(image) for image in data.get("trained", ())}
        parent = card.get("parent")
        if not isinstance(parent, Mapping):
            break
        path = path.with_name(f"{parent.get('name')}{SUFFIX}")
    return images


def origin_of(path: Path) -> Path | None:
    """The weights that learning began with: the ancestor without a parent; None if that is `path` itself.

    Raises:
        WeightsError: an ancestor is missing.
    """
    at = path
    for _ in range(MOST_ANCESTORS):
        parent = read_card(at).get("parent")
        if not isinstance(parent, Mapping):
            break
        at = path.with_name(f"{parent.get('name')}{SUFFIX}")
    return None if at == path else at
