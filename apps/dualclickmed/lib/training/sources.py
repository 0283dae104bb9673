"""Where training cases come from: folders, lists and challenge files of labelled images, generated scenes.

The functions here list files without opening images; `load_case` reads one case. What is wrong with a case is
a `UserError` whose sentence names it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..imaging.volume import MODALITY_NAMES, Volume, from_array, load_volume

Labels = npt.NDArray[np.uint16]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
# Pairs of folders that data sets keep images and labels in (Medical Segmentation Decathlon, nnU-Net, others).
FOLDER_PAIRS = (("imagesTr", "labelsTr"), ("images", "labels"), ("images", "masks"))
# Where the server keeps the final labels of a studies folder, and its record of them.
SUBMITTED = "labels/final"
STORE = "datastore_v2.json"
# nnU-Net numbers the channels of a case; the first one is read.
FIRST_CHANNEL = "_0000"
# How far the two affines of a case may differ, in millimetres.
SAME_GRID = 1e-2
CORESET_SHARE = 0.1


@dataclass(frozen=True)
class LabelledCase:
    """One image with its label map.

    Attributes:
        id: unique among the cases of a run; messages name it.
        image, label: the two files on one grid; one and the same `.npz` for a challenge case.
        names: label value to name, where known.
        modality: one of `volume.MODALITY_NAMES`, or None to guess it from the image.
        dataset: where the case is from; `coreset` balances by it.
        dressed: there is a label map alone, named as `image`, too; it is dressed in generated looks anew for
            every sample (global expert only).
    """

    id: str
    image: Path
    label: Path
    names: Mapping[int, str] = field(default_factory=dict, compare=False)
    modality: str | None = None
    dataset: str = ""
    dressed: bool = False


@dataclass(frozen=True)
class WeightedSource:
    """Cases, or generated scenes, and how often samples come from them relative to the other sources.

    Raises:
        UserError: the weight is not positive, or there are no cases.
    """

    cases: Sequence[LabelledCase] | Literal["generated"]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"A data source's weight must be a positive number, but it is {self.weight}.")
        if len(self.cases) == 0:
            raise UserError("A data source needs at least one case, but it has none.")


def load_case(case: LabelledCase) -> tuple[Volume, Labels]:
    """The image, and its labels (D, H, W) on the image's canonical grid.

    Raises:
        UserError: a file is missing, damaged or not 3D, the two grids differ, label values are not whole
            numbers from 0 to 65535, or all of them are 0.
    """
    try:
        if case.dressed:
            volume = load_volume(case.label, "unknown")
            values = _whole(volume)
        elif case.image.suffix == ".npz":
            volume, values = _load_challenge(case)
        else:
            volume, values = _load_pair(case)
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if low < 0 or high > np.iinfo(np.uint16).max:
            raise UserError(f"label values must lie in 0 to 65535, but they reach from {low} to {high}.")
        if high == 0:
            raise UserError("the label has no foreground: all its values are 0.")
    except UserError as error:
        raise UserError(f"Case '{case.id}': {error}") from error
    return volume, np.ascontiguousarray(values, dtype=np.uint16)


def _load_pair(case: LabelledCase) -> tuple[Volume, npt.NDArray[np.integer]]:
    volume = load_volume(case.image, case.modality)
    label = load_volume(case.label, "unknown")
    if label.raw_shape != volume.raw_shape or not np.allclose(label.affine, volume.affine, atol=SAME_GRID):
        raise UserError(
            f"image and label must share one grid, but the label's is {label.raw_shape} and the image's "
            f"{volume.raw_shape}, or their positions differ by more than {SAME_GRID} mm."
        )
    return volume, _whole(label)


def _whole(label: Volume) -> npt.NDArray[np.integer]:
    """The values of a label map.

    Raises:
        UserError: they hold fractions.
    """
    if label.slope == 1 and label.intercept == 0:
        return label.array
    real = label.array.astype(np.float64) * label.slope + label.intercept
    whole = np.rint(real)
    if not np.allclose(real, whole, atol=1e-3):
        raise UserError("label values must be whole numbers, but the label holds fractions.")
    return whole.astype(np.int64)


def _load_challenge(case: LabelledCase) -> tuple[Volume, npt.NDArray[np.integer]]:
    """imgs, gts and spacing of a challenge file; object arrays beside them (boxes, clicks) stay unread."""
    try:
        with np.load(case.image, allow_pickle=False) as arrays:
            if missing := [name for name in ("imgs", "gts") if name not in arrays.files]:
                raise UserError(
                    f"a challenge file for training needs imgs and gts, but it lacks {missing[0]}."
                )
            image, labels = arrays["imgs"], arrays["gts"]
            x, y, z = (float(v) for v in arrays["spacing"]) if "spacing" in arrays.files else (1.0, 1.0, 1.0)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{case.image.name}' can't be read as a challenge file ({error}).") from error
    if image.shape != labels.shape:
        raise UserError(
            f"image and label must share one grid, but imgs is {image.shape} and gts {labels.shape}."
        )
    if labels.dtype.kind not in "iub":
        raise UserError(f"label values must be whole numbers, but gts is stored as {labels.dtype}.")
    return from_array(image, (z, y, x), case.modality or "unknown"), labels


# Readers --------------------------------------------------------------------------------------------------


def find_training_cases(path: Path, label_maps: bool = False) -> list[LabelledCase]:
    """The cases of a path of any kind: a CSV or JSON list, a folder of challenge files, a folder of images.

    Args:
        path: file or folder.
        label_maps: label maps without an image count as cases, too (`LabelledCase.dressed`).

    Raises:
        UserError: there is nothing there, or no case in it.
    """
    if path.is_file():
        return list_cases(path)
    if path.is_dir() and next(path.rglob("*.npz"), None) is not None:
        return challenge_cases(path)
    return folder_cases(path, label_maps)


def folder_cases(path: Path, label_maps: bool = False) -> list[LabelledCase]:
    """The image and label pairs of a folder, in order of name.

    Either two folders with files of the same name (imagesTr and labelsTr, images and labels, images and
    masks; `NAME_0000` in the first belongs to `NAME` in the second), or a studies folder of the server with
    its final labels, or, at any depth, folders with `image.*` and `label.*`. Label names and the modality are
    taken from dataset.json, the server's record or meta.json where there is one.
    With `label_maps`, folders with `label.*` alone count, too.

    Raises:
        UserError: there is no such folder, or no pair in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder '{path}' to train on.")
    for images, labels in FOLDER_PAIRS:
        if (path / images).is_dir() and (path / labels).is_dir():
            cases = _paired(path, path / images, path / labels)
            break
    else:
        cases = _submitted(path) if (path / SUBMITTED).is_dir() else _side_by_side(path)
        if label_maps:
            cases += _label_maps(path, cases)
    if not cases:
        raise UserError(
            f"'{path}' holds no training case: expected images and labels of the same name in imagesTr and "
            "labelsTr, folders with image.nii.gz and label.nii.gz (.nii, .nrrd and .mha work too), or a "
            "studies folder of the server with submitted labels."
        )
    return cases


