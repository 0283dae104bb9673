"""Volumes: every axis order, agreement with MONAI's reading, compact storage, refusals, the cache."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.errors import UserError, VolumeError
from dualclickmed.imaging import compact
from dualclickmed.imaging import volume as volume_module
from dualclickmed.imaging.geometry import Box, Index
from dualclickmed.imaging.placing import Placing
from dualclickmed.imaging.reading import Read
from dualclickmed.imaging.volume import Volume, VolumeCache, from_array, load_volume
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

nrrd = pytest.importorskip("nrrd")
pydicom = pytest.importorskip("pydicom")

SHAPE: Index = (4, 5, 6)
STEPS = (2.0, 3.0, 5.0)
ORIGIN = (-7.0, 11.0, 13.0)
ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Writer = Callable[[Path, np.ndarray, np.ndarray], Path]


def counted(shape: Index = SHAPE, dtype: str = "int16") -> np.ndarray:
    """Every voxel has a value of its own, so equal arrays mean equal places."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def axis_affine(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """RAS affine whose raw axis r runs along world axis order[r], with STEPS[r] millimetres per voxel."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for raw, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, raw] = sign * STEPS[raw]
    affine[:3, 3] = ORIGIN
    return affine


def canonical_by_nibabel(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The (z, y, x) = (S, P, L) array, from nibabel's (R, A, S) one."""
    ras = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(array, affine)).dataobj)
    return ras[::-1, ::-1, :].transpose(2, 1, 0)


def all_indices(shape: Index = SHAPE) -> np.ndarray:
    return np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=1)


def write_nifti(folder: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / "image.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_nrrd(folder: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / "image.nrrd"
    lps = RAS_TO_LPS @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
    }
    nrrd.write(str(path), array, header, index_order="F")
    return path


