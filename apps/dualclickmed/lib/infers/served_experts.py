"""The experts that answer requests: loaded once for each device, on the one thread that computes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ..byte_cache import ByteCache
from ..configs.options import ServerOptions
from ..errors import WeightsError
from ..experts import DualExpert
from ..experts.loading import load_experts
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume, from_array
from ..short_thread import in_short_thread
from ..weights.files import KINDS, Kind, card_path, default_path, verify

logger = logging.getLogger(__name__)

T = TypeVar("T")
WARM_UP_SIDE = 32
"""Side of the volume, in voxels, that the networks are warmed up with."""

_Paths = dict[Kind, Path]
_Signature = tuple[tuple[str, tuple[int, int] | None], ...]


class ServedExperts:
    """Both experts on every device that was asked for, and the check of their weights.

    The first use of a device loads the weights; changed weight files are loaded anew. Thread-safe: networks
    run for one request at a time.

    Args:
        options: the server's settings.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._cache = ByteCache(options.cache_bytes // 2)
        # Always the same thread: every one that computes brings OpenMP threads and buffers of its own.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._warm = threading.Event()
        self._loaded: dict[str, tuple[_Signature, DualExpert]] = {}
        # Apart from the lock for computing, so that /info need not wait for a segmentation.
        self._checking = threading.Lock()
        self._checked: tuple[_Signature, str | None] | None = None

    def compute(self, work: Callable[[DualExpert, str], T], device: str) -> T:
        """Run `work` with the experts of a device and the device's name, and return its result.

        It runs on the thread that computes. Where the device's memory does not suffice, it runs again with
        emptied caches, then on the CPU.

        Raises:
            WeightsError: the weights cannot be used.
        """
        return self._computing.submit(copy_context().run, self._with_memory, work, device).result()

    def problem(self) -> str | None:
        """Why the weights cannot be used, as a sentence that says what to do; None if they can."""
        return self._status()[1]

    def waiting_for(self) -> str | None:
        """Why a click cannot be answered at once; None if it can."""
        problem = self.problem()
        return problem if problem or self._warm.is_set() else "The networks are being warmed up."

    def forget(self, volume: Volume) -> None:
        """Drop what was computed from an image."""
        self._cache.drop(volume.key)

    def warm_up(self) -> None:
        """Load the weights and run both experts once, so that the first click is not the slow one.

        Raises:
            WeightsError: the weights cannot be used.
        """
        start = time.perf_counter()
        self.compute(_first_clicks, self.options.device)
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

    def _with_memory(self, work: Callable[[DualExpert, str], T], device: str) -> T:
        """`work` on a device; where its memory does not suffice, with caches emptied, then on the CPU."""
        for _ in range(2):
            try:
                return work(self._expert(device), device)
            except torch.OutOfMemoryError:
                if device == "cpu":
                    raise
            # Not in the handler, where the traceback still holds the tensors.
            self._cache.clear()
            torch.cuda.empty_cache()
        logger.warning(fallen_back(device))
        return work(self._expert("cpu"), "cpu")

    def _expert(self, device: str) -> DualExpert:
        signature, problem = self._status()
        if problem is not None:
            raise WeightsError(problem)
        if any(loaded != signature for loaded, _ in self._loaded.values()):
            # Of other weights. They go first, because both together may not fit into memory.
            self._loaded.clear()
            self._cache.clear()
        if device not in self._loaded:
            start = time.perf_counter()
            paths = self._paths()
            expert = load_experts(
                paths["global"], paths["local"], device, self._cache, self.options.precision
            )
            self._loaded[device] = signature, expert
            logger.info("Loaded both experts on %s in %.2f s", device, time.perf_counter() - start)
        return self._loaded[device][1]

    def _paths(self) -> _Paths:
        """The weight files to serve now: 'weights use' may have chosen others since the start."""
        return {kind: default_path(kind, self.options.preset, self.options.model_dir) for kind in KINDS}

    def _status(self) -> tuple[_Signature, str | None]:
        """The state of the weight files and what is wrong with them; read again only after a change."""
        with self._checking:
            try:
                paths = self._paths()
            except WeightsError as error:
                return (), str(error)
            signature = tuple(
                (str(file), _identity(file)) for path in paths.values() for file in (path, card_path(path))
            )
            if self._checked is None or self._checked[0] != signature:
                self._checked = signature, in_short_thread(partial(_problem, paths))
            return self._checked


def _first_clicks(expert: DualExpert, device: str) -> None:
    """Run each network once on a small volume; `device` is unused."""
    side = WARM_UP_SIDE
    volume = from_array(np.arange(side**3, dtype=np.int16).reshape(side, side, side))
    corners = {"warm-up": Prompts((Click((8, 8, 8)), Click((24, 24, 24))))}
    for strategy in ("local", "global"):
        expert.segment(volume, corners, strategy)


def fallen_back(device: str) -> str:
    """The note for an answer that was computed on the CPU because the device's memory did not suffice."""
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
