"""Generated volumes: labelled 3D scenes of great variety, the only thing that the compact weights are
trained on.

A scene is a small volume with many labelled objects (organs, cells, vessels, shells, lesions) and an image
of one of several looks (CT, MR, PET, ultrasound, microscopy). No patient data and no foreign licence is
involved, and the same seed gives the same scenes on one machine. Everything is torch, so scenes are made on
the device that trains.

Shapes are unions of balls under a random affine map and a smooth warp, evaluated only inside their bounding
box; smooth fields and blurs are products with small matrices along each axis, which is several times faster
than a convolution on a CPU and exact at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Look = Literal["ct", "mr", "pet", "us", "microscopy"]
LOOKS: tuple[Look, ...] = ("ct", "mr", "pet", "us", "microscopy")
LOOK_WEIGHTS = (0.30, 0.30, 0.17, 0.06, 0.17)

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


@dataclass
class _Canvas:
    """What a scene is painted on; coordinates are in units of the finest voxel side, centred on voxels."""

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
            [_blur_matrix(n, sigma / s, self.device) for n, s in zip(self.shape, self.spacing, strict=True)],
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


def _blur_matrix(n: int, sigma: float, device: torch.device) -> Tensor:
    """(n, n) Gaussian filter whose rows sum to one at the borders too."""
    if sigma < 0.1:
        return torch.eye(n, device=device)
    index = torch.arange(n, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


def _curve(
    rng: np.random.Generator, start: np.ndarray, length: float, steps: int, wiggle: float
) -> np.ndarray:
    """A smooth random walk (steps, 3) of the given length."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    turn = rng.normal(size=3) * wiggle
    points = [start]
    for _ in range(steps - 1):
        turn = 0.8 * turn + 0.6 * wiggle * rng.normal(size=3)
        direction = direction + turn
        direction /= np.linalg.norm(direction)
        points.append(points[-1] + direction * length / (steps - 1))
    return np.array(points)


