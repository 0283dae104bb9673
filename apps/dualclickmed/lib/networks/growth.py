"""A larger early-fusion network with the answers of a smaller one.

What was learned is kept when a network turns out to be too small (Net2Net, Chen et al., ICLR 2016). There,
new channels are copies of old ones. Here they begin with random inputs and without influence on what was
there, so nothing has to be told apart again. New blocks begin as the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .early_fusion import GROUP, EarlyFusionNetwork
from .layers import Conv3d


def grown(network: EarlyFusionNetwork, channels: Sequence[int], blocks: Sequence[int]) -> EarlyFusionNetwork:
    """A network with more channels and blocks that answers as the given one does.

    Args:
        network: the smaller one; it stays as it is.
        channels: of each level; multiples of 16, because normalisation takes 16 together.
        blocks: of each level on the way down.

    Returns:
        A new network; new weights come from PyTorch's random numbers.

    Raises:
        ValueError: another number of levels, fewer channels or blocks than there are, or channels that are no
            multiples of 16.
    """
    old = network.config
    if len(channels) != len(old.unet_channels) or len(blocks) != len(old.unet_blocks):
        raise ValueError(
            f"A network of {len(old.unet_channels)} levels was to grow to channels {tuple(channels)} and "
            f"blocks {tuple(blocks)}; name one of each for every level."
        )
    sizes = zip((*old.unet_channels, *old.unet_blocks), (*channels, *blocks), strict=True)
    if any(new < was for was, new in sizes) or any(c % GROUP for c in (*old.unet_channels, *channels)):
        raise ValueError(
            f"Channels {old.unet_channels} and blocks {old.unet_blocks} were to grow to {tuple(channels)} "
            f"and {tuple(blocks)}; none may shrink, and channels must be multiples of {GROUP}."
        )
    config = replace(old, unet_channels=tuple(channels), unet_blocks=tuple(blocks))
    larger = EarlyFusionNetwork(config)
    # The first inputs of `fine` are channels, the others what the network sees: new channels come between.
    fine = len(network.fine.weight[0]) - old.unet_channels[0]
    modules = dict(network.named_modules())
    with torch.no_grad():
        for name, module in larger.named_modules():
            source = modules.get(name)
            if isinstance(module, nn.GroupNorm) and isinstance(source, nn.GroupNorm):
                count = source.num_channels
                module.weight[:count], module.bias[:count] = source.weight, source.bias
            elif isinstance(module, (Conv3d, nn.Linear)) and isinstance(source, (Conv3d, nn.Linear)):
                cubes = 8 if name.startswith("down.") else 1
                _copy(module, source, cubes, fine if name == "fine" else 0)
        larger.prior_gain.copy_(network.prior_gain)
    return larger


def _copy(new: Conv3d | nn.Linear, old: Conv3d | nn.Linear, cubes: int, last: int) -> None:
    """Copy a layer's weights; its old outputs ignore its new inputs.

    Args:
        new, old: the layers.
        cubes: how often the channels are repeated among the inputs, each time with the new ones at the end.
        last: how many inputs come after the channels.
    """
    outputs = len(old.weight)
    kept = torch.zeros(new.weight.shape[1], dtype=torch.bool)
    each, before = (new.weight.shape[1] - last) // cubes, (old.weight.shape[1] - last) // cubes
    for cube in range(cubes):
        kept[cube * each : cube * each + before] = True
    kept[len(kept) - last :] = True
    weight: Tensor = new.weight[:outputs]
    weight[:, ~kept] = 0
    weight[:, kept] = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias[:outputs] = old.bias
