"""Networks with known answers, so that tests can tell where every value came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(image (D, H, W), points (N, 3), labels (N,)) to logits (D, H, W)."""


@dataclass(frozen=True)
class FakeFeatures:
    """The image itself."""

    image: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @property
    def nbytes(self) -> int:
        return self.image.nbytes


class FakeNetwork(nn.Module):
    """Encodes an image as itself and decodes by a given field; remembers how it was called."""

    def __init__(
        self, field: Field, size: int = 64, box_label: int = 2, answers_clicks_alone: bool = False
    ) -> None:
        super().__init__()
        self.field = field
        self.answers_clicks_alone = answers_clicks_alone
        self.config = SimpleNamespace(
            image_size=size, mask_size=size, box_label=box_label, multiple=1, hold_edges=False
        )
        self.encoded: list[Tensor] = []
        self.decoded: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def encode(self, image: Tensor) -> FakeFeatures:
        self.encoded.append(image)
        return FakeFeatures(image)

    def decode(
        self, features: FakeFeatures, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        self.decoded.append((points, labels, mask))
        given = zip(features.image[:, 0], points, labels, strict=True)
        return torch.stack([self.field(*one) for one in given])[:, None]

    def to_mask_prompt(self, logits: Tensor) -> Tensor:
        return logits


def grid_of(image: Tensor) -> Tensor:
    """Grid indices (D, H, W, 3) of an image's cells."""
    axes = [torch.arange(n, dtype=torch.float32) for n in image.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def image_field(image: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """The object is what is bright in the network's own image."""
    return image


def slope_field(image: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """A ramp that is zero at the last foreground prompt; linear, so resampling keeps it exactly."""
    origin = points[labels > 0][-1]
    return (grid_of(image) - origin) @ torch.tensor([1.0, 0.5, 0.25])


def balls_field(radius: float = 3.0) -> Field:
    """The object is a ball about every foreground click, less one about each background click."""

    def field(image: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        logits = torch.full(image.shape, -4.0)
        grid = grid_of(image)
        for kind, sign in ((1, 1.0), (0, -1.0)):
            for point in points[labels == kind]:
                inside = torch.linalg.vector_norm(grid - point, dim=-1) <= radius
                logits[inside] = sign * 4.0
        return logits

    return field


def constant_field(value: float) -> Field:
    return lambda image, points, labels: torch.full(image.shape, value)


@pytest.fixture(scope="session")
def fakes() -> SimpleNamespace:
    """The fake network and its fields, by name."""
    return SimpleNamespace(
        Network=FakeNetwork,
        image=image_field,
        slope=slope_field,
        balls=balls_field,
        constant=constant_field,
    )
