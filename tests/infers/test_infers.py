"""Requests in every dialect to prompts, answers to files, and which images a request may read."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
import pytest
import requests
import SimpleITK as sitk
from dualclickmed.configs import wire
from dualclickmed.configs.options import ServerOptions
from dualclickmed.errors import PromptError, UserError
from dualclickmed.experts import Result
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.label_map import LabelMap, colour_of
from dualclickmed.imaging.mask_files import EXTENSIONS, LabelledMask, Segment, write
from dualclickmed.imaging.prompts import Click
from dualclickmed.imaging.volume import Volume, from_array, load_volume
from dualclickmed.infers.dialects import (
    MAX_CLICKS,
    RawPrompts,
    choice,
    flag,
    locked_labels,
    named_order,
    read_prompts,
    to_canonical,
    word,
)
from dualclickmed.infers.images import with_image
from dualclickmed.infers.layers import Layers
from dualclickmed.infers.segmenter import Answer, SegmentRequest
from dualclickmed.infers.tasks import ClickTask, LabelsTask, ObjectTask
from fastapi import HTTPException
from hypothesis import given, settings
from hypothesis import strategies as st

LABELS = LabelMap(("liver", "spleen", "left kidney"))
ONE = LabelMap(("object",))

P, Q, R = (1, 2, 3), (4, 5, 6), (7, 8, 9)
A, B, C = [list(point) for point in (P, Q, R)]

# What OHIF 3 sent, word for word.
OHIF = {
    "background": [[50, 61, 19]],
    "liver": [[27, 30, 19]],
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}

# What 3D Slicer's plugin puts together for a deepedit model: every label, the chosen one, config, roi.
SLICER = {
    "background": [B],
    "liver": [A],
    "spleen": [],
    "left kidney": [],
    "label": "liver",
    "strategy": "paper",
    "ct_window": "auto",
    "device": "cpu",
    "roi": [30, 10, 40, 20, 5, 15],
    "reset_state": True,
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "client_id": "user-xyz",
}


def raw(
    foreground: list[tuple[int, int, int]] | None = None,
    background: list[tuple[int, int, int]] | None = None,
    box: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None,
) -> RawPrompts:
    return RawPrompts(foreground or [], background or [], box)


BOX = ((10, 20, 5), (31, 41, 16))


@pytest.mark.parametrize(
    ("labels", "request_", "expected"),
    [
        pytest.param(LABELS, OHIF, {"liver": raw([(27, 30, 19)], [(50, 61, 19)])}, id="ohif"),
        pytest.param(LABELS, SLICER, {"liver": raw([P], [Q], BOX)}, id="slicer"),
        pytest.param(
            LABELS,
            {"spleen": [A], "liver": [B, C], "background": []},
            {"liver": raw([Q, R]), "spleen": raw([P])},
            id="labels come in the server's order",
        ),
        pytest.param(
            LABELS,
            {"liver": [A], "spleen": [B], "background": [C]},
            {"liver": raw([P], [R]), "spleen": raw([Q], [R])},
            id="background counts for every label",
        ),
        pytest.param(LABELS, {"Left Kidney": [A]}, {"left kidney": raw([P])}, id="case"),
        pytest.param(
            LABELS, {"liver": "[[1, 2, 3]]", "background": "[[4,5,6]]"}, {"liver": raw([P], [Q])}, id="json"
        ),
        pytest.param(LABELS, {"liver": [[1.0, 2.0, 3.0]]}, {"liver": raw([P])}, id="whole floats"),
        pytest.param(
            LABELS, {"liver": [A], "spleen": None, "null": []}, {"liver": raw([P])}, id="null and empty"
        ),
        pytest.param(
            LABELS,
            {"foreground": [A], "background": [B], "label": "spleen"},
            {"spleen": raw([P], [Q])},
            id="foreground and label",
        ),
        pytest.param(
            ONE, {"foreground": [A], "background": [B]}, {"object": raw([P], [Q])}, id="deepgrow from OHIF"
        ),
        pytest.param(
            ONE,
            {"foreground": [], "background": [], "roi": [10, 30, 20, 40, 5, 15], "label": "object"},
            {"object": raw(box=BOX)},
            id="deepgrow with a box alone",
        ),
        pytest.param(
            LABELS,
            {"points": [A, B, C], "point_labels": [1, 0, -1], "label_prompt": [2]},
            {"spleen": raw([P], [Q])},
            id="vista by value",
        ),
        pytest.param(
            LABELS,
            {"points": [A], "point_labels": [1], "label_prompt": "left kidney"},
            {"left kidney": raw([P])},
            id="vista by name",
        ),
        pytest.param(
            LABELS,
            {"points": "[[1,2,3]]", "point_labels": "[1]", "label_prompt": "[3]"},
            {"left kidney": raw([P])},
            id="vista in strings",
        ),
        pytest.param(LABELS, {"points": [A], "label_prompt": 1}, {"liver": raw([P])}, id="points alone"),
        pytest.param(
            LABELS,
            {"points": [A], "point_labels": [1], "label": "spleen"},
            {"spleen": raw([P])},
            id="points and label",
        ),
        pytest.param(ONE, {"points": [A], "point_labels": [1]}, {"object": raw([P])}, id="vista, one object"),
        pytest.param(
            LABELS, {"roi": [10, 30, 40, 20, 15, 5], "label": "liver"}, {"liver": raw(box=BOX)}, id="reversed"
        ),
        pytest.param(
            LABELS,
            {"roi": [10, 10, 20, 40, 5, 15], "label": "liver"},
            {"liver": raw(box=((10, 20, 5), (11, 41, 16)))},
            id="a box on one slice",
        ),
        pytest.param(LABELS, {"liver": [A], "roi": []}, {"liver": raw([P])}, id="no box"),
        pytest.param(
            LABELS,
            {"liver": [A], "spleen": [B], "roi": "[10,30,20,40,5,15]", "label": "spleen"},
            {"liver": raw([P]), "spleen": raw([Q], box=BOX)},
            id="the box belongs to the label",
        ),
        pytest.param(
            LABELS,
            {"liver": [A], "roi": [10, 30, 20, 40, 5, 15], "label": "background"},
            {"liver": raw([P], box=BOX)},
            id="the box belongs to the only clicked label",
        ),
        pytest.param(
            LABELS,
            {"liver": [A], "foreground": [B], "label": "liver", "points": [C], "label_prompt": 1},
            {"liver": raw([P, Q, R])},
            id="mixed",
        ),
        pytest.param(
            LABELS,
            {"liver": [A], "size": [3, 4], "gpus": "all", "label_info": [{"name": "x"}], "strange": 7},
            {"liver": raw([P])},
            id="other keys",
        ),
    ],
)
def test_dialects(labels: LabelMap, request_: dict[str, Any], expected: dict[str, RawPrompts]) -> None:
    found = read_prompts(request_, labels)
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "At least one foreground click or a box is needed."),
        ({"liver": [], "background": []}, "At least one foreground click"),
        ({"background": [A]}, "only 1 background clicks"),
        ({"points": [A], "point_labels": [0], "label_prompt": 1}, "only 1 background clicks"),
        ({"livr": [A]}, "no label 'livr'; the labels are 'liver', 'spleen', 'left kidney'"),
        ({"null": [A]}, "no label 'null'"),
        ({"livr": "[[1,2,3]]"}, "no label 'livr'"),
        ({"liver": [A], "label": "lung"}, "no label 'lung'"),
        ({"liver": [A], "label": 3}, "'label' must be a label's name, but it is 3"),
        ({"foreground": [A]}, "'foreground' needs a 'label'"),
        ({"points": [A], "point_labels": [1]}, "'points' needs a 'label'"),
        ({"roi": [1, 2, 3, 4, 5, 6]}, "'roi' needs a 'label'"),
        ({"liver": [A], "spleen": [B], "roi": [1, 2, 3, 4, 5, 6]}, "'roi' needs a 'label'"),
        ({"liver": [[1, 2]]}, r"three whole numbers \[i, j, k\], but one is \[1, 2\]"),
        ({"liver": [1, 2, 3]}, "three whole numbers"),
        ({"liver": [[1, 2, 3, 4]]}, "three whole numbers"),
        ({"liver": [[[1, 2, 3]]]}, "three whole numbers"),
        ({"liver": "here"}, "but one is 'here'"),
        ({"liver": 5}, "'liver' must be a list, but it is 5"),
        ({"liver": {"x": 1}}, "'liver' must be a list"),
        ({"liver": [["a", 2, 3]]}, "'a' in .* is none"),
        ({"liver": [[1.5, 2, 3]]}, "1.5 in"),
        ({"liver": [[float("nan"), 2, 3]]}, "nan in"),
        ({"liver": [[float("inf"), 2, 3]]}, "inf in"),
        ({"liver": [[10**400, 2, 3]]}, "must hold whole numbers"),
        ({"liver": [[True, 2, 3]]}, "True in"),
        ({"liver": [[None, 2, 3]]}, "None in"),
        ({"liver": [A] * (MAX_CLICKS + 1)}, "may hold 10000 clicks"),
        ({"liver": [A] * MAX_CLICKS, "background": [B]}, "may hold 10000 clicks"),
        ({"points": [A, B], "point_labels": [1], "label_prompt": 1}, "each of the 2 points, but it has 1"),
        ({"points": [A], "point_labels": [2], "label_prompt": 1}, "but it holds 2"),
        ({"points": [A], "point_labels": ["1"], "label_prompt": 1}, "but it holds '1'"),
        ({"points": [A], "label_prompt": [1, 2]}, "the one label of the points"),
        ({"points": [A], "label_prompt": [0]}, "its value from 1 to 3, but it is 0"),
        ({"points": [A], "label_prompt": 4}, "but it is 4"),
        ({"points": [A], "label_prompt": True}, "but it is True"),
        ({"points": [A], "label_prompt": "lung"}, "but it is 'lung'"),
        ({"label": "liver", "roi": [1, 2, 3]}, "six whole numbers"),
        ({"label": "liver", "roi": [1, 2, 3, 4, 5, "x"]}, "'x' in"),
        ({"label": "liver", "roi": [1, 2, 3, 4, 5, float("nan")]}, "nan in"),
        ({"label": "liver", "roi": {"i": 1}}, "'roi' must be a list"),
    ],
)
def test_requests_that_cannot_be_understood(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(request_, LABELS)


def test_messages_stay_short_whatever_came() -> None:
    with pytest.raises(PromptError) as caught:
        read_prompts({"liver": [["x" * 100_000, 2, 3]]}, LABELS)
    assert len(str(caught.value)) < 300


def a_volume(shape: tuple[int, int, int] = (4, 5, 6), affine: npt.ArrayLike | None = None) -> Volume:
    """A volume of raw shape (i, j, k); its raw axes run towards Left, Posterior, Superior by default."""
    volume = from_array(np.arange(np.prod(shape), dtype=np.int16).reshape(shape[::-1]))
    if affine is not None:
        volume.affine = np.asarray(affine, dtype=np.float64)
    return volume


def test_prompts_reach_the_experts_in_canonical_order() -> None:
    found = to_canonical({"liver": raw([P], [(0, 0, 0)], ((0, 1, 2), (3, 4, 5)))}, a_volume())
    (prompts,) = found.values()
    assert prompts.clicks == (Click((3, 2, 1), True), Click((0, 0, 0), False))
    assert prompts.box == Box((2, 1, 0), (5, 4, 3))


def test_flipped_axes_flip_clicks_and_boxes(tmp_path: Path) -> None:
    path = tmp_path / "flipped.nii.gz"
    # Raw axes run towards Right, Posterior, Inferior; canonical ones towards Superior, Posterior, Left.
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([1, -1, -1, 1])), path)
    found = to_canonical({"liver": raw([P], box=((0, 1, 2), (3, 4, 5)))}, load_volume(path))
    assert found["liver"].clicks == (Click((2, 2, 2), True),)
    assert found["liver"].box == Box((1, 1, 1), (4, 4, 4))


def test_boxes_are_cut_to_the_image() -> None:
    found = to_canonical({"liver": raw(box=((-5, 2, -9), (99, 4, 3)))}, a_volume())
    assert found["liver"].box == Box((0, 2, 0), (3, 4, 4))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"liver": raw([(4, 0, 0)])}, r"inside the image of 4 x 5 x 6 voxels, but \[4, 0, 0\] for 'liver'"),
        ({"liver": raw([P, (0, -1, 0)])}, r"\[0, -1, 0\] for 'liver' lies outside"),
        ({"liver": raw([P], [(0, 0, 6)])}, r"\[0, 0, 6\]"),
        ({"liver": raw([P], [P])}, r"\[1, 2, 3\] was clicked as 'liver' and as background"),
        ({"liver": raw([P]), "spleen": raw([P])}, r"\[1, 2, 3\] was clicked as 'liver' and as 'spleen'"),
        (
            {"liver": raw(box=((4, 0, 0), (9, 2, 2)))},
            r"box of 'liver' must overlap the image of 4 x 5 x 6 voxels, but it spans "
            r"\[\[4, 8\], \[0, 1\], \[0, 1\]\]",
        ),
    ],
)
def test_prompts_that_do_not_fit_the_image(prompts: dict[str, RawPrompts], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        to_canonical(prompts, a_volume())


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "paper"), ("", "paper"), ([], "paper"), (["local", "paper"], "local"), ("global", "global")],
)
def test_choices_take_the_first_of_a_list(value: Any, expected: str) -> None:
    assert choice({"strategy": value}, "strategy", ["paper", "global", "local"]) == expected


@pytest.mark.parametrize("value", ["Paper", 1, {"a": 1}, ["x"], [["paper"]], float("nan")])
def test_unknown_choices_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="'strategy' must be one of paper, global"):
        choice({"strategy": value}, "strategy", ["paper", "global"])


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), (True, True), ("true", True), ("False", False), (1, True)]
)
def test_flags(value: Any, expected: bool) -> None:
    assert flag({"result_compress": value}, "result_compress", False) is expected


@pytest.mark.parametrize("value", ["yes please", 2, {}, [[1]]])
def test_bad_flags_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="must be true or false"):
        flag({"result_compress": value}, "result_compress", False)


@pytest.mark.parametrize("value", [3, {"a": 1}, "x" * 65])
def test_bad_words_are_refused(value: Any) -> None:
    with pytest.raises(UserError, match="'device' must be a word"):
        word({"device": value}, "device", None)


OBLIQUE = np.array(
    [[-0.7, 0.1, 0.0, 10.5], [0.1, 0.7, 0.0, -20.25], [0.0, 0.0, 2.5, 30.125], [0.0, 0.0, 0.0, 1.0]]
)


def a_mask() -> LabelledMask:
    array = np.zeros((5, 6, 7), dtype=np.uint8, order="F")
    array[1, 2, 3], array[4, 5, 6], array[0, 0, 1:3] = 1, 3, 1
    segments = [Segment("liver", 1, colour_of("liver")), Segment("Niere, linke — 左", 3, (0, 255, 51))]
    return LabelledMask(array, OBLIQUE, segments)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_files_hold_the_mask_and_its_grid(extension: str, compress: bool) -> None:
    mask = a_mask()
    path = write(mask, extension, compress=compress)
    again = write(mask, extension, compress=compress)
    try:
        assert path.name.endswith(extension)
        assert path.read_bytes() == again.read_bytes()
        image = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, mask.array)
        columns = np.asarray(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        lps = np.diag([-1, -1, 1]) @ OBLIQUE[:3]
        np.testing.assert_allclose(columns, lps[:, :3], atol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), lps[:, 3], atol=1e-6)
        if extension.startswith(".nii"):
            nifti = nib.load(path)
            np.testing.assert_allclose(nifti.affine, OBLIQUE, atol=1e-6)
            np.testing.assert_allclose(nifti.get_qform(), OBLIQUE, atol=1e-5)
            assert nifti.get_data_dtype() == np.uint8
        else:
            array, header = nrrd.read(str(path))
            np.testing.assert_array_equal(array, mask.array)
            assert header["type"] == "uint8"
            assert header["encoding"] == ("gzip" if compress else "raw")
            np.testing.assert_array_equal(header["space directions"], lps[:, :3].T)
            np.testing.assert_array_equal(header["space origin"], lps[:, 3])
    finally:
        path.unlink()
        again.unlink()


def test_a_segmentation_names_and_colours_its_segments() -> None:
    path = write(a_mask(), "seg.nrrd")
    try:
        image = sitk.ReadImage(str(path))
        _, header = nrrd.read(str(path))
    finally:
        path.unlink()
    assert header["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert header["Segment0_Name"] == "liver"
    assert header["Segment0_LabelValue"] == "1"
    assert header["Segment0_Extent"] == "0 4 0 5 0 6"
    colour = [float(level) * 255 for level in header["Segment0_Color"].split()]
    np.testing.assert_allclose(colour, colour_of("liver"), atol=1e-3)
    assert image.GetMetaData("Segment1_Name") == "Niere, linke — 左"
    assert image.GetMetaData("Segment1_LabelValue") == "3"


def test_a_sheared_grid_is_written_where_it_can_be_read() -> None:
    """ITK reads no sheared NIfTI."""
    sheared = OBLIQUE.copy()
    sheared[0, 2] = 0.4
    with pytest.raises(UserError, match="sheared"):
        write(LabelledMask(a_mask().array, sheared, ()), ".nii.gz")
    path = write(LabelledMask(a_mask().array, sheared, ()), ".nrrd")
    try:
        image = sitk.ReadImage(str(path))
    finally:
        path.unlink()
    lps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ lps, sheared[:3, :3], atol=1e-6)


def test_wider_types_hold_the_same_values() -> None:
    path = write(a_mask(), ".nrrd", dtype="float32")
    try:
        array, header = nrrd.read(str(path))
    finally:
        path.unlink()
    assert header["type"] == "float"
    np.testing.assert_array_equal(array, a_mask().array)


@pytest.mark.parametrize(("extension", "dtype"), [(".png", "uint8"), ("../x.nrrd", "uint8"), (".nrrd", "O")])
def test_unknown_formats_are_refused_and_leave_nothing(
    extension: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match="but not"):
        write(a_mask(), extension, dtype)
    assert not list(tmp_path.iterdir())


class OneVoxelSegmenter:
    """Stands for the experts: each label is its first foreground click, or its box's corner."""

    def __init__(self, volume: Volume, options: ServerOptions) -> None:
        self.volume = volume
        self.options = options
        self.experts = self
        self.asked: SegmentRequest | None = None

    def problem(self) -> str | None:
        return None

    def segment(self, request: SegmentRequest) -> Answer:
        self.asked = request
        no_expert: Any = None
        canonical = request.find(self.volume, no_expert)
        labels = np.zeros(self.volume.shape, np.uint8)
        values = {label: at for at, label in enumerate(canonical, start=1)}
        for label, wanted in canonical.items():
            corner = wanted.box.lo if wanted.box else (0, 0, 0)
            z, y, x = (int(edge) for edge in (wanted.foreground or [corner])[0])
            labels[z, y, x] = values[label]
        result = Result(labels, values, dict.fromkeys(values, "local"), [], {"decode": 0.5})
        return Answer(self.volume, result, {"load": 0.25, **result.stages})


