"""DICOM SEG objects, read back by pydicom-seg: voxels, names, colours, and what they refer to."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dualclickmed.errors import UserError
from dualclickmed.imaging.dicom_seg import converted, segmentation
from dualclickmed.imaging.label_files import NamedLabels, read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write
from dualclickmed.imaging.volume import Volume, load_volume
from highdicom.seg import Segmentation
from nibabel.eulerangles import euler2mat

from tests.support.dicom_files import read_segments
from tests.support.dicoms import CLASSES, LAYOUTS, WrittenSeries, write_series

KNOWN = LabelMap(("liver", "spleen", "kidney"))
# 7 x 5 pixels are no whole number of bytes: frames follow one another bit by bit.
SHAPE, SPACING = (7, 5, 9), (0.8, 1.1, 2.5)
TURN = euler2mat(0.05, 0.1, 0.2)


def a_series(folder: Path, layout: str = "axial", modality: str = "CT") -> WrittenSeries:
    array = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    return write_series(folder, array, SPACING, LAYOUTS[layout], modality, turn=TURN)


def read_back(dataset: pydicom.Dataset) -> dict[str, set[tuple[int, ...]]]:
    """Where each segment is in the patient (LPS), in hundredths of a millimetre."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return {
        name: places(mask, affine[:3, :3], affine[:3, 3])
        for name, (mask, affine) in read_segments(pydicom.dcmread(stream)).items()
    }


def places(
    mask: npt.NDArray[np.generic], matrix: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]
) -> set[tuple[int, ...]]:
    world = np.argwhere(mask) @ matrix.T + origin
    return set(map(tuple, np.rint(100 * world).astype(int).tolist()))


def in_volume(mask: npt.NDArray[np.bool_], volume: Volume) -> set[tuple[int, ...]]:
    lps = np.diag([-1, -1, 1, 1]) @ volume.affine
    return places(volume.to_raw_array(mask), lps[:3, :3], lps[:3, 3])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_segments_read_back_voxel_for_voxel(tmp_path: Path, layout: str) -> None:
    """Random voxels in two layers that overlap, one label on a single slice."""
    series = a_series(tmp_path, layout)
    volume = load_volume(series.folder)
    rng = np.random.default_rng(1)
    first = rng.integers(0, 3, volume.shape).astype(np.uint16)
    second = np.zeros(volume.shape, np.uint16)
    second[2, 1:3, 1:3] = 7
    labels = NamedLabels([first, second], [{1: "liver", 2: "Zyste links"}, {7: "tumor"}])
    dataset = segmentation(labels, volume, series.folder)
    found = read_back(dataset)
    assert found == {
        "liver": in_volume(first == 1, volume),
        "Zyste links": in_volume(first == 2, volume),
        "tumor": in_volume(second == 7, volume),
    }


def test_each_frame_refers_to_its_slice(tmp_path: Path) -> None:
    series = a_series(tmp_path)
    volume = load_volume(series.folder)
    labels = np.zeros(volume.shape, np.uint16)
    labels[3, 2, 2] = labels[6, 1, 1] = 1
    dataset = segmentation(NamedLabels([labels], [{1: "liver"}]), volume, series.folder)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.folder.iterdir()]
    slices = {header.SOPInstanceUID: header for header in headers}
    assert dataset.NumberOfFrames == 2
    for group in dataset.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        source = slices[image.ReferencedSOPInstanceUID]
        assert group.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == headers[0][keyword].value
    assert dataset.SeriesInstanceUID != series.uid
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(headers)


