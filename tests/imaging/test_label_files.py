"""Submitted labels of every kind mean the same names on the same voxels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dualclickmed.imaging.dicom_seg import converted
from dualclickmed.imaging.label_files import LabelError, NamedLabels, read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.series_nifti import segments_to_nifti
from dualclickmed.imaging.volume import Volume, load_volume
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dicom_files import make_segmentation, make_series
from tests.support.volume_files import dicom_slices, save_dicom

SHAPE = (20, 16, 12)
AFFINE = np.array([[-0.8, 0, 0, 5.0], [0, -1.1, 0, -7.0], [0, 0, 2.5, 30.0], [0, 0, 0, 1]])
KNOWN = LabelMap(("liver", "spleen", "left kidney"))


def blocks(first: int = 1, second: int = 2) -> np.ndarray:
    """Two labels in raw order."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:8, 3:9, 2:6] = first
    labels[11:18, 5:14, 4:11] = second
    return labels


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    array = np.random.default_rng(1).integers(0, 900, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "image.nii.gz")
    return load_volume(tmp_path / "image.nii.gz")


def nifti(folder: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path = folder / "label.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def raw_mask(volume: Volume, labels: NamedLabels, name: str) -> np.ndarray:
    return volume.to_raw_array(labels.mask(name))


def same(volume: Volume, labels: NamedLabels, **expected: np.ndarray) -> None:
    assert labels.voxels == {name.replace("_", " "): int(mask.sum()) for name, mask in expected.items()}
    for name, mask in expected.items():
        np.testing.assert_array_equal(raw_mask(volume, labels, name.replace("_", " ")), mask)


def test_slicer_numbers_segments_by_position_whatever_idx_says(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    info = {"label_info": [{"name": "spleen", "idx": 5}, {"name": "posterior", "idx": 9}]}
    found = read_labels(nifti(tmp_path, array), volume, info, KNOWN)
    same(volume, found, spleen=array == 1, posterior=array == 2)
    assert found.notes == []


def test_a_listed_background_does_not_count(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    info = {"label_info": [{"name": "background", "idx": 0}, {"name": "a"}, {"name": "b"}]}
    same(volume, read_labels(nifti(tmp_path, array), volume, info), a=array == 1, b=array == 2)


def test_without_names_values_are_the_servers(tmp_path: Path, volume: Volume) -> None:
    array = blocks(3, 1)
    found = read_labels(nifti(tmp_path, array), volume, {}, KNOWN)
    same(volume, found, left_kidney=array == 3, liver=array == 1)


def test_the_servers_own_values_with_the_names_that_occur(tmp_path: Path, volume: Volume) -> None:
    array = blocks(3, 2)
    info = {"label_info": [{"name": "Left Kidney"}, {"name": "spleen"}]}
    found = read_labels(nifti(tmp_path, array), volume, info, KNOWN)
    same(volume, found, left_kidney=array == 3, spleen=array == 2)


def test_a_mapping_that_was_sent_along_goes_before_positions(tmp_path: Path, volume: Volume) -> None:
    array = blocks(7, 4)
    info = {"label_names": {"background": 0, "cyst": 7, "tumor": 4}, "label_info": [{"name": "x"}] * 9}
    same(volume, read_labels(nifti(tmp_path, array), volume, info), cyst=array == 7, tumor=array == 4)


def test_names_in_a_slicer_segmentation_go_before_everything(tmp_path: Path, volume: Volume) -> None:
    array = blocks(1, 2)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "Segment0_Name": "vessel",
        "Segment0_LabelValue": "2",
        "Segment0_Layer": "0",
        "Segment1_Name": "Liver",
        "Segment1_LabelValue": "1",
        "Segment1_Layer": "0",
    }
    nrrd.write(str(tmp_path / "label.seg.nrrd"), array, header)
    info = {"label_info": [{"name": "wrong"}, {"name": "also wrong"}]}
    found = read_labels(tmp_path / "label.seg.nrrd", volume, info, KNOWN)
    same(volume, found, vessel=array == 2, liver=array == 1)


@pytest.mark.parametrize("value", [{"Segment0_LabelValue": "1", "Segment1_LabelValue": "1"}, {}])
def test_segments_that_share_a_value_are_refused(
    tmp_path: Path, volume: Volume, value: dict[str, str]
) -> None:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "Segment0_Name": "organ",
        "Segment1_Name": "lesion",
        **value,
    }
    nrrd.write(str(tmp_path / "label.seg.nrrd"), blocks(), header)
    with pytest.raises(LabelError, match=r"'organ' and 'lesion' share 1"):
        read_labels(tmp_path / "label.seg.nrrd", volume, {}, KNOWN)


def test_overlapping_segments_of_slicer_stay_whole(tmp_path: Path, volume: Volume) -> None:
    organ, lesion = blocks() == 2, np.zeros(SHAPE, dtype=bool)
    lesion[12:15, 7:10, 6:9] = True
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    header: dict[str, Any] = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([[np.nan] * 3, lps[:3, :3].T]),
        "space origin": lps[:3, 3],
    }
    for number, name in enumerate(("organ", "lesion")):
        header |= {f"Segment{number}_Name": name, f"Segment{number}_LabelValue": "1"}
        header[f"Segment{number}_Layer"] = str(number)
    nrrd.write(str(tmp_path / "label.seg.nrrd"), np.stack([organ, lesion]).astype(np.uint8), header)
    found = read_labels(tmp_path / "label.seg.nrrd", volume)
    assert len(found.layers) == 2
    same(volume, found, organ=organ, lesion=lesion)


