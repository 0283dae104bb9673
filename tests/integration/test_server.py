"""The running MONAI Label server over HTTP: what its clients send and what they need back."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import requests
from dualclickmed.weights.files import default_path
from requests_toolbelt import MultipartDecoder

from tests.support.live import CT_SHAPE, LABELS, ORIENTATIONS, SMALL_SHAPE, Server, orientation_id
from tests.support.nrrd_answers import affine_of, read_nrrd

VALUES = {name: value for value, name in enumerate(LABELS, start=1)}

OHIF_OPTIONS = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}
# OHIF 3's request, word for word.
OHIF = {"background": [[50, 61, 19]], "liver": [[27, 30, 19]], **OHIF_OPTIONS}


def mask_of(response: requests.Response) -> npt.NDArray[Any]:
    assert response.status_code == 200, response.text
    return read_nrrd(response.content)[0]


def image_of(server: Server, name: str) -> Any:
    return nib.load(server.studies / f"{name}.nii.gz")


def test_info_offers_both_tasks(server: Server) -> None:
    info = server.get("/info/").json()
    assert info["name"] == "DualClickMed"
    # A list, because OHIF appends to it and Slicer makes its segments in this order.
    assert info["labels"] == ["background", *LABELS]
    several, one = info["models"]["dualclickmed"], info["models"]["dualclickmed_object"]
    assert (several["type"], one["type"]) == ("deepedit", "deepgrow")
    assert (several["dimension"], one["dimension"]) == (3, 3)
    # OHIF takes 0 for none: background's own number is one that no voxel has.
    assert several["labels"] == {"background": len(LABELS) + 1, **VALUES}
    assert one["labels"] == []
    for task in (several, one):
        assert task["config"]["strategy"] == ["paper", "global", "local", "fused"]
        assert task["config"]["ct_window"] == ["auto", "soft tissue", "lung", "brain", "bone", "none"]
        assert "cpu" in task["config"]["device"]
    assert info["strategies"].keys() == {"first", "random", "disagreement", "expected_clicks"}
    assert info["trainers"].keys() == {"dualclickmed_global", "dualclickmed_local"}


def test_ohif_gets_its_labels_uncompressed_in_raw_order(server: Server) -> None:
    response = server.infer("dualclickmed", "ct", OHIF)
    mask, header = read_nrrd(response.content)
    assert header["encoding"] == "raw"
    assert header["type"] == "uint8"
    assert mask.shape == CT_SHAPE
    assert mask[27, 30, 19] == VALUES["liver"]
    assert mask[50, 61, 19] == 0
    assert set(np.unique(mask)) == {0, VALUES["liver"]}


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=orientation_id)
def test_clicks_and_boxes_land_where_they_were_put(server: Server, orientation: Any) -> None:
    """In every dialect's coordinates, which are the file's, the answer has the file's grid."""
    name = orientation_id(orientation)
    image = image_of(server, name)
    inside, corner, outside = [8, 20, 5], [39, 0, 25], [[31, 12, 20], [8, 12, 20], [31, 20, 5]]
    params = {"spleen": [inside], "tumor": [corner], "background": outside, "result_compress": True}
    mask, header = read_nrrd(server.infer("dualclickmed", name, params).content)
    assert mask.shape == SMALL_SHAPE == image.shape
    np.testing.assert_allclose(affine_of(header), image.affine, atol=1e-5)
    assert mask[tuple(inside)] == VALUES["spleen"]
    assert mask[tuple(corner)] == VALUES["tumor"]
    assert [mask[tuple(point)] for point in outside] == [0, 0, 0]

    # The untrained global expert answers with the ellipsoid that touches the box on all sides.
    box = [20, 9, 10, 29, 4, 15]
    found = mask_of(server.infer("dualclickmed_object", name, {"roi": box, "foreground": []}))
    set_ = np.argwhere(found)
    assert np.abs(set_.min(axis=0) - (9, 10, 4)).max() <= 1
    assert np.abs(set_.max(axis=0) - (20, 29, 15)).max() <= 1
    assert 0.9 < len(set_) / (np.pi / 6 * 12 * 20 * 12) < 1.1


