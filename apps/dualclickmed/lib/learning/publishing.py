"""Publishing trained weights: under a new name, atomically, with a card that says what they come from.

Every published version stays in the folder of weights. Which one is served is `weights.select`'s to say;
`roll_back` goes to the parent of the one that is served now.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..weights import (
    KINDS,
    SUFFIX,
    Kind,
    default_path,
    load_expert,
    model_dir,
    read_card,
    save_expert,
    select,
    selection,
    shipped_name,
)

logger = logging.getLogger(__name__)

LEARNED = "learned"
LICENCE = "as the labelled images that they were trained on"
MOST_ANCESTORS = 1000


def publish(trained: Path, parent: Path, card: Mapping[str, Any], directory: Path | None = None) -> str:
    """Copy trained weights into the folder of weights under a new name, and serve them from now on.

    The file and its card are whole before the choice changes, so that whenever this is cut short the old
    weights are served and intact.

    Args:
        trained: the weight file that a training wrote.
        parent: the weights that the training began with.
        card: what is added to the training's own card: data, measurements.
        directory: the folder of weights (`weights.model_dir`).

    Returns:
        The new name.

    Raises:
        WeightsError: the trained weights are damaged, or the folder cannot be written.
    """
    own = read_card(trained)
    kind: Kind = own["kind"]
    folder = model_dir(directory)
    name = _new_name(kind, folder)
    above = read_card(parent)
    written = {
        **own,
        "licence": LICENCE,
        **card,
        "parent": {"name": parent.stem, "sha256": above["sha256"]},
    }
    try:
        save_expert(load_expert(kind, trained), kind, folder / f"{name}{SUFFIX}", written)
        select(name, folder)
    except OSError as error:
        raise WeightsError(
            f"The weights '{name}' can't be published in '{folder}': {error.strerror or error}. "
            "What was served before is served still."
        ) from error
    logger.info("Published %s; its parent is %s", name, parent.stem)
    return name


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


def learned_kinds(directory: Path | None = None) -> list[Kind]:
    """The experts that are served from weights that were published here."""
    folder = model_dir(directory)
    kinds: list[Kind] = []
    for kind in KINDS:
        try:
            card = read_card(default_path(kind, directory=folder))
        except WeightsError:
            continue
        if "parent" in card:
            kinds.append(kind)
    return kinds


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


def _new_name(kind: Kind, folder: Path) -> str:
    """The next number, so that versions sort by age."""
    found = [re.fullmatch(rf"{kind}-{LEARNED}-(\d+)", p.stem) for p in folder.glob(f"{kind}-{LEARNED}-*")]
    number = max((int(m[1]) for m in found if m), default=0) + 1
    return f"{kind}-{LEARNED}-{number:04d}"
