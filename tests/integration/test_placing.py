"""A clicked voxel comes back at its place, whatever the file: random volumes through a running server.

One click says what a label holds and all other voxels what it does not, so that the answer is that voxel and
nothing else. It is looked for where ITK and where nibabel put the clicked voxel of the image.
"""

from __future__ import annotations

import gzip
import io
import itertools
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import requests
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from tests.support import volume_files
from tests.support.live import Server, serving
from tests.support.volume_files import RAS_FROM_LPS

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
NEAR = 0.1
"""Voxels by which the place of a voxel may differ between image and answer."""


@dataclass
class Sent:
    """A volume as files.

    Attributes:
        name: of the one file, or of the folder of several.
        files: by their names.
        lps: where the raw voxels lie by what was written; None where that is for the programs to tell.
        unit: millimetres in a unit of the file.
        told: how it was written.
    """

    name: str
    files: dict[str, bytes]
    array: npt.NDArray[np.generic]
    voxel: tuple[int, int, int]
    lps: npt.NDArray[np.float64] | None
    unit: float = 1.0
    told: str = ""

    def __repr__(self) -> str:
        return f"{self.name} {self.array.dtype} {self.array.shape} voxel {self.voxel} {self.told}"


@st.composite
def grids(draw: st.DrawFn, shear: str) -> tuple[npt.NDArray[np.float64], str]:
    """A place (LPS) in one of the 48 orders of axes: straight, oblique, or sheared where `shear` says so.

    Args:
        shear: "any" axis, the "last" against the others, or "none".
    """
    axes, signs = draw(st.sampled_from(ORDERS))
    angles = draw(st.sampled_from([(0.0, 0.0, 0.0), (0.05, 0.03, 0.02), (0.3, -0.4, 0.35)]))
    spacing = [draw(st.sampled_from([0.25, 0.8, 1.0, 1.3, 2.5, 5.0])) for _ in range(3)]
    slant = draw(st.sampled_from([0.0, 0.0, 0.2])) if shear != "none" else 0.0
    order = np.zeros((3, 3))
    order[axes, range(3)] = signs
    skew = np.eye(3)
    skew[1, 2] = slant
    if shear == "any":
        skew[0, 1] = slant / 2
    lps = np.eye(4)
    lps[:3, :3] = nib.eulerangles.euler2mat(*angles) @ order @ skew @ np.diag(spacing)
    lps[:3, 3] = [draw(st.sampled_from([0.0, -117.25, 33.5, 1201.0])) for _ in range(3)]
    return lps, f"axes {axes} {signs} turned {angles} steps {spacing} slant {slant}"


