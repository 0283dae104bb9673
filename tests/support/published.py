"""Checkpoints as the published trainers write them, in sizes that tests can afford."""

from __future__ import annotations

import pytest
import torch
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import GlobalConfig, LocalConfig
from dualclickmed.weights import convert as checkpoints
from monai.networks.nets.segresnet_ds import SegResNetDS2
from monai.networks.nets.vista3d import VISTA3D, ClassMappingClassify, PointMappingSAM
from torch import Tensor, nn

SMALL_GLOBAL = GlobalConfig(embed_dim=24, depth=2, heads=2, global_blocks=(1,), prompt_dim=48, decoder_mlp=32)
SMALL_LOCAL = LocalConfig(init_filters=8, blocks_down=(1, 1, 2), out_channels=8, feature_size=8)
VISTA_SIZES = (8, (1, 1, 2))
POINTS = "prompt_encoder.point_embeddings."


def use_small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small networks be the published ones."""
    monkeypatch.setattr(checkpoints, "PUBLISHED", {"global": SMALL_GLOBAL, "local": SMALL_LOCAL})


def drawn(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """Every tensor of a network, all of them at random: no zero may hide a missing copy."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in network.state_dict().items()
    }


def global_variant(config: GlobalConfig = SMALL_GLOBAL, seed: int = 1) -> dict[str, Tensor]:
    """The authors' 64-voxel variant."""
    return drawn(build_global(config), seed)


def sam_med3d(seed: int = 2) -> dict[str, Tensor]:
    """SAM-Med3D: patches of 16, four masks, a quality head, two point embeddings."""
    config = GlobalConfig(
        **{**SMALL_GLOBAL.to_dict(), "image_size": 128, "patch": 16, "mask_tokens": 4, "iou_head": 16},
    )
    state = drawn(build_global(config), seed)
    return {name: value for name, value in state.items() if not name.startswith((f"{POINTS}2", f"{POINTS}3"))}


def vista3d(
    seed: int = 3, filters: int = VISTA_SIZES[0], blocks: tuple[int, ...] = VISTA_SIZES[1]
) -> VISTA3D:
    """MONAI's own VISTA3D, automatic branch and class head included."""
    encoder = SegResNetDS2(
        in_channels=1,
        out_channels=filters,
        init_filters=filters,
        blocks_down=blocks,
        norm="instance",
        dsdepth=1,
    )
    network = VISTA3D(
        image_encoder=encoder,
        class_head=ClassMappingClassify(n_classes=512, feature_size=filters, use_mlp=True),
        point_head=PointMappingSAM(feature_size=filters, n_classes=512, last_supported=132),
    )
    network.load_state_dict(drawn(network, seed))
    return network.eval()


def monai_13_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network under the names of the MONAI 1.3 bundle, which has two more, unused hypernetworks."""
    renamed = {
        name.replace("mlp.linear", "mlp.lin") if name.startswith("point_head.transformer.") else name: value
        for name, value in state.items()
    }
    for i in range(2):
        renamed[f"point_head.output_add_hypernetworks_mlps.{i}.layers.0.weight"] = torch.ones(8, 8)
    return renamed


def small_local_network() -> nn.Module:
    return build_local(SMALL_LOCAL)
