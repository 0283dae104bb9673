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

from .early_fusion import GROUP, EarlyFusionNetwork, channels_seen
from .layers import Conv3d


def grown(
    network: EarlyFusionNetwork, channels: Sequence[int], blocks: Sequence[int], walks: bool = False
) -> EarlyFusionNetwork:
    """A network with more channels and blocks that answers as the given one does.

    Args:
        network: the smaller one; it stays as it is.
        channels: of each level; multiples of 16, because normalisation takes 16 together.
        blocks: of each level on the way down.
        walks: whether it shall see random walks, too; one that saw them goes on to.

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
    config = replace(old, unet_channels=tuple(channels), unet_blocks=tuple(blocks), walks=old.walks or walks)
    larger = EarlyFusionNetwork(config)
    # What the network sees enters as cubes of 2 x 2 x 2 cells, and so does what goes down a level.
    seen = 8 * [(channels_seen(old), channels_seen(config))]
    first = (old.unet_channels[0], config.unet_channels[0])
    modules = dict(network.named_modules())
    with torch.no_grad():
        for name, module in larger.named_modules():
            source = modules.get(name)
            if isinstance(module, nn.GroupNorm) and isinstance(source, nn.GroupNorm):
                count = source.num_channels
                module.weight[:count], module.bias[:count] = source.weight, source.bias
            elif isinstance(module, (Conv3d, nn.Linear)) and isinstance(source, (Conv3d, nn.Linear)):
                groups = [(source.weight.shape[1], module.weight.shape[1])]
                if name == "stem":
                    groups = seen
                elif name == "fine":
                    groups = [first, *seen]
                elif name.startswith("down."):
                    groups = 8 * [(groups[0][0] // 8, groups[0][1] // 8)]
                _copy(module, source, groups)
        larger.prior_gain.copy_(network.prior_gain)
    return larger


def _copy(new: Conv3d | nn.Linear, old: Conv3d | nn.Linear, groups: Sequence[tuple[int, int]]) -> None:
    """Copy a layer's weights; its old outputs ignore its new inputs.

    Args:
        new, old: the layers.
        groups: of inputs, one after the other: how many there were and are. New ones are a group's last.
    """
    outputs = len(old.weight)
    kept = torch.cat([torch.arange(after) < before for before, after in groups])
    weight: Tensor = new.weight[:outputs]
    weight[:, ~kept] = 0
    weight[:, kept] = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias[:outputs] = old.bias