@st.composite
def volumes(draw: st.DrawFn, kind: str) -> Sent:
    shape = tuple(draw(st.integers(2, 6)) for _ in range(3))
    i, j, k = (draw(st.integers(0, n - 1)) for n in shape)
    allowed = DTYPES if kind != "dicom" else DTYPES[:4]
    dtype = np.dtype(draw(st.sampled_from(allowed)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.integers(0, 100, shape).astype(dtype)
    lps, told = draw(grids({"nifti": "any", "dicom": "last", "nrrd": "any", "meta": "any"}[kind]))
    makers = {"nifti": _nifti, "nrrd": _nrrd, "meta": _meta, "dicom": _dicom}
    made = makers[kind](draw, array, (i, j, k), lps)
    made.told += told
    return made


def _nifti(draw: st.DrawFn, array: np.ndarray, voxel: tuple[int, int, int], lps: np.ndarray) -> Sent:
    options: dict[str, Any] = {
        "version": draw(st.sampled_from([1, 2])),
        "codes": draw(st.sampled_from([(1, 1), (2, 0), (0, 1), (1, 2), (0, 0)])),
        "unit": draw(st.sampled_from([2, 10, 0, 1, 3])),
        "big": draw(st.booleans()),
        "slope": draw(st.sampled_from([1.0, 0.5])),
    }
    other = lps.copy()
    other[:3, 3] += draw(st.sampled_from([0.0, 0.0, 20.0]))
    name = draw(st.sampled_from(["a.nii", "a.nii.gz"]))
    data = volume_files.nifti(array, lps, qform=other, **options)
    if name.endswith(".gz"):
        data = gzip.compress(data)
    unit = {1: 1000.0, 3: 0.001}.get(options["unit"], 1.0)
    return Sent(name, {name: data}, array, voxel, None, unit, f"{options} ")


def _nrrd(draw: st.DrawFn, array: np.ndarray, voxel: tuple[int, int, int], lps: np.ndarray) -> Sent:
    options: dict[str, Any] = {
        "encoding": draw(st.sampled_from(["raw", "gzip", "bzip2", "hex", "ascii"])),
        "big": draw(st.booleans()),
        "space": draw(st.sampled_from(["LPS", "RAS", "LAS"])),
    }
    header, voxels = volume_files.nrrd(array, lps, **options)
    if draw(st.booleans()):
        files = {"a.nhdr": header + b"data file: a.raw\n", "a.raw": voxels}
    else:
        files = {"a.nrrd": header + b"\n" + voxels}
    return Sent(next(iter(files)), files, array, voxel, lps, told=f"{options} ")


def _meta(draw: st.DrawFn, array: np.ndarray, voxel: tuple[int, int, int], lps: np.ndarray) -> Sent:
    options: dict[str, Any] = {"packed": draw(st.booleans()), "big": draw(st.booleans())}
    data = draw(st.sampled_from(["LOCAL", "a.raw"]))
    header, voxels = volume_files.meta(array, lps, data=data, **options)
    files = {"a.mha": header + voxels} if data == "LOCAL" else {"a.mhd": header, "a.raw": voxels}
    return Sent(next(iter(files)), files, array, voxel, lps, told=f"{options} ")


def _dicom(draw: st.DrawFn, array: np.ndarray, voxel: tuple[int, int, int], lps: np.ndarray) -> Sent:
    if np.linalg.det(lps[:3, :3]) < 0:
        # Slices are numbered along the normal of their rows and columns.
        lps[:3, 2] *= -1
    frames = draw(st.permutations(range(array.shape[2])))
    form = draw(st.sampled_from(["explicit", "implicit", "big", "rle", "one file"]))
    if form == "one file":
        datasets = [volume_files.dicom_frames(array[:, :, frames], lps, [float(k) for k in frames])]
        if np.array_equal(frames, np.arange(len(frames))[::-1]) and len(frames) > 1:
            # Frames from one end to the other keep their order.
            array, lps = array[:, :, ::-1], lps @ _reversed(array.shape[2])
            voxel = (*voxel[:2], array.shape[2] - 1 - voxel[2])
    else:
        syntax = {
            "implicit": ImplicitVRLittleEndian,
            "big": ExplicitVRBigEndian,
        }.get(form, ExplicitVRLittleEndian)
        stored = array.astype(array.dtype.newbyteorder(">" if form == "big" else "<"))
        datasets = volume_files.dicom_slices(stored, lps, syntax=syntax)
        if form == "rle":
            for data in datasets:
                data.compress(RLELossless)
        datasets = [datasets[k] for k in frames]
    files = {f"a/{n}.dcm": volume_files.dicom_bytes(data) for n, data in enumerate(datasets)}
    return Sent("a", files, array, voxel, lps, told=f"{form} {frames} ")


def _reversed(count: int) -> np.ndarray:
    turned = np.diag([1.0, 1.0, -1.0, 1.0])
    turned[2, 3] = count - 1
    return turned


@pytest.fixture(scope="module")
def placing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("placing"), lambda folder: folder.mkdir(), up="/health") as started:
        yield started


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "meta", "dicom"])
def test_a_clicked_voxel_comes_back_at_its_place(placing: Server, kind: str) -> None:
    _look_for_clicks(placing, kind, 10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["nifti", "nrrd", "meta", "dicom"])
def test_many_clicked_voxels_come_back_at_their_places(placing: Server, kind: str) -> None:
    _look_for_clicks(placing, kind, 250)


def test_files_put_into_the_studies_are_found_at_the_next_request(placing: Server) -> None:
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    lps = np.diag([1.0, 2.0, 3.0, 1.0])
    files = {"one.NII.GZ": gzip.compress(volume_files.nifti(array, lps))}
    files["two.mhd"], files["two.raw"] = volume_files.meta(array, lps, data="two.raw")
    header, files["three.raw"] = volume_files.nrrd(array, lps, encoding="raw")
    files["three.nhdr"] = header + b"data file: three.raw\n"
    files["four.nii"], files["four.mha"] = (
        volume_files.nifti(array, lps),
        b"".join(volume_files.meta(array + np.int16(1), lps)),
    )
    for name, data in files.items():
        (placing.studies / name).write_bytes(data)
    # The first request after the files came names one of them; a stem of two files names neither.
    for image, status in (
        *(("four.mha", 200), ("one", 200), ("two", 200), ("three", 200), ("four.nii", 200)),
        *(("two.raw", 400), ("three.raw", 400)),
    ):
        answer = placing.infer("dualclickmed", image, {"liver": [[1, 2, 3]]})
        assert answer.status_code == status, f"{image}: {answer.text}"
        if status == 200:
            (placing.studies.parent / "found.nrrd").write_bytes(answer.content)
            mask = sitk.ReadImage(str(placing.studies.parent / "found.nrrd"))
            assert mask.GetSize() == (4, 5, 6) and mask[1, 2, 3] == 1
            assert mask.GetSpacing() == (1.0, 2.0, 3.0)
    for name in files:
        (placing.studies / name).unlink()
    assert placing.infer("dualclickmed", "one", {"liver": [[1, 2, 3]]}).status_code == 400


