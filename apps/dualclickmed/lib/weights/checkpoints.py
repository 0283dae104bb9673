"""Reading checkpoints from elsewhere: only tensors and plain values, and nothing in them is executed.

A checkpoint usually comes as a pickle, which can hold code. Anything in it but tensors and plain values is
refused by name.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import WeightsError

_CONTAINERS = ("model_state_dict", "state_dict", "model")
"""Where the published trainers put the tensors; a bare dictionary of them is accepted as well."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

_READ_BYTES = 1 << 20
_SHOWN = 3


class _Inert:
    """Replaces training settings and NumPy numbers in a checkpoint: takes any arguments, does nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_INERT: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, name)
    for name in (
        "argparse.Namespace",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
    )
]
"""What trainers store in checkpoints besides tensors."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dictionary in a checkpoint, names without wrappers' prefixes; nothing of it is executed.

    Args:
        path: a file of torch.save (either format) or safetensors. Large files are mapped, not read.

    Raises:
        WeightsError: the file is missing, empty, truncated or of another format, or its pickle refers to
            anything but tensors and plain values.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise WeightsError(f"'{path}' can't be read ({error.strerror}); check the path.") from error
    if not head:
        raise WeightsError(f"'{path}' is empty; fetch it again.")
    if head[8:9] == b"{":
        found: Any = _read_safetensors(path)
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        found = _read_pickle(path, zipped=head.startswith(b"PK"))
    else:
        raise WeightsError(
            f"'{path}' is not a checkpoint: it begins with {head[:8]!r}, and neither PyTorch nor safetensors "
            "writes such files. Was it renamed, or is it a web page?"
        )
    found = _unwrapped(found)
    if not isinstance(found, Mapping):
        raise WeightsError(f"'{path}' holds a {type(found).__name__} and not a dictionary of tensors.")
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in tensors:
            raise WeightsError(f"'{path}' holds '{name}' twice, once with a wrapper's prefix.")
        tensors[name] = value
    if not tensors:
        shown = ", ".join(repr(key) for key in list(found)[:_SHOWN]) or "nothing"
        raise WeightsError(f"'{path}' holds no tensors by name; it holds {shown}.")
    return tensors


def _unwrapped(found: Any) -> Any:
    """The innermost of the dictionaries that trainers put around a state dictionary."""
    while isinstance(found, Mapping):
        inner = next((found[name] for name in _CONTAINERS if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            break
        found = inner
    return found


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal hash of a file, read in pieces."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"'{path}' begins like a safetensors file but can't be read as one ({error}): it is truncated or "
            "damaged, fetch it again."
        ) from error


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_INERT):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # A damaged file makes PyTorch raise errors of a dozen types.
        if refused := _refused(path, error, zipped):
            raise WeightsError(
                f"'{path}' is refused, because it holds more than tensors: {refused}. Nothing of it was "
                "executed. Have its tensors saved alone, as state_dict() gives them."
            ) from error
        raise WeightsError(
            f"'{path}' can't be read as a PyTorch checkpoint: it is truncated, damaged or of another format "
            f"({_first_sentence(str(error))}). Fetch it again."
        ) from error


def _refused(path: Path, error: Exception, zipped: bool) -> str | None:
    """What the file refers to beyond tensors and plain values; None if that is not why it can't be read."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program"
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {named[1]}"
    if not zipped:
        with suppress(Exception):  # a pickle that is damaged, too
            names = [name for name in _globals_of(path) if not name.startswith(("torch.", "collections."))]
            if names:
                return f"it refers to {', '.join(names[:_SHOWN])}"
    return None


def _globals_of(path: Path) -> Iterator[str]:
    """The names that a plain pickle refers to; it is parsed, not executed."""
    strings: list[str] = []
    with path.open("rb") as stream:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z])\. |\n", text.strip(), maxsplit=1)[0].rstrip(".")[:200]
