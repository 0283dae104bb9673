"""Submitted label files of every kind, as named labels on their image's own grid.

What a value means depends on who submitted it. `read_labels` decides by these rules, the first that applies:
names in the file itself (3D Slicer's segmentation NRRD, DICOM SEG); a mapping of names to values sent along
(`label_names` or `labels`, as this server's answers hold it); MONAI Label's `label_info`, by position,
because 3D Slicer numbers segments in their order and its `idx` counts others as well; the server's own
values. Values without a name, empty labels and files that lie elsewhere are left out, and a note or an error
says so. A name that no label can have is changed, with a note.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TooLargeError, UserError, VolumeError
from .facts import ReadLimits, some_of
from .grids import on_grid
from .label_map import BACKGROUND, MAX_LABELS, MAX_NAME_LENGTH, LabelMap
from .label_parts import read_parts
from .placing import placing_of
from .volume import Volume

logger = logging.getLogger(__name__)

Labels = npt.NDArray[np.uint8]


class LabelError(UserError):
    """A submitted label that cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class NamedLabels:
    """The labels of one image on its grid.

    Attributes:
        layers: label maps (D, H, W) in canonical order, several where labels overlap.
        names: for each layer, value to name.
        notes: what was left out or decided by a rule, as sentences.
    """

    layers: list[Labels]
    names: list[dict[int, str]]
    notes: list[str] = field(default_factory=list)

    @property
    def voxels(self) -> dict[str, int]:
        """Number of voxels of each label."""
        return {
            name: int(np.count_nonzero(layer == value))
            for layer, names in zip(self.layers, self.names, strict=True)
            for value, name in names.items()
        }

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Where a label is, (D, H, W)."""
        for layer, names in zip(self.layers, self.names, strict=True):
            for value, known in names.items():
                if known == name:
                    return layer == value
        raise KeyError(name)


def read_labels(
    path: str | Path,
    volume: Volume,
    info: Mapping[str, Any] | None = None,
    known: LabelMap | None = None,
    limits: ReadLimits | None = None,
) -> NamedLabels:
    """Read a submitted label.

    Args:
        path: NIfTI, NRRD (also 3D Slicer's segmentations, with overlapping segments), MetaImage, or DICOM SEG
            (a file or the folder that holds it). A fourth axis of a NIfTI holds one label each.
        volume: the image that it belongs to.
        info: what was submitted along with it, as the datastore keeps it.
        known: the server's labels: their values, and the spelling of their names.
        limits: how much reading it may take.

    Returns:
        At least one label with at least one voxel.

    Raises:
        LabelError: the file cannot be read, is empty, holds fractions, lies elsewhere than the image, or none
            of its values has a name.
        TooLargeError: it would take more memory than the limits give it.
    """
    path = Path(path)
    known = LabelMap(()) if known is None else known
    placed = placing_of(volume.affine)
    layers = _Layers()
    try:
        parts, notes = read_parts(path, limits, placed.affine)
        # Layers without names of their own count on: a channel each, numbered from 1.
        for part in parts:
            names = _meaning(part.values, part.names, info or {}, known, notes) if part.values else {}
            if names:
                array, further = on_grid(part.array, part.placing, placed, volume.raw_shape, path.name)
                notes += [note for note in further if note not in notes]
                layers.add(array, names, notes)
    except TooLargeError:
        raise
    except VolumeError as error:
        raise LabelError(f"The label file {path.name} could not be used: {error}") from error
    if not layers.names:
        reason = " ".join(notes) if notes else "all its values are 0."
        raise LabelError(f"The label file {path.name} holds no label that can be used: {reason}")
    return NamedLabels([volume.from_raw_array(layer) for layer in layers.arrays], layers.names, notes)


class _Layers:
    """Label maps (i, j, k) that grow by one part of a file after the other.

    Each label is whole in one of them: the first in which it overlaps no other.
    """

    def __init__(self) -> None:
        self.arrays: list[Labels] = []
        self.names: list[dict[int, str]] = []

    def add(self, array: npt.NDArray[np.uint16], names: Mapping[int, str], notes: list[str]) -> None:
        """Add the labels of a label map.

        Args:
            array: values (i, j, k).
            names: of those that count.
            notes: are added to.

        Raises:
            VolumeError: there are more labels than one image can have.
        """
        counts = np.bincount(array.ravel(order="K"), minlength=max(names) + 1)
        pending: dict[int, str] = {}
        for value, name in names.items():
            if not counts[value]:
                notes.append(f"The label {name!r} has no voxel inside the image.")
                continue
            if name in pending.values() or any(name in known.values() for known in self.names):
                notes.append(f"The label {name!r} comes twice: its parts were joined.")
            pending[value] = name
        for value in [v for v, name in pending.items() if list(pending.values()).count(name) > 1]:
            self._join(array == value, pending.pop(value))
        for value in [
            v for v, name in pending.items() if any(name in known.values() for known in self.names)
        ]:
            self._join(array == value, pending.pop(value))
        at = 0
        while pending:
            if at == len(self.arrays):
                self._grow(array.shape)
            layer = self.arrays[at]
            taken = set(np.unique(array[layer != 0]).tolist())
            free = [value for value in pending if value not in taken]
            table = np.zeros(counts.size, dtype=np.uint8)
            for value in free:
                table[value] = self._named(at, pending.pop(value))
            if free:
                found = table[array]
                np.copyto(layer, found, where=found != 0)
            at += 1

    def _join(self, mask: npt.NDArray[np.bool_], name: str) -> None:
        """Add voxels to a label, new or not; where it then overlaps another label it moves to another map."""
        home = next((n for n, known in enumerate(self.names) if name in known.values()), None)
        if home is not None:
            value = next(value for value, known in self.names[home].items() if known == name)
            mask = mask | (self.arrays[home] == value)
            self.arrays[home][self.arrays[home] == value] = 0
            del self.names[home][value]
        at = next((n for n, layer in enumerate(self.arrays) if not layer[mask].any()), len(self.arrays))
        if at == len(self.arrays):
            self._grow(mask.shape)
        self.arrays[at][mask] = self._named(at, name)

    def _grow(self, shape: tuple[int, ...]) -> None:
        self.arrays.append(np.zeros(shape, dtype=np.uint8, order="F"))
        self.names.append({})

    def _named(self, at: int, name: str) -> int:
        """A value for a label of a layer."""
        if sum(map(len, self.names)) >= MAX_LABELS:
            raise VolumeError(f"An image may have {MAX_LABELS} labels, but there are more.")
        value = next(v for v in range(1, MAX_LABELS + 1) if v not in self.names[at])
        self.names[at][value] = name
        return value


def kept_name(name: str, known: LabelMap) -> str:
    """A valid name for a label beside the known ones, as close to `name` as possible."""
    plain = "".join(c if c.isprintable() and c != "," else " " for c in name).strip()
    if len(plain) > MAX_NAME_LENGTH:
        plain = plain[: MAX_NAME_LENGTH - 3].strip() + "..."
    if plain and not known.admits(plain):
        # Background, or a word with another meaning in requests.
        plain = f"segment {plain}"[:MAX_NAME_LENGTH]
    return plain


def _meaning(
    values: Sequence[int],
    in_file: Mapping[int, str],
    info: Mapping[str, Any],
    known: LabelMap,
    notes: list[str],
) -> dict[int, str]:
    """Value to name, for the values that have one."""
    meant = dict(in_file) or _mapped(info) or _by_position(values, info, known)
    if not meant:
        meant = {value: name for name, value in known.values.items() if value}
    names: dict[int, str] = {}
    nameless: list[str] = []
    for value in values:
        sent = meant.get(value, "").strip()
        name = known.find(sent) or kept_name(sent, known)
        if not name:
            nameless.append(str(value))
            continue
        if name != sent and known.find(sent) is None:
            if name in meant.values() or name in names.values():
                name = f"{name[: MAX_NAME_LENGTH - 6].strip()} {value}"
            notes.append(f"No label can be called {sent[:100]!r}: it was kept as {name!r}.")
        names[value] = name
    if len(nameless) == 1:
        notes.append(f"The value {nameless[0]} has no name and was left out.")
    elif nameless:
        notes.append(f"The values {some_of(nameless)} have no name and were left out.")
    return names


def _mapped(info: Mapping[str, Any]) -> dict[int, str]:
    """A mapping of names to values that was sent along, as the answers of this server hold one.

    Raises:
        VolumeError: a value is no whole number, or two names have one value.
    """
    for key in ("label_names", "labels"):
        sent = info.get(key)
        if not (isinstance(sent, Mapping) and sent):
            continue
        found: dict[int, str] = {}
        for name, told in sent.items():
            value = _whole(told)
            if value is None:
                raise VolumeError(
                    f"{key} gives each label its value, a whole number, but {str(name)[:60]!r} has "
                    f"{str(told)[:60]!r}."
                )
            if value > 0 and found.setdefault(value, str(name)) != str(name):
                raise VolumeError(
                    f"Each label must have a value of its own, but {found[value][:60]!r} and "
                    f"{str(name)[:60]!r} share {value} in {key}."
                )
        return found
    return {}


def _whole(told: Any) -> int | None:
    """A whole number that JSON may hold as one, as a float or as text; None for anything else."""
    if isinstance(told, bool) or not isinstance(told, (int, float, str)):
        return None
    try:
        return int(told) if float(told) == int(float(told)) else None
    except (ValueError, OverflowError):
        return None


def _by_position(values: Sequence[int], info: Mapping[str, Any], known: LabelMap) -> dict[int, str]:
    """MONAI Label's `label_info`: the n-th entry has the value n."""
    sent = info.get("label_info")
    if not sent:
        return {}
    if not isinstance(sent, Sequence) or isinstance(sent, str):
        raise VolumeError(
            'label_info lists the labels in the order of their values, as [{"name": "liver"}, ...], but it '
            f"is {str(sent)[:60]!r}."
        )
    names = [str(entry.get("name", "")) if isinstance(entry, Mapping) else str(entry) for entry in sent]
    if names and names[0].strip().casefold() == BACKGROUND and max(values) != len(names):
        # Listed as what it is, the value 0; with a voxel of every name it is a segment of that name.
        names = names[1:]
    if not names:
        return {}
    if max(values) > len(names):
        # A client that sends this server's own values back, with the names that occur.
        own = {known.values[found]: found for name in names if (found := known.find(name)) is not None}
        if set(values) <= set(own):
            return own
    return dict(enumerate(names, start=1))