def answered(task: ClickTask, request: dict[str, Any]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    name, details = task({"image": "image.nii.gz", **request})
    try:
        array, _ = nrrd.read(name)
    finally:
        Path(name).unlink()
    json.dumps(details)
    return array, details


@pytest.mark.parametrize(
    "axes_and_signs",
    [
        (axes, signs)
        for axes in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ],
)
def test_a_click_lands_where_it_was_put(
    axes_and_signs: tuple[tuple[int, ...], tuple[int, ...]], tmp_path: Path
) -> None:
    """48 axis orders and signs, anisotropic and slightly oblique: raw voxel in, the same raw voxel out."""
    axes, signs = axes_and_signs
    affine = np.eye(4)
    affine[:3, :3] = np.full((3, 3), 0.01)
    affine[axes, range(3)] += np.asarray(signs) * (0.5, 1.5, 4.0)
    path = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.int16), affine), path)
    task = LabelsTask(OneVoxelSegmenter(load_volume(path), ServerOptions(LABELS)))
    array, details = answered(task, {"left kidney": [A], "spleen": [[0, 4, 5]]})
    expected = np.zeros((4, 5, 6), np.uint8)
    expected[1, 2, 3], expected[0, 4, 5] = 3, 2
    np.testing.assert_array_equal(array, expected)
    # MONAI Label's form: the label's value, then its centre.
    assert details["centroids"] == {"spleen": [2, 0, 4, 5], "left kidney": [3, 1, 2, 3]}
    assert details["boxes"] == {"spleen": [0, 0, 4, 4, 5, 5], "left kidney": [1, 1, 2, 2, 3, 3]}
    assert details["changed"] == [0, 1, 2, 4, 3, 5]