def _look_for_clicks(server: Server, kind: str, count: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]

    # Smaller examples of the same failure would take minutes to find.
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
        phases=[Phase.generate],
    )
    @given(volumes(kind), st.integers(0, 3))
    def look(sent: Sent, ending: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _find(server, sent, ending, Path(folder))

    look()


def _find(server: Server, sent: Sent, ending: int, folder: Path) -> None:
    for name, data in sent.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    by_itk, by_nibabel = _places(sent, folder / sent.name)
    endings = (".nrrd", ".seg.nrrd", ".nii", ".nii.gz") if _straight(by_itk) else (".nrrd", ".seg.nrrd")
    asked = endings[ending % len(endings)]
    answer = _click(server, sent, asked)
    assert answer.status_code == 200, f"{sent}: {answer.text}"
    path = folder / f"answer{asked}"
    path.write_bytes(answer.content)
    nifti = asked.startswith(".nii")
    mask = sitk.ReadImage(str(path))
    found = sitk.GetArrayFromImage(mask).T
    assert found.shape == sent.array.shape and np.count_nonzero(found) == 1, sent
    # What ITK cannot read is answered in millimetres, too.
    wanted = by_itk if by_itk is not None else np.diag([sent.unit] * 3 + [1.0]) @ by_nibabel
    _same(_itk(mask), wanted, found, sent)
    if nifti:
        image = nib.load(path)
        _same(image.affine, by_nibabel, np.asarray(image.dataobj), sent)


def _places(sent: Sent, path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Raw indices of an image to RAS as ITK and as nibabel have them; None where ITK cannot read it."""
    itk = None
    with suppress(RuntimeError):
        if path.is_file():
            kind = "NiftiImageIO" if sent.lps is None else ""
            itk = _itk(sitk.ReadImage(str(path), imageIO=kind))
        elif len(sent.files) > 1 and _straight(sent.lps):
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
            itk = _itk(reader.Execute())
    if sent.lps is None:
        return itk, nib.load(path).affine
    ras = RAS_FROM_LPS @ sent.lps
    assert itk is None or np.abs(itk - ras).max() < 1e-4, sent
    return ras, ras


def _itk(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return RAS_FROM_LPS @ affine


def _straight(affine: np.ndarray | None) -> bool:
    if affine is None:
        return False
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3)


def _same(answer: np.ndarray, image: np.ndarray, mask: np.ndarray, sent: Sent) -> None:
    """The one voxel of the mask lies where the clicked voxel of the image does."""
    (index,) = np.argwhere(mask)
    place = np.linalg.inv(image) @ answer @ [*index, 1]
    assert np.abs(place[:3] - sent.voxel).max() < NEAR, f"{sent}: at {place[:3]}"


def _click(server: Server, sent: Sent, ending: str) -> requests.Response:
    others = np.ones(sent.array.shape, bool)
    others[sent.voxel] = False
    params = {
        "liver": [list(map(int, sent.voxel))],
        "background": np.argwhere(others).tolist(),
        "result_extension": ending,
    }
    if len(sent.files) == 1 and sent.name in sent.files:
        return server.infer("dualclickmed", None, params, files={"file": (sent.name, sent.files[sent.name])})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in sent.files.items():
            archive.writestr(name.removeprefix("a/"), data)
    sessions = f"{server.url}/session/"
    made = server.http.put(
        f"{sessions}?uncompress=true", files={"files": ("a.zip", packed.getvalue())}, timeout=60
    )
    assert made.status_code == 200, f"{sent}: {made.text}"
    session = made.json()["session_id"]
    try:
        return server.infer("dualclickmed", None, params, session=session)
    finally:
        server.http.delete(f"{sessions}{session}", timeout=60)