def _balls(
    rng: np.random.Generator, kind: str, centre: np.ndarray, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (P, 3) and radii (P,) of the balls of one object of about `size` units across."""
    if kind == "blob":
        count = int(rng.integers(3, 9))
        spread = size * rng.uniform(0.15, 0.3)
        return centre + rng.normal(size=(count, 3)) * spread, size * rng.uniform(0.15, 0.32, size=count)
    if kind == "bean":
        steps = int(rng.integers(8, 14))
        radius = size * rng.uniform(0.14, 0.28)
        points = _curve(rng, centre, size * rng.uniform(0.7, 1.4), steps, rng.uniform(0.1, 0.35))
        taper = np.linspace(1.0, rng.uniform(0.5, 1.2), steps)
        return points - points.mean(axis=0) + centre, radius * taper
    if kind == "tube":
        radius = rng.uniform(0.9, 3.5)
        length = size * rng.uniform(1.2, 3.0)
        steps = min(96, max(8, int(length / (0.7 * radius))))
        points = _curve(rng, centre, length, steps, rng.uniform(0.02, 0.15))
        return points - points[steps // 2] + centre, radius * np.linspace(1.0, rng.uniform(0.4, 1.0), steps)
    if kind == "tree":
        radius = rng.uniform(1.5, 4.0)
        stem = _curve(rng, centre, size * 1.3, 40, 0.06)
        branches, widths = [stem - stem[20] + centre], [radius * np.linspace(1, 0.5, 40)]
        for _ in range(int(rng.integers(2, 7))):
            at = int(rng.integers(4, 36))
            base_radius = widths[0][at] * rng.uniform(0.5, 0.8)
            branches.append(_curve(rng, branches[0][at], size * rng.uniform(0.3, 0.8), 24, 0.12))
            widths.append(base_radius * np.linspace(1, 0.5, 24))
        return np.concatenate(branches), np.concatenate(widths)
    raise ValueError(f"unknown kind of shape: {kind}")


def _signed_distance(
    canvas: _Canvas, kind: str, centre: np.ndarray, size: float
) -> tuple[tuple[slice, slice, slice], Tensor] | None:
    """The region of a new object and its roughly signed distance there (negative inside), in units."""
    rng = canvas.rng
    if kind in ("ellipsoid", "sheet", "box"):
        found = _quadric(canvas, kind, centre, size)
    else:
        centres, radii = _balls(rng, kind, centre, size)
        if kind in ("tube", "tree"):
            return _chain(canvas, centres, radii)
        found = _cluster(canvas, centres, radii, 0.08 * size if kind == "blob" else 0.0)
    if found is not None and kind != "sheet" and rng.random() < 0.6:
        where, distance = found
        found = where, distance + canvas.rough[where] * float(rng.uniform(0.0, 0.1)) * size * 0.5
    return found


def _quadric(
    canvas: _Canvas, kind: str, centre: np.ndarray, size: float
) -> tuple[tuple[slice, slice, slice], Tensor] | None:
    """An ellipsoid, a rounded box or a thin sheet."""
    rng = canvas.rng
    if kind == "sheet":
        radii = size * np.array([rng.uniform(0.05, 0.12), rng.uniform(0.35, 0.7), rng.uniform(0.35, 0.7)])
        radii[0] = max(radii[0], 0.9)
    else:
        radii = size * 0.5 * np.exp(rng.normal(size=3) * rng.uniform(0.0, 0.35))
    power = 2.0 if kind != "box" else float(rng.uniform(2.5, 8.0))
    if kind == "ellipsoid" and rng.random() < 0.25:
        power = float(rng.uniform(1.5, 3.0))
    # Organs often lie along the image's axes; a free rotation every time would hide that.
    rotation = _random_rotation(rng) if rng.random() < 0.6 else np.eye(3)[rng.permutation(3)]
    reach = np.abs(rotation) @ radii * 1.25
    where = canvas.warped_region(centre - reach, centre + reach)
    if where is None:
        return None
    matrix = torch.tensor(rotation.T / radii[:, None], dtype=torch.float32, device=canvas.device)
    offset = canvas.points(where) - torch.tensor(centre, dtype=torch.float32, device=canvas.device)
    scaled = offset @ matrix.T
    if power == 2.0:
        norm = torch.linalg.vector_norm(scaled, dim=1)
    else:
        norm = scaled.abs_().clamp_min_(1e-6).pow_(power).sum(1).pow_(1 / power)
    distance = (norm - 1.0) * float(radii.min() if kind == "sheet" else radii.mean())
    return where, distance.reshape([s.stop - s.start for s in where])


def _cluster(
    canvas: _Canvas, centres: np.ndarray, radii: np.ndarray, smooth: float
) -> tuple[tuple[slice, slice, slice], Tensor] | None:
    """A union of balls, with rounded joints when `smooth` is above 0."""
    where = canvas.warped_region(
        (centres - radii[:, None]).min(axis=0), (centres + radii[:, None]).max(axis=0)
    )
    if where is None:
        return None
    points = canvas.points(where)
    balls = torch.tensor(centres, dtype=torch.float32, device=canvas.device)
    apart = torch.cdist(points, balls, compute_mode="use_mm_for_euclid_dist")
    apart = apart - torch.tensor(radii, dtype=torch.float32, device=canvas.device)
    distance = -smooth * torch.logsumexp(-apart / smooth, dim=1) if smooth > 0 else apart.amin(dim=1)
    return where, distance.reshape([s.stop - s.start for s in where])


def _chain(
    canvas: _Canvas, centres: np.ndarray, radii: np.ndarray, link: int = 6
) -> tuple[tuple[slice, slice, slice], Tensor] | None:
    """A long thin union of balls, evaluated link by link: its bounding box is mostly empty."""
    whole = (slice(0, canvas.shape[0]), slice(0, canvas.shape[1]), slice(0, canvas.shape[2]))
    distance = torch.full(canvas.shape, 1e3, device=canvas.device)
    seen = False
    for start in range(0, len(centres), link):
        found = _cluster(canvas, centres[start : start + link], radii[start : start + link], 0.0)
        if found is not None:
            where, near = found
            distance[where] = torch.minimum(distance[where], near)
            seen = True
    return (whole, distance) if seen else None


_KINDS = ("ellipsoid", "blob", "bean", "box", "sheet", "tube", "tree")


def _paint_objects(
    canvas: _Canvas, count: int, weights: tuple[float, ...], sizes: tuple[float, float]
) -> None:
    """Paint `count` objects, large ones first, over or beside what is there, some with parts or a wall."""
    rng = canvas.rng
    longest = float(canvas.extent.max())
    low, high = math.log(sizes[0]), math.log(sizes[1])
    for size in sorted((math.exp(rng.uniform(low, high)) * longest for _ in range(count)), reverse=True):
        kind = str(rng.choice(_KINDS, p=weights))
        centre = rng.uniform(0.08, 0.92, size=3) * canvas.extent
        found = _signed_distance(canvas, kind, centre, size)
        if found is None:
            continue
        where, distance = found
        inside = distance < 0
        # Half of the objects give way to what is there, so that neighbours touch with exact common borders.
        beside = rng.random() < 0.5
        if beside:
            inside = inside & (canvas.labels[where] == 0)
        full = int((distance < 0).sum())
        label = canvas.paint(where, inside, kind)
        if not label:
            continue
        canvas.painted[label] = full
        draw = rng.random()
        if draw < 0.18 and size > 10 and kind in ("ellipsoid", "blob", "bean", "box"):
            wall = rng.uniform(1.0, max(1.2, 0.18 * size))
            canvas.paint(where, inside & (distance < -wall), "lumen", parent=label)
        elif draw < 0.36 and size > 12 and kind in ("ellipsoid", "blob", "bean", "box"):
            for _ in range(int(rng.integers(1, 5))):
                part_kind = str(rng.choice(("ellipsoid", "blob", "tube")))
                at = centre + rng.normal(size=3) * size * 0.2
                part = _signed_distance(canvas, part_kind, at, size * rng.uniform(0.15, 0.5))
                if part is not None:
                    part_where, part_distance = part
                    held = canvas.labels[part_where] == label
                    canvas.paint(part_where, (part_distance < 0) & held, "part", parent=label)


def _paint_cells(canvas: _Canvas) -> None:
    """Fill a region with touching cells (a warped Voronoi diagram), or with nuclei that do not touch."""
    rng = canvas.rng
    size = rng.uniform(0.12, 0.34) * float(canvas.extent.min())
    seeds = []
    for z in np.arange(size / 2, canvas.extent[0] + size / 2, size):
        for y in np.arange(size / 2, canvas.extent[1] + size / 2, size):
            for x in np.arange(size / 2, canvas.extent[2] + size / 2, size):
                seeds.append((z, y, x))
    centres = np.array(seeds) + rng.normal(size=(len(seeds), 3)) * size * rng.uniform(0.1, 0.3)
    if len(centres) > 120:
        centres = centres[rng.permutation(len(centres))[:120]]
    everywhere = (slice(0, canvas.shape[0]), slice(0, canvas.shape[1]), slice(0, canvas.shape[2]))
    points = canvas.points(everywhere)
    at = torch.tensor(centres, dtype=torch.float32, device=canvas.device)
    power = torch.tensor(
        rng.normal(size=len(centres)) * 0.15 * size**2, dtype=torch.float32, device=canvas.device
    )
    nearest = torch.empty(len(points), dtype=torch.int64, device=canvas.device)
    value = torch.empty(len(points), device=canvas.device)
    for part in torch.arange(len(points), device=canvas.device).split(65536):
        apart = -2 * points[part] @ at.T + (at.square().sum(1) + power)[None]
        value[part], nearest[part] = apart.min(dim=1)
    cells = nearest.reshape(canvas.shape)
    distance = (value + points.square().sum(1)).clamp_min(0).sqrt().reshape(canvas.shape)
    keep = canvas.smooth_field(3) > rng.uniform(-2.5, 0.0)
    nuclei = rng.random() < 0.5
    if nuclei:
        radius = torch.tensor(
            size * rng.uniform(0.28, 0.52) * rng.uniform(0.8, 1.2, size=len(centres)),
            dtype=torch.float32,
            device=canvas.device,
        )
        keep = keep & (distance < radius[cells])
    labels = torch.where(keep, cells + canvas.next_label, torch.zeros_like(cells)).to(torch.int16)
    canvas.labels = labels
    counts = torch.bincount(labels.reshape(-1).long(), minlength=canvas.next_label + len(centres))
    for label in range(canvas.next_label, canvas.next_label + len(centres)):
        if int(counts[label]):
            canvas.painted[label] = int(counts[label])
            canvas.kinds[label] = "nucleus" if nuclei else "cell"
    canvas.next_label += len(centres)


def _boundary(labels: Tensor) -> Tensor:
    """Float (D, H, W): 1 where a voxel's label differs from that of the next voxel along an axis."""
    edge = torch.zeros(labels.shape, device=labels.device)
    for axis in range(3):
        n = labels.shape[axis]
        if n > 1:
            differ = labels.narrow(axis, 0, n - 1) != labels.narrow(axis, 1, n - 1)
            edge.narrow(axis, 0, n - 1)[differ] = 1.0
    return edge


def _means(canvas: _Canvas, look: Look) -> np.ndarray:
    """Mean intensity (labels + 1,) for every label, about in [0, 1]; index 0 is the tissue between the
    objects.
    """
    rng = canvas.rng
    count = canvas.next_label
    base = rng.uniform(0.1, 0.7)
    contrast = math.exp(rng.uniform(math.log(0.1), math.log(0.7)))
    if look == "pet":
        base, contrast = rng.uniform(0.02, 0.15), rng.uniform(0.2, 1.0)
    means = base + contrast * rng.normal(size=count)
    if look == "pet":
        means = base + contrast * rng.lognormal(0.0, 0.8, size=count) * (rng.random(count) < 0.75)
    elif rng.random() < 0.3:
        # A few tissue classes only: many objects share an intensity, as soft organs do.
        classes = base + contrast * rng.normal(size=int(rng.integers(2, 5)))
        means = rng.choice(classes, size=count) + 0.02 * rng.normal(size=count)
    if look == "microscopy":
        bright = rng.uniform(0.4, 1.0)
        means = bright * rng.uniform(0.6, 1.3, size=count)
        means[0] = rng.uniform(0.02, 0.25)
    else:
        means[0] = base
    for child, parent in canvas.parents.items():
        if rng.random() < 0.6:
            # Parts differ little from their parent, or not at all for the image's sake.
            means[child] = means[parent] + rng.normal() * contrast * 0.4
    return means


def _render(canvas: _Canvas, look: Look) -> Tensor:
    """An image (D, H, W) in [0, 255] of the canvas's labels."""
    rng = canvas.rng
    labels = canvas.labels.long()
    means = torch.tensor(_means(canvas, look), dtype=torch.float32, device=canvas.device)
    image = means[labels]
    spread = float(means.std()) + 0.05

    body = None
    if look in ("ct", "mr", "pet") and rng.random() < 0.45:
        found = _signed_distance(
            canvas,
            "ellipsoid",
            canvas.extent * rng.uniform(0.35, 0.65, size=3),
            float(canvas.extent.max()) * rng.uniform(0.8, 1.6),
        )
        if found is not None:
            body = torch.zeros(canvas.shape, dtype=torch.bool, device=canvas.device)
            body[found[0]] = found[1] < 0
            body |= labels > 0

    # Texture: noise of two scales, with an amplitude of its own for every label.
    for knots in (int(rng.integers(6, 14)), int(rng.integers(18, 36))):
        if rng.random() < 0.6:
            amplitude = spread * rng.uniform(0.0, 0.4) * rng.uniform(0.2, 1.0, size=len(means))
            image = (
                image
                + canvas.smooth_field(knots)
                * torch.tensor(amplitude, dtype=torch.float32, device=canvas.device)[labels]
            )
    if rng.random() < 0.25:
        # A gradient inside each object: uptake or enhancement is rarely even.
        image = image * (1 + 0.35 * canvas.smooth_field(3))
    if look == "microscopy" and rng.random() < 0.5:
        edge = canvas.blur(_boundary(canvas.labels), rng.uniform(0.6, 1.2))
        interior = rng.uniform(0.0, 0.4)
        image = image * interior + edge * rng.uniform(0.6, 1.5) * (1 + 0.3 * canvas.smooth_field(8))
    if body is not None:
        air = 0.0 if look != "mr" else float(rng.uniform(0.0, 0.05))
        image = torch.where(body, image, torch.full_like(image, air + min(0.0, float(means.min()) - 0.3)))
    if rng.random() < 0.15:
        # Edges drawn darker or brighter than both sides: walls, fat planes, fissures.
        image = image + canvas.blur(_boundary(canvas.labels), 0.7) * float(rng.normal()) * spread

    sigma = {
        "ct": (0.3, 1.0),
        "mr": (0.2, 1.1),
        "pet": (1.0, 3.2),
        "us": (0.5, 1.2),
        "microscopy": (0.3, 1.3),
    }[look]
    image = canvas.blur(image, float(rng.uniform(*sigma)))
    if look in ("mr", "us", "microscopy") or rng.random() < 0.2:
        image = image * torch.exp(canvas.smooth_field(2) * float(rng.uniform(0.0, 0.35)))

    level = spread * math.exp(rng.uniform(math.log(0.02), math.log(0.3)))
    noise = canvas.white()
    if look == "us":
        grain = canvas.blur(canvas.white(), float(rng.uniform(0.6, 1.4)))
        grain = grain / grain.std()
        image = image.clamp_min(0.02) * (1 + float(rng.uniform(0.1, 0.4)) * grain) + 0.3 * level * noise
    elif look == "pet" or (look == "ct" and rng.random() < 0.5):
        grain = canvas.blur(noise, float(rng.uniform(0.5, 1.3)))
        image = image + grain / grain.std() * level * (0.5 if look == "pet" else 1.0)
    elif look == "mr" and rng.random() < 0.5:
        image = ((image + level * noise).square() + (level * canvas.white()).square()).sqrt()
    elif look == "microscopy" and rng.random() < 0.5:
        image = image + noise * (image.clamp_min(0.0) * level).sqrt() * 0.5
    else:
        image = image + level * noise

    if look == "ct":
        # A window that cuts: what lies outside it arrives flat, black or white.
        centre = float(
            means[
                torch.randint(
                    len(means), (1,), generator=torch.Generator().manual_seed(int(rng.integers(2**31)))
                )
            ].item()
        )
        width = spread * rng.uniform(2.0, 8.0)
        low, high = centre - width * rng.uniform(0.3, 0.7), centre + width * rng.uniform(0.3, 0.7)
    else:
        flat = image.reshape(-1)
        flat = flat[:: max(1, len(flat) // 50000)]
        low, high = (float(v) for v in torch.quantile(flat, torch.tensor([0.005, 0.995], device=flat.device)))
    image = ((image - low) / max(high - low, 1e-6)).clamp(0, 1)
    if rng.random() < 0.25:
        image = image ** float(math.exp(rng.uniform(-0.6, 0.6)))
    if look in ("mr", "us", "microscopy") and rng.random() < 0.15:
        image = 1 - image
    return image * 255


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
    canvas = _Canvas(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        rng=rng,
        torch_rng=torch.Generator(device=device).manual_seed(int(rng.integers(2**62))),
        device=device,
    )
    if chosen == "microscopy" and rng.random() < 0.75:
        _paint_cells(canvas)
    else:
        theme = rng.random()
        if chosen == "pet" or theme < 0.25:
            weights = (0.6, 0.25, 0.1, 0.05, 0.0, 0.0, 0.0)
            _paint_objects(canvas, int(rng.integers(2, 10)), weights, (0.12, 0.6))
        elif theme < 0.75:
            weights = (0.32, 0.24, 0.18, 0.08, 0.06, 0.08, 0.04)
            _paint_objects(canvas, int(rng.integers(6, 22)), weights, (0.1, 0.8))
        else:
            weights = (0.1, 0.1, 0.15, 0.0, 0.15, 0.3, 0.2)
            _paint_objects(canvas, int(rng.integers(3, 12)), weights, (0.2, 0.9))
    image = _render(canvas, chosen)
    return SyntheticVolume(
        image=image,
        labels=canvas.labels,
        targets=_targets(canvas),
        spacing=canvas.spacing,
        look=chosen,
    )


def _targets(canvas: _Canvas) -> list[tuple[int, ...]]:
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
