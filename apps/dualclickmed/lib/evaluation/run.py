"""An evaluation from start to end: which cases are left, which process does them, and what is kept."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..atomic_files import write_text
from ..errors import UserError
from . import records
from .cases import Case, Task
from .methods import Made, MethodSettings, make
from .names import TIME_LIMIT, name_of
from .protocol import TaskOutcome, run_task

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
SKIPPED = "skipped"
SLICES = ".npz"
_PROTOCOL = ("cases", "start", "clicks", "labels", "smallest", "most", "limit")


@dataclass(frozen=True)
class Plan:
    """The settings of an evaluation, the same for every case.

    Attributes:
        out: folder of everything that is written.
        cases: where the cases are from, as it was given.
        methods: as `methods.make` takes them.
        settings: how they are made.
        start: one of `protocol.STARTS`.
        clicks: rounds after it.
        labels, smallest, most: which classes of a case; see `Case.task`.
        limit: seconds for each class of a case; 0 for none.
    """

    out: Path
    cases: str
    methods: tuple[str, ...]
    settings: MethodSettings = field(default_factory=MethodSettings)
    start: str = "box"
    clicks: int = 5
    labels: tuple[str, ...] = ()
    smallest: int = 1
    most: int | None = None
    limit: float = TIME_LIMIT

    @property
    def names(self) -> list[str]:
        """How the methods are called."""
        return [name_of(text) for text in self.methods]

    def protocol(self) -> dict[str, Any]:
        """The settings that have to be equal for scores to be comparable."""
        return {key: asdict(self)[key] for key in _PROTOCOL}


def run(cases: Sequence[Case], plan: Plan, workers: int, done: Callable[[int, int], None]) -> None:
    """Evaluate every case by every method that has no scores for it yet.

    Args:
        cases: which.
        plan: what is asked.
        workers: processes; 1 works in this one.
        done: called with how many cases are done and how many there are to do, after each.

    Raises:
        UserError: the folder holds scores of another protocol or of other weights; a method can't be made; a
            worker ended.
    """
    made = make(list(plan.methods), plan.settings)
    _agree(plan, made)
    todo = [case for case in cases if _missing(case, plan)]
    if workers <= 1 or len(todo) <= 1:
        for number, case in enumerate(todo, start=1):
            evaluate_case(case, plan, made)
            done(number, len(todo))
        return
    del made
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _prepare, (plan, threads)
    ) as pool:
        running = [pool.submit(_work, case) for case in todo]
        try:
            for number, future in enumerate(as_completed(running), start=1):
                future.result()
                done(number, len(todo))
        except BrokenProcessPool as error:
            raise UserError(
                "A worker ended before its case was done, perhaps for want of memory; call the command "
                "again to go on, with fewer --workers."
            ) from error


def evaluate_case(case: Case, plan: Plan, made: Sequence[Made]) -> None:
    """Run and write what is missing of one case; one that can't be read or has no class is noted as
    skipped.
    """
    try:
        task = case.task(plan.labels, plan.smallest, plan.most)
        if not task.values:
            raise UserError("It has none of the classes that were asked for.")
    except UserError as error:
        logger.warning("Case '%s' is skipped: %s", case.name, error)
        write_text(skipped_path(plan.out, case.name), str(error))
        return
    missing = _missing(case, plan)
    for one in made:
        if one.name in missing:
            begin = time.perf_counter()
            outcome = run_task(one.method, task, plan.clicks, plan.start, plan.limit)
            path = records.path_of(plan.out, case.name, one.name)
            _write_slice(path.with_suffix(SLICES), task, outcome)
            records.write(path, records.rows_of(case.group, case.name, one.name, task, outcome))
            logger.debug("%s by %s: %.1f s", case.name, one.name, time.perf_counter() - begin)


def skipped_path(out: Path, case: str) -> Path:
    """Where the reason is written why a case was skipped."""
    return out / SKIPPED / f"{records.path_of(out, case, '').stem}.txt"


def shown_slice(task: Task) -> int:
    """The slice along z with most of the classes, which pictures show."""
    return int(np.isin(task.labels, task.values).sum(axis=(1, 2)).argmax())


def _write_slice(path: Path, task: Task, outcome: TaskOutcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    z = shown_slice(task)
    np.savez_compressed(path, labels=outcome.labels[z].astype(np.int32), z=z)


def _missing(case: Case, plan: Plan) -> set[str]:
    if skipped_path(plan.out, case.name).exists():
        return set()
    return {name for name in plan.names if not records.path_of(plan.out, case.name, name).exists()}


_worker: dict[str, Any] = {}


def _prepare(plan: Plan, threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.update(plan=plan, made=make(list(plan.methods), plan.settings))


def _work(case: Case) -> None:
    evaluate_case(case, _worker["plan"], _worker["made"])


def _agree(plan: Plan, made: Sequence[Made]) -> None:
    """Write the settings and weights of a folder's scores, or compare them with those that are there."""
    path = plan.out / SETTINGS
    now = json.loads(json.dumps({"version": __version__, "protocol": plan.protocol(), "methods": {}}))
    facts = json.loads(json.dumps({one.name: one.facts for one in made}))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, value in before["protocol"].items():
            if now["protocol"].get(key) != value:
                raise UserError(
                    f"'{plan.out}' holds scores with {key} {value}, but {now['protocol'].get(key)} was asked "
                    "for; name another folder."
                )
        for name, old in before["methods"].items():
            if facts.get(name, old) != old:
                raise UserError(
                    f"'{plan.out}' holds scores of other weights of '{name}'; name another folder."
                )
        now["methods"] = before["methods"]
    now["methods"] |= facts
    write_text(path, json.dumps(now, indent=2) + "\n")
