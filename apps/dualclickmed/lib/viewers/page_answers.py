"""The page's data about images, answers and labels, without HTTP."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import UserError
from ..experts.prediction import filled_region
from ..imaging.geometry import Region
from ..imaging.intensity import CLIP_PERCENTILES, CT_WINDOWS
from ..imaging.label_files import NamedLabels, read_labels
from ..imaging.label_map import LabelMap
from ..imaging.mask_files import LabelledMask, Segment
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..infers.layers import EXISTING, Layers
from ..infers.segmenter import Answer, Segmenter, SegmentRequest
from ..short_thread import in_short_thread
from . import page_frames
from .page_frames import Voxels
from .page_requests import Asked

THUMBNAIL = 96
"""Longer side of a thumbnail, in pixels."""


def described(volume: Volume) -> dict[str, Any]:
    """The information about an image that the page needs before its voxels."""
    return {
        "shape": list(volume.shape[::-1]),
        "spacing": list(volume.spacing[::-1]),
        "affine": page_frames.page_affine(volume).tolist(),
        "modality": volume.modality,
        "window": list(_shown_range(volume)),
        "range": list(volume.value_range),
        "bytes": page_frames.nifti_size(volume),
    }


def segmented(
    segmenter: Segmenter, image: Path, modality: str | None, asked: Asked, held: bytes | None
) -> bytes:
    """The frame that answers a request: the changed box of the label map, and of the uncertainty if asked
    for.

    Args:
        segmenter: answers every client.
        image: a file or a folder of DICOM slices.
        modality: where it is known.
        asked: the request.
        held: the packed voxels of `asked.held`.

    Raises:
        UserError: the weights, the image or the prompts cannot be used.
    """
    volume = segmenter.volume(image, modality)
    prompts = asked.canonical(volume.shape, volume.spacing)
    layers = Layers(labels=LabelMap(asked.labels))
    if asked.held is not None and held is not None:
        given = NamedLabels(*_held(volume, asked, held))
        layers = Layers(labels=LabelMap(asked.labels), existing=EXISTING[2], given=given)
    device = segmenter.options.device
    answer = segmenter.segment(
        SegmentRequest(volume, lambda *_: prompts, asked.strategy, device, asked.window, layers=layers)
    )
    return _answered(answer, asked, prompts)


def labels_frame(named: NamedLabels, shape: tuple[int, int, int]) -> bytes:
    """The stored labels of an image as a frame; where they overlap the first layer counts."""
    names = list(dict.fromkeys(name for layer in named.names for name in layer.values()))
    array = np.zeros(shape, np.uint8)
    for layer, meaning in zip(named.layers, named.names, strict=True):
        table = np.zeros(int(layer.max()) + 1, np.uint8)
        for value, name in meaning.items():
            table[value] = names.index(name) + 1
        np.copyto(array, table[layer], where=array == 0)
    region = filled_region(array)
    header = {"labels": names, "notes": list(named.notes)}
    return page_frames.packed(header, {"labels": (region, array[region])}, shape)


def submitted(
    volume: Volume, names: Sequence[str], box: Sequence[int], voxels: bytes
) -> tuple[LabelledMask, list[str]]:
    """A label map that the page sent as a mask on the image's own grid, and the names of its values.

    Labels without a voxel are left out, so that the values are 1, 2, ... without a gap.

    Raises:
        UserError: the voxels do not fit, have values without a name, or are all background.
    """
    region, part = page_frames.unpacked(voxels, box, volume.shape)
    counts = np.bincount(part.reshape(-1), minlength=len(names) + 1)
    if len(counts) > len(names) + 1:
        raise UserError(f"The label map holds the value {len(counts) - 1}, but names {len(names)} labels.")
    kept = [at for at, _ in enumerate(names) if counts[at + 1]]
    if not kept:
        raise UserError("There is nothing to submit: no voxel has a label.")
    table = np.zeros(len(names) + 1, np.uint8)
    table[[at + 1 for at in kept]] = np.arange(1, len(kept) + 1)
    array = np.zeros(volume.shape, np.uint8)
    array[region] = table[part]
    found = [names[at] for at in kept]
    segments = [Segment(name, value, (255, 0, 0)) for value, name in enumerate(found, start=1)]
    return LabelledMask(volume.to_raw_array(array), volume.affine, segments), found


def understood(path: Path, volume: Volume, info: Mapping[str, Any], known: LabelMap) -> list[dict[str, Any]]:
    """What a stored label file is read as: each label's name and size in millilitres."""
    named = read_labels(path, volume, info, known)
    millilitres = float(np.prod(volume.spacing)) / 1000
    return [
        {"name": name, "voxels": count, "ml": round(count * millilitres, 3)}
        for name, count in named.voxels.items()
    ]