SLICER = {
    "4.10": [{"ID": "Segment_1", "Name": "Läsion \\\\ 1"}, {"ID": "Segment_2", "Name": "肝臓"}],
    "4.11": [
        {"ID": "Segment_1", "Name": "Läsion \\\\ 1", "LabelValue": "1", "Layer": "0"},
        {"ID": "Segment_2", "Name": "肝臓", "LabelValue": "1", "Layer": "1"},
    ],
    "5.6": [
        {"ID": "1.2.3", "Name": "Läsion \\\\ 1", "NameAutoGenerated": "0", "LabelValue": "7", "Layer": "0"},
        {"ID": "1.2.4", "Name": "肝臓", "NameAutoGenerated": "0", "LabelValue": "2", "Layer": "1"},
    ],
    "5.6, one layer": [
        {"Name": "Läsion \\\\ 1", "LabelValue": "7", "Layer": "0"},
        {"Name": "肝臓", "LabelValue": "2", "Layer": "0"},
    ],
}
"""What the versions of 3D Slicer write about two segments; a backslash is escaped in a header."""


@pytest.mark.parametrize("version", SLICER)
def test_segment_names_of_every_version_of_slicer(tmp_path: Path, volume: Volume, version: str) -> None:
    first, second = blocks() == 1, blocks() == 2
    layered = "one layer" not in version
    if version == "4.10":
        array = np.stack([first, second]).astype(np.uint8)
    elif layered:
        value = 7 if version == "5.6" else 1
        array = np.stack([first * value, second * (2 if version == "5.6" else 1)]).astype(np.uint8)
    else:
        array = (first * 7 + second * 2).astype(np.uint8)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    vectors = ["(" + ",".join(map(repr, map(float, column))) + ")" for column in lps[:3].T]
    key = "SourceRepresentation" if version.startswith("5") else "MasterRepresentation"
    lines = [
        *("NRRD0004", "type: unsigned char", f"dimension: {3 + layered}", "encoding: raw"),
        *("space: left-posterior-superior", f"sizes: {' '.join(map(str, array.shape))}"),
        f"space directions: {'none ' * layered}{' '.join(vectors[:3])}",
        f"kinds: {'list ' * layered}domain domain domain",
        f"space origin: {vectors[3]}",
        f"Segmentation_{key}:=Binary labelmap",
    ]
    for number, fields in enumerate(SLICER[version]):
        lines += [f"Segment{number}_{field}:={value}" for field, value in fields.items()]
    path = tmp_path / "label.seg.nrrd"
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + array.tobytes(order="F"))
    found = read_labels(path, volume, {}, KNOWN)
    assert found.voxels == {"Läsion \\ 1": first.sum(), "肝臓": second.sum()}
    np.testing.assert_array_equal(raw_mask(volume, found, "肝臓"), second)


