"""The objects of a scene: unions of balls, ellipsoids, boxes and sheets under the canvas's warp, cells.

Shapes are evaluated only inside their bounding box.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .canvas import Canvas


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """An orthogonal (3, 3) matrix, all directions equally likely."""
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


def signed_distance(
    canvas: Canvas, kind: str, centre: np.ndarray, size: float
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
    canvas: Canvas, kind: str, centre: np.ndarray, size: float
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
    rotation = random_rotation(rng) if rng.random() < 0.6 else np.eye(3)[rng.permutation(3)]
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
    canvas: Canvas, centres: np.ndarray, radii: np.ndarray, smooth: float
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
    canvas: Canvas, centres: np.ndarray, radii: np.ndarray, link: int = 6
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


def paint_objects(canvas: Canvas, count: int, weights: tuple[float, ...], sizes: tuple[float, float]) -> None:
    """Paint `count` objects, large ones first, over or beside what is there, some with parts or a wall."""
    rng = canvas.rng
    longest = float(canvas.extent.max())
    low, high = math.log(sizes[0]), math.log(sizes[1])
    for size in sorted((math.exp(rng.uniform(low, high)) * longest for _ in range(count)), reverse=True):
        kind = str(rng.choice(_KINDS, p=weights))
        centre = rng.uniform(0.08, 0.92, size=3) * canvas.extent
        found = signed_distance(canvas, kind, centre, size)
        if found is None:
            continue
        where, distance = found
        inside = distance < 0
        # Half of the objects are cut by what is there, so that neighbours touch with exact common borders.
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
                part = signed_distance(canvas, part_kind, at, size * rng.uniform(0.15, 0.5))
                if part is not None:
                    part_where, part_distance = part
                    held = canvas.labels[part_where] == label
                    canvas.paint(part_where, (part_distance < 0) & held, "part", parent=label)


def paint_cells(canvas: Canvas) -> None:
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