def test_highdicom_reads_segments_by_their_source_slices(tmp_path: Path) -> None:
    series = a_series(tmp_path)
    volume = load_volume(series.folder)
    layer = np.random.default_rng(3).integers(0, 3, volume.shape).astype(np.uint16)
    second = (np.random.default_rng(4).random(volume.shape) < 0.3).astype(np.uint16)
    layer[4] = second[4] = 0
    named = NamedLabels([layer, second], [{1: "liver", 2: "spleen"}, {1: "tumor"}])
    stream = io.BytesIO()
    segmentation(named, volume, series.folder).save_as(stream, enforce_file_format=True)
    stream.seek(0)
    found = Segmentation.from_dataset(pydicom.dcmread(stream))
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.folder.iterdir()]
    normal = volume.affine[:3, 2] * (-1, -1, 1)
    headers.sort(key=lambda header: np.dot(header.ImagePositionPatient, normal))
    pixels = found.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers], assert_missing_frames_are_empty=True
    )
    for number, mask in enumerate((layer == 1, layer == 2, second == 1)):
        raw = volume.to_raw_array(mask)
        np.testing.assert_array_equal(pixels[..., number].transpose(2, 1, 0) != 0, raw)


@pytest.mark.parametrize("name", ["left\\right", "肝臓\\左葉", "Läsion " + 7 * "сердце\\"])
def test_a_name_that_a_label_cannot_hold_is_whole_in_the_description(tmp_path: Path, name: str) -> None:
    """A backslash makes two values of a SegmentLabel (LO), which has 64 characters; a description (ST) may
    hold it, and every program gets one label that can be read."""
    series = a_series(tmp_path / "series")
    volume = load_volume(series.folder)
    layer = np.zeros(volume.shape, np.uint16)
    layer[3, 2, 2] = 1
    path = tmp_path / "seg.dcm"
    segmentation(NamedLabels([layer], [{1: name}]), volume, series.folder).save_as(path)
    segment = pydicom.dcmread(path).SegmentSequence[0]
    assert segment.SegmentLabel == name.replace("\\", "/")
    assert segment.SegmentDescription == name
    described = Segmentation.from_dataset(pydicom.dcmread(path)).get_segment_description(1)
    assert described.segment_label == segment.SegmentLabel
    assert read_labels(path, volume).voxels == {name: 1}
    # What would come of it: the first part is all that most programs look at.
    split = pydicom.Dataset()
    split.SegmentLabel = name
    assert name.count("\\") + 1 == split["SegmentLabel"].VM


@pytest.mark.parametrize("modality", CLASSES)
def test_an_absent_label_shifts_no_name(tmp_path: Path, modality: str) -> None:
    """As 3D Slicer submits: values in the order of all its segments, of which some are empty."""
    series = a_series(tmp_path / "series", modality=modality)
    volume = load_volume(series.folder)
    label = np.zeros(volume.raw_shape, np.uint8)
    label[1, 2, 3], label[4, 4, 4] = 2, 3
    nib.save(nib.Nifti1Image(label, volume.affine), tmp_path / "label.nii.gz")
    info = [{"name": name, "idx": place} for place, name in enumerate(("cyst", "tumor", "spleen"), start=2)]
    path = converted(series.folder, tmp_path / "label.nii.gz", info, KNOWN)
    try:
        found = read_back(pydicom.dcmread(path))
    finally:
        Path(path).unlink()
    canonical = volume.from_raw_array(label)
    assert found == {"tumor": in_volume(canonical == 2, volume), "spleen": in_volume(canonical == 3, volume)}


def test_an_answers_own_names_count(tmp_path: Path) -> None:
    series = a_series(tmp_path / "series")
    volume = load_volume(series.folder)
    array = np.zeros(volume.raw_shape, np.uint8, order="F")
    array[1, 2, 3] = 3
    answer = write(LabelledMask(array, volume.affine, [Segment("kidney", 3, (1, 2, 3))]), ".seg.nrrd")
    try:
        path = converted(series.folder, answer, [], KNOWN)
    finally:
        answer.unlink()
    try:
        assert read_back(pydicom.dcmread(path)).keys() == {"kidney"}
    finally:
        Path(path).unlink()


def test_an_empty_label_is_refused(tmp_path: Path) -> None:
    series = a_series(tmp_path / "series")
    volume = load_volume(series.folder)
    nib.save(nib.Nifti1Image(np.zeros(volume.raw_shape, np.uint8), volume.affine), tmp_path / "label.nii.gz")
    with pytest.raises(UserError, match="no label that can be used"):
        converted(series.folder, tmp_path / "label.nii.gz", [], KNOWN)
