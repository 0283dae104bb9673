"""The labels that the server offers: their names, values and colours."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ..errors import UserError

BACKGROUND = "background"
"""Clicks under this name belong to no label; its value is 0. Every client knows the name."""
MAX_LABELS = 254
"""Results are uint8, and OHIF keeps the value 255 for itself."""
MAX_NAME_LENGTH = 64

Colour = tuple[int, int, int]
"""Red, green, blue in [0, 255]."""

# 3D Slicer's own colours for anatomy, so that a segment looks the same before and after it is exported.
_COLOURS: dict[str, Colour] = {
    "liver": (221, 130, 101),
    "spleen": (157, 108, 162),
    "right kidney": (185, 102, 83),
    "left kidney": (185, 102, 83),
    "pancreas": (249, 180, 111),
    "gallbladder": (139, 150, 98),
    "stomach": (216, 132, 105),
    "esophagus": (211, 171, 143),
    "aorta": (224, 97, 76),
    "inferior vena cava": (0, 151, 206),
    "right adrenal gland": (249, 186, 150),
    "left adrenal gland": (249, 186, 150),
    "heart": (206, 110, 84),
    "right lung": (197, 165, 145),
    "left lung": (197, 165, 145),
    "urinary bladder": (222, 154, 132),
    "prostate": (230, 158, 140),
    "brain": (250, 250, 225),
    "spinal cord": (244, 214, 49),
    "spine": (255, 255, 207),
    "bone": (241, 214, 145),
    "muscle": (192, 104, 88),
    "lymph node": (68, 172, 100),
    "tumor": (144, 238, 144),
    "lesion": (220, 245, 20),
    "cyst": (205, 205, 100),
}
DEFAULT_NAMES = tuple(_COLOURS)
"""Offered when the server is started without ``--conf labels``."""


@dataclass(frozen=True)
class LabelMap:
    """The labels in the server's order. The first has the value 1, the next 2, ...; background has 0.

    Attributes:
        names: of the labels.
        reserved: words that no label may be called, because requests use them otherwise.
    """

    names: tuple[str, ...]
    reserved: frozenset[str] = field(default=frozenset(), compare=False)

    @classmethod
    def parse(cls, text: str, reserved: Collection[str]) -> LabelMap:
        """Read a comma-separated list such as "liver, spleen, tumor".

        Args:
            text: the names; white space around each is ignored.
            reserved: names that mean something else in a request.

        Raises:
            UserError: a name is empty, comes twice, is reserved, too long or holds control characters, or
                there are more than `MAX_LABELS`.
        """
        names = [part.strip() for part in text.split(",")]
        if len(names) > MAX_LABELS:
            raise UserError(f"At most {MAX_LABELS} labels can be told apart, but {len(names)} were given.")
        taken = {word.casefold() for word in reserved}
        seen: dict[str, str] = {}
        for position, name in enumerate(names, start=1):
            if not name:
                raise UserError(
                    f"Every label needs a name, but number {position} of the labels {text!r} is empty."
                )
            if len(name) > MAX_NAME_LENGTH or not name.isprintable():
                raise UserError(
                    f"A label's name must be at most {MAX_NAME_LENGTH} printable characters, "
                    f"but {name[: 2 * MAX_NAME_LENGTH]!r} is not."
                )
            key = name.casefold()
            if key == BACKGROUND:
                raise UserError(f"The label '{BACKGROUND}' is always there with the value 0: leave it out.")
            if key in taken:
                raise UserError(f"A label can't be called {name!r}: requests use that word otherwise.")
            if key in seen:
                raise UserError(f"Label names must differ in more than case, but {seen[key]!r} comes twice.")
            seen[key] = name
        return cls(tuple(names), frozenset(reserved))

    def admits(self, name: str) -> bool:
        """Whether a label may have this name; requests hold its clicks under it."""
        try:
            return "," not in name and bool(LabelMap.parse(name, self.reserved).names)
        except UserError:
            return False

    @property
    def values(self) -> dict[str, int]:
        """Name to value, background included, in the order of the values."""
        return {BACKGROUND: 0, **{name: value for value, name in enumerate(self.names, start=1)}}

    @property
    def announced(self) -> dict[str, int]:
        """The values as a task's description gives them to clients.

        OHIF treats a value of 0 as missing and uses the label's position among the clicked ones instead, and
        then paints that value as background. So background gets a value here that no voxel ever has. In
        results it is 0.
        """
        return {**self.values, BACKGROUND: len(self.names) + 1}

    def find(self, name: str) -> str | None:
        """The label of that name as the server spells it; case and surrounding space do not matter."""
        key = name.strip().casefold()
        return next((known for known in self.names if known.casefold() == key), None)


def colour_of(name: str) -> Colour:
    """The colour of a label: 3D Slicer's where the anatomy is known, else one that follows from the name."""
    known = _COLOURS.get(name.casefold())
    if known is not None:
        return known
    hue = zlib.crc32(name.casefold().encode()) / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.6, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def listed(names: Sequence[str]) -> str:
    """Names for a sentence."""
    return ", ".join(repr(name) for name in names)