def write_metaimage(folder: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    path = folder / "image.mha"
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = 0.0,
    description: str = "made for a test",
    uid: str = "1.2.3",
) -> Path:
    """One file for each slice array[:, :, k], with names that run against the slices' order."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(exist_ok=True)
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    count = array.shape[2]
    for k in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"{uid}.{k + 1}")
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file = folder / f"{modality}{count - k:03d}.dcm"
        data = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID = uid, "1.2.9"
        data.FrameOfReferenceUID = "1.2.8"
        data.Modality, data.SeriesDescription, data.PatientID = modality, description, "none"
        data.InstanceNumber = count - k
        data.SeriesDate = "20200101"
        data.ImagePositionPatient = [float(value) for value in (lps @ [0, 0, k, 1])[:3]]
        data.ImageOrientationPatient = [float(v) for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
        data.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        data.SliceThickness = float(spacing[2])
        data.Rows, data.Columns = array.shape[1], array.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.PixelData = np.ascontiguousarray(array[:, :, k].T.astype("<i2")).tobytes()
        data.save_as(str(file), enforce_file_format=True)
    return folder


def stored_in_dicom(order: tuple[int, ...], signs: tuple[int, ...]) -> bool:
    """Whether ITK keeps slices in this order: along the cross product of rows and columns."""
    lps = RAS_TO_LPS @ axis_affine(order, signs)
    return bool(np.linalg.det(lps[:3, :3]) > 0)


def assert_in_place(volume: Volume, raw: np.ndarray, affine: np.ndarray) -> None:
    """The volume holds `raw` in canonical order, and all its ways between the two orders agree."""
    expected = canonical_by_nibabel(raw, affine)
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.array.flags.c_contiguous
    assert volume.raw_shape == raw.shape
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)

    indices = all_indices(raw.shape)
    moved = volume.to_canonical(indices)
    np.testing.assert_array_equal(volume.array[tuple(moved.T)], raw[tuple(indices.T)])
    np.testing.assert_array_equal(volume.to_raw(moved), indices)
    np.testing.assert_array_equal(volume.to_raw_array(volume.array), raw)
    np.testing.assert_array_equal(volume.from_raw_array(raw), volume.array)


class TestOrientation:
    @pytest.mark.parametrize(("order", "signs"), ORDERS)
    @pytest.mark.parametrize("write", [write_nifti, write_nrrd, write_metaimage])
    def test_every_axis_order_and_sign(
        self, tmp_path: Path, write: Writer, order: tuple[int, ...], signs: tuple[int, ...]
    ) -> None:
        raw, affine = counted(), axis_affine(order, signs)
        volume = load_volume(write(tmp_path, raw, affine))
        assert_in_place(volume, raw, affine)
        # Raw axis r has STEPS[r]; the canonical axes are world axes 2, 1, 0.
        np.testing.assert_allclose(volume.spacing, [STEPS[order.index(world)] for world in (2, 1, 0)])

    @pytest.mark.parametrize(("order", "signs"), ORDERS)
    def test_every_dicom_plane_and_slice_order(
        self, tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
    ) -> None:
        raw, affine = counted(), axis_affine(order, signs)
        volume = load_volume(write_dicom(tmp_path / "series", raw, affine))
        if not stored_in_dicom(order, signs):
            # ITK turns such a stack round, and MONAI with it: the raw order is the turned one.
            raw = raw[:, :, ::-1]
            affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]])
        assert_in_place(volume, raw, affine)

    @pytest.mark.parametrize(
        ("axis", "direction"), [(0, (0, 0, 1)), (1, (0, -1, 0)), (2, (-1, 0, 0))]
    )  # S, P, L in RAS
    def test_canonical_axes_run_to_superior_posterior_left(
        self, tmp_path: Path, axis: int, direction: tuple[int, int, int]
    ) -> None:
        for order, signs in ORDERS[::5]:
            volume = load_volume(write_nifti(tmp_path, counted(), axis_affine(order, signs)))
            step = np.zeros((1, 3), dtype=int)
            step[0, axis] = 1
            raw = np.vstack([volume.to_raw(step), volume.to_raw(np.zeros((1, 3), dtype=int))])
            moved = volume.affine[:3, :3] @ (raw[0] - raw[1])
            np.testing.assert_allclose(moved, np.multiply(direction, volume.spacing[axis]))

    @given(npst.arrays(np.float64, (3, 3), elements=st.floats(-3, 3)))
    def test_oblique_and_sheared_affines_only_permute(self, matrix: np.ndarray) -> None:
        norms = np.linalg.norm(matrix, axis=0)
        assume(norms.min() > 0.1 and abs(np.linalg.det(matrix / norms)) > 0.05)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = matrix, ORIGIN
        raw = counted()
        stored = Read(raw, Placing.plain(affine), "array")
        volume = volume_module._volume(stored, "sheared", "sheared", "unknown")
        assert_in_place(volume, raw, affine)
        np.testing.assert_allclose(sorted(volume.spacing), sorted(norms))

    @pytest.mark.parametrize("shear", [0.0, 0.4])
    @pytest.mark.parametrize("write", [write_nifti, write_nrrd])
    def test_a_sheared_or_tilted_file_loads(self, tmp_path: Path, write: Writer, shear: float) -> None:
        angle = np.deg2rad(25)
        affine = axis_affine((0, 2, 1), (-1, 1, 1))
        tilt = np.eye(4)
        tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        tilt[0, 1] = shear
        affine = tilt @ affine
        raw = counted()
        assert_in_place(load_volume(write(tmp_path, raw, affine)), raw, affine)

    @pytest.mark.parametrize(("order", "signs"), ORDERS[::7])
    def test_boxes_move_with_their_voxels(
        self, tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
    ) -> None:
        volume = load_volume(write_nifti(tmp_path, counted(), axis_affine(order, signs)))
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[1:3, 2:5, 0:4] = 1
        assert volume.box_to_canonical((1, 2, 0), (3, 5, 4)) == Box.of_mask(volume.from_raw_array(mask))

    def test_other_shapes_are_refused(self) -> None:
        volume = from_array(counted())
        with pytest.raises(ValueError, match=r"\(4, 5, 6\), got \(6, 5, 4\)"):
            volume.to_raw_array(np.zeros((6, 5, 4)))
        with pytest.raises(ValueError, match=r"\(6, 5, 4\), got \(4, 5, 6\)"):
            volume.from_raw_array(np.zeros((4, 5, 6)))

    def test_nifti_prefers_the_sform(self, tmp_path: Path) -> None:
        sform, qform = axis_affine((0, 1, 2), (1, 1, 1)), axis_affine((0, 1, 2), (-1, -1, 1))
        image = nib.Nifti1Image(counted(), sform)
        image.set_sform(sform, code=1)
        image.set_qform(qform, code=1)
        nib.save(image, tmp_path / "both.nii")
        np.testing.assert_array_equal(load_volume(tmp_path / "both.nii").affine, sform)
        image.set_sform(None, code=0)
        nib.save(image, tmp_path / "qform.nii")
        np.testing.assert_allclose(load_volume(tmp_path / "qform.nii").affine, qform, atol=1e-6)


@pytest.fixture(scope="module")
def load_image() -> Callable[..., Any]:
    """MONAI's LoadImage, by path and reader; None lets MONAI choose the reader as MONAI Label does."""
    transforms = pytest.importorskip("monai.transforms")

    def load(path: Path, reader: str | None = None) -> Any:
        return transforms.LoadImage(reader=reader, image_only=True, dtype=None)(str(path))

    return load


