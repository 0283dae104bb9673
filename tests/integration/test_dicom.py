"""Studies of a DICOMweb archive: clicks in every modality, DICOM SEG out, and DICOM SEG in."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.volume import load_volume
from dualclickmed.server.archive import DicomStudies
from monailabel.datastore.dicom import DICOMwebClientX
from nibabel.eulerangles import euler2mat

from tests.support.dicom_files import read_segments
from tests.support.dicoms import Archive, WrittenSeries, archived_noise, orthanc
from tests.support.live import LABELS, Server, serving
from tests.support.nrrd_answers import affine_of, read_nrrd

SHAPE = (36, 33, 26)
"""Along (x, y, z); no two sides are equal."""
SPACING = (0.8, 1.1, 2.5)
TURN = euler2mat(0.05, 0.1, 0.2)
# A patient's image of each modality, each in another layout, one of them oblique.
MADE = {
    "CT": ("axial", 1.0, np.eye(3)),
    "MR": ("sagittal", 1.0, TURN),
    "PT": ("reversed", 0.25, np.eye(3)),
    "US": ("coronal", 1.0, np.eye(3)),
}
VALUES = {name: value for value, name in enumerate(LABELS, start=1)}


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
    folder = tmp_path_factory.mktemp("dicom")
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache")}
    with serving(folder, archive.dicomweb, environment=environment) as started:
        yield started


def clicked_twice(shape: tuple[int, ...]) -> dict[str, list[list[int]]]:
    """Two labels, the first and the last of the server's, in opposite corners of the image."""
    return {"liver": [[2, 3, 4]], "tumor": [[n - 3 for n in shape]]}


@pytest.mark.parametrize("modality", MADE)
def test_clicks_in_a_series(server: Server, series: dict[str, WrittenSeries], modality: str) -> None:
    """The voxel that a client sees at a place of the patient is the one that is set there."""
    made = series[modality]
    prompts = clicked_twice(made.shape)
    response = server.infer("dualclickmed", made.uid, prompts)
    assert response.status_code == 200, response.text
    mask, header = read_nrrd(response.content)
    assert sorted(mask.shape) == sorted(made.shape)
    for label, ((i, j, k),) in prompts.items():
        assert mask[i, j, k] == VALUES[label]
    # The answer's grid covers the series' voxels one by one.
    lps = np.diag([-1, -1, 1, 1]) @ affine_of(header)
    to_series = np.linalg.inv(made.affine) @ lps
    whole = np.rint(to_series)
    np.testing.assert_allclose(to_series, whole, atol=1e-4)
    ends = whole @ np.asarray([[0, 0, 0, 1], [n - 1 for n in mask.shape] + [1]]).T
    assert sorted(np.abs(ends[:3, 1] - ends[:3, 0])) == sorted(n - 1 for n in made.shape)
    assert (ends[:3] >= 0).all()
    assert (made.shape > ends[:3].T).all()
    details = server.infer("dualclickmed", made.uid, prompts, output="json").json()
    assert details["shape"] == list(mask.shape)


def read_back(data: bytes) -> dict[str, tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]]:
    """Each segment of a DICOM SEG by name, as a mask (i, j, k) with its affine (LPS): by highdicom."""
    return read_segments(pydicom.dcmread(io.BytesIO(data)))


def places(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> set[tuple[int, ...]]:
    """Where a mask is in the patient, in tenths of a millimetre."""
    world = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    return set(map(tuple, np.rint(10 * world).astype(int).tolist()))


@pytest.mark.parametrize("modality", MADE)
def test_an_answer_as_dicom_seg(server: Server, series: dict[str, WrittenSeries], modality: str) -> None:
    """Voxel for voxel, under its name, without a list of names in the request."""
    made = series[modality]
    prompts = clicked_twice(made.shape)
    answer = server.infer("dualclickmed", made.uid, prompts)
    mask, header = read_nrrd(answer.content)
    lps = np.diag([-1, -1, 1, 1]) @ affine_of(header)
    response = server.infer("dualclickmed", made.uid, prompts, output="dicom_seg")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom"
    found = read_back(response.content)
    assert found.keys() == prompts.keys()
    for label in prompts:
        assert places(*found[label]) == places(mask == VALUES[label], lps)

    dataset = pydicom.dcmread(io.BytesIO(response.content))
    assert (dataset.Modality, dataset.StudyInstanceUID) == ("SEG", made.study)
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == made.uid
    instances = {str(pydicom.dcmread(file).SOPInstanceUID) for file in made.folder.iterdir()}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert str(image.ReferencedSOPInstanceUID) in instances
    # Slices without a voxel have no frame.
    used = sum(int((mask == VALUES[label]).any(axis=(0, 1)).sum()) for label in prompts)
    assert dataset.NumberOfFrames == used < len(prompts) * mask.shape[2]


def test_dcmqi_reads_it_as_well(server: Server, series: dict[str, WrittenSeries], tmp_path: Path) -> None:
    made = series["MR"]
    prompts = clicked_twice(made.shape)
    (tmp_path / "seg.dcm").write_bytes(
        server.infer("dualclickmed", made.uid, prompts, output="dicom_seg").content
    )
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)  # type: ignore[arg-type]
    meta = json.loads((tmp_path / "meta.json").read_text())
    names = [segment["SegmentLabel"] for group in meta["segmentAttributes"] for segment in group]
    assert names == list(prompts)
    colour = meta["segmentAttributes"][0][0]["recommendedDisplayRGBValue"]
    assert np.abs(np.subtract(colour, (221, 130, 101))).max() <= 5
    mask, header = read_nrrd(server.infer("dualclickmed", made.uid, prompts).content)
    lps = np.diag([-1, -1, 1, 1]) @ affine_of(header)
    for number, label in enumerate(prompts, start=1):
        image = sitk.ReadImage(str(tmp_path / f"{number}.nrrd"))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        assert places(sitk.GetArrayFromImage(image).T != 0, affine) == places(mask == VALUES[label], lps)


