"""Options in any combination, on experts with small untrained weights: refused with a sentence, or right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.experts.dual import STRATEGIES
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.mask_files import DTYPES, EXTENSIONS
from dualclickmed.infers.dialects import CLICKS
from dualclickmed.infers.layers import EXISTING, OVERLAPS
from dualclickmed.infers.segmenter import Segmenter
from dualclickmed.infers.tasks import CONTENTS, LabelsTask
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.live import an_image, make_weights

SHAPE = (24, 20, 16)
VALUES = {"liver": 1, "spleen": 2}
Answered = Callable[[dict[str, Any], str | None], tuple[npt.NDArray[Any], dict[str, Any]]]

voxels = st.tuples(*(st.integers(0, n - 1) for n in SHAPE)).map(list)


def few(most: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(voxels, max_size=most, unique_by=tuple)


options = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(STRATEGIES),
        "clicks": st.sampled_from(CLICKS),
        "existing": st.sampled_from(EXISTING),
        "overlap": st.sampled_from(OVERLAPS),
        "locked": st.lists(st.sampled_from(list(VALUES)), max_size=2),
        "result_content": st.sampled_from(CONTENTS),
        "result_extension": st.sampled_from(EXTENSIONS),
        "result_dtype": st.sampled_from(DTYPES),
        "result_compress": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """Asks the task; the second argument names an uploaded segmentation: "same", "other" or None."""
    folder = tmp_path_factory.mktemp("options")
    weights = folder / "weights"
    make_weights(weights)
    image = folder / "image.nii.gz"
    nib.save(nib.Nifti1Image(an_image(SHAPE), np.eye(4)), image)
    for name, shape in (("same", SHAPE), ("other", (9, 8, 7))):
        stored = np.zeros(shape, np.uint8)
        stored[2:7, 2:7, 2:6] = 1
        nib.save(nib.Nifti1Image(stored, np.eye(4)), folder / f"{name}.nii.gz")
    task = LabelsTask(Segmenter(ServerOptions(labels=LabelMap(tuple(VALUES)), model_dir=weights)))

    def ask(request: dict[str, Any], uploaded: str | None) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        sent = {**request, "image": str(image)}
        if uploaded is not None:
            sent |= {"existing_path": str(folder / f"{uploaded}.nii.gz"), "uploaded": True}
        name, details = task(sent)
        path = Path(name)
        try:
            array = nrrd.read(name)[0] if name.endswith("nrrd") else np.asarray(nib.load(path).dataobj)
        finally:
            path.unlink()
        json.dumps(details, allow_nan=False)
        return array, details

    return ask


@given(few(3), few(3), few(3), options, st.sampled_from([None, "same", "other"]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_options_in_any_combination(
    answered: Answered,
    liver: list[list[int]],
    spleen: list[list[int]],
    background: list[list[int]],
    chosen: dict[str, Any],
    uploaded: str | None,
) -> None:
    request = {"liver": liver, "spleen": spleen, "background": background, **chosen}
    try:
        array, details = answered(request, uploaded)
    except HTTPException as refused:
        assert refused.status_code == 400
        assert len(refused.detail) > 20
        return
    assert array.shape == SHAPE
    assert array.dtype == np.dtype(chosen.get("result_dtype", "uint8"))
    if chosen.get("result_content") == "uncertainty":
        assert ((array >= 0) & (array <= 100)).all()
        return
    assert set(np.unique(array)) <= {0, 1, 2}
    corners = chosen.get("clicks") == "corners" or chosen.get("strategy") == "global"
    for label, clicked in (("liver", liver), ("spleen", spleen)):
        for voxel in clicked[2:] if corners else clicked:
            assert array[tuple(voxel)] == VALUES[label]
    asked = [VALUES[label] for label, clicked in (("liver", liver), ("spleen", spleen)) if clicked]
    for voxel in background:
        assert array[tuple(voxel)] not in asked
    assert {
        name: int((array == value).sum()) for name, value in VALUES.items() if name in details["voxels"]
    } == (details["voxels"])
    again, _ = answered(request, uploaded)
    np.testing.assert_array_equal(again, array)