def test_what_goes_with_the_mask() -> None:
    segmenter = OneVoxelSegmenter(a_volume(), ServerOptions(LABELS))
    request = {"spleen": [A], "strategy": ["local", "paper"], "ct_window": "lung", "modality": "ct"}
    _, details = answered(LabelsTask(segmenter), request)
    assert details.pop("latencies").keys() == {"load", "decode", "write", "total"}
    assert details == {
        "label_names": {"background": 0, "liver": 1, "spleen": 2, "left kidney": 3},
        "labels": {"spleen": 2},
        "strategies": {"spleen": "local"},
        "voxels": {"spleen": 1},
        "centroids": {"spleen": [2, 1, 2, 3]},
        "boxes": {"spleen": [1, 1, 2, 2, 3, 3]},
        "changed": [1, 1, 2, 2, 3, 3],
        "suggestions": {},
        "notes": [],
        "shape": [4, 5, 6],
    }
    asked = segmenter.asked
    assert asked is not None
    assert asked.image == Path("image.nii.gz")
    assert (asked.strategy, asked.ct_window, asked.device, asked.modality) == ("local", "lung", "cpu", "ct")
    assert asked.layers == Layers(labels=LABELS, order=("spleen",))


def test_how_unsure_the_answer_is_needs_a_strategy_that_knows() -> None:
    task = LabelsTask(OneVoxelSegmenter(a_volume(), ServerOptions(LABELS)))
    with pytest.raises(HTTPException) as caught:
        task({"image": "x", "liver": [A], "result_content": "uncertainty"})
    assert "Only the strategy 'fused' tells" in caught.value.detail


