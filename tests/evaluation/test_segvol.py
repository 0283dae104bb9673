"""SegVol's adapter on a stand-in of its repository's interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.evaluation.methods import MethodSettings, make
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import from_array

SHAPE = (16, 64, 80)
BOX = Box((4.0, 8.0, 10.0), (10.0, 24.0, 50.0))

# The network answers with its box, or with a ball about its first point; the windows add nothing to it.
FILES = {
    "segment_anything_volumetric.py": """
import types
def vit(args):
    assert args.spatial_size == (32, 256, 256) and args.patch_size == (4, 16, 16) and args.test_mode
    return types.SimpleNamespace(image_encoder=None, mask_decoder=None, prompt_encoder=None)
sam_model_registry = {"vit": vit}
""",
    "network/__init__.py": "",
    "network/model.py": """
import torch
class SegVol(torch.nn.Module):
    def __init__(self, image_encoder, mask_decoder, prompt_encoder, clip_ckpt, roi_size, **given):
        super().__init__()
        assert clip_ckpt.endswith("config/clip") and roi_size == (32, 256, 256)
        assert given == {"patch_size": (4, 16, 16), "test_mode": True}
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, image, text=None, boxes=None, points=None):
        assert image.shape == (1, 1, 32, 256, 256) and text is None and 0 <= image.min() and image.max() <= 1
        zyx = torch.stack(torch.meshgrid(*[torch.arange(n) for n in image.shape[2:]], indexing="ij"), -1)
        if boxes is not None:
            low, high = boxes[0, :3].round(), boxes[0, 3:].round()
            inside = ((zyx >= low) & (zyx <= high)).all(-1)
        else:
            inside = (zyx - points[0][0, 0]).abs().amax(-1) < 12
        return self.weight * torch.where(inside, 1.0, -1.0)[None, None]
""",
    "utils/__init__.py": "",
    "utils/monai_inferers_utils.py": """
import torch
def logits2roi_coor(size, logits):
    at = torch.nonzero(logits > 0)
    return (None,) * 6 if not len(at) else (*at.amin(0).tolist(), *at.amax(0).tolist())
def build_binary_cube(box, binary_cube_shape):
    return torch.ones(binary_cube_shape)
def build_binary_points(points, labels, shape):
    assert points.shape == (len(labels), 3)
    return torch.ones(shape)
def sliding_window_inference(image, reflection, size, batch, model, overlap, text, use_box, use_point):
    assert image.shape == reflection[0].shape == reflection[1].shape and use_box != use_point
    return reflection[1].float() - 0.5
""",
}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / "SegVol" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    torch.save({"model": {"module.weight": torch.ones(1)}}, tmp_path / "SegVol" / "SegVol_v1.pth")
    yield tmp_path / "SegVol"
    for name in (
        "segment_anything_volumetric",
        "network",
        "network.model",
        "utils",
        "utils.monai_inferers_utils",
    ):
        sys.modules.pop(name, None)


def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 100, SHAPE).astype(np.int16)


def test_a_box_arrives_where_it_was_drawn(clone: Path) -> None:
    (made,) = make([f"segvol={clone}"], MethodSettings())
    assert made.name == "segvol"
    found = made.method(from_array(volume()), Prompts((), BOX))
    expected = np.zeros(SHAPE, bool)
    expected[BOX.voxels(SHAPE)] = True
    np.testing.assert_array_equal(found, expected)


def test_a_click_arrives_where_it_was_made(clone: Path) -> None:
    (made,) = make([f"segvol={clone},{clone / 'SegVol_v1.pth'}"], MethodSettings())
    found = made.method(
        from_array(volume()), Prompts((Click((5, 20, 60), True), Click((1, 1, 1), False)), None)
    )
    centre = np.argwhere(found).mean(axis=0)
    np.testing.assert_allclose(centre, (5, 20, 60), atol=1)


def test_what_is_missing_is_named(clone: Path) -> None:
    with pytest.raises(UserError, match=r"there is no '.*nowhere"):
        make(["segvol=nowhere"], MethodSettings())
    (clone / "network" / "model.py").write_text("raise RuntimeError('too old')")
    with pytest.raises(UserError, match="RuntimeError: too old"):
        make([f"segvol={clone}"], MethodSettings())
