"""What all tasks share: loaded volumes, the experts on each device, and the check of their weights."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .. import cancellation
from ..configs.options import ServerOptions
from ..errors import WeightsError
from ..experts import ByteCache, DualExpert, Result
from ..experts.loading import load_experts
from ..imaging.intensity import CHOICES
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume, VolumeCache, from_array
from ..weights.files import KINDS, Kind, card_path, default_path, verify
from .dialects import RawPrompts, to_canonical
from .layers import Layers, layered

logger = logging.getLogger(__name__)

T = TypeVar("T")
WARM_UP_SIDE = 32
"""Side of the volume, in voxels, that the networks are warmed up with."""

_Paths = dict[Kind, Path]
_Signature = tuple[tuple[str, tuple[int, int] | None], ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """A segmentation of one volume.

    Attributes:
        volume: the image.
        result: what the experts found, in canonical order, and what was taken over.
        stages: seconds by part, loading the image included.
        before: the existing label map (D, H, W) with the result's values; None if there was none.
        notes: sentences about the image's file, the existing segmentation, and a GPU that could not answer.
        beneath: voxels (D, H, W) of existing labels that lie under other labels of the result.
    """

    volume: Volume
    result: Result
    stages: dict[str, float]
    before: npt.NDArray[np.uint8] | None = None
    notes: Sequence[str] = ()
    beneath: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


class Segmenter:
    """Answers requests for any image on any device; the first use of a device loads the weights.

    Thread-safe: images are read side by side, networks run for one request at a time. A computation ends
    early where `cancellation` says so.

    Args:
        options: the server's settings.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._volumes = VolumeCache(options.cache_bytes // 2)
        self._embeddings = ByteCache(options.cache_bytes // 2)
        # Always the same thread: every one that computes brings OpenMP threads and buffers of its own.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._warm = threading.Event()
        self._experts: dict[str, tuple[_Signature, DualExpert]] = {}
        # Apart from the lock for computing, so that /info need not wait for a segmentation.
        self._checking = threading.Lock()
        self._checked: tuple[_Signature, str | None] | None = None

    def problem(self) -> str | None:
        """Why the weights cannot be used, as a sentence that says what to do; None if they can."""
        return self._status()[1]

    def waiting_for(self) -> str | None:
        """Why a click would not be answered at once; None if it would."""
        problem = self.problem()
        return problem if problem or self._warm.is_set() else "The networks are being warmed up."

    def volume(self, image: Path, modality: str | None = None) -> Volume:
        """The image that answers are for, from the cache where it was used lately.

        Raises:
            UserError: it cannot be read.
        """
        return self._volumes.get(image, modality)

    def segment(
        self,
        image: Path,
        prompts: Mapping[str, RawPrompts],
        strategy: str,
        ct_window: str,
        device: str,
        modality: str | None = None,
        layers: Layers | None = None,
    ) -> Answer:
        """Load an image and segment every label in it.

        Args:
            image: a file or a folder of DICOM slices.
            prompts: label to prompts in raw voxel indices.
            strategy: one of `experts.STRATEGIES`.
            ct_window: one of `intensity.CHOICES`.
            device: "cpu" or "cuda:N".
            modality: of the image, where it is known.
            layers: what is there already, and what stays.

        Raises:
            UserError: the weights, the image or the prompts cannot be used.
        """
        return self.segment_found(
            image,
            lambda volume, _: to_canonical(prompts, volume),
            strategy,
            ct_window,
            device,
            modality,
            layers,
        )

    def segment_found(
        self,
        image: Path,
        find: Callable[[Volume, DualExpert], Mapping[str, Prompts]],
        strategy: str,
        ct_window: str,
        device: str,
        modality: str | None = None,
        layers: Layers | None = None,
    ) -> Answer:
        """As `segment`, with prompts that are found once image and experts are loaded.

        Args:
            image, strategy, ct_window, device, modality, layers: as for `segment`.
            find: gives prompts in canonical order; what it computes counts as the stage "find".

        Raises:
            UserError: as for `segment`, or what `find` raises.
        """
        cancellation.check()
        start = time.perf_counter()
        volume = self.volume(image, modality)
        loaded = time.perf_counter() - start
        return self._answer(volume, find, strategy, ct_window, device, layers, loaded)

    def segment_volume(
        self, volume: Volume, prompts: Mapping[str, Prompts], layers: Layers | None = None
    ) -> Answer:
        """As `segment`, in a volume that is loaded already, as requests that choose nothing.

        Args:
            volume: the image.
            prompts: in canonical order.
            layers: what is there already, and what stays.

        Raises:
            UserError: the weights or the prompts cannot be used.
        """
        cancellation.check()
        strategy, device = self.options.strategy, self.options.device
        return self._answer(volume, lambda *_: prompts, strategy, CHOICES[0], device, layers, 0.0)

    def forget(self, volume: Volume) -> None:
        """Drop what was computed from an image."""
        self._embeddings.drop(volume.key)
        for _, expert in list(self._experts.values()):
            expert.forget(volume)

    def _answer(
        self,
        volume: Volume,
        find: Callable[[Volume, DualExpert], Mapping[str, Prompts]],
        strategy: str,
        ct_window: str,
        device: str,
        layers: Layers | None,
        loaded: float,
    ) -> Answer:
        def answer(expert: DualExpert, used: str) -> Answer:
            cancellation.check()
            begun = time.perf_counter()
            prompts = find(volume, expert)
            found = time.perf_counter() - begun

            def segment(given: Mapping[str, Prompts]) -> Result:
                return expert.segment(volume, given, strategy, ct_window)

            settled = layered(segment, volume, prompts, layers or Layers())
            stages = {"load": loaded, "find": found, **settled.result.stages}
            notes = [*volume.notes, *settled.notes, *([] if used == device else [_fallen_back(device)])]
            return Answer(volume, settled.result, stages, settled.before, notes, settled.beneath)

        return self._computed(answer, device)

    def warm_up(self) -> None:
        """Load the weights and run both experts once, so that the first click is not the slow one.

        Raises:
            WeightsError: the weights cannot be used.
        """
        side = WARM_UP_SIDE
        volume = from_array(np.arange(side**3, dtype=np.int16).reshape(side, side, side))
        corners = Prompts((Click((8, 8, 8)), Click((24, 24, 24))))

        def click(expert: DualExpert, used: str) -> None:
            for strategy in ("local", "global"):
                expert.segment(volume, {"warm-up": corners}, strategy)

        start = time.perf_counter()
        self._computed(click, self.options.device)
        self._warm.set()
        logger.info("Warmed up in %.2f s", time.perf_counter() - start)

    def licence(self) -> str:
        """Of the weights that are served, as their cards name it; several with commas."""
        try:
            paths = self._paths().values()
            cards = [json.loads(card_path(path).read_text(encoding="utf-8")) for path in paths]
        except (WeightsError, OSError, ValueError):
            return "unknown"
        return ", ".join(dict.fromkeys(str(card.get("licence") or "unknown") for card in cards))

    def _computed(self, work: Callable[[DualExpert, str], T], device: str) -> T:
        """What `work` gives on the one thread that computes, from the experts and the device they are on."""
        return self._computing.submit(copy_context().run, self._with_memory, work, device).result()

    def _with_memory(self, work: Callable[[DualExpert, str], T], device: str) -> T:
        """`work` on a device; where its memory does not suffice, with caches emptied, then on the CPU."""
        for _ in range(2):
            try:
                return work(self._expert(device), device)
            except torch.OutOfMemoryError:
                if device == "cpu":
                    raise
            # Not in the handler, where the traceback still holds the tensors.
            self._embeddings.clear()
            torch.cuda.empty_cache()
        logger.warning(_fallen_back(device))
        return work(self._expert("cpu"), "cpu")

    def _expert(self, device: str) -> DualExpert:
        signature, problem = self._status()
        if problem is not None:
            raise WeightsError(problem)
        if any(loaded != signature for loaded, _ in self._experts.values()):
            # Of other weights. They go first, because both together may not fit into memory.
            self._experts.clear()
            self._embeddings.clear()
        if device not in self._experts:
            start = time.perf_counter()
            paths = self._paths()
            expert = load_experts(
                paths["global"], paths["local"], device, self._embeddings, self.options.precision
            )
            self._experts[device] = signature, expert
            logger.info("Loaded both experts on %s in %.2f s", device, time.perf_counter() - start)
        return self._experts[device][1]

    def _paths(self) -> _Paths:
        """The weight files to serve now: 'weights use' may have chosen others since the start."""
        return {kind: default_path(kind, self.options.preset, self.options.model_dir) for kind in KINDS}

    def _status(self) -> tuple[_Signature, str | None]:
        """The weight files as they are now and what is wrong with them; changes alone make them be read."""
        with self._checking:
            try:
                paths = self._paths()
            except WeightsError as error:
                return (), str(error)
            signature = tuple(
                (str(file), _identity(file)) for path in paths.values() for file in (path, card_path(path))
            )
            if self._checked is None or self._checked[0] != signature:
                self._checked = signature, _problem(paths)
            return self._checked


def _fallen_back(device: str) -> str:
    return f"The memory of {device} does not suffice: computed on the CPU, which takes longer."


def _problem(paths: _Paths) -> str | None:
    for path in paths.values():
        try:
            verify(path)
        except WeightsError as error:
            logger.error("%s", error)
            return str(error)
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
