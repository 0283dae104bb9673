"""The ancestry of weights by their cards, and the way back to a parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import WeightsError
from .files import SUFFIX, Kind, model_dir, read_card, select, selection, shipped_name

MOST_ANCESTORS = 1000


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
