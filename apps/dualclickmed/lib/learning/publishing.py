"""Publishes trained weights under a new name, atomically, with a card that names their parent.

Every published version stays in the folder of weights. `weights.files.select` chooses the one that is served;
`weights.lineage.roll_back` goes back to the parent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..weights.files import (
    SUFFIX,
    Kind,
    load_expert,
    model_dir,
    read_card,
    save_expert,
    select,
)

logger = logging.getLogger(__name__)

LEARNED = "learned"
LICENCE = "as the labelled images that they were trained on"


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


def _new_name(kind: Kind, folder: Path) -> str:
    """The next number, so that versions sort by age."""
    found = [re.fullmatch(rf"{kind}-{LEARNED}-(\d+)", p.stem) for p in folder.glob(f"{kind}-{LEARNED}-*")]
    number = max((int(m[1]) for m in found if m), default=0) + 1
    return f"{kind}-{LEARNED}-{number:04d}"
