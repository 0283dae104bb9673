"""The published networks, written out literally and slowly: the reference for the fast ones.

Nothing else uses them. Every formula is written out with the tensors of the state dict, every intermediate
result is kept in full, and what the published code computes without using it is computed here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from monai.networks.nets.segresnet_ds import SegResNetDS2
from monai.networks.nets.vista3d import PointMappingSAM
from torch import Tensor

from .global_network import GlobalNetwork
from .local_network import LocalNetwork, PointHead

State = Mapping[str, Tensor]

ENCODER_EPS = 1e-6
"""Of the encoder's layer norms and of every norm over channels."""
DECODER_EPS = 1e-5
"""Of the layer norms of the mask decoder's transformer."""


def published_attention(x: Tensor, state: State, heads: int, window: int) -> Tensor:
    """Windowed self-attention of the image encoder: pad to the window, no mask, every key on its own.

    The bias of query (d, h, w) and key (kd, kh, kw) is
    q(d, h, w) . R_d[d, kw] + q(d, h, kd) . R_h[h, kw] + q(d, h, kh) . R_w[kh, kw]
    with R[i, k] = row i - k + n - 1 of a table.

    Args:
        x: (B, G, G, G, dim).
        state: qkv, proj and the three tables.
        heads: number of heads.
        window: n, the side that the grid is padded to with zeros.
    """
    b, g, *_, dim = x.shape
    n, c = window, dim // heads
    padded = F.pad(x, (0, 0, 0, n - g, 0, n - g, 0, n - g))
    qkv = _linear(padded, state, "qkv").reshape(b, n**3, 3, heads, c)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, b * heads, n**3, c)

    step = torch.arange(n, device=x.device)
    row = step[:, None] - step + n - 1
    grid = q.reshape(b * heads, n, n, n, c)
    first = torch.einsum("bdhwc,dkc->bdhwk", grid, state["rel_pos_d"][row])
    second = torch.einsum("bdhxc,hkc->bdhxk", grid, state["rel_pos_h"][row])
    third = torch.einsum("bdhxc,xkc->bdhxk", grid, state["rel_pos_w"][row])
    logits = ((q * c**-0.5) @ k.transpose(1, 2)).reshape(b * heads, n, n, n, n, n, n)
    logits = logits + first.reshape(b * heads, n, n, n, 1, 1, n)  # (d, h, w) and kw
    logits = logits + second.reshape(b * heads, n, n, 1, n, 1, n)  # (d, h, w = kd) and kw
    logits = logits + third.reshape(b * heads, n, n, 1, 1, n, n)  # (d, h, w = kh) and kw

    out = logits.reshape(b * heads, n**3, n**3).softmax(dim=-1) @ v
    out = out.reshape(b, heads, n, n, n, c).permute(0, 2, 3, 4, 1, 5).reshape(b, n, n, n, dim)
    return _linear(out, state, "proj")[:, :g, :g, :g]


