"""Case files of the CVPR 2025 challenge on interactive 3D segmentation: read safely, answered, written.

A case file is an ``.npz`` with ``imgs`` (D, H, W), ``spacing`` in the order x, y, z, and optionally
``boxes``, ``clicks``, ``clicks_order``, ``prev_pred`` and ``gts``. Boxes and clicks are object arrays, which
are pickles; they are read by `_Reader`, which admits arrays, numbers and plain containers and calls nothing
else. The answer is an ``.npz`` with ``segs``. It depends on the case file alone: all clicks so far are in it.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..atomic_files import replacing
from ..errors import PromptError, UserError
from .geometry import Box, Index, Position
from .prompts import Click, Prompts, in_order, one_kind
from .volume import Volume, from_array

logger = logging.getLogger(__name__)

SUFFIX = ".npz"
MAX_BYTES = 8 << 30
"""Most bytes of one array; a small file may claim any size."""
MAX_OBJECT_BYTES = 64 << 20
"""Most bytes of one pickled array: thousands of clicks take some hundred kilobytes."""
MAX_CLASS = 255
"""``segs`` has 8 bits."""
BOX_KEYS = ("z_min", "z_max", "z_mid_x_min", "z_mid_x_max", "z_mid_y_min", "z_mid_y_max")
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
    TypeError, KeyError, IndexError, AttributeError, MemoryError, RecursionError, OverflowError,
    NotImplementedError, RuntimeError, AssertionError,
)  # fmt: skip
"""What a damaged or crafted file makes zipfile, NumPy and pickle raise."""


@dataclass(frozen=True, eq=False)
class CaseFile:
    """One case file.

    Attributes:
        path: where it was read from.
        image: (D, H, W), any real type.
        spacing: as the file has it, (x, y, z) in millimetres.
        boxes: one for each class in order, in voxel edges (z, y, x); None if the case has none.
        clicks: likewise the clicks of each class, in the order in which they were given; None if it has none.
        truth: (D, H, W) classes, None where the file has none.
        ordered: whether the file tells the order between foreground and background (``clicks_order``).
    """

    path: Path
    image: npt.NDArray[Any]
    spacing: Position
    boxes: tuple[Box, ...] | None
    clicks: tuple[tuple[Click, ...], ...] | None
    truth: npt.NDArray[np.integer] | None
    ordered: bool = False

    @cached_property
    def volume(self) -> Volume:
        """The image in the order that the spacing belongs to: arrays are (z, y, x)."""
        x, y, z = self.spacing
        return from_array(self.image, (z, y, x))

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The value of each class in ``segs``: the sorted values of the truth where the file has it, else 1
        to N. Only the number of boxes or lists of clicks tells N then.

        Raises:
            UserError: the file has neither, or its lists differ in length.
        """
        counts = {name: len(part) for name, part in self._parts()}
        if self.truth is not None:
            values = tuple(int(v) for v in np.unique(self.truth) if v > 0)
            counts["gts"] = len(values)
        else:
            values = tuple(range(1, max(counts.values(), default=0) + 1))
        if not values:
            raise UserError(
                f"'{self.path.name}' must hold boxes or clicks of at least one class, but has none."
            )
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise UserError(
                f"'{self.path.name}' must have as many classes everywhere, but there are {found}."
            )
        if values[-1] > MAX_CLASS:
            raise UserError(
                f"Classes must be at most {MAX_CLASS}, as segs has 8 bits, but '{self.path.name}' has "
                f"{values[-1]}."
            )
        return values

    def prompts(self) -> dict[int, Prompts]:
        """The prompts of each class that has some, by the class's value."""
        found = {}
        for at, value in enumerate(self.values):
            clicks = self.clicks[at] if self.clicks is not None else ()
            box = self.boxes[at] if self.boxes is not None else None
            if clicks or box is not None:
                found[value] = Prompts(clicks, box, ordered=self.ordered or one_kind(clicks))
        return found

    def _parts(self) -> list[tuple[str, Sequence[Any]]]:
        parts: list[tuple[str, Sequence[Any] | None]] = [("boxes", self.boxes), ("clicks", self.clicks)]
        return [(name, part) for name, part in parts if part is not None]


