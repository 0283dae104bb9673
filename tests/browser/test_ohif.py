"""What an annotator does in OHIF, checked on the voxels that OHIF shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dualclickmed.demo.trunk import ORGANS
from dualclickmed.evaluation.metrics import dice
from scipy import ndimage

from tests.browser.conftest import PICTURES, SPACING
from tests.browser.ohif import VIEWS, Run, Shown, Viewer
from tests.support.dicoms import LAYOUTS, Archive, WrittenSeries
from tests.support.live import Server
from tests.support.nrrd_answers import read_nrrd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Trunk = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]
TASK, OBJECT = "dualclickmed", "dualclickmed_object"


@pytest.fixture
def viewer(context: object, server: Server) -> Viewer:
    return Viewer(context, server.url, PICTURES)  # type: ignore[arg-type]


def in_patient(index: npt.NDArray[np.integer], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """LPS millimetres of voxels (x, y, z) of the sample, whose centre is the origin of every series."""
    return (np.asarray(index) - (np.asarray(shape) - 1) / 2) * np.asarray(SPACING)


def inside(trunk: Trunk, organ: str) -> npt.NDArray[np.float64]:
    """The place (LPS millimetres) that is farthest from an organ's surface."""
    mask = trunk[1] == ORGANS.index(organ) + 1
    depth = ndimage.distance_transform_edt(mask, SPACING)
    return in_patient(np.unravel_index(depth.argmax(), depth.shape), mask.shape)  # type: ignore[arg-type]


def index_of(world: npt.NDArray[np.float64], shown: Shown) -> tuple[int, ...]:
    found = np.linalg.solve(shown.affine, [*world, 1])[:3]
    return tuple(np.rint(found).astype(int).tolist())


def truth_as_shown(trunk: Trunk, organ: str, shown: Shown) -> npt.NDArray[np.bool_]:
    """An organ on the viewer's grid, found through the patient's coordinates alone."""
    mask = trunk[1] == ORGANS.index(organ) + 1
    grid = np.moveaxis(np.indices(shown.voxels.shape), 0, -1)
    world = grid @ shown.affine[:3, :3].T + shown.affine[:3, 3]
    index = world / SPACING + (np.asarray(mask.shape) - 1) / 2
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    return mask[tuple(np.moveaxis(np.rint(index).astype(int), -1, 0))]


def check_shows_the_answer(run: Run, shown: Shown, labels: dict[str, int]) -> None:
    """OHIF's voxels are the server's, in the same order, in each label's own colour."""
    assert run.status == 200, run.body
    answer, _ = read_nrrd(run.body)
    assert shown.voxels.shape == answer.shape
    for label, value in labels.items():
        np.testing.assert_array_equal(shown.mask(label), answer == value, err_msg=label)
    assert shown.labels() == {label for label, value in labels.items() if (answer == value).any()}


