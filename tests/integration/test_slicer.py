"""3D Slicer's extension against the running server: what it sends, and what its user sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.live import CT_SHAPE, LABELS, ORIENTATIONS, SMALL_SHAPE, Server, orientation_id
from tests.support.slicer import Failure, SegmentationsLogic, Slicer, extension, recorded

TASK, OBJECT = "dualclickmed", "dualclickmed_object"
# Axes that are exchanged and reversed, so that a box's ends come in the wrong order.
TURNED = orientation_id(next(o for o in ORIENTATIONS if o[0] == (2, 0, 1)))
OPTIONS = {
    "strategy": "paper",
    "clicks": "inside",
    "existing": "ignore",
    "overlap": "likelier",
    "ct_window": "auto",
    "device": "cpu",
}
ALWAYS = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}


@pytest.fixture(scope="module")
def plugin() -> Iterator[tuple[ModuleType, SegmentationsLogic]]:
    with extension() as loaded:
        yield loaded


@pytest.fixture
def sent(plugin: tuple[ModuleType, SegmentationsLogic]) -> Iterator[list[dict[str, Any]]]:
    with recorded(plugin[0]) as requests:
        yield requests


def opened(
    plugin: tuple[ModuleType, SegmentationsLogic], server: Server, image: str, tmp_path: Path
) -> Slicer:
    return Slicer(*plugin, server.url, server.studies / f"{image}.nii.gz", tmp_path)


def test_several_labels(plugin: Any, server: Server, sent: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each label's points are sent with every request, so that the first one is still shown at the end."""
    slicer = opened(plugin, server, "ct", tmp_path)
    assert list(slicer.segments) == ["background", *LABELS]
    slicer.segment(TASK, "liver", [[30, 30, 15]])
    first = slicer.segments["liver"].mask
    slicer.segment(TASK, "tumor", [[50, 20, 10]])
    slicer.segment(TASK, "background", [[10, 60, 5]])
    assert sent[-1] == {
        "method": "POST",
        "selector": "/infer/dualclickmed?image=ct",
        "background": [[10, 60, 5]],
        "liver": [[30, 30, 15]],
        "spleen": [],
        "kidney": [],
        "tumor": [[50, 20, 10]],
        "label": "background",
        **OPTIONS,
        **ALWAYS,
    }
    assert first[30, 30, 15]
    assert slicer.shown() == {"liver", "tumor"}
    assert slicer.segments["liver"].mask[30, 30, 15]
    assert slicer.segments["tumor"].mask[50, 20, 10]
    assert not slicer.segments["tumor"].mask[10, 60, 5]
    assert not slicer.segments["liver"].mask[10, 60, 5]
    assert slicer.segments["liver"].mask.shape == CT_SHAPE


def test_undo_removes_a_point(plugin: Any, server: Server, tmp_path: Path) -> None:
    slicer = opened(plugin, server, "ct", tmp_path)
    slicer.segment(TASK, "liver", [[30, 30, 15]])
    once = slicer.segments["liver"].mask
    slicer.segment(TASK, "liver", [[30, 30, 15], [5, 5, 5]])
    assert (slicer.segments["liver"].mask != once).any()
    slicer.segment(TASK, "liver", [[30, 30, 15]])
    np.testing.assert_array_equal(slicer.segments["liver"].mask, once)


