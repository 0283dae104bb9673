"""A click that does not fit into a GPU's memory, on real experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from dualclickmed.configs.options import ServerOptions
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.infers.segmenter import Segmenter, SegmentRequest

from tests.support.live import an_image, make_weights


def test_a_click_that_does_not_fit_is_answered_by_the_cpu_and_the_next_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The GPU's expert is one of the processor whose network fails in the middle of a click."""
    make_weights(tmp_path / "weights")
    image = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(an_image((24, 20, 16)), np.eye(4)), image)
    made = Segmenter(ServerOptions(model_dir=tmp_path / "weights"))
    experts = {"cpu": made.experts._expert("cpu")}
    made.experts._loaded.clear()
    experts["cuda:0"] = made.experts._expert("cpu")
    local = experts["cuda:0"].local_expert
    assert local is not None
    decode, left = local.network.decode, [3]

    def full(*arguments: Any) -> torch.Tensor:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return decode(*arguments)

    monkeypatch.setattr(local.network, "decode", full)
    monkeypatch.setattr(made.experts, "_expert", experts.__getitem__)

    def click(device: str) -> tuple[npt.NDArray[np.uint8], list[str]]:
        asked = {"liver": Prompts((Click((8, 10, 12)),))}
        answer = made.segment(SegmentRequest(image, lambda *_: asked, "fused", device))
        return answer.result.labels, list(answer.notes)

    expected, notes = click("cpu")
    assert (expected[8, 10, 12], notes) == (1, [])
    labels, notes = click("cuda:0")
    np.testing.assert_array_equal(labels, expected)
    assert notes == ["The memory of cuda:0 does not suffice: computed on the CPU, which takes longer."]
    assert notes[0] in caplog.text
    caplog.clear()
    # The next request fails once and succeeds with emptied caches, the one after that at once.
    assert left == [1]
    for _ in range(2):
        labels, notes = click("cuda:0")
        np.testing.assert_array_equal(labels, expected)
        assert notes == []
    assert (left, caplog.text) == ([0], "")
