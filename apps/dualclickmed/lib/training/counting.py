"""The numbers of objects in labelled cases, in which epochs are counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_files import write_text
from ..errors import UserError
from .opened import open_case
from .prepare import identity
from .recipes import Recipe
from .sources import LabelledCase

if TYPE_CHECKING:
    from .prepare import PreparedCrops

logger = logging.getLogger(__name__)

COUNTS = "objects.json"


def object_counts(
    cases: Sequence[LabelledCase], recipe: Recipe, folder: Path, prepared: PreparedCrops | None = None
) -> dict[str, int]:
    """The objects that a recipe may ask for in each case.

    Every case is opened once; the counts are kept in `folder`, so that a resumed run need not count again.

    Args:
        cases: to count in.
        recipe: its rules choose the objects.
        folder: of the run.
        prepared: crops made beforehand, which store the counts.

    Returns:
        Case id to its number of objects; 0 where the case can't be used.
    """
    path = folder / COUNTS
    try:
        known = {str(key): int(number) for key, number in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}
    counts, opened = {}, 0
    for case in cases:
        key = identity(case, recipe)
        number = known.get(key)
        if number is None and prepared is not None:
            number = prepared.count(case)
        if number is None:
            number, opened = _counted(case, recipe), opened + 1
        counts[case.id] = known[key] = number
    if opened:
        logger.info("Counted %d objects in %d cases.", sum(counts.values()), len(counts))
        write_text(path, json.dumps(known))
    return counts


def _counted(case: LabelledCase, recipe: Recipe) -> int:
    try:
        return len(open_case(case, recipe).objects)
    except UserError:
        # The training reports it when it reaches the case.
        return 0
