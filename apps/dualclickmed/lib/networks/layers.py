"""Small layers that several networks share. Feature maps are (B, C, D, H, W), token lists (B, N, C)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

LAYER_NORM_EPS = 1e-6


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Turns autocast off on the device of `x`; nothing on one that has none, such as that of shapes alone."""
    if not torch.amp.is_autocast_available(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last dimension, computed in float32 and returned in the input's precision.

    PyTorch's bfloat16 kernel for CPUs sums the gradients of weight and bias over the rows in bfloat16: with
    some thousand rows they stop growing and end up several times too small.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype) if x.dtype == torch.bfloat16 else super().forward(x)


class LayerNorm3d(nn.Module):
    """Layer normalisation over the channels of (B, C, D, H, W), each voxel on its own."""

    def __init__(self, channels: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In float32 for the reason that `LayerNorm` gives.
        rows = x.permute(0, 2, 3, 4, 1)
        rows = rows.float() if x.dtype == torch.bfloat16 else rows
        y = F.layer_norm(rows, (x.shape[1],), self.weight, self.bias, self.eps)
        return y.permute(0, 4, 1, 2, 3).to(x.dtype)


class Conv3d(nn.Conv3d):
    """A convolution that oneDNN computes for prediction on a CPU, whatever the size of the map.

    PyTorch leaves float32 maps to its own convolution where batch, channels, depth and height multiply to
    20480 or less: for 16 channels at 32^3, that is 76 ms in place of 3.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = input.device.type != "cpu" or input.dtype != torch.float32 or not _has_onednn()
        if plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super()._conv_forward(input, weight, bias)
        assert not isinstance(self.padding, str) and self.padding_mode == "zeros"
        return torch.mkldnn_convolution(
            input, weight, bias, self.padding, self.stride, self.dilation, self.groups
        )


def with_fast_convolutions(network: ModuleT) -> ModuleT:
    """Turn every 3D convolution of a module into a `Conv3d`, in place."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Conv3d
    return network


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them; keeps the last dimension."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class MLP(nn.Module):
    """`layers` linear layers with ReLU between them: (..., dim_in) -> (..., dim_out)."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int, layers: int) -> None:
        super().__init__()
        sizes = [dim_in] + [hidden] * (layers - 1) + [dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class ResidualConv(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) with two 3^3 convolutions; keeps the shape.

    The second convolution starts at zero: a new block is the identity, and deep stacks train from the start.
    `groups` of channels are normalised each on its own.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.gelu(self.norm1(x)))
        return x + self.conv2(F.gelu(self.norm2(y)))


def centre_coordinates(size: tuple[int, int, int]) -> Tensor:
    """(4, D, H, W) float32: z, y, x of the voxel centres in [-1, 1] of the grid's edges, and the radius."""
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) * (2.0 / n) - 1.0 for n in size]
    zyx = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.cat([zyx, zyx.square().sum(0, keepdim=True).sqrt()])


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(B, C, D, H, W) -> (B, factor^3 * C, D/f, H/f, W/f); channel = ((dz * f + dy) * f + dx) * C + c.

    The result has its channels innermost in memory, as the convolutions here want it.
    """
    b, c, d, h, w = x.shape
    f = factor
    x = x.permute(0, 2, 3, 4, 1).reshape(b, d // f, f, h // f, f, w // f, f, c)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, d // f, h // f, w // f, f**3 * c)
    return x.permute(0, 4, 1, 2, 3)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """The inverse of `space_to_depth`: (B, factor^3 * C, D, H, W) -> (B, C, D*f, H*f, W*f)."""
    b, fc, d, h, w = x.shape
    f = factor
    c = fc // f**3
    x = x.permute(0, 2, 3, 4, 1).reshape(b, d, h, w, f, f, f, c)
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, d * f, h * f, w * f, c)
    return x.permute(0, 4, 1, 2, 3)


class Pointwise(nn.Linear):
    """A convolution with kernel 1 as a matrix product: (B, C, D, H, W) -> (B, C', D, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class Doubling(nn.Module):
    """A transposed convolution with kernel and stride 2 as a product: (B, C, D, ...) -> (B, C', 2D, ...).

    The same function as `ConvTranspose3d(C, C', 2, stride=2)`, several times faster on a CPU.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = Pointwise(channels_in, 8 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.proj(x), 2)


class Halving(nn.Module):
    """A convolution with kernel and stride 2 as a matrix product: (B, C, 2D, ...) -> (B, C', D, ...)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = Pointwise(8 * channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(space_to_depth(x, 2))


def click_maps(
    points: Tensor, weights: Tensor, size: tuple[int, int, int], sigma: float | Sequence[float]
) -> Tensor:
    """Gaussian bumps (peak 1) around points, the maximum over the points of each map.

    Args:
        points: (B, N, 3) voxel coordinates of the map (z, y, x); a voxel's centre has an integer coordinate.
        weights: (B, M, N) in [0, 1]: how much point n belongs to map m; 0 leaves it out.
        size: (D, H, W) of the maps.
        sigma: in voxels of the map, one for all maps or one for each.

    Returns:
        (B, M, D, H, W) float32, 0 where no point belongs to a map. No gradient flows through it.
    """
    with torch.no_grad(), without_autocast(points):
        b, m, n = weights.shape
        sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=points.device).expand(m).view(1, m, 1, 1)
        bumps = []
        for axis, length in enumerate(size):
            at = torch.arange(length, dtype=torch.float32, device=points.device)
            offset = (at - points[:, None, :, axis, None].float()) / sigmas
            bumps.append(torch.exp(-0.5 * offset.square()))  # (B, M, N, length)
        bumps[0] = bumps[0] * weights[..., None]
        maps = torch.zeros(b, m, *size, dtype=torch.float32, device=points.device)
        # One point at a time: maps stay in the processor's cache and memory does not grow with the clicks.
        for i in range(n):
            z, y, x = (bump[:, :, i] for bump in bumps)
            plane = z[..., :, None] * y[..., None, :]
            torch.maximum(maps, plane[..., None] * x[..., None, None, :], out=maps)
        return maps


def sample_at(features: Tensor, unit: Tensor) -> Tensor:
    """Trilinear samples of feature maps, the border's value outside.

    The same as `grid_sample(align_corners=False, padding_mode="border")`, which would copy the whole maps.

    Args:
        features: (B, C, D, H, W).
        unit: (B, N, 3) positions (z, y, x) with 0 and 1 the outer edges of the grid.

    Returns:
        (B, N, C) float32.
    """
    b, c, *size = features.shape
    n = unit.shape[1]
    last = unit.new_tensor(size) - 1
    at = (unit.float() * (last + 1) - 0.5).clamp(min=0).minimum(last)
    low = at.floor()
    part = at - low
    corners = torch.cartesian_prod(*[torch.arange(2, device=unit.device)] * 3)  # (8, 3)
    index = (low[:, :, None] + corners).minimum(last).long()
    flat = (index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2]
    weight = torch.where(corners == 1, part[:, :, None], 1 - part[:, :, None]).prod(-1)  # (B, N, 8)
    rows = features.permute(0, 2, 3, 4, 1).reshape(b, -1, c)
    picked = rows.gather(1, flat.view(b, n * 8, 1).expand(-1, -1, c)).float()
    return (picked.view(b, n, 8, c) * weight[..., None]).sum(2)