@pytest.mark.parametrize("name", ["Milz links", "liver", "image"])
def test_one_object_has_the_value_one_and_the_name_it_is_given(name: str) -> None:
    task = ObjectTask(OneVoxelSegmenter(a_volume(), ServerOptions(LABELS)))
    array, details = answered(task, {"foreground": [A], "label": name})
    assert array[P] == array.sum() == 1
    assert details["label_names"] == {"background": 0, name: 1}


@pytest.mark.parametrize("name", [None, "", "background", 5])
def test_one_object_needs_no_name(name: Any) -> None:
    task = ObjectTask(OneVoxelSegmenter(a_volume(), ServerOptions(LABELS)))
    if name == 5:
        with pytest.raises(HTTPException, match="must be a label's name"):
            task({"image": "x", "foreground": [A], "label": name})
        return
    _, details = answered(task, {"foreground": [A], "label": name})
    assert details["label_names"] == {"background": 0, "object": 1}


def test_users_errors_are_status_400() -> None:
    task = LabelsTask(OneVoxelSegmenter(a_volume(), ServerOptions(LABELS)))
    with pytest.raises(HTTPException) as caught:
        task({"image": "x", "liver": [[9, 9, 9]]})
    assert caught.value.status_code == 400
    assert "[9, 9, 9] for 'liver' lies outside" in caught.value.detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=8,
)
CLICKS = st.lists(st.lists(st.integers(-1, 6), min_size=2, max_size=4), max_size=3)
SERVERS_OWN = {wire.IMAGE, wire.MODEL, wire.EXISTING_PATH, wire.EXISTING_INFO, wire.UPLOADED}
KEYS = [*sorted(wire.EXPECTED - SERVERS_OWN), *LABELS.names, "lung", "null", "size"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON | CLICKS | st.lists(st.integers(-9, 9), max_size=7)))
@settings(max_examples=200)
def test_any_json_is_answered_or_refused(request_: dict[str, Any]) -> None:
    segmenter = OneVoxelSegmenter(a_volume(), ServerOptions(LABELS))
    for task in (LabelsTask(segmenter), ObjectTask(segmenter)):
        try:
            name, details = task({"image": "image.nii.gz", **request_})
        except HTTPException as error:
            assert error.status_code == 400
            # Starlette sends it as JSON in UTF-8, where half a surrogate pair would be an error of its own.
            assert len(error.detail.encode()) < 1000
        else:
            Path(name).unlink()
            json.dumps(details).encode()


