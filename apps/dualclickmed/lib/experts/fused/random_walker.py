"""Random walks with priors: probabilities that are even where the image is even and change at its edges.

A walker starts at a cell and steps to a face neighbour the more readily the more alike the two cells are. At
every step it may stop: as foreground with the probability that the prior has there; at a seed it stops for
sure. A few dozen steps of conjugate gradients give the probability that it stops as foreground
(`networks/walk_solver.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...networks.walk_solver import solve_walks

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
    start = np.array(prior, dtype=np.float32, order="C")
    stop = trust.astype(np.float32)
    stopped = stop * start
    # Without the seeds, whose weight would make any residual look small.
    enough = TOLERANCE**2 * float(np.vdot(stopped, start))
    for cell, value in seeds:
        stop[cell], stopped[cell], start[cell] = _CERTAIN, _CERTAIN * value, value
    found = solve_walks(
        [_on_the_grid(link, prior.shape) for link in links],
        *(torch.from_numpy(field)[None, None] for field in (stop, stopped, start)),
        most_steps=MOST_STEPS,
        enough=enough,
    )
    solution: Field = found[0, 0].numpy()
    return solution


_CERTAIN = 1e3


def _on_the_grid(link: Field, shape: Sequence[int]) -> Tensor:
    """Links along an axis as (1, D, H, W), with zeros at the far face."""
    depth, height, width = link.shape
    found = torch.zeros(1, *shape)
    found[0, :depth, :height, :width] = torch.from_numpy(link)
    return found
