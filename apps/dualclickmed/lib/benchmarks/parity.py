"""The fast networks against the published ones, on random weights, images, clicks and masks in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..networks.build import build_global, build_local
from ..networks.configs import GlobalConfig, LocalConfig
from ..networks.global_network import GlobalNetwork
from ..networks.local_network import LocalNetwork
from ..networks.reference import PublishedGlobal, PublishedLocal

LIMIT = 1e-5
"""Largest relative difference (of norms) that still counts as the same function."""
FULL: dict[str, GlobalConfig | LocalConfig] = {
    "global, 8^3 patches, 1 mask": GlobalConfig(),
    "global, 16^3 patches, 4 masks, quality": GlobalConfig(
        image_size=128, patch=16, mask_tokens=4, iou_head=256, point_kinds=2
    ),
    "local, 128^3": LocalConfig(),
}
"""The published networks at full size: the authors', SAM-Med3D's and VISTA3D's."""
CLICKS = 5

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def full_parity() -> Iterator[tuple[str, dict[str, float]]]:
    """Names of `FULL` and the relative differences of their outputs."""
    for name, config in FULL.items():
        if isinstance(config, GlobalConfig):
            network = build_global(config)
            assert isinstance(network, GlobalNetwork)
            yield name, compare_global(randomised(network, 0), 1)
        else:
            yield name, compare_local(randomised(build_local(config), 0), 1, 128)


def randomised(network: NetworkT, seed: int) -> NetworkT:
    """The network in evaluation mode with random weights, also where they usually begin as 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 2:
                fan = parameter[0].numel()
                parameter.normal_(std=fan**-0.5, generator=generator)
            elif "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.normal_(std=0.3, generator=generator)
                if name.endswith("weight"):
                    parameter.add_(1)
    return network.eval()


@torch.inference_mode()
def compare_global(network: GlobalNetwork, seed: int) -> dict[str, float]:
    """Relative difference of each output, by name, between a network and its published form."""
    c, generator = network.config, torch.Generator().manual_seed(seed)
    published = PublishedGlobal(network)
    image = torch.randn(1, 1, *[c.image_size] * 3, generator=generator)
    points = torch.rand(1, CLICKS, 3, generator=generator) * (c.image_size - 1)
    labels = (torch.arange(CLICKS) % 2)[None]
    mask = 5 * torch.randn(1, 1, *[c.mask_prompt_size] * 3, generator=generator)

    features, embedding = network.encode(image), published.encode(image)
    masks, quality = network.decode_every_mask(features, points, labels)
    expected, expected_quality = published.decode(embedding, points, labels)
    again, _ = network.decode_every_mask(features, points, labels, mask)
    expected_again, _ = published.decode(embedding, points, labels, mask)
    found = {
        "embedding": _difference(features.embedding, embedding),
        "masks from clicks": _difference(masks, expected),
        "masks from clicks and a mask": _difference(again, expected_again),
        "first mask": _difference(network.decode(features, points, labels, mask), expected_again[:, :1]),
    }
    if quality is not None and expected_quality is not None:
        found["quality"] = _difference(quality, expected_quality)
    return found


@torch.inference_mode()
def compare_local(network: LocalNetwork, seed: int, side: int) -> dict[str, float]:
    """As `compare_global`, in a window of `side` voxels."""
    generator = torch.Generator().manual_seed(seed)
    published = PublishedLocal(network)
    image = torch.rand(1, 1, side, side, side, generator=generator)
    points = torch.rand(1, CLICKS, 3, generator=generator) * (side - 1)
    labels = (torch.arange(CLICKS) % 2)[None]

    expected = published.encode(image)
    features = network.encode(image)
    return {
        "features": _difference(features.embedding, published.point_head.feat_downsample(expected)),
        "mask from clicks": _difference(
            network.decode(features, points, labels), published.decode(expected, points, labels)
        ),
        "mask from no click": _difference(
            network.decode(features, points[:, :0], labels[:, :0]),
            published.decode(expected, points[:, :0], labels[:, :0]),
        ),
    }


def _difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        raise ValueError(f"Expected the shape {tuple(expected.shape)}, got {tuple(got.shape)}.")
    return float((got.double() - expected.double()).norm() / expected.double().norm())
