"""Both protocols, answered by a segmentation that is simple enough to be known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.imaging.prompts import Prompts
from dualclickmed.imaging.volume import Volume
from dualclickmed.server.limits import Limits
from dualclickmed.viewers.options import ViewerOptions
from dualclickmed.viewers.serving import Served, Viewers

Mask = npt.NDArray[np.bool_]
REACH = 2
"""Voxels that a click reaches along each axis."""


def segment(volume: Volume, prompts: Prompts, start: Mask | None) -> Mask:
    """The mask that is corrected and the box, with cubes about clicks added, and then taken away."""
    mask = np.zeros(volume.shape, dtype=np.bool_) if start is None else start.copy()
    checked = prompts.checked(volume.shape)
    if checked.box is not None:
        mask[checked.box.centres(volume.shape)] = True
    for click in sorted(checked.clicks, key=lambda click: not click.positive):
        mask[tuple(slice(max(0, at - REACH), at + REACH + 1) for at in click.index)] = click.positive
    return mask


class Kept:
    """What was handed on to learning, and which images were forgotten."""

    def __init__(self) -> None:
        self.finished: list[tuple[Volume, list[Mask]]] = []
        self.forgotten: list[str] = []

    def served(self) -> Served:
        return Served(
            segment,
            lambda volume: self.forgotten.append(volume.key),
            "Apache-2.0",
            lambda volume, masks: self.finished.append((volume, masks)),
        )


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def options() -> ViewerOptions:
    """On ports that are free."""
    return ViewerOptions(nninteractive=0, itksnap=0, sessions=3, memory_bytes=64 << 20)


@pytest.fixture
def viewers(kept: Kept, options: ViewerOptions) -> Iterator[Viewers]:
    """Both protocols, listening."""
    started = Viewers(options, Limits(), kept.served())
    started.start()
    yield started
    started.stop()


@pytest.fixture
def nninteractive(viewers: Viewers) -> str:
    """Its address."""
    return viewers.addresses["nnInteractive"]


@pytest.fixture
def itksnap(viewers: Viewers) -> str:
    """Its address."""
    return viewers.addresses["ITK-SNAP"]