def test_a_box_whose_pairs_are_reversed(
    plugin: Any, server: Server, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The untrained global expert answers with the ellipsoid that touches the box on all sides."""
    slicer = opened(plugin, server, TURNED, tmp_path)
    slicer.draw_roi((9, 10, 4), (20, 29, 15))
    slicer.segment(TASK, "spleen")
    box = sent[-1]["roi"]
    assert sent[-1]["label"] == "spleen"
    pairs = [box[0:2], box[2:4], box[4:6]]
    assert any(first > last for first, last in pairs)
    found = np.argwhere(slicer.segments["spleen"].mask)
    # The ROI lies along the patient's axes, the image slightly oblique: what counts is what was sent.
    assert np.abs(found.min(axis=0) - [min(pair) for pair in pairs]).max() <= 1
    assert np.abs(found.max(axis=0) - [max(pair) for pair in pairs]).max() <= 1
    slicer.remove_roi()
    slicer.segment(TASK, "kidney", [[30, 20, 20]])
    assert "roi" not in sent[-1]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=orientation_id)
def test_points_land_where_they_were_put(
    plugin: Any, server: Server, tmp_path: Path, orientation: Any
) -> None:
    """Slicer counts voxels through the patient's coordinates."""
    slicer = opened(plugin, server, orientation_id(orientation), tmp_path)
    slicer.segment(TASK, "tumor", [[39, 0, 25]], [])
    assert slicer.segments["tumor"].mask.shape == SMALL_SHAPE
    assert slicer.segments["tumor"].mask[39, 0, 25]
    slicer.segment(OBJECT, "kidney", [[8, 20, 5]], [[31, 12, 20]])
    assert slicer.segments["kidney"].mask[8, 20, 5]
    assert not slicer.segments["kidney"].mask[31, 12, 20]


def test_one_object_has_points_of_both_kinds(
    plugin: Any, server: Server, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    slicer = opened(plugin, server, "ct", tmp_path)
    slicer.segment(OBJECT, "kidney", [[27, 30, 19]], [[50, 61, 19]])
    assert sent[-1] == {
        "method": "POST",
        "selector": "/infer/dualclickmed_object?image=ct",
        "label": "kidney",
        "foreground": [[27, 30, 19]],
        "background": [[50, 61, 19]],
        **OPTIONS,
        **ALWAYS,
    }
    assert slicer.shown() == {"kidney"}


def test_an_image_of_its_own_becomes_a_session(
    plugin: Any, server: Server, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    slicer = opened(plugin, server, "ct", tmp_path)
    slicer.upload_as_session()
    slicer.segment(TASK, "liver", [[30, 30, 15]])
    slicer.segment(TASK, "liver", [[30, 30, 15], [31, 31, 15]])
    sessions = {request["selector"].split("session_id=")[1] for request in sent}
    assert len(sessions) == 1
    assert slicer.segments["liver"].mask[31, 31, 15]


def test_a_refusal_is_shown_with_its_sentence(plugin: Any, server: Server, tmp_path: Path) -> None:
    slicer = opened(plugin, server, "ct", tmp_path)
    with pytest.raises(Failure, match="At least one foreground click or a box is needed"):
        slicer.segment(TASK, "liver")


def test_what_was_submitted_is_kept_and_corrected(
    plugin: Any, server: Server, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    slicer = opened(plugin, server, TURNED, tmp_path)
    # The annotator's own hand: the third and the fourth of the labels, with the second one empty.
    kidney = np.zeros(SMALL_SHAPE, dtype=bool)
    kidney[5:15, 5:15, 5:15] = True
    tumor = np.zeros(SMALL_SHAPE, dtype=bool)
    tumor[20:30, 20:30, 10:20] = True
    slicer.segments["kidney"].mask, slicer.segments["tumor"].mask = kidney, tumor
    slicer.submit()
    assert sent[-1] == {
        "method": "PUT",
        "selector": f"/datastore/label?image={TURNED}",
        "label_info": [{"name": name, "idx": place} for place, name in enumerate(LABELS, start=2)],
        "client_id": "user-xyz",
    }

    slicer.option(TASK, "existing", "keep")
    slicer.segment(TASK, "liver", [[16, 16, 12]])
    np.testing.assert_array_equal(slicer.segments["kidney"].mask, kidney)
    np.testing.assert_array_equal(slicer.segments["tumor"].mask, tumor)
    assert slicer.segments["liver"].mask[16, 16, 12]
    assert slicer.shown() == {"liver", "kidney", "tumor"}
    with pytest.raises(Failure, match=r"clicked as 'spleen', but it belongs to 'kidney', which is finished"):
        slicer.segment(TASK, "spleen", [[6, 6, 6]])
    slicer.segment(TASK, "spleen", [])

    slicer.option(TASK, "existing", "correct")
    slicer.segment(TASK, "kidney", [[6, 6, 6]])
    np.testing.assert_array_equal(slicer.segments["kidney"].mask, kidney)
    slicer.option(OBJECT, "existing", "correct")
    slicer.segment(OBJECT, "tumor", [], [[20, 20, 10]])
    after = slicer.segments["tumor"].mask
    assert not after[20, 20, 10]
    assert after.any()
    assert not (after & ~tumor).any()


def test_the_next_sample_is_one_of_the_studies(plugin: Any, server: Server, tmp_path: Path) -> None:
    slicer = opened(plugin, server, "ct", tmp_path)
    sample = slicer.widget.logic.next_sample("first", {})
    assert nib.load(server.studies / Path(sample["path"]).name) is not None