def thumbnail(volume: Volume) -> bytes:
    """The middle slice along the axis with the fewest voxels, most often the axial one, as PNG."""
    axis = int(np.argmin(volume.shape))
    index: list[Any] = [slice(None)] * 3
    index[axis] = volume.shape[axis] // 2
    low, high = _shown_range(volume)
    real = volume.array[tuple(index)].astype(np.float32) * volume.slope + volume.intercept
    grey = np.clip((real - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    # Feet are at the bottom: canonical order counts upwards.
    grey = grey if axis == 0 else grey[::-1]
    rows, columns = (step for at, step in enumerate(volume.spacing) if at != axis)
    size = np.array([grey.shape[1] * columns, grey.shape[0] * rows])
    width, height = np.maximum(1, np.rint(size * THUMBNAIL / size.max())).astype(int).tolist()
    out = io.BytesIO()
    Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG")
    return out.getvalue()


def windows() -> dict[str, list[float]]:
    """The CT windows by name: least and greatest value shown."""
    return {name: [level - width / 2, level + width / 2] for name, (width, level) in CT_WINDOWS.items()}


def _shown_range(volume: Volume) -> tuple[float, float]:
    """What is shown from black to white at first."""
    if volume.modality == "ct":
        low, high = next(iter(windows().values()))
        return low, high
    low, high = (volume.percentile(q) for q in CLIP_PERCENTILES)
    return (low, high) if high > low else volume.value_range


def _held(volume: Volume, asked: Asked, held: bytes) -> tuple[list[npt.NDArray[Any]], list[dict[int, str]]]:
    """The voxels that stay as one layer of named labels."""
    assert asked.held is not None
    region, part = page_frames.unpacked(held, asked.held, volume.shape)
    top = int(part.max())
    if top > len(asked.labels):
        raise UserError(f"The held voxels hold the value {top}, but names {len(asked.labels)} labels.")
    array = np.zeros(volume.shape, np.uint8)
    array[region] = part
    present = np.flatnonzero(np.bincount(part.reshape(-1), minlength=1)[1:]) + 1
    return [array], [{int(value): asked.labels[value - 1] for value in present}]


def _answered(answer: Answer, asked: Asked, prompts: Mapping[str, Prompts]) -> bytes:
    volume, result = answer.volume, answer.result
    changed = result.labels if answer.before is None else result.labels != answer.before
    region = filled_region(changed)
    table = np.zeros(256, np.uint8)
    for name, value in result.values.items():
        table[value] = asked.labels.index(name) + 1
    parts: dict[str, tuple[Region, Voxels]] = {"labels": (region, table[result.labels[region]])}
    if asked.doubt:
        whole, unsure = in_short_thread(result.uncertain_part)
        parts["doubt"] = (whole, np.rint(100 * unsure).astype(np.uint8))
    header = {
        "seconds": {stage: round(seconds, 4) for stage, seconds in answer.stages.items()},
        "experts": result.strategies,
        "boxes": {
            name: page_frames.box_of(given.box.voxels(volume.shape), volume.shape)
            for name, given in prompts.items()
            if given.box is not None
        },
        "suggestions": {
            name: page_frames.to_page(index, volume.shape) for name, index in result.suggestions().items()
        },
        "notes": list(answer.notes),
    }
    return page_frames.packed(header, parts, volume.shape)
