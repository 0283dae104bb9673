"""The appearance of a scene: intensities of labels, textures, blur, noise and window of a kind of image."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .canvas import Canvas
from .shapes import signed_distance

Look = Literal["ct", "mr", "pet", "us", "microscopy"]
LOOKS: tuple[Look, ...] = ("ct", "mr", "pet", "us", "microscopy")
LOOK_WEIGHTS = (0.30, 0.30, 0.17, 0.06, 0.17)
BLUR = {
    "ct": (0.3, 1.0),
    "mr": (0.2, 1.1),
    "pet": (1.0, 3.2),
    "us": (0.5, 1.2),
    "microscopy": (0.3, 1.3),
}
"""Least and greatest sigma of each look, in units of the finest voxel side."""


def _boundary(labels: Tensor) -> Tensor:
    """Float (D, H, W): 1 where a voxel's label differs from that of the next voxel along an axis."""
    edge = torch.zeros(labels.shape, device=labels.device)
    for axis in range(3):
        n = labels.shape[axis]
        if n > 1:
            differ = labels.narrow(axis, 0, n - 1) != labels.narrow(axis, 1, n - 1)
            edge.narrow(axis, 0, n - 1)[differ] = 1.0
    return edge


def _means(canvas: Canvas, look: Look) -> np.ndarray:
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


def render(canvas: Canvas, look: Look) -> Tensor:
    """An image (D, H, W) in [0, 255] of the canvas's labels."""
    rng = canvas.rng
    means = torch.tensor(_means(canvas, look), dtype=torch.float32, device=canvas.device)
    spread = float(means.std()) + 0.05
    body = _body(canvas, look)
    image = _textured(canvas, look, means, spread)
    if body is not None:
        air = 0.0 if look != "mr" else float(rng.uniform(0.0, 0.05))
        image = torch.where(body, image, torch.full_like(image, air + min(0.0, float(means.min()) - 0.3)))
    if rng.random() < 0.15:
        # Edges drawn darker or brighter than both sides: walls, fat planes, fissures.
        image = image + canvas.blur(_boundary(canvas.labels), 0.7) * float(rng.normal()) * spread
    image = canvas.blur(image, float(rng.uniform(*BLUR[look])))
    if look in ("mr", "us", "microscopy") or rng.random() < 0.2:
        image = image * torch.exp(canvas.smooth_field(2) * float(rng.uniform(0.0, 0.35)))
    image = _noisy(canvas, look, image, spread)
    low, high = _window(canvas, look, image, means, spread)
    image = ((image - low) / max(high - low, 1e-6)).clamp(0, 1)
    if rng.random() < 0.25:
        image = image ** float(math.exp(rng.uniform(-0.6, 0.6)))
    if look in ("mr", "us", "microscopy") and rng.random() < 0.15:
        image = 1 - image
    return image * 255


def _body(canvas: Canvas, look: Look) -> Tensor | None:
    """Bool (D, H, W): where the body is, with air around it; None where it fills the scene."""
    rng = canvas.rng
    if look not in ("ct", "mr", "pet") or rng.random() >= 0.45:
        return None
    found = signed_distance(
        canvas,
        "ellipsoid",
        canvas.extent * rng.uniform(0.35, 0.65, size=3),
        float(canvas.extent.max()) * rng.uniform(0.8, 1.6),
    )
    if found is None:
        return None
    body = torch.zeros(canvas.shape, dtype=torch.bool, device=canvas.device)
    body[found[0]] = found[1] < 0
    return body | (canvas.labels > 0)


def _textured(canvas: Canvas, look: Look, means: Tensor, spread: float) -> Tensor:
    """The labels' mean intensities with texture: noise of two scales, of an amplitude of its own for every
    label, gradients inside objects, membranes of cells.
    """
    rng, labels = canvas.rng, canvas.labels.long()
    image = means[labels]
    for knots in (int(rng.integers(6, 14)), int(rng.integers(18, 36))):
        if rng.random() < 0.6:
            amplitude = spread * rng.uniform(0.0, 0.4) * rng.uniform(0.2, 1.0, size=len(means))
            strength = torch.tensor(amplitude, dtype=torch.float32, device=canvas.device)[labels]
            image = image + canvas.smooth_field(knots) * strength
    if rng.random() < 0.25:
        # A gradient inside each object: uptake or enhancement is rarely even.
        image = image * (1 + 0.35 * canvas.smooth_field(3))
    if look == "microscopy" and rng.random() < 0.5:
        edge = canvas.blur(_boundary(canvas.labels), rng.uniform(0.6, 1.2))
        interior = rng.uniform(0.0, 0.4)
        image = image * interior + edge * rng.uniform(0.6, 1.5) * (1 + 0.3 * canvas.smooth_field(8))
    return image


def _noisy(canvas: Canvas, look: Look, image: Tensor, spread: float) -> Tensor:
    """The image with the noise of its kind: speckle, grain, Rician, of counts, or white."""
    rng = canvas.rng
    level = spread * math.exp(rng.uniform(math.log(0.02), math.log(0.3)))
    noise = canvas.white()
    if look == "us":
        grain = canvas.blur(canvas.white(), float(rng.uniform(0.6, 1.4)))
        grain = grain / grain.std()
        return image.clamp_min(0.02) * (1 + float(rng.uniform(0.1, 0.4)) * grain) + 0.3 * level * noise
    if look == "pet" or (look == "ct" and rng.random() < 0.5):
        grain = canvas.blur(noise, float(rng.uniform(0.5, 1.3)))
        return image + grain / grain.std() * level * (0.5 if look == "pet" else 1.0)
    if look == "mr" and rng.random() < 0.5:
        return ((image + level * noise).square() + (level * canvas.white()).square()).sqrt()
    if look == "microscopy" and rng.random() < 0.5:
        return image + noise * (image.clamp_min(0.0) * level).sqrt() * 0.5
    return image + level * noise


def _window(canvas: Canvas, look: Look, image: Tensor, means: Tensor, spread: float) -> tuple[float, float]:
    """The intensities that are mapped to black and white."""
    rng = canvas.rng
    if look == "ct":
        # A window that clips: values outside it become black or white.
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        centre = float(means[torch.randint(len(means), (1,), generator=generator)].item())
        width = spread * rng.uniform(2.0, 8.0)
        return centre - width * rng.uniform(0.3, 0.7), centre + width * rng.uniform(0.3, 0.7)
    flat = image.reshape(-1)
    flat = flat[:: max(1, len(flat) // 50000)]
    low, high = torch.quantile(flat, torch.tensor([0.005, 0.995], device=flat.device)).tolist()
    return float(low), float(high)