class FakeStudies:
    """Knows one image."""

    def __init__(
        self, info: dict[str, Any] | None = None, stored: dict[str, tuple[Path, int]] | None = None
    ) -> None:
        self.info = info or {}
        self.stored = stored or {}

    def get_image_uri(self, image_id: str) -> str:
        if image_id == "away":
            raise requests.ConnectionError("archive is down")
        return "/studies/known.nii.gz" if image_id == "known" else ""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return self.info

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return dict.fromkeys(self.stored, image_id) if image_id == "known" else {}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.stored[label_tag][0])

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return {"ts": self.stored[label_tag][1]}


def test_an_id_stays_an_id_and_brings_its_modality() -> None:
    found = with_image({"image": "known"}, FakeStudies({"Modality": "MR"}), None)
    assert (found["image"], found["modality"]) == ("known", "mr")
    assert found["existing_path"] is None


@pytest.mark.parametrize("info", [{}, {"Modality": "UNK"}, {"Modality": None}])
def test_an_unknown_modality_is_left_open(info: dict[str, Any]) -> None:
    assert with_image({"image": "known"}, FakeStudies(info), None)["modality"] is None


def test_a_requests_own_modality_counts() -> None:
    request = {"image": "known", "modality": "pt"}
    assert with_image(request, FakeStudies({"Modality": "CT"}), None)["modality"] == "pt"


