"""The page's requests, checked: prompts and labels in the page's own form (`page_frames`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError, UserError
from ..experts.dual import DEFAULT_STRATEGY, STRATEGIES
from ..imaging.geometry import Box, Index, Position
from ..imaging.intensity import CHOICES
from ..imaging.label_map import BACKGROUND, MAX_LABELS, MAX_NAME_LENGTH
from ..imaging.plane_boxes import joined
from ..imaging.prompts import Click, Prompts
from . import page_frames

MAX_CLICKS = 10_000
"""Clicks that one request may hold, all labels together."""
_KEYS = frozenset({"labels", "prompts", "held", "strategy", "window", "doubt"})


@dataclass(frozen=True)
class Asked:
    """A request for a segmentation.

    Attributes:
        labels: the page's labels; the first has the value 1.
        prompts: label to what was clicked, voxels as the page counts them.
        held: the box of the voxels that stay, which come packed; None if there are none. Labels that
            are asked for start from those that they have there.
        strategy, window: as in every request.
        doubt: whether to tell how unsure each voxel is.
    """

    labels: tuple[str, ...]
    prompts: Mapping[str, Mapping[str, Any]]
    held: tuple[int, ...] | None
    strategy: str
    window: str
    doubt: bool

    @classmethod
    def read(cls, sent: Mapping[str, Any]) -> Asked:
        """Check what came as JSON.

        Raises:
            UserError: something is missing, unknown or of another kind.
        """
        unknown = sorted(set(sent) - _KEYS)
        if unknown:
            raise UserError(
                f"The page's requests hold {', '.join(sorted(_KEYS))}, but not {unknown[0][:40]!r}."
            )
        labels = label_names(sent.get("labels"))
        prompts = sent.get("prompts")
        if not isinstance(prompts, dict) or not prompts:
            raise PromptError("At least one foreground click or a box is needed.")
        for name in prompts:
            if name not in labels:
                raise PromptError(f"There is no label {str(name)[:80]!r} among the request's labels.")
        held = sent.get("held")
        if held is not None and not isinstance(held, list):
            raise UserError("'held' must be a box.")
        return cls(
            labels,
            prompts,
            None if held is None else tuple(held),
            _one_of(sent, "strategy", STRATEGIES, DEFAULT_STRATEGY),
            _one_of(sent, "window", CHOICES, CHOICES[0]),
            sent.get("doubt") is True,
        )

    @property
    def points(self) -> dict[str, list[Any]]:
        """Label to every voxel that was clicked, inside or outside."""
        return {
            name: [click[:3] for click in given.get("clicks", [])] for name, given in self.prompts.items()
        }

    def canonical(self, shape: Index, spacing: Position) -> dict[str, Prompts]:
        """The prompts in canonical order, for an image of that shape (D, H, W) and spacing (z, y, x).

        A box that is one voxel thick was drawn in one plane alone: it gets its depth by `plane_boxes`.

        Raises:
            PromptError: a click or box is none, or lies outside; there are too many.
            UserError: a box is none.
        """
        count = 0
        found: dict[str, Prompts] = {}
        for name, given in self.prompts.items():
            if not isinstance(given, dict):
                raise PromptError(f"The prompts of {name!r} must be an object.")
            clicks = given.get("clicks", [])
            if not isinstance(clicks, list):
                raise PromptError(f"The clicks of {name!r} must be a list.")
            count += len(clicks)
            if count > MAX_CLICKS:
                raise PromptError(f"A request may hold {MAX_CLICKS} clicks, but this one holds more.")
            found_clicks = tuple(_click(click, shape) for click in clicks)
            box = given.get("box")
            found[name] = Prompts(found_clicks, None if box is None else joined([_box(box, shape)], spacing))
        return found


def label_names(sent: Any) -> tuple[str, ...]:
    """The labels that a request lists, in the order of their values.

    Raises:
        UserError: they are no names, too many, or come twice.
    """
    if not isinstance(sent, list) or not 1 <= len(sent) <= MAX_LABELS:
        raise UserError(f"'labels' must list 1 to {MAX_LABELS} names.")
    names = []
    for name in sent:
        # A comma separates names where MONAI Label's settings list them.
        fits = isinstance(name, str) and 0 < len(name.strip()) <= MAX_NAME_LENGTH and name.isprintable()
        if not fits or "," in name or name.strip().casefold() == BACKGROUND:
            raise UserError(
                f"A label's name is 1 to {MAX_NAME_LENGTH} printable characters without a comma and not "
                f"{BACKGROUND!r}, but {str(name)[:80]!r} is not."
            )
        names.append(name.strip())
    if len({name.casefold() for name in names}) < len(names):
        raise UserError("Label names must differ in more than case.")
    return tuple(names)


def _one_of(sent: Mapping[str, Any], key: str, choices: Sequence[str], default: str) -> str:
    value = sent.get(key, default)
    if value not in choices:
        raise UserError(f"{key!r} must be one of {', '.join(choices)}, but it is {str(value)[:60]!r}.")
    return str(value)


def _click(sent: Any, shape: Index) -> Click:
    whole = isinstance(sent, list) and len(sent) == 4 and all(type(p) is int for p in sent)
    if not whole or sent[3] not in (0, 1):
        raise PromptError(f"Every click must be [x, y, z, 1 or 0], but one is {str(sent)[:60]}.")
    point = sent[:3]
    depth, height, width = shape
    if not all(0 <= p < n for p, n in zip(point, (width, height, depth), strict=True)):
        raise PromptError(
            f"A click must lie inside the image of {width} x {height} x {depth} voxels, but {point} is not."
        )
    return Click(page_frames.to_canonical(point, shape), sent[3] == 1)


def _box(sent: Any, shape: Index) -> Box:
    if not isinstance(sent, list):
        raise PromptError(f"A box must be a list, but it is {str(sent)[:60]}.")
    z, y, x = page_frames.region_of(sent, shape)
    return Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