class TestRawOrderIsMonais:
    """Clients count voxels in the array that MONAI's LoadImage returns."""

    @pytest.mark.parametrize(
        ("write", "reader"),
        [
            (write_nifti, None),
            (write_nrrd, None),
            (write_nrrd, "NrrdReader"),
            (write_nrrd, "ITKReader"),
        ],
    )
    @pytest.mark.parametrize(("order", "signs"), ORDERS[::11])
    def test_files(
        self,
        tmp_path: Path,
        load_image: Callable[..., Any],
        write: Writer,
        reader: str | None,
        order: tuple[int, ...],
        signs: tuple[int, ...],
    ) -> None:
        path = write(tmp_path, counted(), axis_affine(order, signs))
        loaded, volume = load_image(path, reader), load_volume(path)
        np.testing.assert_array_equal(volume.to_raw_array(volume.array), loaded.numpy())
        np.testing.assert_allclose(volume.affine, loaded.affine.numpy(), atol=1e-6)

    @pytest.mark.parametrize("signs", [(-1, -1, 1), (-1, -1, -1), (1, -1, 1)])
    @pytest.mark.parametrize("kind", ["folder", "metaimage"])
    def test_as_itk_has_it(self, tmp_path: Path, kind: str, signs: tuple[int, ...]) -> None:
        affine = axis_affine((0, 1, 2), signs)
        if kind == "folder":
            path = write_dicom(tmp_path / "series", counted(), affine)
        else:
            path = write_metaimage(tmp_path, counted(), affine)
        volume, (array, ras) = load_volume(path), as_itk_has_it(path)
        np.testing.assert_array_equal(volume.to_raw_array(volume.array), array)
        np.testing.assert_allclose(volume.affine, ras, atol=1e-6)

    @pytest.mark.parametrize("case", ["ct/totalseg_example_sm/image.nii.gz", "mri/sct_t2_cord/image.nii.gz"])
    def test_real_images(self, real_data: Path, load_image: Callable[..., Any], case: str) -> None:
        loaded = load_image(real_data / case)
        assert_same_voxels(load_volume(real_data / case), loaded.numpy(), loaded.affine.numpy())

    @pytest.mark.parametrize("case", ["dicom/sts_012_ct/image", "dicom/sts_012_mr/image"])
    def test_real_series_as_itk_has_them(self, real_data: Path, case: str) -> None:
        assert_same_voxels(load_volume(real_data / case), *as_itk_has_it(real_data / case))


def as_itk_has_it(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (i, j, k) and RAS affine of a DICOM folder or MetaImage, which MONAI reads with ITK."""
    found = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    image = sitk.ReadImage(found)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def assert_same_voxels(volume: Volume, values: np.ndarray, affine: np.ndarray) -> None:
    """In the order of the file, with the file's values."""
    stored = volume.to_raw_array(volume.array).astype(np.float64)
    np.testing.assert_allclose(stored * volume.slope + volume.intercept, values, atol=1e-3)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)


