"""The classical peers on volumes whose truth is known: they use the image, obey clicks and stay in bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from dualclickmed.errors import PromptError
from dualclickmed.evaluation import classical
from dualclickmed.evaluation.metrics import dice
from dualclickmed.evaluation.protocol import run_object
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from scipy import ndimage

METHODS = [classical.graph_cut, classical.random_walker, classical.region_growing]
SOLVERS = METHODS[:2]


def noisy(truth: np.ndarray, contrast: float = 60, spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    rng = np.random.default_rng(0)
    grey = 80 + contrast * truth + rng.normal(0, 12, truth.shape)
    return from_array(np.clip(grey, 0, 255).astype(np.uint8), spacing)


def bean() -> np.ndarray:
    """Not like the ellipsoid in its box: two balls at a corner of one another."""
    z, y, x = np.indices((36, 40, 44))
    one = (z - 12) ** 2 + (y - 13) ** 2 + (x - 14) ** 2 < 64
    two = (z - 21) ** 2 + (y - 23) ** 2 + (x - 25) ** 2 < 81
    return one | two


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("contrast", [60, -50])
def test_the_box_and_the_image_say_more_than_the_box(method: Callable, contrast: float) -> None:
    truth = bean()
    volume = noisy(truth, contrast)
    prompts = Prompts(box=Box.of_mask(truth))
    alone = dice(classical.ellipsoid(volume, prompts), truth)
    assert alone < 0.7
    # A cut is short: between the balls it takes the straight way.
    assert dice(method(volume, prompts) > 0, truth) > (0.95 if method is classical.random_walker else 0.78)


def test_region_growing_takes_what_looks_alike_inside_the_box() -> None:
    truth = bean()
    prompts = Prompts(box=Box.of_mask(truth), clicks=(Click((12, 13, 14)), Click((21, 23, 25))))
    assert dice(classical.region_growing(noisy(truth), prompts) > 0, truth) > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outside_the_box(method: Callable) -> None:
    truth = np.zeros((30, 30, 30), bool)
    truth[8:22, 8:22, :] = True  # the object looks alike beyond the box
    box = Box((8, 8, 10), (22, 22, 20))
    mask = method(noisy(truth), Prompts(box=box)) > 0
    assert mask.any() and not mask[:, :, :10].any() and not mask[:, :, 20:].any()


@pytest.mark.parametrize("method", SOLVERS)
def test_clicks_change_what_the_image_can_not_tell(method: Callable) -> None:
    """An object of two halves of which only one is wanted: the same grey level in the whole box."""
    both = np.zeros((24, 24, 40), bool)
    both[6:18, 6:18, 6:34] = True
    volume = noisy(both)
    box = Box((6, 6, 6), (18, 18, 34))
    inside, outside = (11, 11, 12), (11, 11, 28)
    mask = method(volume, Prompts((Click(inside), Click(outside, False)), box)) > 0
    assert mask[inside] and not mask[outside]
    assert mask[8:16, 8:16, 9:15].mean() > 0.9 and mask[10:13, 10:13, 27:30].mean() < 0.3
    assert method(volume, Prompts(box=box))[outside] > 0


@pytest.mark.parametrize("method", METHODS)
def test_points_alone_are_enough(method: Callable) -> None:
    z, y, x = np.indices((60, 60, 60))
    truth = (z - 30) ** 2 + (y - 28) ** 2 + (x - 32) ** 2 < 100
    mask = method(noisy(truth, 90), Prompts((Click((30, 28, 32)),))) > 0
    assert mask[30, 28, 32] and dice(mask, truth) > (0.6 if method is classical.region_growing else 0.85)
    with pytest.raises(PromptError, match="foreground"):
        method(noisy(truth), Prompts((Click((1, 1, 1), False),)))


@pytest.mark.parametrize("method", SOLVERS)
def test_large_and_flat_regions_are_shrunk_and_come_back_in_place(method: Callable) -> None:
    truth = np.zeros((20, 160, 150), bool)
    truth[6:14, 30:130, 20:120] = ndimage.binary_dilation(np.ones((8, 100, 100), bool))
    truth[:, 60:80, 60:80] = False
    volume = noisy(truth, spacing=(3.0, 0.8, 0.8))
    place = classical.problem_of(volume, Prompts(box=Box.of_mask(truth)))
    assert np.prod(place.roi.grid) <= classical.MAX_CELLS and place.roi.grid[0] == 14
    assert dice(method(volume, Prompts(box=Box.of_mask(truth))) > 0, truth) > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_one_voxel_and_a_flat_image_are_answered(method: Callable) -> None:
    flat = from_array(np.full((9, 9, 9), 7, np.int16))
    mask = method(flat, Prompts(box=Box((4, 4, 4), (5, 5, 5)))) > 0
    assert mask.sum() <= 1
    edge = method(flat, Prompts((Click((0, 0, 0)),), Box((0, 0, 0), (9, 9, 9)))) > 0
    assert edge.shape == (9, 9, 9)


@pytest.mark.parametrize("method", SOLVERS)
def test_clicks_of_the_protocol_do_not_make_it_worse(method: Callable) -> None:
    truth = bean()
    scores, _ = run_object(method, noisy(truth, 25), truth, 4, "box")
    assert scores[-1] > scores[0] - 0.01 and scores[-1] > 0.8
