"""The interactive protocol: a box or a first click, then corrections where the error is largest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..experts.dual import DualExpert
from ..imaging.geometry import Box, Position
from ..imaging.lassos import understood
from ..imaging.plane_boxes import joined
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume
from .cases import Task
from .metrics import Mask, dice, next_click, surface_dice
from .names import TIME_LIMIT

logger = logging.getLogger(__name__)

Method = Callable[[Volume, Prompts], npt.NDArray[Any]]
"""Maps an image and the prompts of one object so far to a mask (bool) or to scores (float, above 0 inside),
of the volume's shape. It may have a method `together`, which takes the prompts of several objects by label
value and returns a label map; for others overlaps are settled by the higher score."""

LEAST_DICE = 0.2
"""Up to this mean Dice of a case the surface Dice counts as 0."""
HARM = 0.01
"""A click that costs more Dice than this counts as harmful."""
LOOSE = 2
"""How many voxels outside of an object a line around it is drawn."""
SCATTERED = 200
"""Clicks of a start with scattered ones."""


@dataclass(frozen=True)
class Step:
    """Scores of each class after one step, in the order of the task's classes.

    Attributes:
        dice, nsd: by class; NSD is 0 for all where the mean Dice is at most `LEAST_DICE`.
        seconds: of the prediction.
        clicks: how many of all classes were given so far.
        failure: why the method did not answer, in words.
    """

    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    seconds: float
    clicks: int
    failure: str = ""


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """The result of one method on one task.

    Attributes:
        steps: the start and one for each click.
        over_time: whether the time limit was passed, and every score is 0 for that.
        labels: (D, H, W), the last prediction.
    """

    steps: list[Step]
    over_time: bool
    labels: npt.NDArray[np.integer]


class ExpertMethod:
    """Our experts by one strategy."""

    def __init__(self, expert: DualExpert, strategy: str) -> None:
        self.expert, self.strategy = expert, strategy

    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        """The mask of one object."""
        return self.expert.segment(volume, {"object": prompts}, strategy=self.strategy).labels > 0

    def together(self, volume: Volume, prompts: Mapping[int, Prompts]) -> npt.NDArray[np.integer]:
        """The label map of several objects."""
        given = {str(value): own for value, own in prompts.items()}
        result = self.expert.segment(volume, given, strategy=self.strategy)
        table = np.zeros(len(given) + 1, dtype=np.int32)
        for label, at in result.values.items():
            table[at] = int(label)
        return table[result.labels]


def predict_together(
    method: Method, volume: Volume, prompts: Mapping[int, Prompts]
) -> npt.NDArray[np.integer]:
    """The label map of several objects, by any method.

    Methods for one object answer for each; a voxel goes to the object with the higher score, of equal ones to
    the earlier.
    """
    together = getattr(method, "together", None)
    if together is not None:
        return together(volume, prompts)
    labels = np.zeros(volume.shape, dtype=np.int32)
    best = np.zeros(volume.shape, dtype=np.float32)
    for value, own in prompts.items():
        scores = _checked(method(volume, own), volume).astype(np.float32, copy=False)
        wins = scores > best
        labels[wins] = value
        best[wins] = scores[wins]
    return labels


def run_task(
    method: Method,
    task: Task,
    clicks: int = 5,
    start: str = "box",
    limit: float = TIME_LIMIT,
    surfaces: bool = True,
    strict: bool = False,
) -> TaskOutcome:
    """Every step of the protocol on one case, all classes at once, as the challenge runs it.

    Step 0 gives the boxes. Each further step gives every class that has an error one click, and the method
    answers for all of them from all prompts so far. A step that fails counts as empty; the clicks go on from
    there.

    Args:
        method: what predicts.
        task: the case.
        clicks: rounds of corrections.
        start: one of `STARTS`. A point, the deepest voxel of each object, counts as no correction; nor do
            scattered ones.
        limit: seconds for each class; 0 for none.
        surfaces: measure surface Dice too.
        strict: let failures of the method propagate.
    """
    empty: npt.NDArray[np.integer] = np.zeros(task.volume.shape, dtype=np.int32)
    given: dict[int, list[Click]] = {value: [] for value in task.values}
    boxes = task.boxes if start == "box" else None
    if start == "box2d":
        boxes = {value: drawn_box(task.labels == value, task.spacing) for value in task.values}
    if start == "lasso":
        drawn = {value: drawn_lasso(task.labels == value, task.spacing) for value in task.values}
        boxes = {value: box for value, (_, box) in drawn.items()}
        given = {value: list(clicks) for value, (clicks, _) in drawn.items()}
    if start == "point":
        _add_clicks(given, empty, task)
    if start == "scattered":
        given = {value: list(scattered_clicks(task.labels == value)) for value in task.values}
    steps: list[Step] = []
    labels, spent = empty, 0.0
    for step in range(clicks + 1):
        if step > 0 and not _add_clicks(given, labels, task):
            # The same prompts would give the same masks.
            steps += [_again(steps[-1])] * (clicks + 1 - step)
            break
        prompts = {
            value: Prompts(tuple(own), boxes[value] if boxes is not None else None, ordered=True)
            for value, own in given.items()
            if own or boxes is not None
        }
        begin, failure = time.perf_counter(), ""
        try:
            labels = predict_together(method, task.volume, prompts) if prompts else empty
            if labels.shape != task.volume.shape:
                raise ValueError(f"labels of shape {labels.shape} came for a volume of {task.volume.shape}")
        except Exception as error:
            if strict:
                raise
            logger.warning("Step %d failed: %s", step, error)
            labels, failure = empty, f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - begin
        spent += seconds
        if limit and spent > limit * len(task.values):
            none = (0.0,) * len(task.values)
            zero = [Step(none, none, s.seconds, s.clicks, s.failure) for s in steps]
            zero.append(Step(none, none, seconds, sum(map(len, given.values())), failure))
            zero += [_again(zero[-1])] * (clicks - step)
            return TaskOutcome(zero, True, labels)
        scores, distances = _scores(task, labels, surfaces)
        steps.append(Step(scores, distances, seconds, sum(map(len, given.values())), failure))
    return TaskOutcome(steps, False, labels)


def drawn_box(truth: Mask, spacing: Position) -> Box:
    """The box that the exact rectangle around an object makes, in the slice along z where it is largest."""
    z = int(truth.sum(axis=(1, 2)).argmax())
    flat = Box.of_mask(truth[z : z + 1])
    return joined([Box((z, *flat.lo[1:]), (z + 1, *flat.hi[1:]))], spacing)


def drawn_lasso(truth: Mask, spacing: Position) -> tuple[tuple[Click, ...], Box]:
    """What becomes of a line around an object in the slice along z where it is largest.

    As somebody draws it: `LOOSE` voxels outside of the object. What it encloses counts as it is, so that
    clicks may lie beside an object that is thin or bent.
    """
    z = int(truth.sum(axis=(1, 2)).argmax())
    mask = np.zeros_like(truth)
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), LOOSE)
    mask[z] = ndimage.binary_dilation(truth[z], ball)
    voxels, around = understood(mask)
    return tuple(Click((z, y, x)) for z, y, x in voxels.tolist()), joined([around], spacing)


def scattered_clicks(truth: Mask) -> tuple[Click, ...]:
    """`SCATTERED` voxels of an object, or a tenth of a small one, drawn evenly; the same in every run."""
    inside = np.argwhere(truth)
    count = min(SCATTERED, -(-len(inside) // 10))
    chosen = np.random.default_rng(len(inside)).choice(len(inside), count, replace=False)
    return tuple(Click((z, y, x)) for z, y, x in inside[chosen].tolist())


def run_object(
    method: Method, volume: Volume, truth: Mask, clicks: int, start: str
) -> tuple[list[float], list[float]]:
    """Dice and seconds of one object on its own, after the start and after each click.

    Args:
        method: what predicts; what it raises propagates.
        volume: the image.
        truth: (D, H, W) bool.
        clicks: corrections after the start.
        start: "box" (the exact enclosing box) or "point" (the deepest voxel of the object, counted as no
            correction).
    """
    task = Task.of_objects(volume, truth.astype(np.uint8), (1,))
    steps = run_task(method, task, clicks, start, limit=0, surfaces=False, strict=True).steps
    return [step.dice[0] for step in steps], [step.seconds for step in steps]


def _add_clicks(given: dict[int, list[Click]], labels: npt.NDArray[np.integer], task: Task) -> bool:
    """Give each class its next click; whether there was one that was not given before."""
    new = False
    for value, own in given.items():
        click = next_click(labels == value, task.labels == value)
        if click is not None and click not in own:
            own.append(click)
            new = True
    return new


def _scores(
    task: Task, labels: npt.NDArray[np.integer], surfaces: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # One class at a time: the masks of a hundred classes of a large volume would not fit.
    scores = tuple(dice(labels == value, task.labels == value) for value in task.values)
    if not surfaces or np.mean(scores) <= LEAST_DICE:
        return scores, (0.0,) * len(scores)
    return scores, tuple(
        surface_dice(labels == value, task.labels == value, task.spacing) for value in task.values
    )


def _again(step: Step) -> Step:
    return Step(step.dice, step.nsd, 0.0, step.clicks)


def _checked(found: npt.NDArray[Any], volume: Volume) -> npt.NDArray[Any]:
    if found.shape != volume.shape:
        raise ValueError(f"a mask of shape {found.shape} came for a volume of {volume.shape}")
    return found
