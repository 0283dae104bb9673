"""One forward pass on arrays as they are, to compare a network with another implementation.

Points are taken in the published networks' own convention, which is ours as well, so nothing is converted:
indices of the input's grid in the order of its axes, a voxel's centre being a whole number. The networks add
the half voxel themselves, as SAM-Med3D's and VISTA3D's prompt encoders do, and that SAM-Med3D's positional
grid has two axes swapped is inside the network, too.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..atomic_files import replacing
from ..errors import UserError
from ..networks.global_network import RegionNetwork
from ..networks.local_network import LocalNetwork
from . import files as weights

FloatArray = npt.NDArray[np.float32]


def probe_file(
    weight_file: str | os.PathLike[str], source: str | os.PathLike[str], to: str | os.PathLike[str]
) -> dict[str, FloatArray]:
    """Read arrays, run a network on them, write what it gives.

    Args:
        weight_file: with its card.
        source: .npz with `image`, `points`, `labels` and optionally `mask`; see `probe`.
        to: .npz with the answers of `probe`.

    Raises:
        WeightsError: the weights can't be used.
        UserError: the file of arrays can't be read, or an array is missing or not of the shape expected.
    """
    to = Path(to)
    if to.suffix != ".npz":
        raise UserError(f"The output is written as .npz, but --output is '{to}'.")
    arrays = _read(Path(source))
    kind: weights.Kind = weights.read_card(weight_file)["kind"]
    network = weights.load_expert(kind, weight_file)
    answers = probe(cast("RegionNetwork | LocalNetwork", network), arrays)
    with replacing(to) as part, part.open("wb") as stream:
        np.savez(stream, **cast(Any, answers))
    return answers


def probe(
    network: RegionNetwork | LocalNetwork, arrays: Mapping[str, npt.NDArray[Any]]
) -> dict[str, FloatArray]:
    """Run a network on arrays in float32, without any preprocessing or postprocessing.

    Args:
        network: on the CPU, in evaluation mode.
        arrays: ``image`` (1, 1, D, H, W) as the encoder takes it: 64^3 for the global network, sides that are
            multiples of 16 (published: 128^3) for the local one. ``points`` (1, N, 3) in voxels of that
            image, in the order of its axes, whole numbers at centres. ``labels`` (1, N): 1 inside, 0
            outside. Global only and optional: ``mask`` (1, 1, 32, 32, 32), logits of a previous mask.

    Returns:
        ``logits`` (1, 1, 32, 32, 32) and ``embedding`` (1, 384, 8, 8, 8) of the global network, ``logits``
        (1, 1, D, H, W) of the local one; sizes of the paper's networks.

    Raises:
        UserError: an array is missing, not known, not finite, or not of the shape expected.
    """
    is_global = isinstance(network, RegionNetwork)
    optional = {"mask"} if is_global else set()
    expected = {"image", "points", "labels"}
    if missing := sorted(expected - arrays.keys()):
        raise UserError(f"The input lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}.")
    if unknown := sorted(arrays.keys() - expected - optional):
        kind = "global" if is_global else "local"
        raise UserError(f"The {kind} network takes no {', '.join(unknown)}.")

    points = _floats("points", arrays["points"])
    if points.ndim != 3 or points.shape[0] != 1 or points.shape[2] != 3:
        raise UserError(f"'points' must be (1, N, 3), but its shape is {tuple(points.shape)}.")
    labels = _labels(arrays["labels"], points.shape[1], network)
    image = _floats("image", arrays["image"])
    if isinstance(network, RegionNetwork):
        _require("image", image, (1, 1, *(network.config.image_size,) * 3))
        mask = None
        if "mask" in arrays:
            mask = _floats("mask", arrays["mask"])
            _require("mask", mask, (1, 1, *(network.config.mask_prompt_size,) * 3))
        with torch.inference_mode():
            features = network.encode(image)
            logits = network.decode(features, points, labels, mask)
        return {"embedding": features.embedding.float().numpy(), "logits": logits.float().numpy()}

    multiple = network.config.multiple
    if image.ndim != 5 or image.shape[:2] != (1, 1) or any(n == 0 or n % multiple for n in image.shape[2:]):
        raise UserError(
            f"'image' must be (1, 1, D, H, W) with sides that are multiples of {multiple}, but its shape is "
            f"{tuple(image.shape)}."
        )
    with torch.inference_mode():
        return {"logits": network.decode(network.encode(image), points, labels).float().numpy()}


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            return {name: found[name] for name in found.files}
    except FileNotFoundError as error:
        raise UserError(f"The input '{path}' does not exist; check the path.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"The input '{path}' can't be read as .npz of plain arrays ({error}).") from error


def _floats(name: str, array: npt.NDArray[Any]) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise UserError(f"'{name}' must hold numbers, but its type is {array.dtype}.")
    # Numbers that overflow here are refused below.
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"'{name}' holds values that are not finite.")
    return torch.from_numpy(values)


def _labels(array: npt.NDArray[Any], count: int, network: RegionNetwork | LocalNetwork) -> Tensor:
    values = _floats("labels", array)
    _require("labels", values, (1, count))
    allowed = {0, 1, network.config.box_label} if isinstance(network, RegionNetwork) else {0, 1}
    other = sorted(set(values.flatten().tolist()) - allowed)
    if other:
        # The published networks attend to padding (-1) as to any token; here it would have no effect.
        raise UserError(
            f"'labels' may hold {' and '.join(map(str, sorted(allowed)))}, but {other[0]:g} came; leave "
            "padding points out."
        )
    return values.long()


def _require(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise UserError(f"'{name}' must be of shape {shape}, but its shape is {tuple(value.shape)}.")