def test_an_id_that_is_also_a_file_of_the_working_folder_means_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "known").touch()
    monkeypatch.chdir(tmp_path)
    assert with_image({"image": "known"}, FakeStudies(), None)["image"] == "/studies/known.nii.gz"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "A request needs an image"),
        (None, "A request needs an image"),
        (["known"], "A request needs an image"),
        ("unknown", "no image 'unknown'"),
        ("../known", "holds no folders"),
        ("..", "holds no folders"),
        ("/etc/passwd", "holds no folders"),
        ("a\\b", "holds no folders"),
        ("a\0b", "printable"),
        ("a\ud800", "printable"),
        ("x" * 256, "at most 255"),
        ("away", "archive did not give the image 'away': archive is down"),
        (f"{tempfile.gettempdir()}/known.nii.gz", "holds no folders"),
        (f"{tempfile.gettempdir()}/../etc/tmp12345678", "holds no folders"),
    ],
)
def test_other_files_are_out_of_reach(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_image({"image": image}, FakeStudies(), Path("/sessions"))


def test_uploads_and_sessions_are_paths(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as upload:
        assert with_image({"image": upload.name}, FakeStudies(), None)["image"] == upload.name
    session = tmp_path / "sessions" / "1-2-3" / "image.nii.gz"
    session.parent.mkdir(parents=True)
    session.touch()
    found = with_image({"image": str(session)}, FakeStudies(), tmp_path / "sessions")
    assert found["image"] == str(session)
    with pytest.raises(UserError, match="holds no folders"):
        with_image({"image": f"{tmp_path}/sessions/../other.nii.gz"}, FakeStudies(), tmp_path / "sessions")


def test_corners_become_a_box_and_leave_no_click() -> None:
    """In either order; a third click is a click."""
    request = {"clicks": "corners", "liver": [[5, 1, 9], [2, 7, 3], [4, 4, 4]], "background": [[0, 0, 0]]}
    found = read_prompts(request, LABELS)
    assert found["liver"].box == ((2, 1, 3), (6, 8, 10))
    assert found["liver"].foreground == [(4, 4, 4)]
    assert found["liver"].background == [(0, 0, 0)]


def test_corners_of_each_label_are_its_own() -> None:
    request = {"clicks": "corners", "liver": [[0, 0, 0], [1, 1, 1]], "spleen": [[2, 2, 2], [3, 3, 3]]}
    found = read_prompts(request, LABELS)
    assert found["liver"].box == ((0, 0, 0), (2, 2, 2))
    assert found["spleen"].box == ((2, 2, 2), (4, 4, 4))


def test_a_drawn_box_needs_no_corners() -> None:
    request = {"clicks": "corners", "label": "liver", "liver": [[3, 3, 3]], "roi": [0, 4, 0, 4, 0, 4]}
    assert read_prompts(request, LABELS)["liver"] == raw([(3, 3, 3)], box=((0, 0, 0), (5, 5, 5)))


@pytest.mark.parametrize("strategy", ["global", "local", "fused"])
def test_the_global_expert_alone_needs_corners(strategy: str) -> None:
    segmenter = OneVoxelSegmenter(a_volume(), ServerOptions(labels=LABELS))
    answered(LabelsTask(segmenter), {"strategy": strategy, "liver": [[1, 2, 3], [0, 1, 2]]})
    assert segmenter.asked is not None
    assert segmenter.asked.layers.corners == (strategy == "global")


def test_one_corner_is_not_enough() -> None:
    with pytest.raises(PromptError, match=r"box of 'liver' needs two clicks.*only one: \[5, 1, 9\]"):
        read_prompts({"clicks": "corners", "liver": [[5, 1, 9]]}, LABELS)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"background": [A]}, {name: raw(background=[P]) for name in LABELS.names}),
        ({"background": [A], "label": "spleen"}, {"spleen": raw(background=[P])}),
        ({"points": [A], "point_labels": [0], "label_prompt": [1]}, {"liver": raw(background=[P])}),
        ({"liver": [A]}, {"liver": raw([P])}),
    ],
)
def test_background_clicks_alone_correct_what_is_there(
    request_: dict[str, Any], expected: dict[str, RawPrompts]
) -> None:
    assert read_prompts(request_, LABELS, correct=True) == expected


