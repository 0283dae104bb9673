"""Segments that are there already come back with the answer: by name, whole, and beside a new one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import requests
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write

from tests.support import volume_files
from tests.support.live import CT_SHAPE, Server


def _kept(server: Server, tmp_path: Path, extension: str, **params: Any) -> requests.Response:
    """One click in the CT, with a segmentation of three segments sent along, two of which overlap."""
    path = tmp_path / "sent.seg.nrrd"
    affine = np.diag([-0.9, -0.9, 3.0, 1.0])
    array, further = np.zeros(CT_SHAPE, np.uint8), np.zeros(CT_SHAPE, np.uint8)
    array[5:15, 5:15, 5:9], array[40:50, 40:50, 5:9] = 1, 2
    further[10:20, 10:20, 5:9] = 1
    segments = [
        Segment("kidney", 1, (1, 2, 3)),
        Segment("gallbladder", 2, (4, 5, 6)),
        Segment("tumor", 1, (7, 8, 9), 1),
    ]
    mask = LabelledMask(np.asfortranarray(array), affine, segments, [np.asfortranarray(further)])
    written = write(mask, ".seg.nrrd")
    path.write_bytes(written.read_bytes())
    written.unlink()
    sent = {**params, "existing": "keep", "result_extension": extension}
    with path.open("rb") as file:
        return server.infer("dualclickmed", "ct", sent, files={"label": (path.name, file)})


def test_a_mask_and_a_name_called_label_both_count(server: Server, tmp_path: Path) -> None:
    """`label=@mask` is what is there already, and `"label": "liver"` what the clicks are for."""
    answer = _kept(server, tmp_path, ".seg.nrrd", label="liver", foreground=[[30, 30, 20]])
    assert answer.status_code == 200, answer.text
    array, header = _segments(answer, tmp_path)
    names = {header[key] for key in header if re.fullmatch(r"Segment[0-9]+_Name", key)}
    assert names == {"liver", "kidney", "gallbladder", "tumor"}
    assert array["liver"][30, 30, 20]


def test_kept_segments_that_overlap_come_back_whole(server: Server, tmp_path: Path) -> None:
    answer = _kept(server, tmp_path, ".seg.nrrd", liver=[[30, 30, 20]])
    assert answer.status_code == 200, answer.text
    array, _ = _segments(answer, tmp_path)
    for name, start, stop in (("kidney", 5, 15), ("gallbladder", 40, 50), ("tumor", 10, 20)):
        wanted = np.zeros(CT_SHAPE, bool)
        wanted[start:stop, start:stop, 5:9] = True
        np.testing.assert_array_equal(array[name], wanted, err_msg=name)
    refused = _kept(server, tmp_path, ".nrrd", liver=[[30, 30, 20]])
    assert refused.status_code == 400 and "overlap" in refused.json()["detail"]


def test_what_was_decided_about_the_files_is_among_the_answers_notes(server: Server) -> None:
    """Of an image that two programs put at two places, and of a label on another grid."""
    array = np.random.default_rng(0).integers(0, 99, (9, 8, 7)).astype(np.int16)
    lps, away = np.diag([1.0, 2.0, 3.0, 1.0]), np.eye(4)
    away[:3, 3] = (20, 0, 0)
    image = volume_files.nifti(array, lps, codes=(2, 1), qform=away @ lps)
    label = volume_files.nifti((array > 50).astype(np.uint8), np.diag([1.1, 2, 3, 1]), codes=(2, 0))
    answer = server.infer(
        "dualclickmed",
        None,
        {"spleen": np.argwhere(array < 5)[:1].tolist(), "existing": "keep"},
        output="json",
        files={"file": ("a.nii", image), "label": ("b.nii", label)},
    )
    assert answer.status_code == 200, answer.text
    notes = " ".join(answer.json()["notes"])
    assert "two places" in notes and "another grid" in notes


def _segments(answer: requests.Response, tmp_path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Each segment's mask by its name, and the header, as pynrrd reads them."""
    (tmp_path / "answer.seg.nrrd").write_bytes(answer.content)
    array, header = nrrd.read(str(tmp_path / "answer.seg.nrrd"))
    layers = array if array.ndim == 4 else array[None]
    found = {}
    for key in [key for key in header if re.fullmatch(r"Segment[0-9]+_Name", key)]:
        number = key.removesuffix("_Name")
        layer = layers[int(header[f"{number}_Layer"])]
        found[header[key]] = layer == int(header[f"{number}_LabelValue"])
    return found, header