def _paired(root: Path, images: Path, labels: Path) -> list[LabelledCase]:
    names, modality = _described(root / "dataset.json")
    found = {_stem(p): p for p in sorted(images.iterdir()) if _stem(p)}
    cases = []
    for label in sorted(p for p in labels.iterdir() if _stem(p)):
        name = _stem(label)
        image = found.get(name, found.get(name + FIRST_CHANNEL))
        if image is not None:
            cases.append(LabelledCase(f"{root.name}/{name}", image, label, names, modality, root.name))
    return cases


def _submitted(root: Path) -> list[LabelledCase]:
    """The final labels of a studies folder, each with the names that were submitted with it."""
    cases = _paired(root, root, root / SUBMITTED)
    try:
        objects = json.loads((root / STORE).read_text(encoding="utf-8"))["objects"]
    except (OSError, ValueError, KeyError, TypeError):
        return cases
    return [dataclasses.replace(case, names=_submitted_names(objects, _stem(case.label))) for case in cases]


def _submitted_names(objects: Any, image: str) -> dict[int, str]:
    """What the values of an image's final label mean, as far as its client told."""
    try:
        told = objects[image]["labels"]["final"]["info"]["label_names"]
        return {int(value): str(name) for name, value in told.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _side_by_side(root: Path) -> list[LabelledCase]:
    cases = []
    for image in sorted(p for p in root.rglob("image.*") if _stem(p) == "image"):
        label = next((p for end in ENDINGS if (p := image.with_name("label" + end)).exists()), None)
        if label is not None:
            place = image.parent.relative_to(root)
            names, modality = _described(image.parent / "meta.json")
            above = place.parts[0] if len(place.parts) > 1 else ""
            if modality is None and above.lower() in MODALITY_NAMES:
                modality = above.lower()
            cases.append(
                LabelledCase(
                    place.as_posix() if place.parts else root.name, image, label, names, modality, root.name
                )
            )
    return cases


def _label_maps(root: Path, paired: Sequence[LabelledCase]) -> list[LabelledCase]:
    known = {case.label for case in paired}
    cases = []
    for label in sorted(p for p in root.rglob("label.*") if _stem(p) == "label" and p not in known):
        place = label.parent.relative_to(root)
        names, _ = _described(label.parent / "meta.json")
        identity = place.as_posix() if place.parts else root.name
        cases.append(LabelledCase(identity, label, label, names, None, root.name, dressed=True))
    return cases


def _stem(path: Path) -> str:
    """The name without an image's ending; "" for other files and hidden ones."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending) and not path.name.startswith("."):
            return path.name[: -len(ending)]
    return ""


def _described(file: Path) -> tuple[dict[int, str], str | None]:
    """Label names and modality from the Decathlon's or nnU-Net's dataset.json, or from a meta.json."""
    if not file.is_file():
        return {}, None
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' can't be read as JSON ({error}).") from error
    if not isinstance(described, dict):
        return {}, None
    names: dict[int, str] = {}
    labels = described.get("labels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if str(number).isdigit() and int(number) > 0:
            names[int(number)] = str(name)
    modality = described.get("modality") or described.get("channel_names")
    if isinstance(modality, dict):
        modality = modality.get("0")
    known = str(modality).lower() in MODALITY_NAMES
    return names, str(modality).lower() if known else None


def list_cases(file: Path) -> list[LabelledCase]:
    """The cases of a CSV or JSON list; relative paths start at the list's folder.

    A CSV has the columns image and label, and may have id, modality and dataset. A JSON file is a list of
    objects with these keys, or an object with such a list under "training" (MONAI's and the Decathlon's).

    Raises:
        UserError: the file is missing or damaged, or a row lacks its image or label.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows: Any
        names: dict[int, str] = {}
        if file.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = json.loads(text)
            if isinstance(rows, dict):
                names, _ = _described(file)
                rows = rows.get("training")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"The list of cases '{file}' can't be read ({error}).") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"'{file}' lists no cases: expected a CSV with the columns image and label, or a JSON list of "
            "objects with these keys."
        )
    cases = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.get("image") or not row.get("label"):
            raise UserError(f"Row {number} of '{file}' must name an image and a label, but it is {row}.")
        image, label = (file.parent / str(row[key]) for key in ("image", "label"))
        modality = str(row.get("modality") or "").strip().lower() or None
        if modality is not None and modality not in MODALITY_NAMES:
            raise UserError(
                f"Row {number} of '{file}': the modality must be one of {', '.join(MODALITY_NAMES)}, "
                f"but it is '{modality}'."
            )
        cases.append(
            LabelledCase(
                str(row.get("id") or _stem(image) or image.name),
                image,
                label,
                names,
                modality,
                str(row.get("dataset") or file.stem),
            )
        )
    return _with_unique_ids(cases)


