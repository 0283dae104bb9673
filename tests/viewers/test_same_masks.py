"""With the networks that ship: nnInteractive's client gets what MONAI Label's clients get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.infers.dialects import RawPrompts, to_canonical
from dualclickmed.infers.segmenter import Segmenter, SegmentRequest
from dualclickmed.server.limits import Limits
from dualclickmed.viewers.masks import OBJECT, segmenting
from dualclickmed.viewers.options import ViewerOptions
from dualclickmed.viewers.serving import Served, Viewers

remote = pytest.importorskip("nnInteractive.inference.remote")


def test_the_same_prompts_give_the_same_mask(tmp_path: Path) -> None:
    z, y, x = np.ogrid[:40, :48, :56]
    ball = (z - 20) ** 2 * 4 + (y - 24) ** 2 + (x - 28) ** 2 < 200
    noise = np.random.default_rng(0).normal(0, 9, ball.shape)
    array = (ball * 90 + noise).round().astype(np.float32)
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(array.T, np.diag([-1.0, -1.0, 2.0, 1.0])), image)
    segmenter = Segmenter(ServerOptions())
    options = segmenter.options

    def requested(**prompts: Any) -> np.ndarray:
        raw = {OBJECT: RawPrompts(**prompts)}
        asked = SegmentRequest(
            image, lambda volume, _: to_canonical(raw, volume), options.strategy, options.device
        )
        return segmenter.segment(asked).result.mask(OBJECT)

    served = Served(segmenting(segmenter), segmenter.experts.forget, segmenter.experts.licence())
    viewers = Viewers(ViewerOptions(nninteractive=0), Limits(), served)
    viewers.start()
    try:
        url = viewers.addresses["nnInteractive"]
        with remote.nnInteractiveRemoteInferenceSession(url, read_timeout=600) as client:
            client.set_image(array[None], {"spacing": [2, 1, 1]})
            client.set_target_buffer(np.zeros(array.shape, dtype=np.uint8))
            client.add_point_interaction([20, 24, 28], True)
            assert client.target_buffer.any()
            assert np.array_equal(client.target_buffer, requested(foreground=[(28, 24, 20)]))
            client.add_point_interaction([2, 2, 2], False)
            both = requested(foreground=[(28, 24, 20)], background=[(2, 2, 2)])
            assert np.array_equal(client.target_buffer, both)
            client.reset_interactions()
            client.add_bbox_interaction([[13, 28], [10, 39], [14, 43]], True)
            assert np.array_equal(client.target_buffer, requested(box=((14, 10, 13), (43, 39, 28))))
        assert viewers.budget.used == 0
    finally:
        viewers.stop()
