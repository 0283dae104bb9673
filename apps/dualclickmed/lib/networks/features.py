"""Encoded images: tensors from which prompts are decoded any number of times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

FeaturesT = TypeVar("FeaturesT", bound="Features")


@dataclass(frozen=True)
class Features:
    """An encoded batch of images.

    Attributes:
        embedding: (B, C, D, H, W), the coarsest map.
        skips: finer maps (B, C_i, ...), () in the published networks.
    """

    embedding: Tensor
    skips: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.embedding.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum(t.nbytes for t in (self.embedding, *self.skips))

    def expand(self: FeaturesT, n: int) -> FeaturesT:
        """Every image n times in a row: (B, ...) -> (B * n, ...)."""
        return self if n == 1 else self._map(lambda t: t.repeat_interleave(n, dim=0))

    def index(self: FeaturesT, i: int | slice | Tensor) -> FeaturesT:
        """The images chosen by a number (kept as a batch of one), a slice or a tensor of numbers."""
        if isinstance(i, int):
            i = range(len(self))[i]
            i = slice(i, i + 1)
        return self._map(lambda t: t[i])

    def split(self: FeaturesT) -> list[FeaturesT]:
        """Every image as a batch of one. Unlike B times `index`, gradients come back in one piece."""
        maps = zip(*(t.split(1) for t in (self.embedding, *self.skips)), strict=True)
        return [type(self)(embedding, tuple(skips)) for embedding, *skips in maps]

    def to(self: FeaturesT, *args: Any, **kwargs: Any) -> FeaturesT:
        """As `Tensor.to`, for all tensors."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def _map(self: FeaturesT, function: Callable[[Tensor], Tensor]) -> FeaturesT:
        return type(self)(function(self.embedding), tuple(function(s) for s in self.skips))
