"""The answers of the weights that ship, on the sample study.

Processors and libraries may move counts and Dice a little, nothing else does. Whoever changes an answer on
purpose writes the new numbers here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.demo.sample import make_trunk
from dualclickmed.evaluation.metrics import dice
from dualclickmed.imaging.volume import from_grid
from dualclickmed.predictor import ObjectPrompts, Predictor
from scipy import ndimage

ORGANS = (1, 4)
"""Label values: a large organ, the liver, and a small one, the left kidney."""
COUNT_TOLERANCE, DICE_TOLERANCE = 0.01, 0.005


class Sample:
    """The sample study in a predictor, and its true labels."""

    def __init__(self) -> None:
        image, self.truth, affine = make_trunk()
        self.predictor = Predictor.from_weights(device="cpu", precision="float32")
        self.predictor.set_image(from_grid(image, affine, "ct"))

    def prompts(self, value: int, kind: str) -> ObjectPrompts:
        """A box of the organ, or its deepest voxel and the deepest one of a ring around it, or both."""
        mask = self.truth == value
        where = np.argwhere(mask)
        lo, hi = where.min(axis=0), where.max(axis=0) + 1
        box = [int(edge) for pair in zip(lo, hi, strict=True) for edge in pair] if kind != "points" else None
        if kind == "box":
            return ObjectPrompts(box=box)
        around = ndimage.distance_transform_edt(~mask)
        around[~((around > 2) & (around < 6))] = 0
        inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        return ObjectPrompts(points=[_highest(inside)], background=[_highest(around)], box=box)


def _highest(values: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    i, j, k = (int(at) for at in np.unravel_index(int(values.argmax()), values.shape))
    return i, j, k


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


@pytest.mark.parametrize(
    ("strategy", "kind", "expected"),
    [
        ("paper", "box", {1: (93933, 0.828), 4: (17527, 0.863)}),
        ("paper", "points", {1: (11848, 0.227), 4: (6341, 0.601)}),
        ("paper", "both", {1: (107769, 0.851), 4: (17556, 0.864)}),
        ("global", "both", {1: (107769, 0.851), 4: (17556, 0.864)}),
        ("local", "both", {1: (11848, 0.227), 4: (6341, 0.601)}),
        ("fused", "box", {1: (103931, 0.876), 4: (17527, 0.874)}),
        ("fused", "points", {1: (43654, 0.629), 4: (5513, 0.557)}),
        ("fused", "both", {1: (103931, 0.876), 4: (17527, 0.874)}),
    ],
)
def test_the_answers_on_the_sample_study(
    sample: Sample, strategy: str, kind: str, expected: dict[int, tuple[int, float]]
) -> None:
    asked = {str(organ): sample.prompts(organ, kind) for organ in ORGANS}
    labels = sample.predictor.predict_labels(asked, strategy=strategy)
    found = {
        organ: (int((labels == value).sum()), dice(labels == value, sample.truth == organ))
        for value, organ in enumerate(ORGANS, start=1)
    }
    for organ, (voxels, overlap) in expected.items():
        assert found[organ][0] == pytest.approx(voxels, rel=COUNT_TOLERANCE), found
        assert found[organ][1] == pytest.approx(overlap, abs=DICE_TOLERANCE), found
