"""The presets: every hyper-parameter of the two networks is set here and nowhere else [paper Table 2]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT", "GlobalConfig", "LocalConfig")


@dataclass(frozen=True)
class _Config:
    """Sizes of a network."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card (JSON)."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class GlobalConfig(_Config):
    """Sizes of the global network; the defaults are the authors' 64-voxel variant of SAM-Med3D.

    Attributes:
        image_size: side of the RoI grid in voxels.
        patch: side of a token in voxels.
        in_channels: of the image.
        embed_dim: width of the encoder's tokens.
        depth: number of blocks of the encoder's transformer.
        heads: attention heads of each block.
        mlp_ratio: hidden width of each block's MLP, as a multiple of `embed_dim`.
        use_rel_pos: add relative positions to the encoder's attention.
        window: side of the attention windows in tokens, with relative positions (0: none).
        global_blocks: indices of the blocks without windows.
        stem_channels: () for one patch convolution, else channels at full, half and quarter resolution.
        prompt_dim: width of the prompt tokens.
        mask_in_channels: hidden channels of the mask prompt's convolutions.
        point_kinds: number of learned point embeddings.
        published_positions: encode positions as published, see `prompt_encoder.FourierPositions`.
        decoder_depth: number of blocks of the mask decoder's transformer.
        decoder_heads: attention heads of each of them.
        decoder_mlp: hidden width of their MLPs.
        mask_tokens: number of masks that the decoder predicts.
        iou_head: hidden width of the mask-quality head (0: none).
        upscaling: () for the published one, else channels at 16^3 and 32^3 of the upscaling with skips.
        point_features: add the image features at a point to its token.
        ellipsoid_prior: add the logits of the ellipsoid in the box.
        click_influence: show the decoder how far each click reaches, and add it to the logits.
        box_label: label of the box-centre prompt.
        mask_size: side of the returned logits.
        unet_channels: () for encoder and decoder as published, else the channels of the early-fusion U-Net at
            1/2, 1/4, 1/8 ... of the grid, for which of the above only image_size, box_label and mask_size
            count.
        unet_blocks: residual blocks of the U-Net's levels on the way down.
        walks: the U-Net sees two random walks, too (`walks`).
        hold_edges: outside the image its outermost voxels go on instead of zeros.
    """

    image_size: int = 64
    patch: int = 8
    in_channels: int = 1
    embed_dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    use_rel_pos: bool = True
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    stem_channels: tuple[int, ...] = ()
    prompt_dim: int = 384
    mask_in_channels: int = 16
    point_kinds: int = 4
    published_positions: bool = True
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    mask_tokens: int = 1
    iou_head: int = 0
    upscaling: tuple[int, ...] = ()
    point_features: bool = False
    ellipsoid_prior: bool = False
    click_influence: bool = False
    box_label: int = 1
    mask_size: int = 32
    unet_channels: tuple[int, ...] = ()
    unet_blocks: tuple[int, ...] = ()
    walks: bool = False
    hold_edges: bool = False

    @property
    def grid(self) -> int:
        """Tokens along an axis."""
        return self.image_size // self.patch

    @property
    def mask_prompt_size(self) -> int:
        """Side of the mask prompt: two halvings lead to the token grid; a U-Net takes its own masks."""
        return self.mask_size if self.unet_channels else 4 * self.grid

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GlobalConfig:
        """The inverse of `to_dict`, also after JSON; ValueError for unknown names."""
        return _from_dict(cls, values)


def outside_of(hold_edges: bool) -> Literal["zeros", "edge"]:
    """What a global region holds beyond the image, as `geometry.crop_to_grid` calls it."""
    return "edge" if hold_edges else "zeros"


@dataclass(frozen=True)
class LocalConfig(_Config):
    """Sizes of the local network; the defaults are MONAI's `vista3d132` without its automatic branch.

    Attributes:
        space_to_depth: side of the voxel cubes that the encoder sees as channels (1: voxels).
        init_filters: channels of the SegResNet's first level.
        blocks_down: residual blocks of each of its levels.
        norm: its normalisation, by MONAI's name.
        norm_groups: number of groups of the norm "group".
        out_channels: of its feature map.
        feature_size: channels of the point head's transformer.
        click_head: the compact head (clicks as maps, features at clicks, finer mask), not the published one.
        detail_channels: of the compact head's features at full resolution.
        window: side of the windows in which the network is served, in voxels. The paper's is 128; a smaller
            one needs less time for an answer and for each object of a training.
    """

    space_to_depth: int = 1
    init_filters: int = 48
    blocks_down: tuple[int, ...] = (1, 2, 2, 4, 4)
    norm: str = "instance"
    norm_groups: int = 1
    out_channels: int = 48
    feature_size: int = 48
    click_head: bool = False
    detail_channels: int = 0
    window: int = 128

    @property
    def multiple(self) -> int:
        """What the sides of a window must be multiples of: the encoder halves it after each level but one."""
        return self.space_to_depth * 2 ** max(len(self.blocks_down) - 1, 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LocalConfig:
        """The inverse of `to_dict`, also after JSON; ValueError for unknown names."""
        return _from_dict(cls, values)


def _from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return cls(**plain)


COMPACT_GLOBAL = GlobalConfig(
    image_size=32,
    mask_size=32,
    box_label=2,
    unet_channels=(32, 96, 192),
    unet_blocks=(1, 1, 2),
    walks=True,
    hold_edges=True,
)

TRANSFORMER_GLOBAL = GlobalConfig(
    embed_dim=160,
    depth=4,
    heads=5,
    use_rel_pos=False,
    window=0,
    global_blocks=(),
    stem_channels=(8, 24, 48),
    prompt_dim=96,
    point_kinds=3,
    published_positions=False,
    decoder_heads=4,
    decoder_mlp=384,
    upscaling=(32, 16),
    point_features=True,
    ellipsoid_prior=True,
    click_influence=True,
    box_label=2,
    mask_size=64,
)


COMPACT_LOCAL = LocalConfig(
    space_to_depth=2,
    init_filters=16,
    blocks_down=(1, 2, 2, 4),
    norm="group",
    norm_groups=8,
    out_channels=16,
    feature_size=32,
    click_head=True,
    detail_channels=4,
    window=64,
)


PRESETS: dict[str, tuple[GlobalConfig, LocalConfig]] = {
    "paper": (GlobalConfig(), LocalConfig()),
    "compact": (COMPACT_GLOBAL, COMPACT_LOCAL),
    "transformer": (TRANSFORMER_GLOBAL, COMPACT_LOCAL),
}


def preset_configs(name: str) -> tuple[GlobalConfig, LocalConfig]:
    """The configurations of a preset; ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
