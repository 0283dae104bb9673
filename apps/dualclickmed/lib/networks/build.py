"""The presets: every hyper-parameter of the two networks is set here and nowhere else [paper Table 2]."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from monai.networks.nets.segresnet_ds import SegResNetDS2
from torch import nn

from .global_network import GlobalNetwork
from .image_encoder import Attention, Block, ConvStem, ImageEncoder, PatchEmbedding, RelativeAttention
from .influence import MAPS
from .layers import with_fast_convolutions
from .local_network import ClickHead, LocalNetwork, PointHead
from .mask_decoder import MaskDecoder, PlainUpscaling, SkipUpscaling, TwoWayTransformer
from .prompt_encoder import PromptEncoder

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

    @property
    def grid(self) -> int:
        """Tokens along an axis."""
        return self.image_size // self.patch

    @property
    def mask_prompt_size(self) -> int:
        """Side of the mask prompt: two halvings lead to the token grid."""
        return 4 * self.grid

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model card (JSON)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GlobalConfig:
        """The inverse of `to_dict`, also after JSON; ValueError for unknown names."""
        return _from_dict(cls, values)


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
}


def preset_configs(name: str) -> tuple[GlobalConfig, LocalConfig]:
    """The configurations of a preset; ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def build_global(preset: str | GlobalConfig) -> GlobalNetwork:
    """The global network of a preset or of a configuration, with random weights."""
    c = preset_configs(preset)[0] if isinstance(preset, str) else preset
    cube = (c.image_size,) * 3
    patch_embed: nn.Module
    if c.stem_channels:
        patch_embed = ConvStem(c.in_channels, c.stem_channels, c.embed_dim, cube)
    else:
        patch_embed = PatchEmbedding(c.in_channels, c.embed_dim, c.patch)
    blocks = [Block(_attention(c, i), c.embed_dim, c.embed_dim * c.mlp_ratio) for i in range(c.depth)]
    image_encoder = ImageEncoder(patch_embed, blocks, c.grid, c.embed_dim, c.prompt_dim)
    prompt_encoder = PromptEncoder(
        dim=c.prompt_dim,
        embedding_size=(c.grid,) * 3,
        image_size=cube,
        mask_size=(c.mask_prompt_size,) * 3,
        mask_in_channels=c.mask_in_channels,
        published_positions=c.published_positions,
        point_kinds=c.point_kinds,
        dense_clicks=bool(c.upscaling),
        point_features=(c.stem_channels[1], c.prompt_dim) if c.point_features else (),
    )
    upscaling: PlainUpscaling | SkipUpscaling
    if c.upscaling:
        quarter, half = c.upscaling
        upscaling = SkipUpscaling(
            c.prompt_dim, c.stem_channels, (quarter, half), 3 + MAPS * c.click_influence
        )
    else:
        upscaling = PlainUpscaling(c.prompt_dim)
    mask_decoder = MaskDecoder(
        transformer=TwoWayTransformer(c.decoder_depth, c.prompt_dim, c.decoder_heads, c.decoder_mlp),
        dim=c.prompt_dim,
        mask_tokens=c.mask_tokens,
        iou_head=c.iou_head,
        upscaling=upscaling,
    )
    return GlobalNetwork(image_encoder, prompt_encoder, mask_decoder, c)


def _attention(c: GlobalConfig, block: int) -> Attention:
    if not c.use_rel_pos:
        return Attention(c.embed_dim, c.heads)
    window = c.grid if block in c.global_blocks or not c.window else c.window
    return RelativeAttention(c.embed_dim, c.heads, c.grid, window)


def build_local(preset: str | LocalConfig) -> LocalNetwork:
    """The local network of a preset or of a configuration, with random weights."""
    c = preset_configs(preset)[1] if isinstance(preset, str) else preset
    image_encoder = SegResNetDS2(
        in_channels=c.space_to_depth**3,
        out_channels=c.out_channels,
        init_filters=c.init_filters,
        blocks_down=c.blocks_down,
        norm=("group", {"num_groups": c.norm_groups}) if c.norm == "group" else c.norm,
        dsdepth=1,
    )
    if c.click_head:
        head: PointHead | ClickHead = ClickHead(
            c.feature_size, c.out_channels, c.detail_channels, c.space_to_depth
        )
    else:
        head = PointHead(c.feature_size)
    return LocalNetwork(with_fast_convolutions(image_encoder), head, c)
