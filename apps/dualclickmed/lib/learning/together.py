"""One training by several processes, one for each GPU: torchrun's launcher, started from within a round."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.loop import Options, Progress, train
from ..training.pipeline import Hooks, hooks_named
from ..training.recipes import Recipe, from_dict
from ..training.sources import LabelledCase, WeightedSource
from .lifeline import follow
from .runs import write_json

logger = logging.getLogger(__name__)

TASK, TOLD, STOP, DONE = "task.json", "told.json", "stop", "done.json"
LOOK_SECONDS = 0.5
_PATHS = ("image", "label")


@dataclass(frozen=True)
class Material:
    """The data that several processes read.

    Attributes:
        cases: labelled cases.
        start: the weight file that they begin with.
        hooks: as for `train`; each process finds them by their names.
    """

    cases: Sequence[LabelledCase]
    start: Path
    hooks: Hooks | None = None


def train_together(
    recipe: Recipe,
    options: Options,
    command: str,
    material: Material,
    progress: Callable[[Progress], None],
    stop: threading.Event,
    processes: int,
) -> Path:
    """`training.loop.train` on labelled cases, carried out by several processes that torchrun starts.

    Args:
        recipe, options, command: as for `train`; with the device "cuda" each process takes the
            GPU of its rank.
        material: what is trained on, and from where.
        progress: called at each progress of the first process.
        stop: set it, and the processes end after their step.
        processes: how many.

    Returns:
        The weight file.

    Raises:
        UserError: one of the processes failed, its own words are in the log; or the hooks have no names.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder = options.out
    task = {
        "recipe": dataclasses.asdict(recipe),
        "options": {
            "minutes": options.minutes,
            "device": options.device.partition(":")[0],
            "tensorboard": options.tensorboard,
        },
        "command": command,
        "cases": [_plain(case) for case in material.cases],
        "start": str(material.start),
        "parent": os.getpid(),
        "hooks": None if material.hooks is None else material.hooks.names(),
    }
    write_json(folder / TASK, task)
    # The package under the name that it has here: MONAI Label imports it as `lib`.
    package = __package__.rpartition(".")[0]
    home = Path(sys.modules[package].__file__ or __file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(home)!r}); "
    if package != "lib":
        code = ""
    code += f"from {__name__} import work; work({str(folder)!r})"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=LOOK_SECONDS,
    )
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(folder, progress, stop, ended), daemon=True)
    watching.start()
    try:
        elastic_launch(config, sys.executable)("-c", code)
    except ChildFailedError as error:
        raise UserError(f"A training by {processes} processes failed: {str(error)[-1000:]}") from error
    finally:
        ended.set()
        watching.join()
    return Path(json.loads((folder / DONE).read_text(encoding="utf-8"))["weights"])


def work(folder: str) -> None:
    """One of the processes; called by `train_together` alone."""
    logging.basicConfig(level=logging.INFO, format="[%(process)s] [%(levelname)s] (%(name)s) - %(message)s")
    out = Path(folder)
    task = json.loads((out / TASK).read_text(encoding="utf-8"))
    follow(int(task["parent"]))
    leads = os.environ.get("RANK", "0") == "0"
    stop = threading.Event()

    def tell(now: Progress) -> None:
        if (out / STOP).exists():
            stop.set()
        if leads:
            write_json(out / TOLD, dataclasses.asdict(now))

    options = Options(out=out, resume=False, **task["options"])
    weights = train(
        from_dict(task["recipe"]),
        options,
        task["command"],
        data=[WeightedSource([_case(plain) for plain in task["cases"]])],
        start=Path(task["start"]),
        progress=tell,
        stop=stop,
        hooks=None if task["hooks"] is None else hooks_named(task["hooks"]),
    )
    if leads:
        write_json(out / DONE, {"weights": str(weights)})


def _watch(
    folder: Path, progress: Callable[[Progress], None], stop: threading.Event, ended: threading.Event
) -> None:
    """Pass on the progress of the first process, and the request to stop."""
    last = -1
    while not ended.wait(LOOK_SECONDS):
        try:
            now = Progress(**json.loads((folder / TOLD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if now.step != last:
            last = now.step
            progress(now)
        if stop.is_set():
            (folder / STOP).touch()


def _plain(case: LabelledCase) -> dict[str, Any]:
    found = dataclasses.asdict(case)
    return {**found, **{name: str(found[name]) for name in _PATHS}}


def _case(plain: Mapping[str, Any]) -> LabelledCase:
    paths = {name: Path(plain[name]) for name in _PATHS}
    names = {int(value): name for value, name in plain["names"].items()}
    return LabelledCase(**{**plain, **paths, "names": names})
