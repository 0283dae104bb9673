"""The page's order of voxels, frames, and the files it gets."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.errors import UserError
from dualclickmed.imaging.volume import Volume, load_volume
from dualclickmed.viewers import page_frames

from tests.support.frames import unframed
from tests.support.live import ORIENTATIONS, SMALL_SHAPE, an_affine, an_image, orientation_id, save

SHAPE = (4, 5, 6)


@pytest.fixture(params=ORIENTATIONS[::3], ids=orientation_id)
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Volume:
    save(tmp_path, "image", an_image(SMALL_SHAPE), an_affine(*request.param))
    return load_volume(tmp_path / "image.nii.gz")


def test_the_file_for_the_page_holds_each_voxel_at_its_place_in_the_patient(
    volume: Volume, tmp_path: Path
) -> None:
    path = tmp_path / "page.nii"
    path.write_bytes(b"".join(page_frames.nifti(volume)))
    assert path.stat().st_size == page_frames.nifti_size(volume)
    found = nib.load(path)
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    np.testing.assert_allclose(found.affine, page_frames.page_affine(volume), atol=1e-4)
    original = nib.load(tmp_path / "image.nii.gz")
    values = found.get_fdata()
    for point in ((0, 0, 0), (3, 7, 5), tuple(n - 1 for n in values.shape)):
        world = found.affine @ [*point, 1]
        index = np.rint(np.linalg.solve(original.affine, world))[:3].astype(int)
        assert values[point] == original.get_fdata()[tuple(index)]


def test_an_image_with_a_negative_slope_keeps_its_values(tmp_path: Path) -> None:
    image = nib.Nifti1Image(an_image(SMALL_SHAPE), np.eye(4))
    image.header.set_slope_inter(-0.5, 7)
    nib.save(image, tmp_path / "image.nii")
    path = tmp_path / "page.nii"
    path.write_bytes(b"".join(page_frames.nifti(load_volume(tmp_path / "image.nii"))))
    np.testing.assert_allclose(nib.load(path).get_fdata(), nib.load(tmp_path / "image.nii").get_fdata())


def test_voxels_go_to_the_page_and_back() -> None:
    for index in np.ndindex(SHAPE):
        point = page_frames.to_page(index, SHAPE)
        assert page_frames.to_canonical(point, SHAPE) == index
    assert page_frames.to_page((0, 0, 0), SHAPE) == (5, 4, 0)


def test_a_frame_holds_a_region_at_its_box() -> None:
    array = np.zeros(SHAPE, np.uint8)
    region = (slice(1, 3), slice(0, 2), slice(2, 6))
    array[region] = np.arange(1, 17).reshape(2, 2, 4)
    header, parts = unframed(page_frames.packed({"a": 1}, {"labels": (region, array[region])}, SHAPE))
    assert header["a"] == 1
    box = header["parts"][0]["box"]
    assert box == [0, 4, 3, 5, 1, 3]
    whole = np.zeros(SHAPE[::-1], np.uint8)
    whole[box[0] : box[1], box[2] : box[3], box[4] : box[5]] = parts["labels"]
    for index in np.ndindex(SHAPE):
        assert whole[page_frames.to_page(index, SHAPE)] == array[index]


def test_an_empty_part_has_no_bytes() -> None:
    nothing = (slice(0, 0),) * 3
    header, parts = unframed(
        page_frames.packed({}, {"labels": (nothing, np.zeros((0, 0, 0), np.uint8))}, SHAPE)
    )
    assert header["parts"][0]["bytes"] == 0 and parts["labels"].size == 0


def test_what_the_page_sends_lands_at_its_box() -> None:
    sent = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    body = gzip.compress(sent.tobytes(order="F"))
    region, voxels = page_frames.unpacked(body, [1, 3, 0, 2, 2, 4], SHAPE)
    array = np.zeros(SHAPE, np.uint8)
    array[region] = voxels
    for x, y, z in np.ndindex(2, 2, 2):
        assert array[page_frames.to_canonical((x + 1, y, z + 2), SHAPE)] == sent[x, y, z]


@pytest.mark.parametrize(
    "body",
    [
        b"no gzip",
        gzip.compress(bytes(7)),
        gzip.compress(bytes(9)),
        gzip.compress(bytes(1 << 24)),
        gzip.compress(bytes(8))[:-9],
        b"",
    ],
    ids=["no gzip", "too short", "too long", "bomb", "cut", "empty"],
)
def test_voxels_that_are_not_the_box_are_refused(body: bytes) -> None:
    with pytest.raises(UserError):
        page_frames.unpacked(body, [0, 2, 0, 2, 0, 2], SHAPE)


@pytest.mark.parametrize(
    "box",
    [[], [0, 1], [0, 7, 0, 1, 0, 1], [1, 1, 0, 1, 0, 1], [-1, 1, 0, 1, 0, 1], [0, 1.5, 0, 1, 0, 1]],
)
def test_a_box_that_is_none_is_refused(box: list[Any]) -> None:
    with pytest.raises(UserError, match="A box must be"):
        page_frames.region_of(box, SHAPE)
