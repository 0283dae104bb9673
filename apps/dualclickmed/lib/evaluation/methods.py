"""The methods of an evaluation by name: ours, the classical peers, published networks, and a user's own file.

A method is a function of an image and the prompts of one object so far; see `protocol.Method`. A name may
carry an argument after a colon::

    paper, global, local, ...     our experts by that strategy ("ours" is the first one)
    ellipsoid, graph-cut, random-walker, region-growing
    sam-med3d:WEIGHTS             SAM-Med3D as published
    vista3d:WEIGHTS               VISTA3D's point branch as published
    nninteractive:FOLDER          through its own package, with the model in that folder
    segvol=CLONE                  SegVol through a clone of its repository (segvol=CLONE,WEIGHTS)
    NAME=FILE.py                  `segment(volume, prompts)`, or `make()` that returns such a function

Each name is made where it is needed: processes receive names, not networks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..experts import DualExpert
from ..predictor import Predictor
from ..strategies import STRATEGIES
from ..weights.files import KINDS, card_path, default_path
from . import classical
from .names import CLASSICAL, PUBLISHED, SEGVOL, name_of
from .protocol import ExpertMethod, Method

_CLASSICAL: dict[str, Method] = {name: getattr(classical, name.replace("-", "_")) for name in CLASSICAL}


@dataclass(frozen=True)
class MethodSettings:
    """How methods are made.

    Attributes:
        model_dir: folder of our weights; None for the default one.
        preset: which of them; None for what is chosen there.
        device: torch device.
        precision: one of `experts.precision.PRECISIONS`.
    """

    model_dir: Path | None = None
    preset: str | None = None
    device: str = "cpu"
    precision: str = "auto"


@dataclass(frozen=True)
class Made:
    """A method ready to run.

    Attributes:
        name: in tables and files.
        method: what predicts.
        facts: what a report says about it: the SHA-256 of its weights, its file, and the like.
    """

    name: str
    method: Method
    facts: dict[str, Any]


def make(texts: list[str], settings: MethodSettings) -> list[Made]:
    """Methods in the order in which they were named; our strategies share one set of weights.

    Raises:
        UserError: an unknown method, or one that is named twice.
        WeightsError: weights are missing or do not fit.
    """
    names = [name_of(text) for text in texts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Each method is evaluated once, but '{twice}' was named twice.")
    made, predictor = [], None
    for text, name in zip(texts, names, strict=True):
        if name in CLASSICAL:
            made.append(Made(name, _CLASSICAL[name], {"kind": "classical"}))
        elif name in STRATEGIES:
            if predictor is None:
                predictor = _predictor(settings)
            facts = {"kind": "ours", "strategy": name, "weights": _our_weights(settings)}
            made.append(Made(name, ExpertMethod(predictor.expert, name), facts))
        elif name in PUBLISHED:
            made.append(_published(name, Path(text.partition(":")[2]), settings))
        elif name == SEGVOL:
            from .segvol import SegVolMethod

            segvol = SegVolMethod(text.partition("=")[2], settings.device)
            made.append(Made(name, segvol, {"kind": "published", "sha256": _sha256(segvol.weights)}))
        else:
            path = Path(text.partition("=")[2])
            made.append(Made(name, from_file(path), {"kind": "file", "sha256": _sha256(path)}))
    return made


def from_file(path: Path) -> Method:
    """A user's method: a Python file with `segment(volume, prompts)` or `make()`, which is run.

    Raises:
        UserError: there is no such file, it fails, or it has neither.
    """
    if not path.is_file():
        raise UserError(f"There is no file '{path}' with a method.")
    spec = importlib.util.spec_from_file_location(f"method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"A method's file must end in .py, but it is '{path}'.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found: Callable[..., Any] | None = getattr(module, "segment", None)
        if found is None and hasattr(module, "make"):
            found = module.make()
    except Exception as error:
        raise UserError(
            f"The method in '{path}' can't be loaded: {type(error).__name__}: {error}."
        ) from error
    if not callable(found):
        raise UserError(f"'{path}' must define segment(volume, prompts) or make(), but it has neither.")
    return found


def our_expert(settings: MethodSettings) -> DualExpert:
    """Both experts of the weights that an evaluation uses.

    Raises:
        WeightsError: weights are missing or do not fit.
    """
    return _predictor(settings).expert


def _predictor(settings: MethodSettings) -> Predictor:
    paths = [default_path(kind, settings.preset, settings.model_dir) for kind in KINDS]
    return Predictor.from_weights(paths[0], paths[1], settings.device, precision=settings.precision)


def _our_weights(settings: MethodSettings) -> dict[str, Any]:
    """SHA-256 and preset of each expert's weights, from their cards, which loading has checked."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        card = json.loads(card_path(default_path(kind, settings.preset, settings.model_dir)).read_text())
        found[kind] = {key: card[key] for key in ("preset", "sha256", "steps")}
    return found


def _published(name: str, weights: Path, settings: MethodSettings) -> Made:
    from . import published

    if name == "nninteractive":
        method: Method = published.PublishedNnInteractive(weights, settings.device)
        return Made(name, method, {"kind": "published", "model": str(weights)})
    kind = published.SamMed3d if name == "sam-med3d" else published.Vista3d
    return Made(name, kind(weights, settings.device), {"kind": "published", "sha256": _sha256(weights)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else (hashlib.sha256(file.read()).hexdigest())
        )