def submit(server: Server, made: WrittenSeries, array: npt.NDArray[Any], path: Path) -> None:
    """As 3D Slicer does: values in the order of its segments, empty ones included."""
    stored = nib.load(next((server.log.parent / "cache").rglob(f"{made.uid}.nii.gz")))
    nib.save(nib.Nifti1Image(array, stored.affine), path)
    info = [{"name": name, "idx": place} for place, name in enumerate(LABELS, start=2)]
    response = server.http.put(
        f"{server.url}/datastore/label",
        params={"image": made.uid, "tag": "final"},
        files={"params": (None, json.dumps({"label_info": info})), "label": (path.name, path.read_bytes())},  # type: ignore[arg-type]
        timeout=60,
    )
    assert response.status_code == 200, response.text


def test_a_submitted_label_lies_on_the_right_slices(
    server: Server, archive: Archive, series: dict[str, WrittenSeries], tmp_path: Path
) -> None:
    """In the middle of the image, the first label empty: names and slices must not shift."""
    made = series["PT"]
    server.infer("dualclickmed", made.uid, clicked_twice(made.shape))
    shape = nib.load(next((server.log.parent / "cache").rglob(f"{made.uid}.nii.gz"))).shape
    array = np.zeros(shape, np.uint8)
    array[5:9, 6:12, 7:11] = VALUES["kidney"]
    array[20:23, 6:12, 14:17] = VALUES["tumor"]
    submit(server, made, array, tmp_path / "label.nii.gz")

    (data,) = archive.segmentations(made.study)
    assert read_back(data).keys() == {"kidney", "tumor"}
    assert pydicom.dcmread(io.BytesIO(data)).NumberOfFrames == 4 + 3
    (tmp_path / "seg.dcm").write_bytes(data)
    volume = load_volume(made.folder)
    labels = read_labels(tmp_path / "seg.dcm", volume, known=LabelMap(LABELS))
    for name in ("kidney", "tumor"):
        np.testing.assert_array_equal(volume.to_raw_array(labels.mask(name)), array == VALUES[name])

    # What was submitted is kept, whatever is clicked next.
    point = [[16, 20, 12]]
    kept = server.infer("dualclickmed", made.uid, {"liver": point, "existing": "keep"})
    assert kept.status_code == 200, kept.text
    mask, _ = read_nrrd(kept.content)
    for name in ("kidney", "tumor"):
        np.testing.assert_array_equal(mask == VALUES[name], array == VALUES[name])
    assert mask[tuple(point[0])] == VALUES["liver"]

    # Another server learns from it.
    client = DICOMwebClientX(archive.dicomweb)
    studies = DicomStudies(
        client=client, search_filter={"Modality": "PT"}, cache_path=str(tmp_path / "other")
    )
    (pair,) = studies.datalist()
    image, info = load_volume(pair["image"]), studies.get_label_info(made.uid, "final")
    labels = read_labels(pair["label"], image, info)
    for name in ("kidney", "tumor"):
        np.testing.assert_array_equal(image.to_raw_array(labels.mask(name)), array == VALUES[name])


def test_the_archives_images_are_offered(server: Server, series: dict[str, WrittenSeries]) -> None:
    listed = server.get("/datastore/?output=all").json()["objects"]
    assert series["CT"].uid in listed


@pytest.mark.parametrize(
    ("image", "files", "message"),
    [
        ("1.2.3.4", None, "1.2.3.4"),
        (None, {"file": ("image.nii.gz", b"\x1f\x8b")}, "of the archive only"),
    ],
)
def test_what_has_no_series_is_refused(server: Server, image: str | None, files: Any, message: str) -> None:
    response = server.infer("dualclickmed", image, {"liver": [[1, 1, 1]]}, output="dicom_seg", files=files)
    assert response.status_code == 400, response.text
    assert message in response.json()["detail"]


def test_nothing_is_left_behind(server: Server, series: dict[str, WrittenSeries]) -> None:
    made = series["CT"]
    server.infer("dualclickmed", made.uid, clicked_twice(made.shape), output="dicom_seg")
    deadline = time.monotonic() + 10
    while (left := list(server.temporary.glob("dualclickmed-*.*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
