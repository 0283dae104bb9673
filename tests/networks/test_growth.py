"""A larger network that answers as the smaller one did, and that can learn with what is new."""

from __future__ import annotations

import re

import pytest
import torch
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.networks.early_fusion import EarlyFusionNetwork
from dualclickmed.networks.growth import grown
from torch import Tensor, nn

SMALL = GlobalConfig(
    image_size=16, mask_size=16, unet_channels=(16, 32, 32), unet_blocks=(1, 1, 2), patch=8, hold_edges=True
)
LABELS = torch.tensor([[2, 1, 0, 1], [2, 0, 0, -1], [1, 1, 0, 0]])


def drawn() -> EarlyFusionNetwork:
    """A network in which every weight plays a part, as in a trained one."""
    torch.manual_seed(3)
    network = EarlyFusionNetwork(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def answer(network: EarlyFusionNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(3, 1, 16, 16, 16, generator=generator)
    points = 15 * torch.rand(3, 4, 3, generator=generator)
    mask = torch.randn(3, 1, 16, 16, 16, generator=generator)
    return network.decode(network.encode(image), points, LABELS, mask)


@pytest.mark.parametrize(
    ("channels", "blocks"),
    [
        ((32, 32, 32), (1, 1, 2)),
        ((16, 48, 32), (1, 1, 2)),
        ((16, 32, 64), (1, 1, 2)),
        ((16, 32, 32), (2, 3, 3)),
        ((48, 64, 96), (2, 2, 4)),
    ],
)
def test_it_answers_as_the_smaller_one(channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    network = drawn()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        expected = answer(network)
        larger = grown(network, channels, blocks).eval()
        found = answer(larger)
    assert (larger.config.unet_channels, larger.config.unet_blocks) == (channels, blocks)
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("channels", "blocks"), [((16, 32, 32), (1, 1, 2)), ((32, 32, 48), (2, 1, 2))])
def test_one_that_sees_walks_answers_as_before(channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    network = drawn()
    with torch.no_grad():
        expected = answer(network)
        seeing = grown(network, channels, blocks, walks=True).eval()
        torch.testing.assert_close(answer(seeing), expected, rtol=1e-4, atol=1e-4)
        for parameter in seeing.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        # What has seen walks goes on to, and they count.
        expected = answer(seeing)
        larger = grown(seeing, (48, 48, 48), (2, 2, 3)).eval()
        assert larger.config.walks
        torch.testing.assert_close(answer(larger), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("walks", [False, True])
def test_what_is_new_learns(walks: bool) -> None:
    larger = grown(drawn(), (32, 48, 48), (2, 2, 3), walks)
    optimiser = torch.optim.SGD(larger.parameters(), lr=0.01)
    old = answer(larger).detach()
    target = torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        # New inputs are used only after the first step has let new outputs out, so their own rows move later.
        optimiser.zero_grad()
        (answer(larger) - target).square().mean().backward()
        optimiser.step()
    for name, module in larger.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            assert module.weight.grad is not None
            still = (module.weight.grad.flatten(1).abs().amax(1) == 0).sum()
            assert still == 0, f"{int(still)} outputs of {name} do not learn"


@pytest.mark.parametrize(
    ("channels", "blocks", "expected"),
    [
        ((16, 32), (1, 1, 2), "A network of 3 levels was to grow to channels (16, 32) and blocks (1, 1, 2)"),
        ((16, 32, 32), (1, 1), "channels (16, 32, 32) and blocks (1, 1); name one of each for every level."),
        ((16, 16, 32), (1, 1, 2), "were to grow to (16, 16, 32) and (1, 1, 2); none may shrink"),
        ((16, 32, 32), (1, 1, 1), "none may shrink"),
        ((16, 40, 32), (1, 1, 2), "channels must be multiples of 16."),
    ],
)
def test_what_is_no_growth_is_refused(
    channels: tuple[int, ...], blocks: tuple[int, ...], expected: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        grown(drawn(), channels, blocks)
