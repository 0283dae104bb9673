"""The page on series of an archive: its routes, from the list to the DICOM SEG that is stored."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.eulerangles import euler2mat

from tests.support.dicom_files import read_segments
from tests.support.dicoms import Archive, WrittenSeries, archived_noise, orthanc
from tests.support.frames import unframed
from tests.support.live import Server, serving

SHAPE = (36, 33, 26)
"""Along (x, y, z); no two sides are equal."""
SPACING = (0.8, 1.1, 2.5)
MADE = {"CT": ("reversed", 1.0, np.eye(3)), "MR": ("sagittal", 1.0, euler2mat(0.05, 0.1, 0.2))}
"""Modality to how its slices lie, their slope, and a turn of the patient."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def series(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> dict[str, WrittenSeries]:
    return archived_noise(archive, tmp_path_factory.mktemp("series"), MADE, SHAPE, SPACING)


@pytest.fixture(scope="module")
def server(
    archive: Archive, series: dict[str, WrittenSeries], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page-archive")
    environment = {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": "{}",
    }
    with serving(folder, archive.dicomweb, environment=environment) as started:
        yield started


def get(server: Server, path: str, image: str) -> Any:
    response = server.http.get(f"{server.url}/page/{path}", params={"image": image}, timeout=120)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("modality", MADE)
def test_a_series_is_listed_and_described(
    server: Server, series: dict[str, WrittenSeries], modality: str
) -> None:
    made = series[modality]
    images = {image["id"]: image for image in server.get("/page/images").json()}
    assert not images[made.uid]["done"]
    about = get(server, "image", made.uid).json()
    assert about["modality"] == modality.lower()
    assert sorted(about["shape"]) == sorted(made.shape)
    np.testing.assert_allclose(sorted(about["spacing"]), sorted(SPACING), atol=1e-5)


@pytest.mark.parametrize("modality", MADE)
def test_each_voxel_of_the_volume_is_that_of_its_slice(
    server: Server, series: dict[str, WrittenSeries], modality: str, tmp_path: Path
) -> None:
    made = series[modality]
    path = tmp_path / "volume.nii"
    path.write_bytes(get(server, "volume", made.uid).content)
    volume = nib.load(path)
    to_page = np.linalg.inv(volume.affine) @ LPS @ made.affine
    shown = np.asarray(volume.dataobj)
    for file in sorted(made.folder.iterdir())[::7]:
        data = pydicom.dcmread(file)
        k = data.InstanceNumber - 1
        index = np.stack(np.meshgrid(range(data.Columns), range(data.Rows), [k], indexing="ij"), -1)
        points = np.rint(index.reshape(-1, 3) @ to_page[:3, :3].T + to_page[:3, 3]).astype(int)
        stored = data.pixel_array.T.reshape(-1)
        np.testing.assert_array_equal(shown[tuple(points.T)], stored)


@pytest.mark.parametrize("modality", MADE)
def test_a_box_is_answered_and_what_is_submitted_is_a_segmentation_of_the_series(
    server: Server, archive: Archive, series: dict[str, WrittenSeries], modality: str
) -> None:
    made = series[modality]
    about = get(server, "image", made.uid).json()
    edges = [round(part * n) for n in about["shape"] for part in (0.25, 0.75)]
    params = {"labels": ["liver", "my own"], "prompts": {"my own": {"box": edges}}}
    response = server.http.post(
        f"{server.url}/page/segment",
        params={"image": made.uid},
        files={"params": (None, json.dumps(params))},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    header, parts = unframed(response.content)
    (part,) = header["parts"]
    voxels = np.where(parts["labels"] == 2, 2, 0).astype(np.uint8)
    assert voxels.any()
    sent = {"labels": params["labels"], "box": part["box"], "clicks": 0}
    submitted = server.http.put(
        f"{server.url}/page/label",
        params={"image": made.uid},
        files=[
            ("params", (None, json.dumps(sent))),
            ("voxels", ("label.gz", gzip.compress(voxels.tobytes(order="F")))),
        ],
        timeout=120,
    )
    assert submitted.status_code == 200, submitted.text
    assert [label["name"] for label in submitted.json()["labels"]] == ["my own"]

    # In the archive, by another program, each voxel at its place in the patient.
    (stored,) = archive.segmentations(made.study)
    ((mask, affine),) = read_segments(pydicom.dcmread(io.BytesIO(stored))).values()
    corner = part["box"][::2]
    index = np.argwhere(voxels) + corner
    page = LPS @ np.asarray(about["affine"])
    shown = index @ page[:3, :3].T + page[:3, 3]
    found = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]

    def tenths(points: np.ndarray) -> set[tuple[int, ...]]:
        return set(map(tuple, np.rint(10 * points).astype(int).tolist()))

    assert tenths(found) == tenths(shown)
    # And back to the page.
    images = {image["id"]: image for image in server.get("/page/images").json()}
    assert images[made.uid]["done"] and images[made.uid]["by"] == "page"
    again, labels = unframed(get(server, "label", made.uid).content)
    assert again["labels"] == ["my own"]
    assert int((labels["labels"] > 0).sum()) == len(index)
