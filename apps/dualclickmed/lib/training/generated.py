"""Generated volumes: labelled 3D scenes of great variety, the only thing that the compact weights are
trained on.

A scene is a small volume with many labelled objects (organs, cells, vessels, shells, lesions) and an image
of one of several looks (CT, MR, PET, ultrasound, microscopy). No patient data and no foreign licence is
involved, and the same seed gives the same scenes on one machine. Everything is torch, so scenes are made on
the device that trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .canvas import Canvas
from .looks import LOOK_WEIGHTS, LOOKS, Look, render
from .shapes import paint_cells, paint_objects

# An object that others cover by more than this share is no target: its visible rest is an accident.
MIN_VISIBLE = 0.4
MIN_TARGET_VOXELS = 24


@dataclass
class SyntheticVolume:
    """A generated volume with its labels.

    Attributes:
        image: (D, H, W) float32 in [0, 255], as a windowed clinical image arrives at an expert.
        labels: (D, H, W) int16, 0 where no object is.
        targets: sets of label values, each set one object that a user may want (a parent with its parts,
            say).
        spacing: (z, y, x) voxel size in units of the finest axis.
        look: the kind of image.
    """

    image: Tensor
    labels: Tensor
    targets: list[tuple[int, ...]]
    spacing: tuple[float, float, float]
    look: Look

    def mask(self, target: tuple[int, ...]) -> Tensor:
        """The boolean (D, H, W) mask of one target."""
        wanted = torch.tensor(target, device=self.labels.device, dtype=self.labels.dtype)
        return torch.isin(self.labels, wanted)


def make_scene(
    rng: np.random.Generator,
    size: int = 80,
    look: Look | None = None,
    device: torch.device | str = "cpu",
) -> SyntheticVolume:
    """Make one scene.

    Args:
        rng: source of every random choice; the same state gives the same scene on one machine and device.
        size: voxels along the finest axes; anisotropic scenes have fewer slices along one axis.
        look: the kind of image, or None for a random one.
        device: where the tensors live.

    Returns:
        A scene with at least one target.
    """
    device = torch.device(device)
    while True:
        scene = _try_scene(rng, size, look, device)
        if scene.targets:
            return scene


def _try_scene(
    rng: np.random.Generator, size: int, look: Look | None, device: torch.device
) -> SyntheticVolume:
    chosen: Look = look or LOOKS[int(rng.choice(len(LOOKS), p=LOOK_WEIGHTS))]
    spacing = np.ones(3)
    if rng.random() < 0.45:
        spacing[0] = rng.uniform(1.0, 5.0 if chosen != "microscopy" else 2.5)
    if chosen == "pet" or rng.random() < 0.12:
        # A coarse image of the same anatomy: PET, low field, thumbnails.
        size = int(size * rng.uniform(0.3, 0.75))
    jitter = rng.uniform(0.75, 1.0, size=3)
    shape = np.maximum(6, np.round(size * jitter / spacing)).astype(int)
    canvas = Canvas(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        rng=rng,
        torch_rng=torch.Generator(device=device).manual_seed(int(rng.integers(2**62))),
        device=device,
    )
    if chosen == "microscopy" and rng.random() < 0.75:
        paint_cells(canvas)
    else:
        theme = rng.random()
        if chosen == "pet" or theme < 0.25:
            weights = (0.6, 0.25, 0.1, 0.05, 0.0, 0.0, 0.0)
            paint_objects(canvas, int(rng.integers(2, 10)), weights, (0.12, 0.6))
        elif theme < 0.75:
            weights = (0.32, 0.24, 0.18, 0.08, 0.06, 0.08, 0.04)
            paint_objects(canvas, int(rng.integers(6, 22)), weights, (0.1, 0.8))
        else:
            weights = (0.1, 0.1, 0.15, 0.0, 0.15, 0.3, 0.2)
            paint_objects(canvas, int(rng.integers(3, 12)), weights, (0.2, 0.9))
    image = render(canvas, chosen)
    return SyntheticVolume(
        image=image,
        labels=canvas.labels,
        targets=_targets(canvas),
        spacing=canvas.spacing,
        look=chosen,
    )


def _targets(canvas: Canvas) -> list[tuple[int, ...]]:
    """The objects worth asking for: visible enough, a parent with all its parts or a part alone."""
    counts = torch.bincount(canvas.labels.reshape(-1).long(), minlength=canvas.next_label).tolist()
    children: dict[int, list[int]] = {}
    for child, parent in canvas.parents.items():
        children.setdefault(parent, []).append(child)
    targets: list[tuple[int, ...]] = []
    for label, painted in canvas.painted.items():
        members = (label, *children.get(label, []))
        visible = sum(counts[m] for m in members)
        if visible < MIN_TARGET_VOXELS or visible > 0.5 * canvas.labels.numel():
            continue
        if label not in canvas.parents and visible < MIN_VISIBLE * painted:
            continue
        targets.append(members)
        if len(members) > 1 and counts[label] >= MIN_TARGET_VOXELS and canvas.rng.random() < 0.3:
            targets.append((label,))
    return targets