class TestStorage:
    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
    def test_compact_types_stay(self, dtype: str) -> None:
        volume = from_array(counted(dtype=dtype))
        assert volume.array.dtype == dtype
        assert (volume.slope, volume.intercept) == (1, 0)

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (np.array([0, 255], dtype=np.int64), "uint8"),
            (np.array([True, False]), "uint8"),
            (np.array([0.0, 255.0]), "uint8"),
            (np.array([-1, 255], dtype=np.int32), "int16"),
            (np.array([-32768.0, 32767.0], dtype=np.float32), "int16"),
            (np.array([0, 65535], dtype=np.uint32), "uint16"),
            (np.array([1.0, 2.0], dtype=">f4"), "uint8"),
        ],
    )
    def test_whole_numbers_that_fit_are_kept_exactly(self, values: np.ndarray, dtype: str) -> None:
        volume = from_array(values.reshape(1, 1, 2))
        assert volume.array.dtype == dtype
        np.testing.assert_array_equal(volume.array[0, 0], values.astype(np.int64))
        assert (volume.slope, volume.intercept) == (1, 0)

    @given(
        st.integers(0, 50), st.floats(-5e3, 5e3), st.floats(1e-3, 1e5), st.sampled_from(["f4", "f8", "i4"])
    )
    def test_others_are_quantised_over_their_range(
        self, seed: int, offset: float, span: float, dtype: str
    ) -> None:
        random = np.random.default_rng(seed).random((6, 7, 8))
        values = (random * span + offset).astype(dtype)
        volume = from_array(values)
        assert volume.array.itemsize <= 2
        real = volume.array * volume.slope + volume.intercept
        assert np.abs(real - values).max() <= span / 65535 / 2 + 1e-6 * abs(offset) + 1e-9

    def test_outliers_do_not_take_the_bits(self) -> None:
        values = np.random.default_rng(0).normal(size=(40, 40, 40))
        values[0, 0, 0], values[39, 39, 39] = 1e6, -1e6
        volume = from_array(values)
        real = volume.array * volume.slope + volume.intercept
        low, high = np.percentile(values, [0.05, 99.95])
        np.testing.assert_allclose(real, np.clip(values, low, high), atol=(high - low) / 65535)
        (note,) = volume.notes
        outside = np.count_nonzero((values < low) | (values > high))
        assert "from -1e+06 to 1e+06" in note and f"the other {outside} voxels" in note

    def test_one_value_of_1e300_among_others_is_a_sentence(self) -> None:
        values = np.random.default_rng(0).normal(size=(9, 9, 9))
        values[3, 4, 5] = 1e300
        with pytest.raises(VolumeError, match=r"32 bits.*to 1e\+300"):
            from_array(values)

    def test_a_small_object_on_an_even_background_is_not_an_outlier(self) -> None:
        values = np.full((30, 30, 30), 0.25)
        values[4, 5, 6] = 8.75
        volume = from_array(values)
        np.testing.assert_allclose(volume.array * volume.slope + volume.intercept, values, atol=1e-4)
        assert volume.notes == ()

    def test_an_even_image_keeps_its_value(self) -> None:
        volume = from_array(np.full((2, 2, 2), 0.5))
        assert volume.value_range == (0.5, 0.5)
        assert volume.percentile(50) == 0.5

    def test_quantising_in_slabs_does_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(0).normal(size=(17, 8, 9))
        whole = from_array(values).array
        monkeypatch.setattr(compact, "_SLAB_VOXELS", 200)
        np.testing.assert_array_equal(from_array(values).array, whole)

    @pytest.mark.parametrize(("slope", "intercept"), [(0.5, 10.0), (2.0, -1024.0), (-0.25, 3.0)])
    def test_nifti_scaling_is_kept_beside_the_voxels(
        self, tmp_path: Path, slope: float, intercept: float
    ) -> None:
        image = nib.Nifti1Image(counted(), np.eye(4))
        image.header.set_slope_inter(slope, intercept)
        path = tmp_path / "scaled.nii"
        nib.save(image, path)
        # nibabel divides by the scaling when it writes; put the counted values in as they are.
        with path.open("r+b") as file:
            file.seek(image.header.get_data_offset() or 352)
            file.write(counted().tobytes(order="F"))
        volume = load_volume(path)
        assert volume.array.dtype == np.int16
        assert (volume.slope, volume.intercept) == (slope, intercept)
        real = canonical_by_nibabel(counted(), np.eye(4)) * slope + intercept
        np.testing.assert_allclose(volume.region((slice(None),) * 3).numpy(), real)
        assert volume.value_range == (real.min(), real.max())
        for q in (0, 0.5, 30, 99.5, 100):
            assert volume.percentile(q) == pytest.approx(np.percentile(real, q))

    def test_dicom_rescaling_gives_real_values(self, tmp_path: Path) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        volume = load_volume(write_dicom(tmp_path / "series", counted(), affine, slope=2, intercept=-1024))
        real = canonical_by_nibabel(counted(), affine) * 2.0 - 1024
        np.testing.assert_array_equal(volume.array * volume.slope + volume.intercept, real)

    def test_only_one_copy_is_held(self, tmp_path: Path) -> None:
        volume = load_volume(write_nifti(tmp_path, counted(), np.eye(4)))
        assert volume.array.base is None
        assert volume.nbytes == 2 * np.prod(SHAPE)

    def test_voxels_are_read_only_and_their_own(self) -> None:
        values = counted()
        volume = from_array(values)
        values[:] = 0
        np.testing.assert_array_equal(volume.array, counted())
        with pytest.raises(ValueError, match="read-only"):
            volume.array[0, 0, 0] = 1

    def test_a_region_has_its_own_memory(self) -> None:
        volume = from_array(counted())
        part = volume.region((slice(1, 3), slice(0, 2), slice(4, 6)))
        np.testing.assert_array_equal(part.numpy(), counted()[1:3, 0:2, 4:6])
        part += 1
        np.testing.assert_array_equal(volume.array, counted())

    @pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
    def test_trailing_axes_of_length_one_are_dropped(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        affine = axis_affine((2, 0, 1), (1, -1, 1))
        volume = load_volume(write_nifti(tmp_path, counted().reshape(shape), affine))
        assert_in_place(volume, counted(), affine)

    @pytest.mark.parametrize("shape", [(1, 5, 6), (5, 1, 6), (5, 6, 1)])
    @pytest.mark.parametrize("write", [write_nifti, write_nrrd, write_metaimage])
    def test_a_single_slice_is_a_volume(self, tmp_path: Path, write: Writer, shape: Index) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        assert_in_place(load_volume(write(tmp_path, counted(shape), affine)), counted(shape), affine)

    def test_big_endian_files_load(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(counted(), np.eye(4)).as_reoriented([[0, 1], [1, 1], [2, 1]])
        swapped = nib.Nifti1Image(counted(dtype=">i2"), np.eye(4), image.header.as_byteswapped(">"))
        nib.save(swapped, tmp_path / "big.nii")
        volume = load_volume(tmp_path / "big.nii")
        assert volume.array.dtype.isnative
        assert_in_place(volume, counted(), np.eye(4))

    @pytest.mark.parametrize("suffix", [".NII.GZ", ".nii", ".Nrrd", ".mhd"])
    def test_suffixes_in_any_case(self, tmp_path: Path, suffix: str) -> None:
        if suffix.lower().startswith(".nii"):
            path = tmp_path / f"image{suffix.lower()}"
            nib.save(nib.Nifti1Image(counted(), np.eye(4)), path)
        else:
            path = tmp_path / f"image{suffix.lower()}"
            sitk.WriteImage(sitk.GetImageFromArray(counted()), str(path))
        renamed = path.rename(tmp_path / f"image{suffix}")
        assert sorted(load_volume(renamed).array.ravel()) == list(range(120))


class TestPercentiles:
    @given(npst.arrays(np.int16, (3, 4, 5)), st.floats(0, 100))
    def test_of_a_small_volume_are_exact(self, values: np.ndarray, q: float) -> None:
        expected = np.percentile(values.astype(np.float64), q)
        assert from_array(values).percentile(q) == pytest.approx(expected, abs=1e-6, rel=1e-9)

    @pytest.mark.parametrize("shape", [(16, 64, 64), (64, 16, 64), (30, 50, 70)])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_of_a_sample_see_every_row_and_column(
        self, monkeypatch: pytest.MonkeyPatch, shape: Index, axis: int
    ) -> None:
        monkeypatch.setattr(compact, "MAX_SAMPLE", 1024)  # a stride of 64 for the first two
        values = np.indices(shape)[axis].astype(np.int16)
        volume = from_array(values)
        for q in (1, 25, 50, 99):
            assert abs(volume.percentile(q) - np.percentile(values, q)) <= 1
        assert volume._sorted_sample.size <= 1024

    def test_beyond_the_ends_are_refused(self) -> None:
        with pytest.raises(ValueError, match="got 101"):
            from_array(counted()).percentile(101)


class TestModality:
    @pytest.mark.parametrize(
        ("low", "high", "named", "expected"),
        [
            (-1000, 1000, None, "ct"),
            (-1000, 1000, "unknown", "ct"),
            (-1000, 1000, "mr", "mr"),
            (-1000, 1000, "MRI", "mr"),
            (0, 1000, "CT", "ct"),
            (0, 1000, None, "unknown"),
            (-500, 1000, None, "unknown"),
            (-1000, 100, None, "unknown"),
            (0, 255, "ultrasound", "us"),
            (0, 255, "PET", "pt"),
        ],
    )
    def test_named_or_guessed(
        self, tmp_path: Path, low: int, high: int, named: str | None, expected: str
    ) -> None:
        values = np.full(SHAPE, 7, dtype=np.int16)
        values[0, 0, :2] = low, high
        path = write_nifti(tmp_path, values, np.eye(4))
        assert load_volume(path, named).modality == expected
        assert from_array(values, modality=named or "unknown").modality == expected

    @pytest.mark.parametrize(
        ("tag", "modality"), [("CT", "ct"), ("MR", "mr"), ("PT", "pt"), ("US", "us"), ("OT", "unknown")]
    )
    def test_dicom_tells_it(self, tmp_path: Path, tag: str, modality: str) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        folder = write_dicom(tmp_path / "series", counted(), affine, modality=tag)
        assert load_volume(folder).modality == modality
        assert load_volume(folder, "microscopy").modality == "microscopy"

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"ct, mr, .*'xray'"):
            from_array(counted(), modality="xray")

    @pytest.mark.parametrize(("case", "modality"), [("sts_012_ct", "ct"), ("sts_012_mr", "mr")])
    def test_real_series(self, real_data: Path, case: str, modality: str) -> None:
        volume = load_volume(real_data / "dicom" / case / "image")
        assert volume.modality == modality
        assert volume.shape[0] == 53
        np.testing.assert_allclose(volume.spacing, (3.27, 0.9766, 0.9766), atol=1e-3)


class TestFromArray:
    def test_raw_order_is_x_first(self) -> None:
        volume = from_array(counted(), spacing=(5.0, 3.0, 2.0))
        assert volume.shape == (4, 5, 6)
        assert volume.raw_shape == (6, 5, 4)
        assert volume.spacing == (5.0, 3.0, 2.0)
        np.testing.assert_array_equal(volume.to_canonical([(5, 1, 2)]), [(2, 1, 5)])
        np.testing.assert_array_equal(volume.affine, np.diag([-2, -3, 5, 1]))

    def test_layout_does_not_matter(self) -> None:
        values = np.random.default_rng(0).random((4, 5, 6))
        plain, other = from_array(values), from_array(np.asfortranarray(values))
        np.testing.assert_array_equal(plain.array, other.array)
        assert plain.key == other.key

    @pytest.mark.parametrize(
        "other",
        [
            from_array(counted() + 1),
            from_array(counted(dtype="int32")),
            from_array(counted((5, 4, 6))),
            from_array(counted(), spacing=(1, 1, 2)),
            from_array(counted(), modality="mr"),
        ],
    )
    def test_keys_tell_volumes_apart(self, other: Volume) -> None:
        assert from_array(counted()).key == from_array(counted()).key != other.key

    @pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))])
    def test_spacing_must_be_positive(self, spacing: tuple[float, float, float]) -> None:
        with pytest.raises(VolumeError, match="spacing must be positive"):
            from_array(counted(), spacing)

    @pytest.mark.parametrize(
        "values", [np.zeros((3, 3)), np.zeros((0, 3, 3)), np.zeros((3, 3, 3), dtype=complex)]
    )
    def test_must_be_a_scalar_volume(self, values: np.ndarray) -> None:
        with pytest.raises(VolumeError, match="the array"):
            from_array(values)


