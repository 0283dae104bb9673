"""The canvas of a generated scene: label map, warp, smooth random fields and blurs.

Smooth fields and blurs are products with small matrices along each axis, which is several times faster than a
convolution on a CPU and exact at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Canvas:
    """The canvas of a scene; coordinates are in units of the finest voxel side, centred on voxels."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    rng: np.random.Generator
    torch_rng: torch.Generator
    device: torch.device
    labels: Tensor = field(init=False)
    painted: dict[int, int] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    next_label: int = 1

    def __post_init__(self) -> None:
        self.labels = torch.zeros(self.shape, dtype=torch.int16, device=self.device)
        self.axes = [
            (torch.arange(n, device=self.device, dtype=torch.float32) + 0.5) * s
            for n, s in zip(self.shape, self.spacing, strict=True)
        ]
        self.extent = np.array([n * s for n, s in zip(self.shape, self.spacing, strict=True)])
        knots = int(self.rng.integers(3, 8))
        amplitude = float(self.rng.uniform(0.0, 0.07)) * float(self.extent.min())
        self.warp = [self.smooth_field(knots) * amplitude for _ in range(3)]
        self.rough = self.smooth_field(int(self.rng.integers(10, 22)))

    def smooth_field(self, knots: int) -> Tensor:
        """A smooth random field (D, H, W) of unit variance with about `knots` bumps along its long side."""
        longest = float(self.extent.max())
        counts = [max(2, round(knots * e / longest)) for e in self.extent]
        values = torch.randn(counts, generator=self.torch_rng, device=self.device)
        values = _along_axes(
            values, [_spread_matrix(n, k, self.device) for n, k in zip(self.shape, counts, strict=True)]
        )
        return values / values.std().clamp_min(1e-6)

    def white(self) -> Tensor:
        """White noise (D, H, W) of unit variance."""
        return torch.randn(self.shape, generator=self.torch_rng, device=self.device)

    def blur(self, values: Tensor, sigma: float) -> Tensor:
        """Gaussian filter with `sigma` in units of the finest voxel side."""
        if sigma < 0.1:
            return values
        return _along_axes(
            values,
            [blur_matrix(n, sigma / s, self.device) for n, s in zip(self.shape, self.spacing, strict=True)],
        )

    def region(self, lo: np.ndarray, hi: np.ndarray) -> tuple[slice, slice, slice] | None:
        """The voxels of the box [lo, hi) given in units, or None outside the canvas."""
        parts = []
        for axis in range(3):
            start = max(0, math.floor(lo[axis] / self.spacing[axis]))
            stop = min(self.shape[axis], math.ceil(hi[axis] / self.spacing[axis]) + 1)
            if stop <= start:
                return None
            parts.append(slice(start, stop))
        return parts[0], parts[1], parts[2]

    def warped_region(self, lo: np.ndarray, hi: np.ndarray) -> tuple[slice, slice, slice] | None:
        """The voxels that the warp brings into the box [lo, hi), generously."""
        middle = (lo + hi) / 2
        at = tuple(
            min(n - 1, max(0, int(m / s))) for n, m, s in zip(self.shape, middle, self.spacing, strict=True)
        )
        shift = np.array([float(w[at]) for w in self.warp])
        margin = 2.0 + 0.12 * (hi - lo)
        return self.region(lo - shift - margin, hi - shift + margin)

    def points(self, where: tuple[slice, slice, slice]) -> Tensor:
        """Warped coordinates (n, 3) of a region's voxel centres."""
        grid = torch.meshgrid(*(a[s] for a, s in zip(self.axes, where, strict=True)), indexing="ij")
        return torch.stack([(g + w[where]).reshape(-1) for g, w in zip(grid, self.warp, strict=True)], dim=1)

    def paint(self, where: tuple[slice, slice, slice], inside: Tensor, kind: str, parent: int = 0) -> int:
        """Give the voxels `inside` (a boolean of the region's shape) a new label and return it (0 when
        empty).
        """
        count = int(inside.sum())
        if count == 0:
            return 0
        label = self.next_label
        self.next_label += 1
        self.labels[where] = torch.where(
            inside, torch.full_like(self.labels[where], label), self.labels[where]
        )
        self.painted[label] = count
        self.kinds[label] = kind
        if parent:
            self.parents[label] = parent
        return label


def _along_axes(values: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply a (A, B, C) tensor along each axis by a matrix (out, in)."""
    values = torch.tensordot(matrices[0], values, dims=([1], [0]))
    values = torch.matmul(matrices[1], values)
    return torch.matmul(values, matrices[2].T)


def _spread_matrix(n: int, knots: int, device: torch.device) -> Tensor:
    """(n, knots) weights that turn values at knots into a smooth curve of n samples."""
    at = (torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n * knots - 0.5
    distance = at[:, None] - torch.arange(knots, device=device, dtype=torch.float32)[None]
    weights = torch.exp(-0.5 * (distance / 0.6) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def blur_matrix(n: int, sigma: float, device: torch.device) -> Tensor:
    """(n, n) Gaussian filter whose rows sum to one at the borders too."""
    if sigma < 0.1:
        return torch.eye(n, device=device)
    index = torch.arange(n, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)
