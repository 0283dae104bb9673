"""Submitted label files of every kind, as named labels on their image's own grid.

What a value means depends on who submitted it. `read_labels` settles it by these rules, the first that
applies: names in the file itself (3D Slicer's segmentation NRRD, DICOM SEG); a mapping of names to values
sent along (`label_names` or `labels`, as this server's answers hold it); MONAI Label's `label_info`, by
position, because 3D Slicer numbers segments in their order and its `idx` counts others as well; the
server's own values. Values without a name, empty labels and files that lie elsewhere are left out, and a
note or an error says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.ndimage import affine_transform

from ..errors import UserError
from .facts import ReadLimits
from .label_map import BACKGROUND, LabelMap
from .seg_frames import read_segmentation
from .volume import ITK_SUFFIXES, NIFTI_SUFFIXES, Volume

logger = logging.getLogger(__name__)

MIN_INSIDE = 0.5
"""A label of which a smaller part lies inside the image belongs to another image."""
SAME_GRID = 0.02
"""How far, in voxels, two grids may differ and still count as one."""
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Labels = npt.NDArray[np.uint16]


class LabelError(UserError):
    """A submitted label that cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class NamedLabels:
    """The labels of one image on its grid.

    Attributes:
        layers: label maps (D, H, W) in canonical order, several where labels overlap.
        names: for each layer, value to name.
        notes: what was left out or settled by a rule, as sentences.
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


@dataclass(frozen=True, eq=False)
class _Stored:
    """One label map of a file: values (i, j, k), where it lies, and the names that the file gives."""

    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    names: Mapping[int, str] = field(default_factory=dict)


def read_labels(
    path: str | Path, volume: Volume, info: Mapping[str, Any] | None = None, known: LabelMap | None = None
) -> NamedLabels:
    """Read a submitted label.

    Args:
        path: NIfTI, NRRD (also 3D Slicer's segmentations, with overlapping segments), MetaImage, or DICOM SEG
            (a file or the folder that holds it). A fourth axis of a NIfTI holds one label each.
        volume: the image that it belongs to.
        info: what was submitted along with it, as the datastore keeps it.
        known: the server's labels: their values, and the spelling of their names.

    Returns:
        At least one label with at least one voxel.

    Raises:
        LabelError: the file cannot be read, is empty, holds fractions, lies elsewhere than the image, or none
            of its values has a name.
    """
    path = Path(path)
    known = LabelMap(()) if known is None else known
    stored = _read(path, volume)
    notes: list[str] = []
    masks: dict[str, npt.NDArray[np.bool_]] = {}
    # Layers without names of their own count on: a channel each, numbered from 1.
    for part in stored:
        values = _values(part.array, path.name)
        if values.size == 0:
            continue
        names = _meaning(values.tolist(), part.names, info or {}, known, notes)
        if not names:
            continue
        array = _on_grid(part, volume, path.name)
        for value, name in names.items():
            mask = array == value
            if not mask.any():
                notes.append(f"The label {name!r} has no voxel inside the image.")
            elif name in masks:
                notes.append(f"The label {name!r} comes twice: its parts were joined.")
                masks[name] |= mask
            else:
                masks[name] = mask
    if not masks:
        reason = " ".join(notes) if notes else "all its values are 0."
        raise LabelError(f"The label file {path.name} holds no label that can be used: {reason}")
    return _layered(masks, notes)


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
    for value in values:
        name = meant.get(value, "").strip()
        if not name:
            notes.append(f"The value {value} has no name and was left out.")
        elif name.casefold() == BACKGROUND:
            continue
        elif not known.admits(name):
            notes.append(f"The value {value} was left out: no label can be called {name[:100]!r}.")
        else:
            names[value] = known.find(name) or name
    return names


def _mapped(info: Mapping[str, Any]) -> dict[int, str]:
    """A mapping of names to values that was sent along, as the answers of this server hold one."""
    for key in ("label_names", "labels"):
        sent = info.get(key)
        if isinstance(sent, Mapping) and sent:
            return {
                int(value): str(name)
                for name, value in sent.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool) and int(value) == value > 0
            }
    return {}


def _by_position(values: Sequence[int], info: Mapping[str, Any], known: LabelMap) -> dict[int, str]:
    """MONAI Label's `label_info`: the n-th entry has the value n."""
    sent = info.get("label_info")
    if not isinstance(sent, Sequence) or isinstance(sent, str):
        return {}
    names = [str(entry.get("name", "")) if isinstance(entry, Mapping) else "" for entry in sent]
    if names and names[0].strip().casefold() == BACKGROUND:
        # Listed as what it is, the value 0.
        names = names[1:]
    if not names:
        return {}
    if max(values) > len(names):
        # A client that sends this server's own values back, with the names that occur.
        own = {known.values[found]: found for name in names if (found := known.find(name)) is not None}
        if set(values) <= set(own):
            return own
    return dict(enumerate(names, start=1))


def _values(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    """The values above 0 that occur."""
    found = np.unique(array)
    whole = np.rint(found.astype(np.float64))
    if not np.allclose(found, whole, atol=1e-3) or (found.size and whole.max() > np.iinfo(np.uint16).max):
        raise LabelError(
            f"A label's values must be whole numbers up to 65535, but {name} holds {float(found.max()):g}."
        )
    if found.size and whole.min() < 0:
        raise LabelError(f"A label's values must not be negative, but {name} holds {float(found.min()):g}.")
    return whole[whole > 0].astype(np.int64)


def _on_grid(part: _Stored, volume: Volume, name: str) -> npt.NDArray[np.int64]:
    """Values at the image's voxels (D, H, W), by the nearest voxel of the label."""
    same_shape = part.array.shape == volume.raw_shape
    array = np.rint(part.array).astype(np.int64)
    moved = np.linalg.inv(part.affine) @ volume.affine
    if same_shape and np.abs(_corner_shift(moved, volume.raw_shape)).max() < SAME_GRID:
        return volume.from_raw_array(array)
    if same_shape and _is_default(part.affine):
        # Written by a tool that keeps no geometry: voxel for voxel is all that it can mean.
        return volume.from_raw_array(array)
    found = affine_transform(
        array, moved[:3, :3], moved[:3, 3], output_shape=volume.raw_shape, order=0, mode="constant"
    )
    before = np.count_nonzero(array) * abs(np.linalg.det(part.affine[:3, :3]))
    after = np.count_nonzero(found) * abs(np.linalg.det(volume.affine[:3, :3]))
    if after < MIN_INSIDE * before:
        raise LabelError(
            f"A label must lie inside its image, but only {100 * after / before:.0f} % of {name} does: "
            "it seems to belong to another image."
        )
    return volume.from_raw_array(found)


def _corner_shift(moved: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """How far apart, in voxels, the corners of the image are in the two grids."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    return corners @ moved[:3, :3].T + moved[:3, 3] - corners


def _is_default(affine: npt.NDArray[np.float64]) -> bool:
    return any(np.allclose(affine, default) for default in (np.eye(4), _RAS_FROM_LPS))


def _layered(masks: Mapping[str, npt.NDArray[np.bool_]], notes: list[str]) -> NamedLabels:
    """Each label in the first layer where it overlaps no other."""
    layers: list[Labels] = []
    names: list[dict[int, str]] = []
    for name, mask in masks.items():
        at = next((n for n, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if at == len(layers):
            layers.append(np.zeros(mask.shape, dtype=np.uint16))
            names.append({})
        value = len(names[at]) + 1
        layers[at][mask] = value
        names[at][value] = name
    return NamedLabels(layers, names, notes)


# Files ----------------------------------------------------------------------------------------------------


def _read(path: Path, volume: Volume) -> list[_Stored]:
    name = path.name.lower()
    try:
        if path.is_dir() or name.endswith(".dcm"):
            return _read_dicom_seg(path, volume)
        if name.endswith(NIFTI_SUFFIXES):
            return _read_nifti(path)
        if name.endswith(ITK_SUFFIXES):
            return _read_itk(path)
    except LabelError:
        raise
    # What the image libraries raise for damaged files has no common base but this.
    except Exception as error:
        raise LabelError(f"The label file {path.name} could not be read: {error}") from error
    raise LabelError(
        f"A label must be a DICOM SEG or end in {', '.join(NIFTI_SUFFIXES + ITK_SUFFIXES)}, "
        f"but the file is {path.name}."
    )


def _read_nifti(path: Path) -> list[_Stored]:
    image: Any = nib.load(path)
    array = np.asarray(image.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    affine = np.asarray(image.affine, dtype=np.float64)
    if array.ndim == 3:
        return [_Stored(array, affine)]
    if array.ndim != 4:
        raise LabelError(
            f"A label must have three axes, or four with one label each, but {path.name} has "
            f"the shape {array.shape}."
        )
    return [_Stored((array[..., n] != 0) * (n + 1), affine) for n in range(array.shape[3])]


def _read_itk(path: Path) -> list[_Stored]:
    image = sitk.ReadImage(str(path))
    keys = set(image.GetMetaDataKeys())
    segments: dict[int, dict[int, str]] = {}
    for key in sorted(keys):
        number = key.removeprefix("Segment").removesuffix("_LabelValue")
        if not number.isdigit() or key != f"Segment{number}_LabelValue":
            continue
        layer = int(_field(image, f"Segment{number}_Layer") or 0)
        name = _field(image, f"Segment{number}_Name") or f"Segment {number}"
        segments.setdefault(layer, {})[int(image.GetMetaData(key))] = name
    components = image.GetNumberOfComponentsPerPixel()
    layers = (
        [image] if components == 1 else [sitk.VectorIndexSelectionCast(image, n) for n in range(components)]
    )
    parts = [_from_itk(layer, segments.get(n, {})) for n, layer in enumerate(layers)]
    if components > 1 and not segments:
        return [_Stored((part.array != 0) * (n + 1), part.affine) for n, part in enumerate(parts)]
    return parts


def _field(image: sitk.Image, key: str) -> str:
    return str(image.GetMetaData(key)) if image.HasMetaDataKey(key) else ""


def _from_itk(image: sitk.Image, names: Mapping[int, str]) -> _Stored:
    array = sitk.GetArrayFromImage(image)
    if array.ndim != 3:
        raise LabelError(f"A label must have three axes, but this one has {array.ndim}.")
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _Stored(array.T, _RAS_FROM_LPS @ affine, names)


def _read_dicom_seg(path: Path, volume: Volume) -> list[_Stored]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if len(files) != 1:
        raise LabelError(f"A DICOM SEG is one file, but the folder {path.name} holds {len(files)}.")
    maps = read_segmentation(files[0], ReadLimits(), volume.affine)
    return [_Stored(part.array, part.affine, part.names) for part in maps]
