"""The shipped weights on real labelled volumes: better than the ellipsoid inscribed in the same box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dualclickmed.evaluation import classical
from dualclickmed.evaluation.cases import find_cases
from dualclickmed.evaluation.protocol import ExpertMethod, run_object
from dualclickmed.predictor import Predictor

# Enough objects of every case for a mean, few enough for a minute.
MOST = 5


@pytest.mark.parametrize("modality", ["ct", "mri", "pet", "microscopy"])
def test_a_box_and_a_click_give_more_than_the_ellipsoid(real_data: Path, modality: str) -> None:
    cases = [c for c in find_cases(real_data) if c.group == modality]
    # Forty small cases of one data set would outvote all others.
    cases = [c for i, c in enumerate(cases) if "hippocampus" not in c.name or i % 8 == 0]
    methods = {
        "ours": ExpertMethod(Predictor.from_weights().expert, "paper"),
        "ellipsoid": classical.ellipsoid,
    }
    scores: dict[str, list[list[float]]] = {name: [] for name in methods}
    for case in cases:
        task = case.task(smallest=50, most=MOST)
        for value in task.values:
            for name, method in methods.items():
                scores[name].append(run_object(method, task.volume, task.labels == value, 1, "box")[0])
    ours, ellipsoid = (np.mean(scores[name], axis=0) for name in ("ours", "ellipsoid"))
    assert ours[0] > ellipsoid[0]
    assert ours[1] > ellipsoid[1]
