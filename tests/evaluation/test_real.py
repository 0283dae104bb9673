"""The shipped weights on real labelled volumes: better than the ellipsoid inscribed in the same box."""

from __future__ import annotations

from pathlib import Path

import pytest
from dualclickmed.evaluation.cases import find_cases
from dualclickmed.evaluation.protocol import ellipsoid_method, expert_method, run_cases, summarise
from dualclickmed.predictor import Predictor

# Enough objects of every case for a mean, few enough for a minute.
MOST = 5


# Round lesions in coarse images are nearly ellipsoids: from the box alone there is little to win.
PET_MARGIN = 0.01


@pytest.mark.parametrize("modality", ["ct", "mri", "pet", "microscopy"])
def test_a_box_and_a_click_give_more_than_the_ellipsoid(real_data: Path, modality: str) -> None:
    cases = [c for c in find_cases(real_data) if c.group == modality]
    # Forty small cases of one data set would outvote all others.
    cases = [c for i, c in enumerate(cases) if "hippocampus" not in c.name or i % 8 == 0]
    methods = {"ours": expert_method(Predictor.from_weights().expert, "paper"), "ellipsoid": ellipsoid_method}
    scores = run_cases(cases, methods, 1, "box", 50, MOST)
    rows = {r.method: r for r in summarise(scores) if r.group == modality}
    ours, ellipsoid = rows["ours"].dice, rows["ellipsoid"].dice
    assert ours[0] > ellipsoid[0] - (PET_MARGIN if modality == "pet" else 0)
    assert ours[1] > ellipsoid[1]
