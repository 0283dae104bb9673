"""What a user gives for one object: clicks, a box, the mask so far (section 2.1).

Everything is in canonical array order (z, y, x). Prompts are built unchecked; `Prompts.checked` validates
them against the volume's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import PromptError
from .geometry import Box, Index


@dataclass(frozen=True)
class Click:
    """One voxel (z, y, x) that belongs to the object (positive) or does not."""

    index: Index
    positive: bool = True

    def __str__(self) -> str:
        return f"{'foreground' if self.positive else 'background'} click {self.index}"


def one_kind(clicks: Sequence[Click]) -> bool:
    """Whether clicks are all foreground or all background, so that their order is known."""
    return len({click.positive for click in clicks}) < 2


def in_order(clicks: Sequence[Click], kinds: Sequence[str]) -> list[Click]:
    """Clicks in the order given by a sequence of "fg" and "bg"; those of each kind come in their own order.

    Raises:
        PromptError: the kinds do not name every click once.
    """
    given = {kind: [click for click in clicks if click.positive == (kind == "fg")] for kind in ("fg", "bg")}
    if sorted(kinds) != sorted(kind for kind, own in given.items() for _ in own):
        raise PromptError(
            f"The order must name every click once as fg or bg, but it is {', '.join(kinds) or 'empty'} for "
            f"{len(given['fg'])} fg and {len(given['bg'])} bg."
        )
    rest = {kind: iter(own) for kind, own in given.items()}
    return [next(rest[kind]) for kind in kinds]


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of one object.

    Attributes:
        clicks: in the order in which they were given.
        box: around the object, in voxel edges.
        mask: (D, H, W), the object as predicted so far; non-zero is inside.
        ordered: whether the last of the clicks is the one that was made last. A viewer lists foreground and
            background without an order between them.
    """

    clicks: tuple[Click, ...] = ()
    box: Box | None = None
    mask: npt.NDArray[np.generic] | None = None
    ordered: bool = False

    @property
    def foreground(self) -> list[Index]:
        """Voxels clicked as belonging to the object."""
        return [click.index for click in self.clicks if click.positive]

    @property
    def background(self) -> list[Index]:
        """Voxels clicked as not belonging to the object."""
        return [click.index for click in self.clicks if not click.positive]

    def with_corner_box(self) -> Prompts:
        """The same prompts with a box: the first two foreground clicks are opposite corners of it.

        Corners no longer count as clicks: they lie beside the object, not in it, unless clicked once more.
        Prompts that have a box, or fewer than two foreground clicks, stay as they are.
        """
        corners = [at for at, click in enumerate(self.clicks) if click.positive][:2]
        if self.box is not None or len(corners) < 2:
            return self
        box = Box.around([self.clicks[at].index for at in corners])
        clicks = tuple(click for at, click in enumerate(self.clicks) if at not in corners)
        return replace(self, clicks=clicks, box=box)

    def enclosing_box(self) -> Box:
        """The smallest box that holds the given box and every foreground click (section 2.2).

        Raises:
            PromptError: if there is neither.
        """
        boxes = [] if self.box is None else [self.box]
        if self.foreground:
            boxes.append(Box.around(self.foreground))
        if not boxes:
            raise PromptError(
                "A region needs a box or at least one foreground click, but there are only "
                f"{len(self.background)} background clicks."
            )
        enclosing = boxes[0]
        for box in boxes[1:]:
            enclosing = enclosing.union(box)
        return enclosing

    def checked(self, shape: Sequence[int]) -> Prompts:
        """The same prompts, known to fit a volume of `shape` (D, H, W).

        Repeated clicks collapse into the first; a box that reaches outside the volume is cut to it; the
        mask becomes boolean.

        Raises:
            PromptError: if there is neither a click nor a box; a click is outside the volume, is not three
                whole numbers, or is both foreground and background; the box has no part in the volume; or the
                mask has another shape.
        """
        size = tuple(int(n) for n in shape)
        if not self.clicks and self.box is None:
            raise PromptError("At least one click or a box is needed, but the prompts have neither.")
        kinds: dict[Index, bool] = {}
        for click in self.clicks:
            index = _checked_index(click, size)
            if kinds.setdefault(index, click.positive) != click.positive:
                raise PromptError(
                    f"A voxel is either foreground or background, but {index} was clicked as both "
                    f"in the volume of shape {size}."
                )
        return Prompts(
            clicks=tuple(Click(index, positive) for index, positive in kinds.items()),
            box=None if self.box is None else _clipped(self.box, size),
            mask=None if self.mask is None else _checked_mask(self.mask, size),
            ordered=self.ordered,
        )


def _checked_index(click: Click, shape: tuple[int, ...]) -> Index:
    try:
        z, y, x = (int(p) for p in click.index)
        whole = all(int(p) == p for p in click.index)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise PromptError(f"A click must be three whole numbers, but the {click} is not.")
    if not all(0 <= p < n for p, n in zip((z, y, x), shape, strict=True)):
        raise PromptError(
            f"A click must lie inside the volume of shape {shape}, but the {click} lies outside."
        )
    return z, y, x


def _clipped(box: Box, shape: tuple[int, ...]) -> Box:
    lo = tuple(max(a, 0.0) for a in box.lo)
    hi = tuple(min(b, float(n)) for b, n in zip(box.hi, shape, strict=True))
    if not all(a < b for a, b in zip(lo, hi, strict=True)):
        raise PromptError(
            f"The box must overlap the volume of shape {shape}, but it spans {box.lo} to {box.hi}."
        )
    return Box.between(lo, hi)


def _checked_mask(mask: npt.NDArray[np.generic], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    if mask.shape != shape:
        raise PromptError(f"The mask must have the volume's shape {shape}, but its shape is {mask.shape}.")
    return mask != 0
