"""MONAI Label's background processes: they end with the server, and cancelling a training is noted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from monailabel.utils.async_tasks import task as tasks
from monailabel.utils.async_tasks import utils

from ..learning.lifeline import announce
from ..learning.record import Record
from ..learning.runs import CANCELLED, is_training, note_ended

logger = logging.getLogger(__name__)

METHODS = ("train", "scoring", "batch_infer")
END_SECONDS = 10.0
"""A process that was killed is gone after much less."""
START_SECONDS = 2.0
_kept: set[asyncio.Task[None]] = set()


def serve_processes(record: Record) -> None:
    """To be called once in the server, before it starts any process.

    Args:
        record: of the studies, where cancelled trainings are noted.
    """
    announce()
    tasks.stop_background_task = cancelling(utils.stop_background_task, record)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    # The event loop cancels it at its end, before Python waits for the threads that wait for the processes.
    keeper = loop.create_task(_stop_at_the_end())
    _kept.add(keeper)


def cancelling(stop: Callable[[str], Any], record: Record) -> Callable[[str], Any]:
    """MONAI Label's function that stops a process; the record then notes the cancelled training."""

    def stopped(method: str) -> Any:
        _until(lambda: bool(utils.processes(method)) or not _starting(method), START_SECONDS)
        found = stop(method)
        if method == "train" and found is not None:
            _until(lambda: not is_training(record.folder), END_SECONDS)
            note_ended(record, CANCELLED)
        return found

    return stopped


def stop_all() -> None:
    """End every process that MONAI Label has started here; those that wait for one another never begin."""
    for executor in utils.background_executors.values():
        executor.shutdown(wait=False, cancel_futures=True)
    for method in METHODS:
        # It may have ended by itself in the meantime.
        with suppress(psutil.NoSuchProcess):
            while utils.stop_background_task(method) is not None:
                continue


def _starting(method: str) -> bool:
    """Whether a task was accepted whose process is not there yet."""
    return any(task["status"] == "SUBMITTED" for task in utils.tasks(method))


def _until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


async def _stop_at_the_end() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        stop_all()
