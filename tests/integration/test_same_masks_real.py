"""Real volumes: nnInteractive's client gets the masks of MONAI Label's clients from one running server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.plane_boxes import joined

from tests.support.live import Server, free_port, running
from tests.support.nrrd_answers import read_nrrd

remote = pytest.importorskip("nnInteractive.inference.remote")
pytestmark = pytest.mark.timeout(1800)

REPOSITORY = Path(__file__).parents[2]
CASES = (
    pytest.param("ct/totalseg_example_sm", id="ct"),
    pytest.param("mri/prostate_mrius_001", id="mr", marks=pytest.mark.slow),
)
TASK = "dualclickmed_object"


class Both:
    """A server with the weights that ship, and one image as both kinds of client have it.

    Args:
        server: answers MONAI Label's clients.
        client: nnInteractive's, with the image.
        truth: (z, y, x), the largest object of the image.
        spacing: (z, y, x) in millimetres.
    """

    def __init__(self, server: Server, client: Any, truth: np.ndarray, spacing: np.ndarray) -> None:
        self.server, self.client, self.truth, self.spacing = server, client, truth, spacing

    def requested(self, **params: Any) -> np.ndarray:
        """The mask (z, y, x) of a request to MONAI Label, whose points are (x, y, z)."""
        response = self.server.infer(TASK, "image", params)
        assert response.status_code == 200, response.text
        return read_nrrd(response.content)[0].T

    def check(self, **params: Any) -> None:
        """The client shows what a request with these prompts is answered with, voxel for voxel."""
        expected = self.requested(**params)
        assert expected.any()
        np.testing.assert_array_equal(self.client.target_buffer, expected)


def roi(box: Box) -> list[int]:
    """A box as requests have it: both ends are voxels inside it."""
    return [int(edge) for axis in (2, 1, 0) for edge in (box.lo[axis], box.hi[axis] - 1)]


@pytest.fixture(params=CASES)
def both(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("real")
    studies = folder / "studies"
    studies.mkdir()
    stored: Any = nib.load(real_data / request.param / "image.nii.gz")
    labels = np.asarray(nib.load(real_data / request.param / "label.nii.gz").dataobj).T
    # As ITK's readers give it, and placed so that the client's axes are those of the patient.
    array = np.asarray(stored.dataobj).T.astype(np.float32)
    sides = np.linalg.norm(stored.affine[:3, :3], axis=0)
    nib.save(nib.Nifti1Image(array.T, np.diag([-sides[0], -sides[1], sides[2], 1])), studies / "image.nii.gz")
    port, viewers = free_port(), free_port()
    server = Server(f"http://127.0.0.1:{port}", studies, REPOSITORY / "model", folder, folder / "log.txt")
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve", "--studies", str(studies)]
    command += ["--port", str(port), "--conf", f"nninteractive={viewers}"]
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with (
        running(command, server, environment, "/health"),
        remote.nnInteractiveRemoteInferenceSession(f"http://127.0.0.1:{viewers}", read_timeout=600) as client,
    ):
        client.set_image(array[None], {"spacing": sides[::-1].tolist()})
        client.set_target_buffer(np.zeros(array.shape, dtype=np.uint8))
        truth = labels == np.bincount(labels[labels > 0].astype(int)).argmax()
        yield Both(server, client, truth, sides[::-1])


def test_the_same_prompts_give_the_same_mask(both: Both) -> None:
    client, truth = both.client, both.truth
    voxels = np.argwhere(truth)
    z, y, x = (int(at) for at in voxels[len(voxels) // 2])
    lo, hi = voxels.min(axis=0), voxels.max(axis=0) + 1

    client.add_point_interaction([z, y, x], True)
    both.check(foreground=[[x, y, z]])
    client.add_point_interaction([0, 0, 0], False)
    both.check(foreground=[[x, y, z]], background=[[0, 0, 0]])

    client.reset_interactions()
    plane = [[int(lo[1]), int(hi[1])], [int(lo[2]), int(hi[2])]]
    client.add_bbox_interaction([[z, z + 1], *plane], True)
    drawn = Box((z, lo[1], lo[2]), (z + 1, hi[1], hi[2]))
    spacing = (float(both.spacing[0]), float(both.spacing[1]), float(both.spacing[2]))
    both.check(roi=roi(joined([drawn], spacing)))
    client.add_bbox_interaction([[int(lo[0]), int(hi[0])], [y, y + 1], plane[1]], True)
    both.check(roi=roi(Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))))

    client.reset_interactions()
    near = voxels[(voxels[:, 0] == z) & (voxels[:, 1] == y)][:40]
    stroke = np.zeros(truth.shape, dtype=np.uint8)
    stroke[tuple(near.T)] = 1
    client.add_scribble_interaction(stroke, True)
    both.check(foreground=near[:, ::-1].tolist())


def test_lassos_undo_and_a_segmentation_to_begin_with(both: Both) -> None:
    client, truth = both.client, both.truth
    voxels = np.argwhere(truth)
    z, y, x = (int(at) for at in voxels[len(voxels) // 2])
    seen = [client.target_buffer.copy()]
    client.add_point_interaction([z, y, x], True)
    seen.append(client.target_buffer.copy())
    client.add_lasso_interaction(truth & (np.arange(len(truth))[:, None, None] == z), True)
    seen.append(client.target_buffer.copy())
    for index in voxels[np.linspace(0, len(voxels) - 1, 3).astype(int)]:
        client.add_point_interaction([int(at) for at in index], True)
        seen.append(client.target_buffer.copy())
    assert len(seen) == 6
    for mask in reversed(seen[:-1]):
        assert client.undo()
        np.testing.assert_array_equal(client.target_buffer, mask)
    assert not client.undo()

    client.add_initial_seg_interaction(truth.astype(np.uint8))
    np.testing.assert_array_equal(client.target_buffer, truth)
    client.add_point_interaction([z, y, x], False)
    corrected = client.target_buffer.astype(bool)
    assert not corrected[z, y, x] and corrected.sum() < truth.sum()
    assert (corrected & truth).sum() > 0.5 * truth.sum()