def test_one_segment_of_an_old_slicer_in_a_list_of_one(tmp_path: Path, volume: Volume) -> None:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([[np.nan] * 3, lps[:3, :3].T]),
        "space origin": lps[:3, 3],
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "cyst",
    }
    path = tmp_path / "label.seg.nrrd"
    nrrd.write(str(path), (blocks() == 2)[None].astype(np.uint8), header)
    same(volume, read_labels(path, volume, {}, KNOWN), cyst=blocks() == 2)


def test_a_channel_for_each_label(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    channels = np.stack([array == 2, array == 1], axis=-1).astype(np.uint8)
    info = {"label_info": [{"name": "b"}, {"name": "a"}]}
    found = read_labels(nifti(tmp_path, channels), volume, info)
    assert len(found.layers) == 1
    same(volume, found, a=array == 1, b=array == 2)


def test_a_cropped_label_is_put_back_in_its_place(tmp_path: Path, volume: Volume) -> None:
    """A DICOM SEG comes back without its empty slices and with another origin."""
    array = blocks()
    lo, hi = (1, 2, 2), (19, 15, 11)
    part = array[tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))]
    moved = AFFINE.copy()
    moved[:3, 3] = (AFFINE @ [*lo, 1])[:3]
    info = {"label_info": [{"name": "a"}, {"name": "b"}]}
    same(volume, read_labels(nifti(tmp_path, part, moved), volume, info), a=array == 1, b=array == 2)


