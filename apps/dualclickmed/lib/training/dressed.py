"""Label maps painted with generated appearances: real shapes and neighbours without a real image.

A label map alone (an atlas, say) teaches anatomy: what touches what, what lies inside what. A piece of it
is cut out at a random scale, turned and bent a little, and painted like a generated scene, with contrast,
texture, blur and noise drawn anew each time, so that no scanner's appearance can be learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..imaging.geometry import Position, Region
from .canvas import Canvas
from .generated import MIN_TARGET_VOXELS, SyntheticVolume
from .looks import LOOK_WEIGHTS, LOOKS, Look, render
from .shapes import random_rotation

# Side of the piece in longest sides of the object that it is cut about.
LEAST_VIEW, GREATEST_VIEW = 1.4, 4.0
# A voxel of the piece is at least this part of the map's finest one: smaller ones would show its steps.
LEAST_VOXEL = 0.7
# How often the piece is turned freely, and by a little.
FREE_TURN, SMALL_TURN, SMALL_ANGLE = 0.2, 0.4, 0.35
# A label that fills more of a piece counts as its background.
GREATEST_SHARE = 0.5
COARSE_SHARE = 0.12


def dressed_scene(
    labels: npt.NDArray[np.integer],
    spacing: Position,
    regions: Sequence[Region],
    rng: np.random.Generator,
    size: int = 80,
    device: torch.device | str = "cpu",
) -> SyntheticVolume | None:
    """Make one scene of a label map.

    Args:
        labels: (D, H, W) whole numbers, 0 background.
        spacing: (z, y, x) of its voxels in millimetres.
        regions: of the objects that a piece may be cut about, each as likely as any other.
        rng: source of every random choice.
        size: voxels along the finest axes at the most.
        device: where the scene's tensors live.

    Returns:
        A scene, or None if the piece holds no object worth asking for.
    """
    device = torch.device(device)
    look: Look = LOOKS[int(rng.choice(len(LOOKS), p=LOOK_WEIGHTS))]
    if look == "pet" or rng.random() < COARSE_SHARE:
        size = int(size * rng.uniform(0.3, 0.75))
    region = regions[int(rng.integers(len(regions)))]
    step = np.asarray(spacing, dtype=float)
    sides = np.array([s.stop - s.start for s in region]) * step
    middle = np.array([(s.start + s.stop) / 2 for s in region]) * step
    view = float(sides.max()) * math.exp(rng.uniform(math.log(LEAST_VIEW), math.log(GREATEST_VIEW)))
    voxel = max(view / size, LEAST_VOXEL * float(step.min()))
    uneven = np.ones(3)
    if rng.random() < 0.45:
        uneven[int(rng.integers(3))] = rng.uniform(1.0, 5.0 if look != "microscopy" else 2.5)
    cells = np.minimum(view / voxel, size) * rng.uniform(0.75, 1.0, size=3) / uneven
    shape = np.maximum(6, np.round(cells)).astype(int)
    canvas = Canvas(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=(float(uneven[0]), float(uneven[1]), float(uneven[2])),
        rng=rng,
        torch_rng=torch.Generator(device=device).manual_seed(int(rng.integers(2**62))),
        device=device,
    )
    middle = middle + rng.normal(size=3) * 0.1 * view
    found = _cut(labels, step, canvas, middle, voxel, _turn(rng))
    values, compact = np.unique(found, return_inverse=True)
    if values[0] != 0:
        compact = compact + 1
        values = np.concatenate([[0], values])
    canvas.labels = torch.from_numpy(compact.reshape(found.shape).astype(np.int16)).to(device)
    canvas.next_label = len(values)
    counts = np.bincount(compact.reshape(-1), minlength=len(values))
    canvas.painted = {label: int(counts[label]) for label in range(1, len(values))}
    targets: list[tuple[int, ...]] = [
        (label,)
        for label in range(1, len(values))
        if MIN_TARGET_VOXELS <= counts[label] <= GREATEST_SHARE * found.size
    ]
    if not targets:
        return None
    return SyntheticVolume(render(canvas, look), canvas.labels, targets, canvas.spacing, look)


def _turn(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A rotation (3, 3): none, a small one, or any."""
    draw = rng.random()
    if draw < FREE_TURN:
        return random_rotation(rng)
    if draw > FREE_TURN + SMALL_TURN:
        return np.eye(3)
    angles = rng.normal(size=3) * SMALL_ANGLE / 2
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        plane = np.eye(3)
        plane[a, a] = plane[b, b] = math.cos(angle)
        plane[a, b], plane[b, a] = -math.sin(angle), math.sin(angle)
        turn = turn @ plane
    return turn


def _cut(
    labels: npt.NDArray[np.integer],
    step: npt.NDArray[np.float64],
    canvas: Canvas,
    middle: npt.NDArray[np.float64],
    voxel: float,
    turn: npt.NDArray[np.float64],
) -> npt.NDArray[np.integer]:
    """The nearest label of each of the canvas's voxels, 0 outside the map."""
    whole = (slice(None), slice(None), slice(None))
    at = canvas.points(whole).cpu().double() - torch.from_numpy(canvas.extent) / 2
    millimetres = at @ torch.from_numpy(turn.T * voxel) + torch.from_numpy(middle)
    index = torch.floor(millimetres / torch.from_numpy(step)).long()
    size = torch.tensor(labels.shape)
    inside = ((index >= 0) & (index < size)).all(dim=1)
    index = torch.minimum(index.clamp_min(0), size - 1)
    flat = (index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2]
    values = labels.reshape(-1)[flat.numpy()]
    return np.where(inside.numpy(), values, 0).reshape(canvas.shape)