def _with_unique_ids(cases: list[LabelledCase]) -> list[LabelledCase]:
    if len({c.id for c in cases}) == len(cases):
        return cases
    return [LabelledCase(str(c.image), c.image, c.label, c.names, c.modality, c.dataset) for c in cases]


def challenge_cases(path: Path) -> list[LabelledCase]:
    """The `.npz` files below a folder, in order of name: imgs and gts of the interactive challenge.

    Modality and data set are read from the names, `CT_AbdomenAtlas_0001.npz`.

    Raises:
        UserError: there is no such folder, or no such file in it.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder '{path}' to train on.")
    cases = []
    for file in sorted(path.rglob("*.npz")):
        kind, _, rest = file.stem.partition("_")
        modality = kind.lower() if kind.lower() in MODALITY_NAMES else None
        dataset = rest.split("_")[0] if modality else ""
        name = file.relative_to(path).with_suffix("").as_posix()
        cases.append(LabelledCase(name, file, file, {}, modality, dataset or path.name))
    if not cases:
        raise UserError(f"'{path}' holds no challenge case: expected .npz files with imgs and gts.")
    return cases


# Choosing -------------------------------------------------------------------------------------------------


def coreset(cases: Sequence[LabelledCase], share: float = CORESET_SHARE, seed: int = 0) -> list[LabelledCase]:
    """A share of the cases, balanced by modality and within it by data set (the challenge's coreset track).

    Every modality contributes the same number of cases, or all of them if it has fewer; so does every data
    set within its modality. Which cases are chosen depends on the seed and their ids, not on their order.

    Args:
        cases: to choose from.
        share: fraction of the cases to choose, in (0, 1]; their number is rounded up.
        seed: another seed gives another choice.

    Returns:
        The chosen cases, in the order of `cases`.

    Raises:
        UserError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"A coreset is a share of the cases above 0 and up to 1, but {share} was asked for.")
    total = math.ceil(share * len(cases) - 1e-9)
    groups: dict[str, dict[str, list[LabelledCase]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        groups[case.modality or ""][case.dataset].append(case)
    chosen: set[str] = set()
    sizes = {m: sum(map(len, sets.values())) for m, sets in groups.items()}
    for modality, number in _shared_out(sizes, total).items():
        sets = groups[modality]
        for dataset, part in _shared_out({d: len(c) for d, c in sets.items()}, number).items():
            ranked = sorted(sets[dataset], key=lambda c: hashlib.sha256(f"{seed}:{c.id}".encode()).digest())
            chosen.update(c.id for c in ranked[:part])
    return [case for case in cases if case.id in chosen]


def _shared_out(available: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` in parts as equal as what is available allows; earlier names get what can't be divided."""
    parts = dict.fromkeys(sorted(available), 0)
    while total > 0:
        open_names = [name for name, part in parts.items() if part < available[name]]
        if not open_names:
            break
        each = max(1, total // len(open_names))
        for name in open_names:
            taken = min(each, available[name] - parts[name], total)
            parts[name] += taken
            total -= taken
    return parts


def summary(cases: Iterable[LabelledCase]) -> str:
    """How many cases of which modality, for the log: "12 cases (ct 8, mr 4)"."""
    counts: dict[str, int] = defaultdict(int)
    for case in cases:
        counts[case.modality or "unknown"] += 1
    parts = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    total = sum(counts.values())
    return f"{total} case{'' if total == 1 else 's'} ({parts})"