def with_values(*values: float) -> np.ndarray:
    array = np.ones(SHAPE, dtype=np.float32)
    array.reshape(-1)[: len(values)] = values
    return array


def write_rgb_nifti(path: Path) -> None:
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), path)


def write_nifti_with_rows(*rows: tuple[float, float, float, float]) -> Callable[[Path], None]:
    """A writer of files whose sform has these rows; nibabel's own does not write what it could not invert."""

    def write(path: Path) -> None:
        image = nib.Nifti1Image(counted(), None)
        image.header["sform_code"] = 1
        for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
            image.header[name] = row
        path.write_bytes(image.to_bytes())

    return write


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("absent.nii.gz", lambda path: None, "there is no absent.nii.gz"),
    ("text.nii.gz", lambda path: path.write_text("not an image"), "readable NIfTI"),
    ("text.nii", lambda path: path.write_text("not an image"), "readable NIfTI"),
    ("text.nrrd", lambda path: path.write_text("not an image"), "readable NRRD"),
    ("empty.mha", lambda path: path.touch(), "MetaImage"),
    (
        "photo.png",
        lambda path: path.touch(),
        r"end in \.nii, \.nii\.gz, \.nrrd, \.nhdr, \.mha, \.mhd.*photo\.png",
    ),
    (
        "flat.nii",
        lambda path: nib.save(nib.Nifti1Image(np.zeros((4, 5), "u1"), np.eye(4)), path),
        r"three axes.*2, of lengths \(4, 5\)",
    ),
    (
        "film.nii",
        lambda path: nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), "u1"), np.eye(4)), path),
        r"three axes.*4, of lengths \(4, 5, 6, 2\)",
    ),
    (
        "complex.nii",
        lambda path: nib.save(nib.Nifti1Image(np.zeros(SHAPE, "c8"), np.eye(4)), path),
        "one real number.*complex64",
    ),
    ("colours.nii", write_rgb_nifti, "one real number"),
    (
        "hole.nii",
        lambda path: nib.save(nib.Nifti1Image(with_values(np.nan, np.nan), np.eye(4)), path),
        "finite.*2 that",
    ),
    (
        "burst.nii",
        lambda path: nib.save(nib.Nifti1Image(with_values(-np.inf), np.eye(4)), path),
        "finite.*1 that",
    ),
    (
        "folded.nii",
        write_nifti_with_rows((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0)),
        "three directions",
    ),
    ("thin.nii", write_nifti_with_rows((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)), "three directions"),
    (
        "lost.nii",
        write_nifti_with_rows((1, 0, 0, np.nan), (0, 1, 0, 0), (0, 0, 1, 0)),
        "three directions",
    ),
    (f"{'long' * 100}.nii", lambda path: None, "image"),
    (
        "flat.nrrd",
        lambda path: sitk.WriteImage(sitk.Image(4, 5, sitk.sitkUInt8), str(path)),
        r"three axes.*\(4, 5\)",
    ),
    (
        "film.nrrd",
        lambda path: sitk.WriteImage(sitk.Image([4, 5, 6, 2], sitk.sitkUInt8), str(path)),
        r"three axes.*\(4, 5, 6, 2\)",
    ),
    (
        "colours.nrrd",
        lambda path: sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(path)),
        "one real number.*3",
    ),
    ("bare", lambda path: path.mkdir(), "exactly one image series.*holds 0"),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "make", "sentence"), REFUSED, ids=[case[0][:16] for case in REFUSED])
    def test_says_what_was_expected_and_what_came(
        self, tmp_path: Path, name: str, make: Callable[[Path], object], sentence: str
    ) -> None:
        folder = tmp_path / "private"
        folder.mkdir()
        make(folder / name)
        with pytest.raises(VolumeError, match=sentence) as refusal:
            load_volume(folder / name)
        message = str(refusal.value)
        assert name in message
        assert "private" not in message
        assert message.endswith(".")

    def test_truncated_files(self, tmp_path: Path) -> None:
        for write in (write_nifti, write_nrrd, write_metaimage):
            path = write(tmp_path, np.random.default_rng(0).integers(0, 999, (20, 20, 20), "i2"), np.eye(4))
            path.write_bytes(path.read_bytes()[:-2000])
            with pytest.raises(VolumeError, match=path.name):
                load_volume(path)

    def test_two_series_are_named(self, tmp_path: Path) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        folder = write_dicom(tmp_path / "visit", counted(), affine, description="arterial", uid="1.2.3")
        write_dicom(folder, counted(), affine, modality="MR", description="T2", uid="1.2.4")
        with pytest.raises(VolumeError, match=r"visit holds 2: CT arterial \(1\.2\.3.*MR T2 \(1\.2\.4"):
            load_volume(folder)

    def test_slices_that_do_not_fit_together(self, tmp_path: Path) -> None:
        folder = write_dicom(tmp_path / "mixed", counted(), axis_affine((0, 1, 2), (-1, -1, 1)))
        data = pydicom.dcmread(folder / "CT003.dcm")
        data.Rows, data.PixelData = 6, bytes(2 * 6 * 4)
        data.save_as(folder / "CT003.dcm")
        with pytest.raises(VolumeError, match=r"one size, but CT003\.dcm of mixed"):
            load_volume(folder)

    def test_results_beside_a_series_do_not_count(self, tmp_path: Path) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        folder = write_dicom(tmp_path / "visit", counted(), affine, uid="1.2.3")
        write_dicom(folder, counted() * 0, affine, modality="SEG", uid="1.2.4")
        volume = load_volume(folder)
        assert_in_place(volume, counted(), affine)
        assert volume.meta["series"].startswith("1.2.3")

    def test_several_slices_at_one_place_are_refused(self, tmp_path: Path) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        folder = write_dicom(tmp_path / "beating", counted(), affine)
        for file in sorted(folder.iterdir()):
            data = pydicom.dcmread(file)
            data.SOPInstanceUID += ".7"
            data.file_meta.MediaStorageSOPInstanceUID += ".7"
            data.save_as(file.with_name(f"again{file.name}"))
        with pytest.raises(VolumeError, match="one slice at each position, but beating has 6 more"):
            load_volume(folder)

    def test_a_real_structure_set_does_not_count(self, real_data: Path, tmp_path: Path) -> None:
        case = real_data / "dicom" / "sts_012_ct"
        folder = shutil.copytree(case / "image", tmp_path / "visit")
        shutil.copy(case / "mask" / "RS.dcm", folder)
        assert load_volume(folder).shape == load_volume(case / "image").shape


