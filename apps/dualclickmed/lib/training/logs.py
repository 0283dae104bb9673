"""The log of a run: a progress bar, a CSV, TensorBoard."""

from __future__ import annotations

import csv
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm import tqdm

from ..simulation.clicks import Clicks

if TYPE_CHECKING:
    from .batches import GlobalBatch, LocalBatch

logger = logging.getLogger(__name__)

LOG = "log.csv"
# Without a terminal to draw a bar in, a line is logged this often.
SECONDS_BETWEEN_LINES = 30.0
_GREEN, _RED, _YELLOW = (0, 200, 0), (230, 40, 40), (255, 210, 0)


@dataclass(frozen=True)
class Progress:
    """The state of a training after a step.

    Attributes:
        step, steps: done, and to do in all (fewer if the time is up earlier).
        loss: of the step.
        dice: mean Dice of the step's last masks, those after all clicks.
        seconds: that the run has taken, earlier parts included.
        left: an estimate of what remains.
    """

    step: int
    steps: int
    loss: float
    dice: float
    seconds: float
    left: float


@dataclass(frozen=True)
class LogEntry:
    """One row of the CSV: means since the row before it."""

    step: int
    samples: int
    seconds: float
    objects_per_second: float
    rate: float
    loss: float
    dice: Sequence[float]


class RunLog:
    """The log of one run; it does nothing in processes that do not lead.

    Args:
        out: folder of log.csv and of TensorBoard's events.
        steps: of the run.
        step: of the first one to come.
        leads: whether this process logs.
        tensorboard: write events.
    """

    def __init__(self, out: Path, steps: int, step: int, leads: bool, tensorboard: bool) -> None:
        self._out, self._leads = out, leads
        self._steps, self._told = steps, time.monotonic()
        self._bar: Any = None
        if leads and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)
        self._events: Any = None
        if leads and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def tick(self, now: Progress, speed: float) -> None:
        """After every step; `speed` in objects per second."""
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{now.loss:.3f}", dice=f"{now.dice:.3f}", objects=f"{speed:.2f}/s")
        elif self._leads and time.monotonic() - self._told > SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            logger.info(
                "Step %d of %d, loss %.3f, Dice %.3f, %.2f objects per second, %.0f minutes left.",
                now.step,
                self._steps,
                now.loss,
                now.dice,
                speed,
                now.left / 60,
            )

    def write(self, entry: LogEntry) -> None:
        """Append a row to the CSV, and its numbers to TensorBoard's."""
        if not self._leads:
            return
        path = self._out / LOG
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                names = [f"dice_{i}" for i in range(len(entry.dice))]
                # Speed comes last, so that the rows of a resumed older log keep their meaning.
                columns = ["step", "samples", "seconds", "rate", "loss", *names, "objects_per_second"]
                writer.writerow(columns)
            numbers = [f"{entry.seconds:.0f}", f"{entry.rate:.2e}", f"{entry.loss:.4f}"]
            numbers += [*(f"{d:.4f}" for d in entry.dice), f"{entry.objects_per_second:.2f}"]
            writer.writerow([entry.step, entry.samples, *numbers])
        if self._events is not None:
            self._events.add_scalar("train/loss", entry.loss, entry.step)
            self._events.add_scalar("train/rate", entry.rate, entry.step)
            self._events.add_scalar("train/objects per second", entry.objects_per_second, entry.step)
            self._events.add_scalar("train/dice first prompt", entry.dice[0], entry.step)
            self._events.add_scalar("train/dice last click", entry.dice[-1], entry.step)

    def validation(self, step: int, measured: Mapping[str, float]) -> None:
        """Dice on the validation objects."""
        if self._leads:
            text = ", ".join(f"{name} {value}" for name, value in measured.items())
            logger.info("Validation at step %d: %s.", step, text)
        if self._events is not None:
            for name, value in measured.items():
                self._events.add_scalar(f"validation/{name}", value, step)

    def picture(
        self, step: int, batch: GlobalBatch | LocalBatch, clicks: Sequence[Clicks], logits: Tensor
    ) -> None:
        """The first object of a batch with its truth, its last mask and its clicks, for TensorBoard."""
        if self._events is None:
            return
        self._events.add_image("clicks", clicks_picture(batch, clicks, logits), step, dataformats="HWC")

    def close(self) -> None:
        """Close the bar and the events."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()


def clicks_picture(
    batch: GlobalBatch | LocalBatch, clicks: Sequence[Clicks], logits: Tensor, scale: int = 4
) -> npt.NDArray[np.uint8]:
    """The three slices through the last click of a batch's first object.

    Truth is outlined in green, the mask in red; clicks on the slice are yellow crosses, those of the
    background red ones.

    Returns:
        (height, width, 3) uint8, the slices along z, y and x side by side.
    """
    image = batch.image[0, 0].float().numpy(force=True)
    low, high = float(image.min()), float(image.max())
    grey = ((image - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    truth = batch.truth[0].numpy(force=True)
    mask: npt.NDArray[np.bool_] = logits[0].numpy(force=True) > 0
    points = [
        (tuple(int(v) for v in point), int(label))
        for group in clicks
        for point, label in zip(group.points[0].tolist(), group.labels[0].tolist(), strict=True)
        if label >= 0
    ]
    at = points[-1][0] if points else tuple(n // 2 for n in grey.shape)
    slices = []
    for axis in range(3):
        canvas = np.repeat(np.moveaxis(grey, axis, 0)[at[axis]][:, :, None], 3, axis=2)
        canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
        for outlined, colour in ((truth, _GREEN), (mask, _RED)):
            canvas[_outline(np.moveaxis(outlined, axis, 0)[at[axis]], scale)] = colour
        for point, label in points:
            if point[axis] == at[axis]:
                row, column = (int((v + 0.5) * scale) for i, v in enumerate(point) if i != axis)
                colour = _YELLOW if label == 1 else _RED
                canvas[max(0, row - scale) : row + scale + 1, column] = colour
                canvas[row, max(0, column - scale) : column + scale + 1] = colour
        slices.append(canvas)
    return np.concatenate(slices, axis=1)


def _outline(mask: npt.NDArray[np.bool_], scale: int) -> npt.NDArray[np.bool_]:
    large = mask.repeat(scale, axis=0).repeat(scale, axis=1)
    inner = large.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(large, step, axis)
    return large & ~inner
