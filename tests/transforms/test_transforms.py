"""MONAI's calling convention around the simulated annotator and the two regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.imaging.geometry import Box, crop_to_grid, global_roi, paste_from_grid
from dualclickmed.simulation.clicks import Draws, boundary_attenuated
from dualclickmed.transforms import (
    AddClicksd,
    FindDiscrepancyd,
    GlobalRoid,
    LocalWindowd,
    RandObjectCropd,
    SimulateBoxd,
)
from monai.data import MetaTensor
from monai.transforms import Compose, ScaleIntensityd


def sample() -> dict[str, torch.Tensor]:
    label = torch.zeros(1, 24, 30, 36)
    label[0, 4:14, 5:17, 6:20] = 1
    return {"image": 10 + 90 * label, "label": label, "pred": torch.where(label.roll(3, 3) > 0, 4.0, -4.0)}


def test_the_discrepancy_is_where_the_prediction_is_wrong() -> None:
    data = sample()
    done = FindDiscrepancyd()(data)
    assert torch.equal(done["discrepancy"] > 0, (data["pred"] > 0) != (data["label"] > 0))
    assert "discrepancy" not in data
    perfect = FindDiscrepancyd()({**data, "pred": data["label"] - 0.5})
    assert float(perfect["discrepancy"].sum()) == 0


@pytest.mark.parametrize("strategy", ["boundary", "balanced", "uniform", "realistic"])
def test_clicks_lie_in_the_discrepancy_and_are_added_to_those_before(strategy: str) -> None:
    pipeline = Compose([FindDiscrepancyd(), AddClicksd(strategy=strategy, count=5), AddClicksd(count=2)])
    pipeline.set_random_state(3)
    done = pipeline(sample())
    assert done["points"].shape == (7, 3) and done["point_labels"].shape == (7,)
    for (z, y, x), positive in zip(done["points"].tolist(), done["point_labels"].tolist(), strict=True):
        assert done["discrepancy"][0, z, y, x] == 1
        assert int(done["label"][0, z, y, x]) == positive


def test_the_random_state_decides_and_clicks_are_the_simulation_s() -> None:
    first, again, other = (
        AddClicksd(count=9).set_random_state(seed)(sample())["points"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    data = sample()
    seed = int(np.random.RandomState(1).randint(np.iinfo(np.int32).max))
    draws = Draws(torch.Generator().manual_seed(seed))
    truth = data["label"] > 0
    expected = boundary_attenuated(data["pred"], truth, torch.ones_like(truth), 9, draws)
    assert torch.equal(first, expected.points[0])


def test_nothing_predicted_and_nothing_wrong() -> None:
    data = sample()
    del data["pred"]
    assert (AddClicksd(count=4)(data)["point_labels"] == 1).all()
    done = AddClicksd(count=4)({**data, "pred": data["label"] - 0.5})
    assert done["points"].shape == (0, 3) and done["point_labels"].shape == (0,)


def test_voxels_that_can_t_be_clicked_are_left_alone() -> None:
    data = sample()
    data["valid"] = torch.zeros_like(data["label"])
    data["valid"][..., :8] = 1
    points = AddClicksd(count=50, valid="valid", strategy="uniform")(data)["points"]
    assert len(points) == 50 and int(points[:, 2].max()) < 8


def test_the_global_region_is_the_geometry_s_and_leads_back() -> None:
    data = sample()
    data["points"] = torch.tensor([[8, 10, 12]])
    pipeline = Compose(
        [SimulateBoxd(exact=True), GlobalRoid(points="points"), ScaleIntensityd("image", minv=0, maxv=1)]
    )
    done = pipeline(data)
    box = Box.of_mask(data["label"][0].numpy())
    assert done["box"] == box and done["roi"] == global_roi(box)
    cut = crop_to_grid(data["image"][0].numpy(), global_roi(box))
    assert torch.allclose(
        done["image"][0].as_tensor(), (cut - cut.min()) / (cut.max() - cut.min()), atol=1e-6
    )
    assert done["label"].dtype == torch.bool and done["label"].shape == (1, 64, 64, 64)
    z, y, x = done["points"][0].round().long().tolist()
    assert bool(done["label"][0, z, y, x])
    region, values = paste_from_grid(done["label"][0].float(), done["roi"], (24, 30, 36))
    back = torch.zeros(24, 30, 36)
    back[region] = values
    assert float(((back > 0.5) != (data["label"][0] > 0)).float().sum()) < 0.02 * float(data["label"].sum())


def test_the_local_window_has_the_last_click_in_its_middle() -> None:
    data = {**sample(), "points": torch.tensor([[1, 1, 1], [8, 10, 12]])}
    done = LocalWindowd(size=(16, 16, 16))(data)
    assert done["points"].tolist()[1] == [8, 8, 8]
    assert torch.equal(done["image"][0, 8:, 8:, 8:], data["image"][0, 8:16, 10:18, 12:20])
    with pytest.raises(UserError, match="needs a click"):
        LocalWindowd()({**sample(), "points": torch.zeros(0, 3)})


def test_windows_about_every_object_alike() -> None:
    labels = np.zeros((1, 40, 40, 40), np.uint8)
    labels[0, 2:7, 2:7, 2:7], labels[0, 12:38, 12:38, 12:38] = 1, 2
    data = {"image": MetaTensor(labels.astype(np.float32)), "label": labels}
    crop = RandObjectCropd(size=(16, 16, 16)).set_random_state(0)
    small = 0
    for _ in range(200):
        done = crop(data)
        assert bool(done["label"][0, 8, 8, 8])
        small += int(float(done["image"][0, 8, 8, 8]) == 1)
        assert bool((done["label"][0] == (done["image"][0] == done["image"][0, 8, 8, 8])).all())
    assert 70 <= small <= 130
    with pytest.raises(UserError, match="no foreground"):
        crop({**data, "label": np.zeros_like(labels)})


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UserError, match="one of boundary, balanced"):
        AddClicksd(strategy="random")
    with pytest.raises(UserError, match=r"'label' must be one channel .* \(2, 4, 4, 4\)"):
        AddClicksd()({"label": torch.zeros(2, 4, 4, 4)})
    with pytest.raises(UserError, match="no foreground"):
        SimulateBoxd()({"label": torch.zeros(1, 4, 4, 4)})
    assert AddClicksd(allow_missing_keys=True)({}) == {}
