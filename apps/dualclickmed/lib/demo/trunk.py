"""The canvas of the sample study: a warped patient frame, shapes in it as distances, and the scan of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Values = npt.NDArray[np.float32]
"""Values on the volume's grid (z, y, x); as a distance in millimetres it is negative inside."""
Extent = npt.NDArray[np.bool_]
Vector = tuple[float, float, float]

SHAPE = (128, 160, 192)
"""Slices, rows, columns."""
SPACING = (3.0, 2.0, 2.0)
ORIGIN = (0.0, -152.0, -191.0)
"""Patient (z, y, x) of the first voxel's centre."""
ORGANS = (
    "liver",
    "spleen",
    "right kidney",
    "left kidney",
    "stomach",
    "gallbladder",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "heart",
    "right lung",
    "left lung",
    "spine",
    "urinary bladder",
)
"""Names of the label values 1, 2, ..."""

_FAR = 1e3
AIR, FAT = -1000.0, -100.0


class Trunk:
    """A trunk being painted: attenuation, labels, and the warped coordinates that shapes use."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        grids = [
            np.arange(n, dtype=np.float32) * np.float32(d) + np.float32(o)
            for n, d, o in zip(SHAPE, SPACING, ORIGIN, strict=True)
        ]
        self.axes = grids
        z, y, x = np.meshgrid(*grids, indexing="ij", sparse=True)
        self.table = np.broadcast_to(y - 132.0 + 0.0006 * x**2, SHAPE)
        self.x = x + 6 * self.noise(55)
        self.y = y + 5 * self.noise(55)
        self.z = z + 7 * self.noise(55)
        self.rough = self.noise(11)
        self.fine = self.noise(3.2)
        self.hu = np.full(SHAPE, AIR, dtype=np.float32)
        self.labels = np.zeros(SHAPE, dtype=np.uint8)
        self.depth = self._depth()
        self.wall = 16 + 7 * np.exp(-(((self.z - 90) / 90) ** 2)) + 5 * np.exp(-((self.x / 45) ** 2))
        self.wall = self.wall.astype(np.float32)
        self.cavity = self.depth - self.wall - 13
        self.dome = self._dome()

    def noise(self, scale: float) -> Values:
        """Smooth noise of unit variance whose features are about ``scale`` mm wide."""
        steps = [max(1, int(scale / (2.5 * d))) for d in SPACING]
        coarse = [n // s + 4 for n, s in zip(SHAPE, steps, strict=True)]
        white = self.rng.standard_normal(coarse).astype(np.float32)
        sigma = [scale / (2 * d * s) for d, s in zip(SPACING, steps, strict=True)]
        smooth = ndimage.gaussian_filter(white, sigma, mode="wrap")
        smooth = smooth / smooth.std()
        if max(steps) == 1:
            return np.ascontiguousarray(smooth[: SHAPE[0], : SHAPE[1], : SHAPE[2]])
        matrix = [1 / s for s in steps]
        return ndimage.affine_transform(smooth, matrix, offset=1.0, output_shape=SHAPE, order=1)

    def ellipsoid(self, centre: Vector, radii: Vector, turn: float = 0.0, tip: float = 0.0) -> Values:
        """Distance to an ellipsoid; (x, y, z) in mm, ``turn`` about z and then ``tip`` about y in degrees."""
        out, box = self._near(np.array([centre]), max(radii) + 25)
        x, y, z = (c[box] - o for c, o in zip((self.x, self.y, self.z), centre, strict=True))
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        x, y = cos * x + sin * y, cos * y - sin * x
        cos, sin = np.cos(np.radians(tip)), np.sin(np.radians(tip))
        x, z = cos * x + sin * z, cos * z - sin * x
        a, b, c = radii
        near = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
        slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2) + 1e-6
        out[box] = near * (near - 1) / slope
        return out

    def tube(self, path: Sequence[Vector], radii: Sequence[float]) -> Values:
        """Distance to a tube along a polyline (x, y, z) whose radius changes linearly between its corners."""
        out = np.full(SHAPE, _FAR, dtype=np.float32)
        for (start, end), (r0, r1) in zip(itertools.pairwise(path), itertools.pairwise(radii), strict=True):
            _, box = self._near(np.array([start, end]), max(r0, r1) + 25)
            point = [c[box] - o for c, o in zip((self.x, self.y, self.z), start, strict=True)]
            along = np.array(end) - np.array(start)
            t = sum(p * a for p, a in zip(point, along, strict=True)) / float(along @ along)
            t = np.clip(t, 0, 1)
            gap = np.sqrt(sum((p - t * a) ** 2 for p, a in zip(point, along, strict=True)))
            np.minimum(out[box], gap - (r0 + t * (r1 - r0)), out=out[box])
        return out

    def _near(self, points: npt.NDArray[np.float64], margin: float) -> tuple[Values, tuple[slice, ...]]:
        """A field that is far outside everywhere, and the block of voxels around ``points`` (x, y, z)."""
        lo = points.min(axis=0)[::-1] - margin
        hi = points.max(axis=0)[::-1] + margin
        box = tuple(
            slice(int(np.searchsorted(axis, a)), int(np.searchsorted(axis, b)))
            for axis, a, b in zip(self.axes, lo, hi, strict=True)
        )
        return np.full(SHAPE, _FAR, dtype=np.float32), box

    def _depth(self) -> Values:
        """Millimetres under the skin (negative outside the body)."""
        z = self.z / 384
        half_x = 158 + 14 * np.cos(2 * np.pi * (z - 0.12)) + 6 * z
        half_y = 104 + 8 * np.cos(2 * np.pi * (z - 0.75))
        power = 2.35
        r = (np.abs(self.x / half_x) ** power + np.abs(self.y / half_y) ** power) ** (1 / power) + 1e-6
        radius = np.sqrt(self.x**2 + self.y**2) / r + 1e-3
        return ((1 - r) * radius).astype(np.float32)

    def _dome(self) -> Values:
        """Height of the diaphragm over each voxel."""
        right = 88 * np.exp(-(((self.x + 68) / 62) ** 2) - ((self.y + 8) / 72) ** 2)
        left = 76 * np.exp(-(((self.x - 72) / 58) ** 2) - ((self.y + 8) / 72) ** 2)
        middle = 66 * np.exp(-((self.x / 50) ** 2) - ((self.y + 30) / 60) ** 2)
        return (214 + np.maximum(np.maximum(right, left), middle)).astype(np.float32)

    def fill(self, region: Extent, hu: float, texture: float = 0.0, organ: str | None = None) -> None:
        """Paint a region; a named organ takes its voxels from other organs, other paint clears no label."""
        self.hu[region] = hu + (texture * self.fine[region] if texture else 0.0)
        if organ is not None:
            self.labels[region] = ORGANS.index(organ) + 1

    def erase(self, region: Extent) -> None:
        """Turn a region back into fat that belongs to no organ."""
        self.hu[region] = FAT + 7 * self.fine[region]
        self.labels[region] = 0

    def tidy(self) -> None:
        """Remove the label from small pieces that later paint cut off an organ."""
        for value in range(1, len(ORGANS) + 1):
            parts, count = ndimage.label(self.labels == value)
            if count > 1:
                sizes = np.bincount(parts.ravel())
                sizes[0] = 0
                self.labels[(parts > 0) & (parts != sizes.argmax())] = 0

    def scan(self) -> npt.NDArray[np.int16]:
        """The scan: blur, noise that grows with the surrounding tissue, whole numbers."""
        seen = ndimage.gaussian_filter(self.hu, (0.35, 0.55, 0.55))
        grain = self.rng.standard_normal(SHAPE).astype(np.float32)
        grain = ndimage.gaussian_filter(grain, (0.3, 0.65, 0.65))
        grain /= grain.std()
        level = 5.5 + 7.5 * np.clip(self.depth / 100, 0, 1)
        return np.clip(np.rint(seen + level * grain), -1024, 3071).astype(np.int16)


def value_of(organ: str) -> int:
    """The label value of an organ."""
    return ORGANS.index(organ) + 1