def test_another_resolution_and_axis_order(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    fine = np.repeat(array, 2, axis=2).transpose(2, 0, 1)[:, ::-1]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = AFFINE[:3, 2] / 2, -AFFINE[:3, 0], AFFINE[:3, 1]
    affine[:3, 3] = AFFINE[:3, 3] + AFFINE[:3, 0] * (SHAPE[0] - 1) - AFFINE[:3, 2] / 4
    info = {"label_info": [{"name": "a"}, {"name": "b"}]}
    same(volume, read_labels(nifti(tmp_path, fine, affine), volume, info), a=array == 1, b=array == 2)


def test_a_file_without_geometry_is_taken_voxel_for_voxel(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    found = read_labels(nifti(tmp_path, array, np.eye(4)), volume, {"label_info": [{"name": "a"}] * 2})
    np.testing.assert_array_equal(raw_mask(volume, found, "a"), array > 0)
    assert any("twice" in note for note in found.notes)


def test_dicom_seg_without_empty_slices(tmp_path: Path) -> None:
    """Written by another program, read back onto the series that it belongs to."""
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    mask = np.zeros(volume.raw_shape, dtype=np.uint8)
    mask[5:12, 6:14, 4:7], mask[2:5, 2:5, 5:8] = 1, 2
    path = make_segmentation(series, mask, ("nodule", "vessel"), tmp_path / "seg.dcm")
    found = read_labels(path, volume, {"label_info": [{"name": "ignored"}]}, KNOWN)
    same(volume, found, nodule=mask == 1, vessel=mask == 2)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("omit_empty", [True, False])
def test_kinds_of_dicom_seg_mean_the_same(tmp_path: Path, kind: str, omit_empty: bool) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    mask = np.random.default_rng(5).integers(0, 3, volume.raw_shape).astype(np.uint8)
    mask[:, :, :2] = mask[:, :, 7] = 0
    path = make_segmentation(series, mask, ("nodule", "vessel"), tmp_path / "seg.dcm", kind, omit_empty)
    same(volume, read_labels(path, volume), nodule=mask == 1, vessel=mask == 2)


def test_a_fractional_dicom_seg_counts_from_one_half(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    shares = np.random.default_rng(6).choice([0, 0.2, 127 / 255, 128 / 255, 0.6, 1], volume.raw_shape)
    path = make_segmentation(series, shares[..., None], ("nodule",), tmp_path / "seg.dcm", "FRACTIONAL")
    same(volume, read_labels(path, volume), nodule=shares >= 0.5)


def saved(path: Path, change: Callable[[pydicom.Dataset], object]) -> Path:
    """A DICOM file with something changed."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("slices", [(4, 6, 8), (2, 8), (5,), (3, 4, 5, 9)])
@pytest.mark.parametrize("thickness", ["2.5", "1.25", None])
def test_frames_without_a_distance_lie_on_the_images_slices(
    tmp_path: Path, slices: tuple[int, ...], thickness: str | None
) -> None:
    """Some writers give no SpacingBetweenSlices; where slices are left out the gaps do not tell either."""
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    mask = np.zeros(volume.raw_shape, dtype=np.uint8)
    mask[5:12, 6:14, list(slices)] = 1

    def change(dataset: pydicom.Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        del measures.SpacingBetweenSlices
        if thickness is None:
            del measures.SliceThickness
        else:
            measures.SliceThickness = thickness

    path = saved(make_segmentation(series, mask, ("nodule",), tmp_path / "seg.dcm"), change)
    same(volume, read_labels(path, volume), nodule=mask == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1), "number of its own.*'a'.*share 1"),
        (lambda d: setattr(d, "Rows", d.Rows - 1), "padded, or its header is wrong"),
        (lambda d: setattr(d, "PixelData", d.PixelData + bytes(8)), "padded, or its header is wrong"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:20]), "cut short"),
        (lambda d: setattr(d, "NumberOfFrames", d.NumberOfFrames + 1), "does so for"),
        (lambda d: setattr(d, "SegmentationType", "X"), "BINARY, FRACTIONAL or LABELMAP"),
        (lambda d: setattr(d, "Modality", "OT"), "not a segmentation"),
    ],
    ids=["one number", "fewer rows", "more bytes", "fewer bytes", "more frames", "type", "modality"],
)
def test_a_dicom_seg_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[pydicom.Dataset], object], message: str
) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    mask = np.zeros(volume.raw_shape, dtype=np.uint8)
    mask[5:12, 6:14, 2:7], mask[2:5, 2:5, 5:8] = 1, 2
    path = saved(make_segmentation(series, mask, ("a", "b"), tmp_path / "seg.dcm"), change)
    with pytest.raises(LabelError, match=message):
        read_labels(path, volume)


def test_a_dicom_seg_of_a_tilted_series(tmp_path: Path) -> None:
    lps = np.array([[0.9, 0, 0, -10], [0, 0.8, 0.6, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    series = save_dicom(tmp_path / "series", *dicom_slices(np.zeros(SHAPE, np.int16), lps))
    volume = load_volume(series)
    array = blocks()
    nib.save(nib.Nifti1Image(array, np.asarray(volume.affine)), tmp_path / "label.nii.gz")
    info = [{"name": "liver"}, {"name": "Zyste 囊肿"}]
    path = Path(converted(series, tmp_path / "label.nii.gz", info, KNOWN))
    try:
        found = read_labels(path, volume, {}, KNOWN)
    finally:
        path.unlink()
    assert found.voxels == {"liver": (array == 1).sum(), "Zyste 囊肿": (array == 2).sum()}
    np.testing.assert_array_equal(raw_mask(volume, found, "Zyste 囊肿"), array == 2)


@pytest.mark.parametrize(
    ("charset", "label", "name"),
    [
        ("ISO_IR 192", "肝臓", "肝臓"),
        ("ISO_IR 144", "печень", "печень"),
        ("ISO_IR 100", "Läsion", "Läsion"),
        ("GB18030", "肝脏", "肝脏"),
        (["", "ISO 2022 IR 87"], "肝臓", "肝臓"),
    ],
)
def test_segment_names_in_the_character_sets_of_dicom(
    tmp_path: Path, charset: str | list[str], label: str, name: str
) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    mask = np.zeros(volume.raw_shape, dtype=np.uint8)
    mask[5:12, 6:14, 4:7] = 1

    def change(dataset: pydicom.Dataset) -> None:
        dataset.SpecificCharacterSet = charset
        dataset.SegmentSequence[0].SegmentLabel = label

    path = saved(make_segmentation(series, mask, ("x",), tmp_path / "seg.dcm"), change)
    assert read_labels(path, volume).voxels == {name: int(mask.sum())}


def test_a_dicom_seg_as_nifti_means_the_same(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    masks = np.random.default_rng(7).random((*volume.raw_shape, 3)) < 0.3
    (tmp_path / "seg").mkdir()
    make_segmentation(series, masks.astype(np.uint8), ("a", "b", "b"), tmp_path / "seg" / "0.dcm")
    names = segments_to_nifti(tmp_path / "seg", tmp_path / "label.nii.gz")
    assert names == {"a": 1, "b": 2, "b 3": 3}
    found = read_labels(tmp_path / "label.nii.gz", volume, {"label_names": names})
    assert found.voxels == {"a": masks[..., 0].sum(), "b": masks[..., 1].sum(), "b 3": masks[..., 2].sum()}
    np.testing.assert_array_equal(raw_mask(volume, found, "b 3"), masks[..., 2])


def test_overlapping_segments_of_a_dicom_seg_stay_whole(tmp_path: Path) -> None:
    series = make_series(tmp_path / "series")
    volume = load_volume(series)
    masks = np.random.default_rng(7).random((*volume.raw_shape, 3)) < 0.3
    path = make_segmentation(series, masks.astype(np.uint8), ("a", "b", "c"), tmp_path / "seg.dcm")
    same(volume, read_labels(path, volume), a=masks[..., 0], b=masks[..., 1], c=masks[..., 2])


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.zeros(SHAPE, np.uint8), AFFINE, "all its values are 0"),
        (blocks() * 0.5, AFFINE, "whole numbers"),
        (-blocks().astype(np.int16), AFFINE, "negative"),
        (blocks(), AFFINE + np.array([[0, 0, 0, 500.0]] + [[0] * 4] * 3), "another image"),
        (blocks(8, 9), AFFINE, "The values 8, 9 have no name"),
        (np.zeros((4, 4, 4, 2, 2), np.uint8), AFFINE, "three axes"),
    ],
    ids=["empty", "fractions", "negative", "elsewhere", "unknown values", "five axes"],
)
def test_wrong_labels_are_refused_with_a_sentence(
    tmp_path: Path, volume: Volume, array: np.ndarray, affine: np.ndarray, message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(nifti(tmp_path, array, affine), volume, {}, KNOWN)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, volume: Volume) -> None:
    (tmp_path / "label.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(LabelError, match="damaged"):
        read_labels(tmp_path / "label.nii.gz", volume)
    (tmp_path / "label.png").write_bytes(b"\x89PNG")
    with pytest.raises(LabelError, match="DICOM SEG or end in"):
        read_labels(tmp_path / "label.png", volume)


def test_values_outside_the_names_are_left_out_and_the_rest_is_kept(tmp_path: Path, volume: Volume) -> None:
    array = blocks(1, 9)
    found = read_labels(nifti(tmp_path, array), volume, {"label_info": [{"name": "a"}]})
    same(volume, found, a=array == 1)
    assert found.notes == ["The value 9 has no name and was left out."]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("roi", "segment roi"),
        ("background", "segment background"),
        ("Background", "segment Background"),
        ("liver, left", "liver  left"),
        ("a\nb", "a b"),
        ("x" * 300, "x" * 61 + "..."),
        ("肝" * 65, "肝" * 61 + "..."),
    ],
)
def test_names_that_no_label_can_have_are_kept_under_another_one(
    tmp_path: Path, volume: Volume, sent: str, kept: str
) -> None:
    array = blocks()
    info = {"label_info": [{"name": sent}, {"name": "b"}]}
    found = read_labels(nifti(tmp_path, array), volume, info, LabelMap(("liver",), frozenset({"roi"})))
    assert found.voxels == {kept: (array == 1).sum(), "b": (array == 2).sum()}
    assert found.notes == [f"No label can be called {sent[:100]!r}: it was kept as {kept!r}."]


def test_two_names_that_would_become_one_stay_two(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    info = {"label_info": [{"name": "x" * 70}, {"name": "x" * 71}]}
    found = read_labels(nifti(tmp_path, array), volume, info, KNOWN)
    assert sorted(found.voxels.values()) == sorted([(array == 1).sum(), (array == 2).sum()])
    assert len(found.notes) == 2


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (AFFINE @ np.array([[1, 0, 0, 0.3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), True),
        (AFFINE @ np.diag([0.5, 1, 1, 1]), True),
        (AFFINE @ np.diag([0.9, 1, 1, 1]), True),
        (AFFINE @ np.array([[1, 0, 0, 1], [0, 1, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]]), False),
        (AFFINE + 1e-5, False),
    ],
    ids=["a part of a voxel off", "twice as fine", "a little finer", "whole voxels off", "last digits"],
)
def test_a_label_that_has_to_be_resampled_is_noted(
    tmp_path: Path, volume: Volume, affine: np.ndarray, told: bool
) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[4:9, 5:9, 4:8] = 1
    found = read_labels(nifti(tmp_path, array, affine), volume, {}, KNOWN)
    assert any("another grid" in note for note in found.notes) == told


def test_a_one_hot_file_has_its_background_first(tmp_path: Path, volume: Volume) -> None:
    """As MONAI's transforms write it; a label never covers all that the others leave."""
    array = blocks()
    codes = np.stack([array == n for n in range(3)], axis=-1).astype(np.uint8)
    found = read_labels(nifti(tmp_path, codes), volume, {}, KNOWN)
    same(volume, found, liver=array == 1, spleen=array == 2)
    assert len(found.notes) == 1 and "taken for the background" in found.notes[0]


@pytest.mark.parametrize(
    ("info", "names"),
    [
        ({"label_names": {"a": "1", "b": 2.0}}, {"a": 1, "b": 2}),
        ({"label_info": ["a", "b"]}, {"a": 1, "b": 2}),
        ({"labels": {"background": 0, "b": 2}}, {"b": 2}),
    ],
)
def test_names_in_other_forms_that_mean_one_thing(
    tmp_path: Path, volume: Volume, info: dict[str, Any], names: dict[str, int]
) -> None:
    array = blocks()
    found = read_labels(nifti(tmp_path, array), volume, info, KNOWN)
    assert found.voxels == {name: (array == value).sum() for name, value in names.items()}


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"label_names": {"a": 1, "b": 1}}, "'a' and 'b' share 1"),
        ({"label_names": {"a": "one"}}, "'a' has 'one'"),
        ({"labels": {"a": 1.5}}, "'a' has '1.5'"),
        ({"label_names": {"a": True}}, "'a' has 'True'"),
        ({"label_info": {"a": 1}}, "lists the labels"),
    ],
)
def test_names_that_could_mean_several_things_are_refused(
    tmp_path: Path, volume: Volume, info: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(nifti(tmp_path, blocks()), volume, info, KNOWN)


def test_many_values_without_a_name_are_one_note(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    array[0, 0, :9] = np.arange(11, 20)
    found = read_labels(nifti(tmp_path, array), volume, {}, KNOWN)
    assert found.notes == ["The values 11, 12, 13, 14, 15 and 4 more have no name and were left out."]


@given(st.permutations(["liver", "spleen", "posterior", "anterior", "tumor"]), st.data())
def test_every_order_of_segments(names: list[str], data: st.DataObject) -> None:
    """Names follow positions for any order and any subset of values that occurs."""
    from dualclickmed.imaging.label_files import _meaning

    values = sorted(data.draw(st.sets(st.integers(1, 5), min_size=1)))
    info = {"label_info": [{"name": name, "idx": 10 - n} for n, name in enumerate(names)]}
    notes: list[str] = []
    assert _meaning(values, {}, info, KNOWN, notes) == {v: names[v - 1] for v in values}
    assert notes == []


def test_metaimage(tmp_path: Path, volume: Volume) -> None:
    array = blocks()
    image = sitk.GetImageFromArray(array.T)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / "label.mha"))
    found = read_labels(tmp_path / "label.mha", volume, {"label_info": [{"name": "a"}, {"name": "b"}]})
    same(volume, found, a=array == 1, b=array == 2)