def test_slicer_gets_a_full_mask_and_the_names(server: Server) -> None:
    params = {
        **{name: [] for name in ("background", *LABELS)},
        "liver": [[30, 30, 15]],
        "tumor": [[50, 20, 10]],
        "label": "tumor",
        "strategy": "paper",
        "ct_window": "auto",
        "device": "cpu",
        "roi": [55, 45, 25, 15, 14, 6],
        "reset_state": True,
        "client_id": "user-xyz",
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    response = server.infer("dualclickmed", "ct", params, output=None)
    assert response.status_code == 200, response.text
    parts = {}
    for part in MultipartDecoder.from_response(response).parts:
        disposition = part.headers[b"Content-Disposition"].decode()
        parts[disposition.split('name="')[1].split('"')[0]] = part
    assert b'.nrrd"' in parts["image"].headers[b"Content-Disposition"]
    details = json.loads(parts["params"].text)
    assert details["label_names"] == {"background": 0, **VALUES}
    assert details["labels"] == {"liver": VALUES["liver"], "tumor": VALUES["tumor"]}
    assert details["strategies"] == {"liver": "local", "tumor": "global"}
    mask, _ = read_nrrd(parts["image"].content)
    assert mask[30, 30, 15] == VALUES["liver"]
    assert mask[50, 20, 10] == VALUES["tumor"]
    assert details["voxels"] == {name: int((mask == VALUES[name]).sum()) for name in details["labels"]}


def test_slicer_sends_an_image_as_a_session(server: Server) -> None:
    data = (server.studies / "ct.nii.gz").read_bytes()
    created = server.http.put(
        f"{server.url}/session/", files={"files": ("my scan.nii.gz", data)}, timeout=60
    ).json()
    params = {"label": "my organ", "foreground": [[27, 30, 19]], "background": [[50, 61, 19]]}
    found = mask_of(server.infer("dualclickmed_object", "my scan", params, session=created["session_id"]))
    stored = mask_of(server.infer("dualclickmed_object", "ct", params))
    np.testing.assert_array_equal(found, stored)
    assert found[27, 30, 19] == 1


def test_mitk_uploads_the_image_and_reads_nifti(server: Server) -> None:
    data = (server.studies / "ct.nii.gz").read_bytes()
    params = {
        "foreground": [[27, 30, 19]],
        "background": [],
        "reset_state": False,
        "result_extension": ".nii.gz",
    }
    response = server.infer(
        "dualclickmed_object", None, params, files={"file": ("image.nii.gz", data, "application/gzip")}
    )
    assert response.status_code == 200, response.text
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        file.write(response.content)
        file.flush()
        found = nib.load(file.name)
        mask = np.asarray(found.dataobj)
    np.testing.assert_allclose(found.affine, image_of(server, "ct").affine, atol=1e-6)
    assert found.get_data_dtype() == np.uint8
    assert mask.shape == CT_SHAPE
    assert mask[27, 30, 19] == 1


@pytest.mark.parametrize(
    "params",
    [
        {"foreground": [[27, 30, 19]], "background": [[50, 61, 19]], "label": "liver"},
        {"points": [[27, 30, 19], [50, 61, 19]], "point_labels": [1, 0], "label_prompt": [VALUES["liver"]]},
        {"liver": "[[27, 30, 19]]", "background": "[[50, 61, 19]]"},
        {"Liver": [[27.0, 30.0, 19.0]], "background": [[50, 61, 19]], "strategy": ["paper", "global"]},
    ],
    ids=["deepgrow", "vista", "json in strings", "floats and lists of choices"],
)
def test_every_dialect_gives_the_same_bytes(server: Server, params: dict[str, Any]) -> None:
    expected = server.infer("dualclickmed", "ct", OHIF)
    found = server.infer("dualclickmed", "ct", {**params, **OHIF_OPTIONS})
    assert found.status_code == 200, found.text
    assert found.content == expected.content


@pytest.mark.parametrize("extension", [".nrrd", ".seg.nrrd", ".nii.gz"])
@pytest.mark.parametrize("compress", [False, True])
def test_the_same_request_gives_the_same_bytes(server: Server, extension: str, compress: bool) -> None:
    params = {"liver": [[27, 30, 19]], "result_extension": extension, "result_compress": compress}
    one = server.infer("dualclickmed", "ct", params)
    server.infer("dualclickmed", "ct", {**params, "liver": [[5, 5, 5]]})
    other = server.infer("dualclickmed", "ct", params)
    assert one.status_code == other.status_code == 200, one.text
    assert one.content == other.content


def test_a_segmentation_has_names_and_colours(server: Server) -> None:
    params = {"spleen": [[27, 30, 19]], "tumor": [[5, 6, 7]], "result_extension": ".seg.nrrd"}
    response = server.infer("dualclickmed", "ct", params)
    assert response.status_code == 200, response.text
    assert response.headers["content-disposition"].endswith('.seg.nrrd"')
    _, header = read_nrrd(response.content)
    segments = [(header[f"Segment{n}_Name"], header[f"Segment{n}_LabelValue"]) for n in range(2)]
    assert segments == [("spleen", str(VALUES["spleen"])), ("tumor", str(VALUES["tumor"]))]
    assert "Segment2_Name" not in header
    colour = [round(255 * float(level)) for level in header["Segment0_Color"].split()]
    assert colour == [157, 108, 162]


def test_json_alone_tells_about_the_mask(server: Server) -> None:
    details = server.infer("dualclickmed", "ct", OHIF, output="json").json()
    assert details["shape"] == list(CT_SHAPE)
    assert details["strategies"] == {"liver": "local"}
    assert details["latencies"]["total"] > 0
    mask = mask_of(server.infer("dualclickmed", "ct", OHIF))
    centre = np.argwhere(mask).mean(axis=0)
    value, *voxel = details["centroids"]["liver"]
    assert value == VALUES["liver"]
    np.testing.assert_allclose(voxel, centre, atol=0.51)
    edges = [edge for along in np.argwhere(mask).T.tolist() for edge in (min(along), max(along))]
    assert details["boxes"]["liver"] == details["changed"] == edges


def test_the_strategy_chooses_the_expert(server: Server) -> None:
    corners = {"liver": [[20, 20, 8], [40, 45, 20]]}
    for strategy, expected in (("paper", "local"), ("local", "local"), ("global", "global")):
        params = {**corners, "strategy": strategy}
        details = server.infer("dualclickmed", "ct", params, output="json").json()
        assert details["strategies"] == {"liver": expected}


def test_corners_for_the_global_expert_give_what_the_box_gives(server: Server) -> None:
    corners = [[20, 20, 8], [40, 45, 20]]
    by_clicks = server.infer("dualclickmed", "ct", {"liver": corners, "strategy": "global"})
    box = {"roi": [20, 40, 20, 45, 8, 20], "label": "liver", "strategy": "global"}
    assert by_clicks.content == server.infer("dualclickmed", "ct", box).content
    mask = mask_of(by_clicks)
    assert mask[30, 32, 14] == VALUES["liver"]
    # Nothing is put where the corners were clicked, and the third click holds.
    assert not any(mask[tuple(corner)] for corner in corners)
    third = {"liver": [*corners, corners[0]], "strategy": "global"}
    assert mask_of(server.infer("dualclickmed", "ct", third))[tuple(corners[0])] == VALUES["liver"]


def test_a_single_slice_is_a_volume(server: Server) -> None:
    mask = mask_of(server.infer("dualclickmed", "slice", {"liver": [[20, 20, 0]]}))
    assert mask.shape == (40, 40, 1)
    assert mask[20, 20, 0] == VALUES["liver"]


def test_active_learning_chooses_among_the_images(server: Server) -> None:
    for strategy in ("first", "random"):
        chosen = server.http.post(f"{server.url}/activelearning/{strategy}", timeout=60).json()
        assert (server.studies / Path(chosen["path"]).name).exists()


CLICK = {"liver": [[27, 30, 19]]}


@pytest.mark.parametrize(
    ("image", "params", "message"),
    [
        (
            "ct",
            {"liver": [[64, 0, 0]]},
            "inside the image of 64 x 70 x 30 voxels, but [64, 0, 0] for 'liver'",
        ),
        ("ct", {"liver": [[0, -1, 0]]}, "[0, -1, 0] for 'liver' lies outside"),
        ("ct", {}, "At least one foreground click or a box is needed"),
        ("ct", {"liver": [], "background": [[1, 2, 3]]}, "only 1 background clicks"),
        ("ct", {"lung": [[1, 2, 3]]}, "There is no label 'lung'; the labels are 'liver', 'spleen'"),
        ("ct", {**CLICK, "label": "lung"}, "There is no label 'lung'"),
        ("ct", {**CLICK, "background": [[27, 30, 19]]}, "clicked as 'liver' and as background"),
        ("ct", {**CLICK, "spleen": [[27, 30, 19]]}, "clicked as 'liver' and as 'spleen'"),
        ("ct", {"liver": [[1, 2]]}, "three whole numbers [i, j, k], but one is [1, 2]"),
        ("ct", {"liver": [["a", 2, 3]]}, "'a'"),
        ("ct", {"liver": [[float("nan"), 2, 3]]}, "nan"),
        ("ct", {"liver": [[1e300, 2, 3]]}, "whole numbers"),
        ("ct", {"liver": [[1, 2, 3]] * 20_000}, "may hold 10000 clicks"),
        ("ct", {"liver": "everywhere"}, "everywhere"),
        ("ct", {**CLICK, "roi": [1, 2, 3], "label": "liver"}, "six whole numbers"),
        ("ct", {"roi": [70, 80, 0, 5, 0, 5], "label": "liver"}, "must overlap the image"),
        ("ct", {**CLICK, "strategy": "best"}, "'strategy' must be one of paper, global, local"),
        ("ct", {**CLICK, "strategy": "global"}, "global"),
        ("ct", {**CLICK, "ct_window": "liver"}, "'ct_window' must be one of auto, soft tissue"),
        ("ct", {**CLICK, "device": "tpu"}, "device must be auto, cpu, cuda"),
        ("ct", {**CLICK, "result_extension": ".png"}, "written as .nrrd"),
        ("ct", {**CLICK, "result_dtype": "object"}, "but not 'object'"),
        ("ct", {**CLICK, "result_compress": "maybe"}, "true or false"),
        ("ct", {**CLICK, "modality": "xray"}, "xray"),
        ("flat", CLICK, "2"),
        ("series", CLICK, "4"),
        ("holes", {"liver": [[1, 2, 3]]}, "nan"),
        ("damaged", CLICK, "damaged"),
        ("photo", CLICK, "There is no image 'photo'"),
        ("unknown", CLICK, "There is no image 'unknown'"),
        ("../studies/ct", CLICK, "holds no folders"),
        ("/etc/passwd", CLICK, "holds no folders"),
        ("ct", {**CLICK, "image": "/etc/passwd"}, "holds no folders"),
        ("ct", {**CLICK, "image": ["ct"]}, "A request needs an image"),
        ("ct", {**CLICK, "model": "other"}, "There is no task 'other'"),
        ("ct", {**CLICK, "model": ["dualclickmed"]}, "There is no task"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    server: Server, image: str, params: dict[str, Any], message: str
) -> None:
    response = server.infer("dualclickmed", image, params)
    assert response.status_code == 400, response.text
    sentence = response.json()["detail"]
    assert message.lower() in sentence.lower()
    assert len(sentence) < 1000
    assert server.get("/info/").ok


def test_unknown_tasks_and_sessions_are_refused(server: Server) -> None:
    assert "no task 'other'" in server.infer("other", "ct", CLICK).json()["detail"]
    response = server.infer("dualclickmed", None, CLICK, session="no-such-session")
    assert response.status_code == 400
    assert "a session that has not expired" in response.json()["detail"]


def test_whole_slides_are_refused(server: Server) -> None:
    response = server.http.post(f"{server.url}/infer/wsi_v2/dualclickmed?image=/etc/passwd", timeout=60)
    assert response.status_code == 400
    assert "2D" in response.json()["detail"]


@pytest.fixture
def local_weights(server: Server) -> Iterator[Path]:
    """The weight file of the local expert, which is as before when the test is over."""
    path = default_path("local", directory=server.weights)
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["missing", "cut short", "one byte"])
def test_bad_weights_stop_the_tasks_until_they_are_put_right(
    server: Server, local_weights: Path, damage: str
) -> None:
    before = server.infer("dualclickmed", "ct", OHIF).content
    data = local_weights.read_bytes()
    if damage == "missing":
        local_weights.unlink()
    elif damage == "cut short":
        local_weights.write_bytes(data[: len(data) // 2])
    else:
        local_weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    info = server.get("/info/").json()
    assert info["models"] == {}
    assert "Not ready" in info["description"]
    response = server.infer("dualclickmed", "ct", OHIF)
    assert response.status_code == 400
    assert "local-compact.safetensors" in response.json()["detail"]
    assert ("do not exist" if damage == "missing" else "damaged") in response.json()["detail"]

    local_weights.write_bytes(data)
    assert server.get("/info/").json()["models"].keys() == {"dualclickmed", "dualclickmed_object"}
    assert server.infer("dualclickmed", "ct", OHIF).content == before


def test_nothing_is_left_behind(server: Server) -> None:
    data = (server.studies / "ct.nii.gz").read_bytes()
    files = {"file": ("image.nii.gz", data)}
    assert server.infer("dualclickmed", None, OHIF, files=files).status_code == 200
    assert server.infer("dualclickmed", None, {}, files=files).status_code == 400
    labelled = server.infer("dualclickmed", "ct", OHIF, files={"label": ("label.nii.gz", data)})
    assert "label's values must" in labelled.json()["detail"]
    for output in ("image", "json", None):
        server.infer("dualclickmed", "ct", OHIF, output=output)
    # MONAI Label removes a result after it has been sent.
    deadline = time.monotonic() + 10
    while (left := list(server.temporary.rglob("*.n*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
