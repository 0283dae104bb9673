"""Agreement between the annotators of one image, and one label out of theirs.

The versions are the last submission of each annotator since the image was last without a label. `consensus`
makes the label that trains: the one submitted last, the majority's, or STAPLE's estimate (Warfield et al.,
2004), which weighs each annotator by agreement with the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from ..configs.consensus import LAST, STAPLE
from ..errors import UserError
from ..evaluation.metrics import dice
from ..imaging.geometry import Box
from ..imaging.label_files import NamedLabels
from ..imaging.volume import Volume

HAUSDORFF_PERCENTILE = 95

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """Two annotators' versions of one label.

    Attributes:
        label: its name.
        one, other: the annotators.
        dice: of the two masks.
        distance, hausdorff: mean distance of the two surfaces and its 95th percentile, both ways, in mm; None
            where one of the masks is empty.
    """

    label: str
    one: str
    other: str
    dice: float
    distance: float | None
    hausdorff: float | None


def masks_of(versions: Mapping[str, NamedLabels], label: str) -> dict[str, Mask]:
    """Where a label is, (D, H, W), by annotator; empty for those who have not drawn it."""
    shape = next(iter(versions.values())).layers[0].shape
    return {
        who: named.mask(label) if label in named.voxels else np.zeros(shape, dtype=np.bool_)
        for who, named in versions.items()
    }


def labels_of(versions: Mapping[str, NamedLabels]) -> list[str]:
    """The names of all labels that at least one annotator has drawn."""
    return list(dict.fromkeys(name for named in versions.values() for name in named.voxels))


def compare(versions: Mapping[str, NamedLabels], volume: Volume) -> list[Pair]:
    """Every pair of annotators on every label.

    Args:
        versions: annotator to labels, all on the image's grid.
        volume: the image.
    """
    pairs = []
    for label in labels_of(versions):
        masks = masks_of(versions, label)
        for one, other in itertools.combinations(masks, 2):
            distance, hausdorff = _distances(masks[one], masks[other], volume.spacing)
            pairs.append(
                Pair(label, one, other, round(dice(masks[one], masks[other]), 4), distance, hausdorff)
            )
    return pairs


def _distances(one: Mask, other: Mask, spacing: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean surface distance and its 95th percentile in mm, both ways."""
    if not one.any() or not other.any():
        return None, None
    if np.array_equal(one, other):
        return 0.0, 0.0
    # The margin keeps surfaces at the region's border.
    region = Box.of_mask(one | other).voxels(one.shape)
    first, second = (torch.from_numpy(np.pad(mask[region], 1))[None, None] for mask in (one, other))
    steps = tuple(float(step) for step in spacing)
    mean = compute_average_surface_distance(
        first, second, include_background=True, symmetric=True, spacing=steps
    )
    far = compute_hausdorff_distance(
        first, second, include_background=True, percentile=HAUSDORFF_PERCENTILE, spacing=steps
    )
    return round(float(mean), 3), round(float(far), 3)


def disagreement(versions: Mapping[str, NamedLabels], label: str | None = None) -> npt.NDArray[np.uint8]:
    """For each voxel the number of annotators who differ from the majority, (D, H, W); 0 where all agree.

    Args:
        versions: annotator to labels.
        label: whose voxels are compared (None: the largest disagreement over all labels).

    Raises:
        UserError: nobody has drawn that label.
    """
    names = labels_of(versions)
    if label is not None and label not in names:
        raise UserError(f"Nobody has drawn {label!r} in this image; there are: {', '.join(names)}.")
    shape = next(iter(versions.values())).layers[0].shape
    found = np.zeros(shape, dtype=np.uint8)
    for name in names if label is None else [label]:
        votes = np.sum(list(masks_of(versions, name).values()), axis=0, dtype=np.uint8)
        np.maximum(found, np.minimum(votes, len(versions) - votes), out=found)
    return found


def consensus(versions: Mapping[str, NamedLabels], rule: str) -> NamedLabels:
    """One label out of several annotators'.

    Args:
        versions: annotator to labels on one grid, the one submitted last at the end.
        rule: one of `consensus.CONSENSUS`. By the majority's, a voxel belongs to a label that more than half
            of the annotators have drawn there, so that of two annotators both must have.

    Raises:
        UserError: by that rule no voxel belongs to any label.
    """
    last = list(versions.values())[-1]
    if rule == LAST or len(versions) == 1:
        return last
    found: dict[str, Mask] = {}
    for name in labels_of(versions):
        masks = list(masks_of(versions, name).values())
        votes = np.sum(masks, axis=0, dtype=np.int32)
        mask: Mask = _staple(masks) if rule == STAPLE else np.asarray(votes * 2 > len(masks))
        if mask.any():
            found[name] = mask
    if not found:
        raise UserError(f"The {len(versions)} annotators have no voxel of any label in common.")
    how = f"Made of the labels of {', '.join(versions)} by the rule '{rule}'."
    return _named(found, [*last.notes, how])


def _staple(masks: Sequence[Mask]) -> Mask:
    """STAPLE's estimate, within the region that anybody has drawn: elsewhere all agree."""
    either = np.logical_or.reduce(masks)
    if all(np.array_equal(mask, either) for mask in masks):
        return either
    region = Box.of_mask(either).voxels(either.shape)
    # The region includes voxels that nobody has drawn, without which specificity cannot be estimated.
    parts = [sitk.GetImageFromArray(np.pad(mask[region], 2).astype(np.uint8)) for mask in masks]
    probability = sitk.GetArrayFromImage(sitk.STAPLE(parts, 1.0))
    inner = probability[2:-2, 2:-2, 2:-2]
    found = np.zeros_like(either)
    found[region] = inner > 0.5
    return found


def _named(masks: Mapping[str, Mask], notes: list[str]) -> NamedLabels:
    """Each label in the first layer where it overlaps no other."""
    found = NamedLabels([], [], notes)
    for name, mask in masks.items():
        at = next((n for n, layer in enumerate(found.layers) if not layer[mask].any()), len(found.layers))
        if at == len(found.layers):
            found.layers.append(np.zeros(mask.shape, dtype=np.uint16))
            found.names.append({})
        value = len(found.names[at]) + 1
        found.layers[at][mask] = value
        found.names[at][value] = name
    return found


def facts(pairs: Sequence[Pair], versions: Mapping[str, NamedLabels]) -> dict[str, Any]:
    """The comparison as plain values: annotators, voxels in dispute by label, pairs."""
    return {
        "annotators": list(versions),
        "disputed_voxels": {
            name: int(np.count_nonzero(disagreement(versions, name))) for name in labels_of(versions)
        },
        "pairs": [
            {
                "label": pair.label,
                "annotators": [pair.one, pair.other],
                "dice": pair.dice,
                "surface_distance_mm": pair.distance,
                "hausdorff95_mm": pair.hausdorff,
            }
            for pair in pairs
        ],
    }
