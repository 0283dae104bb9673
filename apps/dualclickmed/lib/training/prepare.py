"""Crops of labelled cases for the global expert, made once and kept on disk.

Opening a whole volume for one crop of 64 voxels a side is most of a step's reading. `prepare` opens every
case once and writes the crops of all its objects; a training with them reads half a megabyte per sample.

A case's crops lie in a folder named by the content of its two files and by the rules that crops are made by:
a changed file or rule leads to another folder, never to stale crops. The folder is renamed into place when it
is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic_files import write_text
from ..errors import UserError
from ..imaging.geometry import GLOBAL_GRID, global_roi
from .batches import GlobalSample
from .case_samples import Order, drawn_box, global_crop
from .opened import OpenedCase, open_case
from .recipes import Recipe
from .sources import LabelledCase

logger = logging.getLogger(__name__)

INDEX = "index.json"
CONTENT = "case.json"
# Part of every key: a change in how crops are made gets another number.
VERSION = 1
_READ_BYTES = 1 << 22


def prepare(
    cases: Sequence[LabelledCase],
    folder: Path,
    recipe: Recipe,
    boxes: int = 1,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Write the crops of all objects of all cases that are not there yet.

    Args:
        cases: to open.
        folder: of the crops; made if missing.
        recipe: its rules choose objects and boxes.
        boxes: crops of each object; each of them has a box as the recipe draws it.
        told: called with the number of cases done and of all.

    Returns:
        The cases that can't be used: id to the reason. They are also logged.

    Raises:
        UserError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder of crops '{folder}' can't be made ({error.strerror}).") from error
    index = _read_index(folder)
    troubles: dict[str, str] = {}
    for number, case in enumerate(cases, start=1):
        try:
            key = content_key(case, recipe, boxes)
            if not (folder / key / CONTENT).is_file():
                _write_case(folder, key, open_case(case, recipe), case, recipe, boxes)
            index[identity(case, recipe)] = key
        except UserError as error:
            troubles[case.id] = str(error)
            logger.warning("Left out: %s", error)
        if told is not None:
            told(number, len(cases))
    write_text(folder / INDEX, json.dumps(index))
    return troubles


class PreparedCrops:
    """The crops of a folder, for a recipe.

    Raises:
        UserError: the folder holds no crops.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        index = _read_index(folder)
        if not index:
            raise UserError(f"'{folder}' holds no prepared crops: run 'python main.py prepare' first.")
        self._keys = index

    def count(self, case: LabelledCase) -> int | None:
        """Objects of a case; None if it is not prepared or the files have changed since."""
        found = self._content(case)
        return None if found is None else len(found[1]["objects"])

    def crops(
        self, case: LabelledCase, rng: np.random.Generator, count: int, order: Order | None = None
    ) -> list[GlobalSample] | None:
        """Crops of up to `count` of a case's objects, each as likely as any other or the first of `order`;
        None if they are not prepared or the files have changed since.
        """
        found = self._content(case)
        if found is None:
            return None
        key, content = found
        values, boxes = content["objects"], content["boxes"]
        chosen = [values[int(i)] for i in (order or rng.permutation)(len(values))[:count]]
        return [read_crop(self.folder / key / f"{v}-{int(rng.integers(boxes))}.npz") for v in chosen]

    def _content(self, case: LabelledCase) -> tuple[str, dict[str, Any]] | None:
        key = self._keys.get(identity(case, self.recipe))
        if key is None:
            return None
        return key, json.loads((self.folder / key / CONTENT).read_text())


def content_key(case: LabelledCase, recipe: Recipe, boxes: int) -> str:
    """The name of a case's folder: a hash of its files' content and of what decides on the crops.

    Raises:
        UserError: a file can't be read.
    """
    digest = hashlib.blake2b(f"{_rules(case, recipe)} {boxes}".encode(), digest_size=16)
    for path in dict.fromkeys((case.image, case.label)):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            try:
                with file.open("rb") as stream:
                    while piece := stream.read(_READ_BYTES):
                        digest.update(piece)
            except OSError as error:
                raise UserError(f"Case '{case.id}': '{file}' can't be read ({error.strerror}).") from error
    return digest.hexdigest()


def _rules(case: LabelledCase, recipe: Recipe) -> str:
    drawn: tuple[Any, ...] = (recipe.exact_boxes, recipe.starts, recipe.smallest, recipe.point_only)
    if (recipe.grid, recipe.hold_edges) != (GLOBAL_GRID[0], False):
        drawn = (*drawn, recipe.grid, recipe.hold_edges)
    return repr((VERSION, case.modality, drawn))


def identity(case: LabelledCase, recipe: Recipe) -> str:
    """Identifies a case's files without reading them, by size and modification time."""
    parts: list[Any] = [_rules(case, recipe)]
    for path in (case.image, case.label):
        try:
            stat = path.stat()
        except OSError:
            parts.append("missing")
        else:
            parts.append((str(path.absolute()), stat.st_size, stat.st_mtime_ns))
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _write_case(
    folder: Path, key: str, opened: OpenedCase, case: LabelledCase, recipe: Recipe, boxes: int
) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        rng = np.random.default_rng(int(key[:16], 16))
        for found in opened.objects:
            for number in range(boxes):
                box, extreme = drawn_box(opened, found, recipe, rng)
                roi = global_roi(box, grid=(recipe.grid,) * 3)
                crop = global_crop(opened, found, box, roi, recipe.outside)._replace(extreme=extreme)
                _write_crop(partial / f"{found.value}-{number}.npz", crop)
        content = {"case": case.id, "objects": [found.value for found in opened.objects], "boxes": boxes}
        (partial / CONTENT).write_text(json.dumps(content))
        partial.chmod(0o755)
        if (folder / key).exists():
            shutil.rmtree(folder / key)
        partial.replace(folder / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_crop(path: Path, crop: GlobalSample) -> None:
    np.savez(
        path,
        grey=crop.image.numpy().astype(np.float16),
        truth=np.packbits(crop.truth.numpy()),
        valid=np.packbits(crop.valid.numpy()),
        extreme=np.bool_(crop.extreme),
    )


def read_crop(path: Path) -> GlobalSample:
    """A crop as `prepare` wrote it: grey levels to 1/16, truth and valid (G, G, G).

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            grey = torch.from_numpy(arrays["grey"].astype(np.float32))
            truth, valid = (_unpacked(arrays[name], grey.shape) for name in ("truth", "valid"))
            return GlobalSample(grey, truth, valid, bool(arrays["extreme"]))
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for a damaged file.
        raise UserError(
            f"The prepared crop '{path}' can't be read ({error}); remove its folder and prepare again."
        ) from error


def _unpacked(bits: np.ndarray, shape: torch.Size) -> Tensor:
    flat = np.unpackbits(bits, count=int(np.prod(shape)))
    return torch.from_numpy(flat.reshape(tuple(shape)).astype(bool))


def _read_index(folder: Path) -> dict[str, str]:
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{folder / INDEX}' can't be read ({error}); remove it and prepare again."
        ) from error
    return {str(k): str(v) for k, v in index.items()}
