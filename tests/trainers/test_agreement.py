"""`GET /learning/agreement`: figures, the map, and what is said where there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.server.routes import answer_to
from dualclickmed.server.studies import Studies
from dualclickmed.trainers.agreement import router
from dualclickmed.trainers.learning import Learning
from fastapi import FastAPI
from fastapi.testclient import TestClient

SHAPE = (10, 9, 8)
AFFINE = np.diag([-1.0, 2.0, 1.0, 1.0])


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    folder = tmp_path / "studies"
    folder.mkdir()
    image = np.arange(720, dtype=np.int16).reshape(SHAPE)
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(image, AFFINE), folder / f"{name}.nii.gz")
    studies = Studies(str(folder), extensions=("*.nii.gz",), auto_reload=False)
    learning = Learning(studies, folder, ServerOptions())
    for who, stop in (("ann", 6), ("bob", 7)):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[2:stop, 2:6, 2:6] = 1
        path = tmp_path / f"{who}.nii.gz"
        nib.save(nib.Nifti1Image(mask, AFFINE), path)
        studies.save_label("a", str(path), "final", {"client_id": who, "label_info": [{"name": "liver"}]})
    web = FastAPI()
    web.include_router(router(learning, answer_to))
    return TestClient(web)


def test_figures(client: TestClient) -> None:
    told = client.get("/learning/agreement?image=a").json()
    assert (told["annotators"], told["disputed_voxels"]) == (["ann", "bob"], {"liver": 16})
    (pair,) = told["pairs"]
    assert (pair["label"], pair["dice"], pair["hausdorff95_mm"]) == ("liver", 0.8889, 1.0)


def test_the_map_lies_on_the_image(client: TestClient, tmp_path: Path) -> None:
    answer = client.get("/learning/agreement?image=a&output=map&label=liver")
    path = tmp_path / "map.nii.gz"
    path.write_bytes(answer.content)
    found = nib.load(path)
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[6, 2:6, 2:6] = 1
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    np.testing.assert_allclose(found.affine, AFFINE)


@pytest.mark.parametrize(
    ("query", "said"), [("image=b", "no final label"), ("image=x", "no image"), ("image=a&label=y", "Nobody")]
)
def test_nothing_to_compare(client: TestClient, query: str, said: str) -> None:
    answer = client.get(f"/learning/agreement?output=map&{query}")
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
