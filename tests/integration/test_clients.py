"""MITK and MONAI Label's own Python client against the running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from tests.support.live import CT_SHAPE, LABELS, ORIENTATIONS, SMALL_SHAPE, Server, orientation_id

VALUES = {name: value for value, name in enumerate(LABELS, start=1)}
OBJECT = "dualclickmed_object"


class Mitk:
    """What MITK's MONAI Label tool sends, and how it takes the answer apart."""

    BOUNDARY = "--------------------------RSWGmuKRkZh8bhY3"

    def __init__(self, server: Server, image: Path) -> None:
        self.server = server
        self.image = image.read_bytes()
        info = server.get("/info/").json()
        # MITK reads labels as name to number, or else as a list of names, and nothing else.
        for model in info["models"].values():
            labels = model["labels"]
            assert isinstance(labels, list) or all(isinstance(value, int) for value in labels.values())
            assert isinstance(model["dimension"], int)
        self.models = {name for name, model in info["models"].items() if model["type"] == "deepgrow"}

    def click(
        self, model: str, foreground: list[list[int]], background: list[list[int]], result: Path
    ) -> dict[str, Any]:
        """Send all clicks with the image, and write the answer as MITK does."""
        first = len(foreground) == 1 and not background
        # MITK puts its JSON together by hand; it asks for no kind of file.
        params = (
            f'{{"foreground":{foreground},"background":{background},"reset_state":{str(first).lower()}}}'
        ).replace(" ", "")
        body = (
            f'--{self.BOUNDARY}\r\nContent-Disposition: form-data; name="params"\r\n\r\n{params}\r\n'
            f'--{self.BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
            'filename="post_from_mitk.nii.gz"\r\nContent-Type: application/octet-stream\r\n\r\n'
        ).encode()
        body += self.image + f"\r\n--{self.BOUNDARY}--\r\n".encode()
        response = self.server.http.post(
            f"{self.server.url}/infer/{model}",
            data=body,
            headers={"Content-Type": f"multipart/form-data; boundary={self.BOUNDARY}"},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        kind = response.headers["content-type"]
        boundary = b"--" + kind[kind.find("boundary=") + len("boundary=") :].encode()
        parts = [part for part in response.content.split(boundary) if part]
        found: dict[str, Any] = json.loads(parts[0].partition(b"Content-Type: application/json")[2])
        _, mark, image = parts[1].partition(b"Content-Type: application/octet-stream")
        assert mark
        result.write_bytes(image.lstrip(b" \r\n"))
        return found


@pytest.mark.parametrize("orientation", ORIENTATIONS[:2], ids=orientation_id)
def test_mitk_uploads_the_image_and_reads_the_same_kind_of_file(
    server: Server, tmp_path: Path, orientation: Any
) -> None:
    image = server.studies / f"{orientation_id(orientation)}.nii.gz"
    mitk = Mitk(server, image)
    assert mitk.models == {OBJECT}
    # MITK gives what it reads this name, whatever it is.
    result = tmp_path / "monai_000.nii.gz"
    mitk.click(OBJECT, [[8, 20, 5]], [], result)
    once = np.asarray(nib.load(result).dataobj)
    assert once.shape == SMALL_SHAPE
    assert once[8, 20, 5] == 1
    np.testing.assert_allclose(nib.load(result).affine, nib.load(image).affine, atol=1e-4)
    mitk.click(OBJECT, [[8, 20, 5]], [[31, 12, 20]], result)
    assert np.asarray(nib.load(result).dataobj)[31, 12, 20] == 0
    # MITK's "delete" takes the last click away.
    mitk.click(OBJECT, [[8, 20, 5]], [], result)
    np.testing.assert_array_equal(np.asarray(nib.load(result).dataobj), once)


@pytest.fixture
def client(server: Server, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, str(tmp_path), "tests")


def read(path: str) -> np.ndarray:
    return np.asarray(nrrd.read(path)[0])


def test_the_python_client_segments_by_id_by_file_and_by_session(
    server: Server, client: MONAILabelClient
) -> None:
    image = str(server.studies / "ct.nii.gz")
    request = {"liver": [[27, 30, 19]], "background": [[50, 61, 19]], "result_extension": ".nrrd"}
    path, details = client.infer("dualclickmed", "ct", dict(request))
    expected = read(path)
    assert expected[27, 30, 19] == VALUES["liver"]
    assert details["label_names"] == {"background": 0, **VALUES}
    session = client.create_session(image)["session_id"]
    assert client.get_session(session)
    for more in ({"file": image}, {"session_id": session}):
        path, _ = client.infer("dualclickmed", "ct", dict(request), **more)
        np.testing.assert_array_equal(read(path), expected)
    client.remove_session(session)


def test_the_python_client_gets_told_what_is_wrong(client: MONAILabelClient) -> None:
    with pytest.raises(MONAILabelClientException) as caught:
        client.infer("dualclickmed", "ct", {"lung": [[1, 2, 3]]})
    assert "There is no label 'lung'" in caught.value.msg


@pytest.mark.parametrize("existing", [None, "keep"])
def test_a_segmentation_that_is_sent_along_is_the_start(
    server: Server, client: MONAILabelClient, tmp_path: Path, existing: str | None
) -> None:
    """As corrected by default: clicks that agree with it change nothing, and labels without clicks stay."""
    before = np.zeros(CT_SHAPE, np.uint8)
    before[20:30, 20:30, 5:15] = 1
    before[40:50, 40:50, 5:15] = 2
    image = nib.load(server.studies / "ct.nii.gz")
    nib.save(nib.Nifti1Image(before, image.affine), tmp_path / "label.nii.gz")
    params: dict[str, Any] = {"kidney": [[25, 25, 10]], "result_extension": ".nrrd"}
    # The names of its values, in their order.
    params["label_info"] = [{"name": "kidney"}, {"name": "tumor"}]
    if existing:
        params["existing"] = existing
    path, details = client.infer("dualclickmed", "ct", params, label_in=str(tmp_path / "label.nii.gz"))
    after = read(path)
    np.testing.assert_array_equal(after == VALUES["tumor"], before == 2)
    assert details["strategies"]["tumor"] == "kept"
    if existing is None:
        np.testing.assert_array_equal(after == VALUES["kidney"], before == 1)
        assert details["changed"] == []
    else:
        assert details["changed"] != []


def test_the_python_client_stores_images_and_labels(
    server: Server, client: MONAILabelClient, tmp_path: Path
) -> None:
    image = server.studies / "ct.nii.gz"
    assert client.upload_image(str(image), "uploaded")["image"] == "uploaded"
    label = np.zeros(CT_SHAPE, np.uint8)
    label[5:9, 5:9, 5:9] = 1
    nib.save(nib.Nifti1Image(label, nib.load(image).affine), tmp_path / "label.nii.gz")
    info = {"label_info": [{"name": "spleen"}]}
    client.save_label("uploaded", str(tmp_path / "label.nii.gz"), params=info)
    stored = client.datastore()["objects"]["uploaded"]["labels"]["final"]["info"]
    assert stored["label_info"] == info["label_info"]
    found = nib.load(client.download_label("uploaded", "final"))
    np.testing.assert_array_equal(np.asarray(found.dataobj), label)
    path, _ = client.infer(
        "dualclickmed",
        "uploaded",
        {"liver": [[40, 40, 20]], "existing": "keep", "result_extension": ".nrrd"},
    )
    np.testing.assert_array_equal(read(path) == VALUES["spleen"], label == 1)


def test_a_fused_answer_says_where_it_is_unsure_and_where_to_click_next(
    server: Server, client: MONAILabelClient
) -> None:
    params = {"liver": [[27, 30, 19]], "strategy": "fused", "result_extension": ".nrrd"}
    path, details = client.infer("dualclickmed", "ct", dict(params))
    mask = read(path)
    path, again = client.infer("dualclickmed", "ct", {**params, "result_content": "uncertainty"})
    unsure = read(path)
    assert unsure.shape == mask.shape == CT_SHAPE
    assert 0 < unsure.max() <= 100
    # A click is sure.
    assert unsure[27, 30, 19] < 50
    assert again["suggestions"] == details["suggestions"]
    for voxel in details["suggestions"].values():
        assert voxel != [27, 30, 19]
        assert unsure[tuple(voxel)] > 0
