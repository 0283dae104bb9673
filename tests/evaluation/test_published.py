"""Published networks as peers: filled from their checkpoints, with the habits of their authors' programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dualclickmed.errors import WeightsError
from dualclickmed.evaluation import published
from dualclickmed.evaluation.methods import MethodSettings, make
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import from_array
from dualclickmed.networks.reference import PublishedGlobal
from dualclickmed.weights import convert as checkpoints
from monai.networks.nets.vista3d import vista3d132

from tests.support.published import SMALL_GLOBAL, drawn, sam_med3d

SPACING = (3.0, 1.5, 1.5)
VOLUME = from_array(np.random.default_rng(0).integers(1, 255, (30, 60, 60)).astype(np.uint8), SPACING)
BOX = Box((10, 20, 20), (20, 40, 40))


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> published.SamMed3d:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "PUBLISHED", {**checkpoints.PUBLISHED, "global": SMALL_GLOBAL})
        patch.setattr(published, "PUBLISHED", {**checkpoints.PUBLISHED, "global": SMALL_GLOBAL})
        path = tmp_path_factory.mktemp("sam") / "sam.pth"
        torch.save({"model_state_dict": sam_med3d()}, path)
        return published.SamMed3d(path)


def test_sam_med3d_sees_its_window_one_click_and_the_last_mask(sam: published.SamMed3d) -> None:
    seen = []
    decode = sam.network.decode

    def record(features, points, labels, mask=None):
        seen.append((points.clone(), labels.clone(), mask.clone()))
        return decode(features, points, labels, mask)

    sam.network.decode = record
    try:
        first = sam(VOLUME, Prompts(box=BOX))
        both = sam(VOLUME, Prompts((Click((5, 8, 50)),), BOX))
    finally:
        sam.network.decode = decode
    assert [points.shape for points, _, _ in seen] == [(1, 1, 3)] * 2
    # A cell is 1.5 mm; the window of 128 is centred on the newest prompt, the click is near it.
    for points, labels, _ in seen:
        assert (points[0, 0] - 63.5).abs().max() <= published.SAM_CUBE * 2 and labels.tolist() == [[1]]
    assert not seen[0][2].any() and set(seen[1][2].unique().tolist()) <= {0.0, 1.0}
    assert seen[1][2].sum() > 0 or not first.any()
    # What it finds is added to what was there.
    assert not (first & ~both).any()


def test_sam_med3d_ignores_everything_after_a_background_click(sam: published.SamMed3d) -> None:
    before = sam(VOLUME, Prompts(box=BOX))
    outside, inside = Click((2, 2, 2), False), Click((5, 8, 50))
    assert np.array_equal(sam(VOLUME, Prompts((outside,), BOX)), before)
    assert np.array_equal(sam(VOLUME, Prompts((outside, inside), BOX)), before)


def test_sam_med3d_answers_alike_with_and_without_its_memory(sam: published.SamMed3d) -> None:
    prompts = Prompts((Click((5, 8, 50)), Click((12, 30, 30))), BOX)
    warm = sam(VOLUME, prompts)
    sam._masks.clear()
    assert np.array_equal(sam(VOLUME, prompts), warm)


def test_sam_med3d_is_the_published_network(sam: published.SamMed3d) -> None:
    literal = PublishedGlobal(sam.network)
    image = torch.rand(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0))
    points, labels = torch.tensor([[[30.0, 60.0, 90.0]]]), torch.tensor([[1]])
    mask = torch.zeros(1, 1, 32, 32, 32)
    with torch.inference_mode():
        expected = literal.decode(literal.encode(image), points, labels, mask)[0][:, :1]
        got = sam.network.decode(sam.network.encode(image), points, labels, mask)
    assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))


def test_vista3d_answers_as_monai_s_own_and_takes_the_box_s_centre_for_a_click(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "VISTA_WINDOW", (64, 64, 64))
    state = drawn(vista3d132(encoder_embed_dim=8), 5)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "v.pth")
    (made,) = make([f"vista3d:{tmp_path / 'v.pth'}"], MethodSettings())
    assert len(made.facts["sha256"]) == 64
    click = Prompts((Click((15, 30, 30)),), BOX)
    # A window of 64 holds all of the volume, padded: one call of the network answers for it.
    logits = made.method(VOLUME, click)
    assert logits.shape == VOLUME.shape and logits.dtype == np.float32
    assert np.array_equal(made.method(VOLUME, Prompts(box=BOX)), logits)

    low, high = VOLUME.percentile(1), VOLUME.percentile(99)
    grey = torch.from_numpy(np.clip((VOLUME.array.astype(np.float32) - low) / (high - low), 0, 1))
    padded = torch.zeros(1, 1, 64, 64, 64)
    padded[0, 0, 17:47, 2:62, 2:62] = grey
    with torch.inference_mode():
        expected = made.method.network(
            padded,
            point_coords=torch.tensor([[[32, 32, 32]]]),
            point_labels=torch.tensor([[1]]),
            patch_coords=[tuple(slice(0, n) for n in (1, 1, 64, 64, 64))],
            transpose=True,
        )[0, 0, 17:47, 2:62, 2:62]
    scale = float(expected.abs().max())
    assert np.allclose(logits, expected.numpy(), atol=1e-3 * scale)


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name, kind in (("sam-med3d", "SAM-Med3D"), ("vista3d", "VISTA3D")):
        with pytest.raises(WeightsError, match=f"'.*other.pth' must hold {kind}'s weights as published"):
            make([f"{name}:{tmp_path / 'other.pth'}"], MethodSettings())
        with pytest.raises(WeightsError, match=r"absent\.pth"):
            make([f"{name}:{tmp_path / 'absent.pth'}"], MethodSettings())
