"""Random walks with priors: probabilities that are even where the image is even and change at its edges.

A walker starts at a cell and steps to a face neighbour the more readily the more alike the two cells are. At
every step it may stop: as foreground with the probability that the prior has there; at a seed it stops for
sure. The probability that it stops as foreground solves a sparse linear system (Grady 2005, "Multilabel
random walker image segmentation using prior models"), well conditioned by the prior, which conjugate
gradients solve in a few dozen steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.float32]
"""One value for each cell of a grid (D, H, W)."""

TOLERANCE = 1e-3
"""Residual at which the solver stops, as a part of the right side's."""
MOST_STEPS = 120


def edge_weights(
    image: Field, step: Sequence[float], contrast: float, least: float
) -> tuple[Field, Field, Field]:
    """How readily a walker steps between face neighbours along each axis, at most 1.

    Args:
        image: grey levels.
        step: millimetres of a cell along (z, y, x); a long step is taken as rarely as diffusion would.
        contrast: difference of grey levels that counts as an edge (one standard deviation).
        least: part of the readiness that no edge can take.

    Returns:
        Three arrays, each one shorter than the image along its axis.
    """
    shortest = min(step)
    found = []
    for axis in range(3):
        difference = np.diff(image, axis=axis)
        difference /= contrast
        readiness = (np.exp(-0.5 * np.square(difference)) + least) * np.float32((shortest / step[axis]) ** 2)
        found.append(np.asarray(readiness, dtype=np.float32))
    return found[0], found[1], found[2]


def solve(
    links: Sequence[Field], prior: Field, trust: Field, seeds: Sequence[tuple[tuple[int, int, int], float]]
) -> Field:
    """The probability of foreground at every cell.

    Args:
        links: of `edge_weights`.
        prior: probability that a walk which stops at the cell counts as foreground.
        trust: weight of stopping at the cell, where a step between two equal cells has weight 1; above 0.
        seeds: cells with a probability that is known.

    Returns:
        float32 in [0, 1] but for rounding, of the prior's shape.
    """
    stop = trust.astype(np.float32)
    stopped = stop * prior
    # Without the seeds, whose weight would make any residual look small.
    size_of_right = _product(stopped, prior)
    for cell, value in seeds:
        stop[cell], stopped[cell] = _CERTAIN, _CERTAIN * value
    diagonal = stop
    for axis, link in enumerate(links):
        low, high = _neighbours(diagonal, axis)
        low += link
        high += link

    def system(x: Field) -> Field:
        result = diagonal * x
        for axis, link in enumerate(links):
            (low, high), (x_low, x_high) = _neighbours(result, axis), _neighbours(x, axis)
            low -= link * x_high
            high -= link * x_low
        return result

    x = prior.astype(np.float32)
    for cell, value in seeds:
        x[cell] = value
    residual = stopped - system(x)
    inverse = 1 / diagonal
    enough = TOLERANCE**2 * size_of_right
    scaled = inverse * residual
    direction = scaled.copy()
    size = _product(residual, scaled)
    for _ in range(MOST_STEPS):
        if size <= enough:
            break
        applied = system(direction)
        length = np.float32(size / _product(direction, applied))
        x += length * direction
        residual -= length * applied
        np.multiply(inverse, residual, out=scaled)
        previous, size = size, _product(residual, scaled)
        direction *= np.float32(size / previous)
        direction += scaled
    return x


_CERTAIN = 1e3


def _neighbours(field: Field, axis: int) -> tuple[Field, Field]:
    """Views of the lower and the upper cell of every link along an axis."""
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return field[tuple(low)], field[tuple(high)]


def _product(a: Field, b: Field) -> float:
    return float(np.dot(a.ravel(), b.ravel()))
