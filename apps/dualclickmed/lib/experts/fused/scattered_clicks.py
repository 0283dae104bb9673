"""Many clicks at once sample the object: where none of them lies there is probably none of it.

A click that corrects the mask says nothing about other places, because its user saw that they were right.
Clicks that came without looking at the mask, such as a list of points, agree with most of what is found. They
lie everywhere in the object, so a ball of their usual distance in which there is none is probably outside. If
clicks are scattered evenly, a ball of radius d inside the object is empty with the probability
exp(-(d / r)^3), where r^3 is the mean cube of the distance to the nearest click.

A scribble is many clicks, too, but lies in one plane and says nothing about others. So only those clicks
count as neighbours that differ along every axis: of a scribble, or of two that cross, hardly any do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import edt
import numpy as np
import numpy.typing as npt

from ...imaging.geometry import Index
from .random_walker import Field
from .refinement import RegionFeatures, logit, sigmoid

FEW = 16
"""Up to as many clicks change nothing: people place them one by one, and not evenly."""
EMPTINESS, NEAR = 8.0, 0.3
"""Logit taken for each cube of the usual distance that a cell is away from all clicks, if they are very many;
and the part of such a cube that is still near: the object's surface lies there."""
MOST_TAKEN = 8.0
"""The most that is taken."""
_MOST_COMPARED = 512


def without_empty_places(features: RegionFeatures, found: Field, clicks: Sequence[Index]) -> Field:
    """Probabilities that are lower far from all of many scattered clicks.

    Args:
        features: of the region.
        found: the probability of the object at every cell.
        clicks: voxels of the object, clicked where they were found to be inside already.

    Returns:
        As `found` for no more than `FEW` clicks, or if no two of them differ along every axis.
    """
    clicked = {features.cell(index) for index in clicks if features.roi.box.contains(index)}
    if len(clicked) <= FEW:
        return found
    cells = np.asarray(sorted(clicked))
    usual = _mean_cube(cells, features.step)
    if math.isinf(usual):
        return found
    free = np.ones(found.shape, dtype=bool)
    free[tuple(cells.T)] = False
    away = edt.edt(free, anisotropy=features.step, black_border=False)
    cubes = away**3 / np.float32(usual)
    taken = EMPTINESS * (1 - FEW / len(cells)) * np.maximum(cubes - NEAR, 0)
    return sigmoid(logit(found) - np.minimum(taken, np.float32(MOST_TAKEN)))


def _mean_cube(cells: npt.NDArray[np.intp], step: Sequence[float]) -> float:
    """The mean cube of the distance in mm to the nearest cell more than one cell away along every axis."""
    some = cells[np.linspace(0, len(cells) - 1, min(len(cells), _MOST_COMPARED)).astype(np.intp)]
    away = np.abs(some[:, None] - cells)
    cubes = np.linalg.norm(away * np.asarray(step), axis=2) ** 3
    nearest = np.where((away > 1).all(axis=2), cubes, math.inf).min(axis=1)
    return float(nearest.mean())
