"""Both networks from a configuration or the name of a preset, with random weights."""

from __future__ import annotations

from monai.networks.nets.segresnet_ds import SegResNetDS2
from torch import nn

from .configs import GlobalConfig, LocalConfig, preset_configs
from .early_fusion import EarlyFusionNetwork
from .global_network import GlobalNetwork, RegionNetwork
from .image_encoder import Attention, Block, ConvStem, ImageEncoder, PatchEmbedding, RelativeAttention
from .influence import MAPS
from .layers import with_fast_convolutions
from .local_network import ClickHead, LocalNetwork, PointHead
from .mask_decoder import MaskDecoder, PlainUpscaling, SkipUpscaling, TwoWayTransformer
from .prompt_encoder import GridSizes, PromptEncoder


def build_global(preset: str | GlobalConfig) -> RegionNetwork:
    """The global network of a preset or of a configuration, with random weights."""
    c = preset_configs(preset)[0] if isinstance(preset, str) else preset
    if c.unet_channels:
        return EarlyFusionNetwork(c)
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
        sizes=GridSizes(cube, (c.grid,) * 3, (c.mask_prompt_size,) * 3),
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
