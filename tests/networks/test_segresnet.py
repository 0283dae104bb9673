"""MONAI's encoder slab by slab: the same values, whatever the slabs and the layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dualclickmed.networks import segresnet
from dualclickmed.networks.segresnet import (
    convolved,
    doubled,
    normalised,
    point_features,
    runs_lean,
    statistics,
)
from monai.networks.nets.segresnet_ds import SegResNetDS2
from torch import nn


def encoder(norm: str = "instance", out_channels: int = 6) -> SegResNetDS2:
    torch.manual_seed(0)
    net = SegResNetDS2(
        in_channels=1, out_channels=out_channels, init_filters=6, blocks_down=(1, 2, 1), norm=norm, dsdepth=1
    ).eval()
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.4)
    return net


@pytest.fixture(params=[10**9, 300, 1], ids=["one slab", "thin slabs", "single planes"])
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segresnet, "SLAB_VOXELS", request.param)
    monkeypatch.setattr(segresnet, "SUM_VOXELS", request.param)


@pytest.mark.parametrize("out_channels", [6, 4])
def test_features_are_monais(slabs: None, out_channels: int) -> None:
    net = encoder(out_channels=out_channels)
    image = torch.rand(2, 1, 12, 16, 8)
    with torch.inference_mode():
        expected = net(image, with_point=True, with_label=False)[0]
        before = image.clone()
        assert runs_lean(net, image)
        got = point_features(net, image)
        assert torch.equal(image, before)
        assert (got - expected).norm() / expected.norm() < 1e-5
        again = point_features(net.to(memory_format=torch.channels_last_3d), image)
        assert (again - expected).norm() / expected.norm() < 1e-5
        assert torch.equal(point_features(net, image), again)


def test_parts_are_pytorchs(slabs: None) -> None:
    torch.manual_seed(1)
    x = torch.randn(1, 5, 7, 6, 4)
    weight, bias = torch.randn(3, 5, 3, 3, 3), torch.randn(3)
    up, norm = nn.ConvTranspose3d(5, 2, 3, 2, 1, 1), nn.InstanceNorm3d(5, affine=True)
    nn.init.normal_(norm.weight)
    with torch.inference_mode():
        expected = F.conv3d(F.gelu(x), weight, bias, padding=1)
        torch.testing.assert_close(convolved(x, weight, bias, F.gelu), expected)
        onto = torch.randn(1, 3, 7, 6, 4)
        total = onto + expected
        assert convolved(x, weight, bias, F.gelu, onto) is onto
        torch.testing.assert_close(onto, total)
        torch.testing.assert_close(doubled(x, up), up(x))
        torch.testing.assert_close(normalised(norm, x)(x[:, :, 2:4]), norm(x)[:, :, 2:4])


def test_sums_over_many_voxels_keep_their_precision() -> None:
    torch.manual_seed(2)
    x = (torch.randn(1, 4, 48, 96, 96) + 3).contiguous(memory_format=torch.channels_last_3d)
    mean, variance = statistics(x)
    exact = x.double().flatten(2)[0]
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=3e-7, atol=0)
    torch.testing.assert_close(variance.double(), exact.var(1, correction=0), rtol=3e-6, atol=0)


def test_it_is_for_prediction_with_instance_norms_only() -> None:
    image = torch.rand(1, 1, 8, 8, 8)
    assert not runs_lean(encoder(), image)  # gradients
    with torch.inference_mode():
        assert runs_lean(encoder(), image)
        assert not runs_lean(encoder("batch"), image)
        assert not runs_lean(encoder().encoder, image)


def test_bfloat16_stays_near() -> None:
    net = encoder()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = point_features(net, image)
        with torch.autocast("cpu", torch.bfloat16):
            got = point_features(net, image)
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() / expected.norm() < 0.03