def test_labels_keep_the_order_of_the_request() -> None:
    request = {"model": "x", "spleen": [A], "background": [], "Liver": [], "size": 3}
    assert named_order(request, LABELS) == ("spleen", "liver")


@pytest.mark.parametrize("value", [["Liver", "spleen", "liver"], '["liver", "spleen"]'])
def test_locked_labels(value: Any) -> None:
    assert locked_labels({"locked": value}, LABELS) == ("liver", "spleen")


@pytest.mark.parametrize("value", [["lung"], [3], {"liver": 1}])
def test_bad_locks_are_refused(value: Any) -> None:
    with pytest.raises(PromptError, match="'locked' must"):
        locked_labels({"locked": value}, LABELS)


def test_the_last_label_that_was_stored_is_there(tmp_path: Path) -> None:
    files = {}
    for at, tag in enumerate(("original", "final", "draft")):
        files[tag] = (tmp_path / f"{tag}.nii.gz", 5 if tag == "draft" else 7)
        if tag != "final" or at:
            files[tag][0].touch()
    studies = FakeStudies(stored=files)
    found = with_image({"image": "known", "existing": ["keep", "ignore"]}, studies, None)
    assert found["existing_path"] == str(files["final"][0])
    assert found["uploaded"] is False
    files["final"][0].unlink()
    found = with_image({"image": "known", "existing": "correct"}, studies, None)
    assert found["existing_path"] == str(files["original"][0])


@pytest.mark.parametrize("existing", [None, "ignore", ["ignore", "keep"]])
def test_nothing_is_taken_over_unasked(tmp_path: Path, existing: Any) -> None:
    label = tmp_path / "final.nii.gz"
    label.touch()
    request = {"image": "known", "existing": existing, "existing_path": "/etc/passwd", "uploaded": True}
    found = with_image(request, FakeStudies(stored={"final": (label, 1)}), None)
    assert found["existing_path"] is None
    assert found["uploaded"] is False


def test_an_uploaded_label_is_corrected_and_its_path_is_no_name() -> None:
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as upload:
        sent = {"image": "known", "label": "spleen", "label_file": upload.name}
        found = with_image(sent, FakeStudies(), None)
    assert found["label"] == "spleen"
    assert found["existing_path"] == upload.name
    segmenter = OneVoxelSegmenter(a_volume(), ServerOptions(LABELS))
    answered(LabelsTask(segmenter), {**found, "spleen": [A], "label_info": [{"name": "liver"}]})
    assert segmenter.asked is not None
    layers = segmenter.asked.layers
    assert (layers.existing, layers.required, layers.path) == ("correct", True, Path(upload.name))
    assert layers.info["label_info"] == [{"name": "liver"}]
