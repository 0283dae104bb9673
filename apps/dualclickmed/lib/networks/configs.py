"""The presets: every hyper-parameter of the two networks is set here and nowhere else [paper Table 2]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

ConfigT = TypeVar("ConfigT", "GlobalConfig", "LocalConfig")


@dataclass(frozen=True)
class GlobalConfig:
    """Sizes of the global network; the defaults are the authors' 64-voxel variant of SAM-Med3D.

    image_size: side of the RoI grid; patch: voxels along a token; in_channels: of the image.
    embed_dim, depth, heads, mlp_ratio: of the encoder's transformer.
    use_rel_pos, window, global_blocks: relative positions; side of the attention window (0: none) and the
        blocks that have none.
    stem_channels: () for one patch convolution, else channels at full, half and quarter resolution.
    prompt_dim, mask_in_channels, point_kinds, published_positions: of the prompt encoder.
    decoder_depth, decoder_heads, decoder_mlp, mask_tokens, iou_head: of the mask decoder.
    upscaling: () for the published one, else channels at 16^3 and 32^3 of the upscaling with skips.
    point_features: add the image features at a point to its token.
    ellipsoid_prior: add the logits of the ellipsoid in the box.
    click_influence: show the decoder how far each click reaches, and add it to the logits.
    box_label: label of the box-centre prompt. mask_size: side of the returned logits.
    unet_channels: () for encoder and decoder as published, else the channels of the early-fusion U-Net at
        1/2, 1/4, 1/8 ... of the grid, for which of the above only image_size, box_label and mask_size count;
        unet_blocks: its residual blocks of each level on the way down.
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
    hold_edges: bool = False

    @property
    def grid(self) -> int:
        """Tokens along an axis."""
        return self.image_size // self.patch

    @property
    def mask_prompt_size(self) -> int:
        """Side of the mask prompt: two halvings lead to the token grid; a U-Net takes its own masks."""
        return self.mask_size if self.unet_channels else 4 * self.grid

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card (JSON)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GlobalConfig:
        """The inverse of `to_dict`, also after JSON; ValueError for unknown names."""
        return _from_dict(cls, values)


def outside_of(hold_edges: bool) -> Literal["zeros", "edge"]:
    """What a global region holds beyond the image, as `geometry.crop_to_grid` calls it."""
    return "edge" if hold_edges else "zeros"


@dataclass(frozen=True)
class LocalConfig:
    """Sizes of the local network; the defaults are MONAI's `vista3d132` without its automatic branch.

    space_to_depth: side of the voxel cubes that the encoder sees as channels (1: voxels).
    init_filters, blocks_down, norm, out_channels: of the SegResNet; norm_groups: for norm "group".
    feature_size: channels of the point head's transformer.
    click_head: the compact head (clicks as maps, features at clicks, finer mask) instead of the published.
    detail_channels: of the compact head's features at full resolution.
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

    @property
    def multiple(self) -> int:
        """What the sides of a window must be multiples of: the encoder halves it after each level but one."""
        return self.space_to_depth * 2 ** max(len(self.blocks_down) - 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card (JSON)."""
        return dataclasses.asdict(self)

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