def values_of(server: Server) -> dict[str, int]:
    labels = server.get("/info/").json()["models"][TASK]["labels"]
    return {label: value for label, value in labels.items() if label != "background"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_clicks_become_masks(
    viewer: Viewer, server: Server, generated: dict[str, WrittenSeries], trunk: Trunk, name: str
) -> None:
    values = values_of(server)
    viewer.open(generated[name].study)
    assert set(viewer.rows()) == {"background", *values}
    viewer.picture(f"{name}-1-connected")
    spleen, heart = inside(trunk, "spleen"), inside(trunk, "heart")

    viewer.choose("spleen")
    viewer.click(spleen)
    run = viewer.run()
    shown = viewer.shown()
    at = index_of(spleen, shown)
    assert run.params["spleen"] == [list(at)]
    check_shows_the_answer(run, shown, {"spleen": values["spleen"]})
    found = shown.mask("spleen")
    assert found[at]
    truth = truth_as_shown(trunk, "spleen", shown)
    # One click finds a part of the organ or all of it, and little else: a mask on a mirrored grid would not.
    assert found.sum() > 0.1 * truth.sum()
    assert (found & truth).sum() > 0.8 * found.sum()
    viewer.picture(f"{name}-2-click", spleen)

    # A place in the mask that is not to belong to it, as far from the click as there is one.
    distance = np.linalg.norm(
        (np.argwhere(found) - at) * np.linalg.norm(shown.affine[:3, :3], axis=0), axis=1
    )
    wrong = np.argwhere(found)[distance.argmax()]
    viewer.choose("background")
    viewer.click(shown.affine[:3, :3] @ wrong + shown.affine[:3, 3])
    run = viewer.run()
    assert run.params["background"] == [wrong.tolist()]
    shown = viewer.shown()
    check_shows_the_answer(run, shown, {"spleen": values["spleen"]})
    assert not shown.mask("spleen")[tuple(wrong)]
    assert shown.mask("spleen")[at]
    viewer.picture(f"{name}-3-background")

    viewer.choose("heart")
    viewer.click(heart, VIEWS[1])
    run = viewer.run()
    assert run.params["heart"] == [list(index_of(heart, shown))]
    shown = viewer.shown()
    check_shows_the_answer(run, shown, {label: values[label] for label in ("spleen", "heart")})
    assert shown.mask("heart")[index_of(heart, shown)]
    assert shown.mask("spleen")[at]
    viewer.picture(f"{name}-4-second-label")

    # Two corners are a box for the global expert; none of them is a click that has to hold.
    viewer.options(TASK, strategy="global", clicks="corners")
    viewer.picture(f"{name}-5-options")
    viewer.confirm()
    viewer.clear()
    kidney = truth_as_shown(trunk, "left kidney", shown)
    edges = np.argwhere(kidney)
    corners = [edges.min(axis=0), edges.max(axis=0)]
    viewer.choose("left kidney")
    for corner in corners:
        viewer.click(shown.affine[:3, :3] @ corner + shown.affine[:3, 3])
    run = viewer.run()
    assert run.params["strategy"] == "global"
    assert run.params["clicks"] == "corners"
    np.testing.assert_array_equal(run.params["left kidney"], corners)
    before, shown = shown, viewer.shown()
    found = shown.mask("left kidney")
    # OHIF itself leaves alone what it shows of labels that are not in the answer.
    others = before.mask("spleen") | before.mask("heart")
    answer = read_nrrd(run.body)[0] == values["left kidney"]
    np.testing.assert_array_equal(found, answer & ~others)
    for label in ("spleen", "heart"):
        np.testing.assert_array_equal(shown.mask(label), before.mask(label))
    assert dice(found, kidney) > 0.85
    assert not any(found[tuple(corner)] for corner in corners)
    viewer.show(inside(trunk, "left kidney"))
    viewer.picture(f"{name}-6-corners", inside(trunk, "left kidney"))
    assert not viewer.errors


def test_one_object_leaves_all_other_labels_alone(
    viewer: Viewer, server: Server, generated: dict[str, WrittenSeries], trunk: Trunk
) -> None:
    """The task for one object answers for the chosen row alone; what else is shown is finished."""
    viewer.open(generated["axial"].study)
    viewer.task(OBJECT)
    viewer.choose("liver")
    viewer.click(inside(trunk, "liver"))
    assert viewer.run().params["foreground"]
    liver = viewer.shown().mask("liver")
    assert liver.any()
    viewer.choose("stomach")
    viewer.click(inside(trunk, "stomach"))
    run = viewer.run()
    shown = viewer.shown()
    np.testing.assert_array_equal(shown.mask("liver"), liver)
    np.testing.assert_array_equal(shown.mask("stomach"), (read_nrrd(run.body)[0] == 1) & ~liver)
    assert shown.mask("stomach")[index_of(inside(trunk, "stomach"), shown)]
    assert shown.labels() == {"liver", "stomach"}


def test_a_refusal_is_shown_and_nothing_is_lost(
    viewer: Viewer, server: Server, generated: dict[str, WrittenSeries], trunk: Trunk
) -> None:
    viewer.open(generated["axial"].study)
    viewer.choose("spleen")
    viewer.click(inside(trunk, "spleen"))
    viewer.run()
    before = viewer.shown()
    viewer.clear()
    refused = viewer.run()
    assert refused.status == 400
    assert "At least one foreground click or a box is needed" in refused.body.decode()
    np.testing.assert_array_equal(viewer.shown().voxels, before.voxels)


@pytest.mark.parametrize("name", ["sts_012_ct", "sts_012_mr"])
def test_real_series(viewer: Viewer, server: Server, archive: Archive, real_data: Path, name: str) -> None:
    """A click in the contour that an expert drew, in a series from a scanner."""
    folder = real_data / "dicom" / name
    archive.add(folder / "image")
    contours = [
        np.reshape(contour.ContourData, (-1, 3))
        for roi in pydicom.dcmread(folder / "mask" / "RS.dcm").ROIContourSequence
        for contour in roi.ContourSequence
    ]
    largest = max(contours, key=lambda points: float(np.prod(np.ptp(points[:, :2], axis=0))))
    header = pydicom.dcmread(next((folder / "image").iterdir()), stop_before_pixels=True)
    viewer.open(str(header.StudyInstanceUID))
    viewer.choose("tumor")
    viewer.click(largest.mean(axis=0))
    run = viewer.run()
    shown = viewer.shown()
    (at,) = run.params["tumor"]
    assert np.linalg.norm(shown.affine @ [*at, 1] - [*largest.mean(axis=0), 1]) < 4
    check_shows_the_answer(run, shown, {"tumor": values_of(server)["tumor"]})
    assert shown.mask("tumor")[tuple(at)]
    viewer.picture(name)