class PublishedGlobal:
    """SAM-Med3D's forward pass with the weights of a network of the paper's kind, which it shares.

    Args:
        network: with the published layers only (no stem, no upscaling with skips).

    Raises:
        ValueError: for any other network.
    """

    def __init__(self, network: GlobalNetwork) -> None:
        config = network.config
        if (
            config.unet_channels
            or config.stem_channels
            or config.upscaling
            or not (config.use_rel_pos and config.published_positions)
        ):
            raise ValueError("There is no published form of this network; the paper preset has one.")
        self.config = config
        self.state = {name: tensor.detach() for name, tensor in network.state_dict().items()}

    def encode(self, image: Tensor) -> Tensor:
        """(B, 1, S, S, S) -> (B, prompt_dim, G, G, G)."""
        c, state = self.config, _below(self.state, "image_encoder")
        patches = F.conv3d(
            image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=c.patch
        )
        x = patches.permute(0, 2, 3, 4, 1) + state["pos_embed"]
        for i in range(c.depth):
            block = _below(state, f"blocks.{i}")
            window = c.grid if i in c.global_blocks else c.window
            y = _layer_norm(x, block, "norm1", ENCODER_EPS)
            x = x + published_attention(y, _below(block, "attn"), c.heads, window)
            y = _layer_norm(x, block, "norm2", ENCODER_EPS)
            x = x + _linear(F.gelu(_linear(y, block, "mlp.lin1")), block, "mlp.lin2")
        x = F.conv3d(x.permute(0, 4, 1, 2, 3), state["neck.0.weight"])
        x = _channel_norm(x, state, "neck.1")
        x = F.conv3d(x, state["neck.2.weight"], padding=1)
        return _channel_norm(x, state, "neck.3")

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Every mask, and the predicted quality of each where there is a head for it.

        Args:
            embedding: (B, prompt_dim, G, G, G), of `encode`.
            points: (B, N, 3) voxel coordinates.
            labels: (B, N), 1 foreground or 0 background.
            mask: (B, 1, 4G, 4G, 4G) logits of a previous mask, or None.

        Returns:
            logits (B, mask_tokens, 4G, 4G, 4G) and quality (B, mask_tokens) or None.
        """
        state = _below(self.state, "prompt_encoder")
        point_tokens = self._positions((points + 0.5) / self.config.image_size)
        kinds = torch.cat([state["point_embeddings.0.weight"], state["point_embeddings.1.weight"]])
        point_tokens = point_tokens + kinds[labels]
        closing = state["not_a_point_embed.weight"].expand(len(points), 1, -1)
        if mask is None:
            dense = state["no_mask_embed.weight"].reshape(1, -1, 1, 1, 1).expand_as(embedding)
        else:
            dense = self._mask_embedding(mask, _below(state, "mask_downscaling"))
        return self._masks(embedding + dense, torch.cat([point_tokens, closing], dim=1))

    def _positions(self, unit: Tensor) -> Tensor:
        matrix = self.state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        angle = 2 * math.pi * ((2 * unit - 1) @ matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)

    def _grid_positions(self) -> Tensor:
        """(prompt_dim, G, G, G): the encoding of the point (d, h, w) stands at [h, d, w]."""
        g = self.config.grid
        at = (torch.arange(g, device=self.state["image_encoder.pos_embed"].device) + 0.5) / g
        encoded = self._positions(torch.stack(torch.meshgrid(at, at, at, indexing="ij"), dim=-1))
        return encoded.transpose(0, 1).permute(3, 0, 1, 2)

    @staticmethod
    def _mask_embedding(mask: Tensor, state: State) -> Tensor:
        x = F.conv3d(mask, state["0.weight"], state["0.bias"], stride=2)
        x = F.gelu(_channel_norm(x, state, "1"))
        x = F.conv3d(x, state["3.weight"], state["3.bias"], stride=2)
        x = F.gelu(_channel_norm(x, state, "4"))
        return F.conv3d(x, state["6.weight"], state["6.bias"])

    def _masks(self, source: Tensor, prompt_tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        state, b = _below(self.state, "mask_decoder"), len(source)
        output = torch.cat([state["iou_token.weight"], state["mask_tokens.weight"]])
        tokens = torch.cat([output.expand(b, -1, -1), prompt_tokens], dim=1)
        positions = self._grid_positions().flatten(1).T.expand(b, -1, -1)
        queries, keys = self._two_way(
            tokens, source.flatten(2).transpose(1, 2), positions, _below(state, "transformer")
        )

        x = keys.transpose(1, 2).reshape(source.shape)
        up = _below(state, "output_upscaling")
        x = F.conv_transpose3d(x, up["0.weight"], up["0.bias"], stride=2)
        x = F.gelu(_channel_norm(x, up, "1"))
        x = F.gelu(F.conv_transpose3d(x, up["3.weight"], up["3.bias"], stride=2))
        vectors = [
            _mlp(queries[:, 1 + i], _below(state, f"output_hypernetworks_mlps.{i}"))
            for i in range(self.config.mask_tokens)
        ]
        masks = (torch.stack(vectors, dim=1) @ x.flatten(2)).unflatten(2, x.shape[2:])
        quality = _mlp(queries[:, 0], _below(state, "iou_prediction_head")) if self.config.iou_head else None
        return masks, quality

    def _two_way(
        self, tokens: Tensor, image: Tensor, positions: Tensor, state: State
    ) -> tuple[Tensor, Tensor]:
        heads, queries, keys = self.config.decoder_heads, tokens, image
        for i in range(self.config.decoder_depth):
            layer = _below(state, f"layers.{i}")

            def attend(name: str, q: Tensor, k: Tensor, v: Tensor, layer: State = layer) -> Tensor:
                return _token_attention(q, k, v, _below(layer, name), heads)

            if i == 0:  # the tokens are still their own positions
                queries = attend("self_attn", queries, queries, queries)
            else:
                q = queries + tokens
                queries = queries + attend("self_attn", q, q, queries)
            queries = _layer_norm(queries, layer, "norm1", DECODER_EPS)
            found = attend("cross_attn_token_to_image", queries + tokens, keys + positions, keys)
            queries = _layer_norm(queries + found, layer, "norm2", DECODER_EPS)
            hidden = F.relu(_linear(queries, layer, "mlp.lin1"))
            queries = _layer_norm(queries + _linear(hidden, layer, "mlp.lin2"), layer, "norm3", DECODER_EPS)
            found = attend("cross_attn_image_to_token", keys + positions, queries + tokens, queries)
            keys = _layer_norm(keys + found, layer, "norm4", DECODER_EPS)
        final = _below(state, "final_attn_token_to_image")
        queries = queries + _token_attention(queries + tokens, keys + positions, keys, final, heads)
        return _layer_norm(queries, state, "norm_final_attn", DECODER_EPS), keys


class PublishedLocal:
    """MONAI's VISTA3D as it answers clicks, with the weights of a network of the paper's kind.

    MONAI's own modules run: the encoder whole, with the branch for automatic segmentation in memory but, as
    in MONAI where there are only clicks, not computed; the point head with every convolution.

    Args:
        network: with the published point head; its weights are shared.

    Raises:
        ValueError: for any other network.
    """

    def __init__(self, network: LocalNetwork) -> None:
        c = network.config
        if c.space_to_depth > 1 or not isinstance(network.point_head, PointHead):
            raise ValueError("There is no published form of this network; the paper preset has one.")
        device = next(network.parameters()).device
        self.image_encoder = SegResNetDS2(
            in_channels=1,
            out_channels=c.out_channels,
            init_filters=c.init_filters,
            blocks_down=c.blocks_down,
            norm=c.norm,
            dsdepth=1,
        )
        self.point_head = PointMappingSAM(c.feature_size)
        encoder = self.image_encoder.load_state_dict(
            network.image_encoder.state_dict(), strict=False, assign=True
        )
        unexpected = [name for name in encoder.missing_keys if not name.startswith("up_layers_auto.")]
        assert not unexpected and not encoder.unexpected_keys, (unexpected, encoder.unexpected_keys)
        self.point_head.load_state_dict(network.point_head.state_dict(), assign=True)
        for part in (self.image_encoder, self.point_head):
            part.to(device).eval()

    def encode(self, image: Tensor) -> Tensor:
        """(1, 1, D, H, W) -> (1, out_channels, D, H, W)."""
        features, _ = self.image_encoder(image, with_point=True, with_label=False)
        assert isinstance(features, Tensor)
        return features

    def decode(self, features: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """Features of one window, points (1, N, 3) and labels (1, N) -> logits (1, 1, D, H, W)."""
        return self.point_head(features, points, labels)


def _below(state: State, prefix: str) -> dict[str, Tensor]:
    start = prefix + "."
    return {name[len(start) :]: tensor for name, tensor in state.items() if name.startswith(start)}


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[name + ".weight"].T + state[name + ".bias"]


def _mlp(x: Tensor, state: State) -> Tensor:
    """Three linear layers with ReLU between them."""
    for i in range(2):
        x = F.relu(_linear(x, state, f"layers.{i}"))
    return _linear(x, state, "layers.2")


def _layer_norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * state[name + ".weight"] + state[name + ".bias"]


def _channel_norm(x: Tensor, state: State, name: str) -> Tensor:
    """Over the channels of (B, C, D, H, W), each voxel on its own."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    weight, bias = (state[f"{name}.{part}"].reshape(-1, 1, 1, 1) for part in ("weight", "bias"))
    return (x - mean) / (variance + ENCODER_EPS).sqrt() * weight + bias


def _token_attention(q: Tensor, k: Tensor, v: Tensor, state: State, heads: int) -> Tensor:
    q, k, v = (
        _linear(x, state, name).unflatten(-1, (heads, -1)).transpose(1, 2)
        for name, x in (("q_proj", q), ("k_proj", k), ("v_proj", v))
    )
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return _linear((weights @ v).transpose(1, 2).flatten(2), state, "out_proj")