class TestVolumeCache:
    SIZE = 2 * 120

    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        paths = []
        for number in range(3):
            paths.append(tmp_path / f"{number}.nii")
            nib.save(nib.Nifti1Image(counted() + number, np.eye(4)), paths[-1])
        return paths

    def test_gives_the_same_volume_again(self, files: list[Path]) -> None:
        cache = VolumeCache(10 * self.SIZE)
        assert cache.get(files[0]) is cache.get(str(files[0]))

    def test_forgets_the_volume_used_longest_ago(self, files: list[Path]) -> None:
        cache = VolumeCache(2 * self.SIZE)
        first, second = cache.get(files[0]), cache.get(files[1])
        assert cache.get(files[0]) is first
        cache.get(files[2])
        assert cache.nbytes == 2 * self.SIZE
        assert cache.get(files[0]) is first
        assert cache.get(files[1]) is not second

    def test_does_not_keep_what_is_too_large(self, files: list[Path]) -> None:
        cache = VolumeCache(self.SIZE - 1)
        volume = cache.get(files[0])
        np.testing.assert_array_equal(volume.array, load_volume(files[0]).array)
        assert cache.nbytes == 0

    def test_loads_a_changed_file_again(self, files: list[Path]) -> None:
        cache = VolumeCache(10 * self.SIZE)
        old = cache.get(files[0])
        time = files[0].stat().st_mtime_ns
        nib.save(nib.Nifti1Image(counted() + 9, np.eye(4)), files[0])
        os.utime(files[0], ns=(time + 1, time + 1))
        new = cache.get(files[0])
        assert new.key != old.key
        assert new.array.max() == old.array.max() + 9
        assert cache.nbytes == self.SIZE

    def test_loads_a_changed_folder_again(self, tmp_path: Path) -> None:
        affine = axis_affine((0, 1, 2), (-1, -1, 1))
        folder = write_dicom(tmp_path / "series", counted(), affine)
        cache = VolumeCache(10 * self.SIZE)
        assert cache.get(folder).shape == (6, 5, 4)
        (folder / "CT001.dcm").unlink()
        assert cache.get(folder).shape == (5, 5, 4)

    def test_sees_the_voxels_beside_a_header(self, tmp_path: Path) -> None:
        header = tmp_path / "image.mhd"
        sitk.WriteImage(sitk.GetImageFromArray(counted()), str(header))
        cache = VolumeCache(10 * self.SIZE)
        old = cache.get(header)
        voxels = tmp_path / "image.raw"
        time = voxels.stat().st_mtime_ns
        voxels.write_bytes((counted() + 1).tobytes())
        os.utime(voxels, ns=(time + 1, time + 1))
        np.testing.assert_array_equal(cache.get(header).array, old.array + 1)

    def test_keeps_modalities_apart(self, files: list[Path]) -> None:
        cache = VolumeCache(10 * self.SIZE)
        ct, mr = cache.get(files[0], "ct"), cache.get(files[0], "mr")
        assert (ct.modality, mr.modality) == ("ct", "mr")
        assert ct.key != mr.key

    def test_a_file_that_went_away_is_missed(self, files: list[Path]) -> None:
        cache = VolumeCache(10 * self.SIZE)
        cache.get(files[0])
        files[0].unlink()
        with pytest.raises(VolumeError, match=r"there is no 0\.nii"):
            cache.get(files[0])

    def test_threads_share_one_loading(self, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[Path] = []

        def slow_load(path: Path, modality: str | None = None) -> Volume:
            loaded.append(path)
            threading.Event().wait(0.05)
            return load_volume(path, modality)

        monkeypatch.setattr(volume_module, "load_volume", slow_load)
        cache, results = VolumeCache(10 * self.SIZE), []
        threads = [threading.Thread(target=lambda: results.append(cache.get(files[0]))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loaded) == 1
        assert len({id(volume) for volume in results}) == 1 and len(results) == 8