def read_case(path: Path, truth: Path | None = None) -> CaseFile:
    """Read a case file without running anything that it contains.

    Args:
        path: the ``.npz``.
        truth: an ``.npz`` with ``gts`` where the case file itself has none, as in the challenge's validation.

    Raises:
        UserError: the file is missing, damaged, refers to anything but arrays, numbers and plain containers,
            or its content does not fit together; the message names the file and the part.
    """
    arrays = _read(path, ("imgs", "spacing", "boxes", "clicks", "clicks_order", "gts"))
    if truth is not None:
        arrays["gts"] = _read(truth, ("gts",)).get("gts")
    name = path.name
    image = arrays.get("imgs")
    if image is None or image.ndim != 3 or image.dtype.kind not in "biuf" or image.size == 0:
        raise UserError(f"'{name}' must hold imgs with three axes of numbers, but has {_described(image)}.")
    labels = arrays.get("gts")
    if labels is not None and (labels.shape != image.shape or labels.dtype.kind not in "biu"):
        raise UserError(
            f"gts of '{name}' must be whole numbers of the shape {image.shape}, but has {_described(labels)}."
        )
    shape = (image.shape[0], image.shape[1], image.shape[2])
    boxes, clicks = arrays.get("boxes"), arrays.get("clicks")
    order = arrays.get("clicks_order")
    return CaseFile(
        path,
        image,
        _spacing(arrays.get("spacing"), name),
        None if boxes is None else tuple(_box(b, shape, name) for b in _listed(boxes, "boxes", name)),
        None if clicks is None else tuple(_clicks(clicks, order, shape, name)),
        labels,
        order is not None,
    )


def case_files(folder: Path) -> list[Path]:
    """The case files of a folder, in order of name.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}' of case files.")
    return sorted(p for p in folder.glob(f"*{SUFFIX}") if p.is_file())


# Reading ------------------------------------------------------------------------------------------------


def _read(path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """The wanted arrays that an ``.npz`` holds."""
    if not path.is_file():
        raise UserError(f"There is no case file '{path}'.")
    part = ""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for part in wanted:
                if f"{part}.npy" in archive.namelist():
                    with archive.open(f"{part}.npy") as file:
                        found[part] = _array(file, archive.getinfo(f"{part}.npy").file_size)
            return found
    except _UNREADABLE as error:
        where = f" ({part})" if part else ""
        raise UserError(f"'{path.name}' can't be read as a case file{where}: {error}.") from error


def _array(file: IO[bytes], nbytes: int) -> npt.NDArray[Any]:
    """One ``.npy``.

    Raises:
        ValueError, and whatever a damaged file leads to.
    """
    if nbytes > MAX_BYTES:
        raise ValueError(f"{nbytes} bytes are more than the {MAX_BYTES} that are allowed")
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"version {version} of the array format is unknown")
    shape, fortran, dtype = read_header[version](file)
    if dtype.hasobject:
        if nbytes > MAX_OBJECT_BYTES:
            raise ValueError(
                f"{nbytes} bytes of objects are more than the {MAX_OBJECT_BYTES} that are allowed"
            )
        array = _Reader(io.BytesIO(file.read())).load()
        if not isinstance(array, np.ndarray):
            raise ValueError(f"an array was expected, but a {type(array).__name__} came")
        return array
    count = math.prod(shape)
    if count * dtype.itemsize > nbytes:
        raise ValueError(f"the shape {shape} of {dtype} does not fit its {nbytes} bytes")
    data = file.read(count * dtype.itemsize)
    return np.frombuffer(data, dtype=dtype, count=count).reshape(shape, order="F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """Admits NumPy's arrays, types and numbers and plain containers; anything else is refused by its name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module.replace("numpy._core", "numpy.core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not admitted") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file, which is not admitted")


def _reconstruct(kind: type, shape: tuple[int, ...], code: Any) -> npt.NDArray[Any]:
    """An empty array, which is what NumPy's pickles begin with; its content follows as a state."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array that is not empty at first is not admitted")
    return np.ndarray((0,), dtype=np.int8)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number that is not made of bytes is not admitted")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _latin(text: Any, codec: Any = "latin1") -> bytes:
    """How pickles of version 2 hold bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", "iso8859-1"):
        raise pickle.UnpicklingError(f"the encoding {codec!r} is not admitted")
    return text.encode("latin1")


_ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
}


# Content ------------------------------------------------------------------------------------------------


def _listed(array: npt.NDArray[Any], part: str, name: str) -> list[Any]:
    """The entries of an array along its first axis; one without axes may hold a list."""
    content = array.tolist()
    if not isinstance(content, list | tuple):
        raise UserError(
            f"{part} of '{name}' must be a list with one entry for each class, but {_short(content)} came."
        )
    return list(content)


def _spacing(array: Any, name: str) -> Position:
    try:
        x, y, z = (float(v) for v in np.asarray(array, dtype=np.float64).reshape(-1))
    except (TypeError, ValueError):
        x = y = z = math.nan
    if not all(math.isfinite(v) and v > 0 for v in (x, y, z)):
        raise UserError(f"spacing of '{name}' must be three positive numbers, but {_short(array)} came.")
    return x, y, z


def _box(entry: Any, shape: Index, name: str) -> Box:
    try:
        z0, z1, x0, x1, y0, y1 = (_whole(entry[key]) for key in BOX_KEYS)
    except (TypeError, KeyError, ValueError, IndexError):
        raise UserError(
            f"Each of the boxes of '{name}' must have whole numbers {', '.join(BOX_KEYS)}, but "
            f"{_short(entry)} came."
        ) from None
    first, last = (z0, y0, x0), (z1, y1, x1)
    if not all(0 <= a <= b < n for a, b, n in zip(first, last, shape, strict=True)):
        raise UserError(
            f"The boxes of '{name}' must lie in the image of shape {shape}, but one is {_short(entry)}."
        )
    return Box.around([first, last])


def _clicks(
    array: npt.NDArray[Any], order: npt.NDArray[Any] | None, shape: Index, name: str
) -> Iterator[tuple[Click, ...]]:
    entries = _listed(array, "clicks", name)
    orders = _listed(order, "clicks_order", name) if order is not None else [None] * len(entries)
    if len(orders) != len(entries):
        raise UserError(
            f"clicks and clicks_order of '{name}' must have as many classes, but have {len(entries)} and "
            f"{len(orders)}."
        )
    for entry, kinds in zip(entries, orders, strict=True):
        try:
            given = {kind: [_index(p) for p in entry.get(kind, ())] for kind in ("fg", "bg")}
        except (TypeError, ValueError, AttributeError):
            raise UserError(
                f"Each of the clicks of '{name}' must be a dict of fg and bg with triples of whole numbers, "
                f"but {_short(entry)} came."
            ) from None
        outside = [
            p
            for own in given.values()
            for p in own
            if not all(0 <= a < n for a, n in zip(p, shape, strict=True))
        ]
        if outside:
            raise UserError(
                f"Clicks of '{name}' must lie in the image of shape {shape}, but one is {outside[0]}."
            )
        yield _ordered(given, kinds, name)


def _ordered(given: dict[str, list[Index]], kinds: Any, name: str) -> tuple[Click, ...]:
    """The clicks in the order of ``clicks_order``, which may hold None for steps without a click."""
    if kinds is None:
        kinds = ["fg"] * len(given["fg"]) + ["bg"] * len(given["bg"])
    sequence = [str(kind) for kind in kinds if kind is not None and str(kind)]
    clicks = [Click(index, kind == "fg") for kind, own in given.items() for index in own]
    try:
        return tuple(in_order(clicks, sequence))
    except PromptError as error:
        raise UserError(
            f"clicks_order of '{name}' must name every click once, but it is {_short(kinds)} for "
            f"{len(given['fg'])} fg and {len(given['bg'])} bg."
        ) from error


def _index(entry: Any) -> Index:
    z, y, x = (_whole(value) for value in entry)
    return z, y, x


def _whole(value: Any) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or value != int(value)
    ):
        raise ValueError(f"a whole number was expected, but {value!r} came")
    return int(value)


def _described(array: Any) -> str:
    return "none" if array is None else f"{array.dtype} of shape {array.shape}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


# Writing ------------------------------------------------------------------------------------------------


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz``, under another name first: an interrupted run leaves no half of a file."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
