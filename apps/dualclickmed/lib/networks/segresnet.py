"""MONAI's SegResNet with instance norms, run for prediction on a CPU in less time and memory.

A window of 128^3 voxels with 48 channels takes 400 MB in float32, and MONAI's modules hold four to six such
maps at a time. Here two are held: maps are overwritten where their old values are no longer needed, and
normalised and convolved a slab of planes at a time. Channels are innermost in memory, where convolutions of
few channels are about 1.6 times and transposed ones 3.6 times as fast on a CPU with AVX-512.

Nothing here can be differentiated; training runs MONAI's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from monai.networks.nets.segresnet_ds import SegResBlock, SegResNetDS2
from torch import Tensor, nn

LAYOUT = torch.channels_last_3d
SLAB_VOXELS = 1 << 16
"""Voxels of a map that are normalised and convolved at once."""
SUM_VOXELS = 1 << 14
"""Voxels that are summed in float32; a single sum over all two million would be off by one part in 10^4."""


def runs_lean(encoder: nn.Module, x: Tensor) -> bool:
    """Whether `point_features` may take the place of the encoder's own forward pass for this input."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not isinstance(encoder, SegResNetDS2):
        return False
    return len(encoder.up_layers) == len(encoder.encoder.layers) - 1 and all(
        isinstance(block.norm1, nn.InstanceNorm3d)
        for block in encoder.modules()
        if isinstance(block, SegResBlock)
    )


def point_features(encoder: SegResNetDS2, image: Tensor) -> Tensor:
    """What ``encoder(image, with_point=True, with_label=False)`` gives first.

    Args:
        encoder: for which `runs_lean`.
        image: (B, 1, D, H, W).

    Returns:
        (B, out_channels, D, H, W), channels innermost in memory.
    """
    found = [_features(encoder, image[i : i + 1]) for i in range(len(image))]
    return found[0] if len(found) == 1 else torch.cat(found)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of (1, C, D, H, W), float32."""
    means, variances, shares = [], [], []
    for planes in _slabs(x, SUM_VOXELS):
        part = x[:, :, planes].float()
        mean, variance = torch.batch_norm_update_stats(part, None, None, 0.0)
        means.append(mean)
        variances.append(variance)
        shares.append(part.shape[2] / x.shape[2])
    share = torch.tensor(shares, dtype=torch.float64)[:, None]
    each = torch.stack(means).double()
    mean = (share * each).sum(0)
    variance = (share * (torch.stack(variances).double() + (each - mean).square())).sum(0)
    return mean.float(), variance.float()


def normalised(norm: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The instance norm of (1, C, D, H, W) as a function of any part of it."""
    assert isinstance(norm, nn.InstanceNorm3d)
    mean, variance = statistics(x)
    return lambda part: F.batch_norm(part, mean, variance, norm.weight, norm.bias, eps=norm.eps)


def convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """A 3^3 convolution, with zeros around, of ``prepare(x)``.

    Args:
        x: (1, C, D, H, W).
        weight, bias: of the convolution.
        prepare: voxel by voxel; may overwrite what it returns but not what it gets.
        onto: receives the sum of itself and the result, in place; None for a new map.

    Returns:
        (1, C', D, H, W), channels innermost.
    """
    depth = x.shape[2]
    out = onto
    for planes in _slabs(x, SLAB_VOXELS):
        first, last = max(planes.start - 1, 0), min(planes.stop + 1, depth)
        slab = x[:, :, first:last]
        if prepare is not None:
            slab = prepare(slab)
        beyond = (first - (planes.start - 1), planes.stop + 1 - last)
        if any(beyond) and not all(beyond):
            slab = F.pad(slab, (0, 0, 0, 0, *beyond))
        part = F.conv3d(slab, weight, bias, padding=(int(all(beyond)), 1, 1))
        if onto is not None:
            onto[:, :, planes] += part
            continue
        if out is None:
            out = _empty_like(part, (part.shape[1], *x.shape[2:]))
        out[:, :, planes] = part
    assert out is not None
    return out


def doubled(x: Tensor, up: nn.Module, onto: Tensor | None = None) -> Tensor:
    """A transposed 3^3 convolution of stride 2, as MONAI builds it: (1, C, D, H, W) -> (1, C', 2D, 2H, 2W).

    Args:
        x, up: input and layer (padding 1, output padding 1).
        onto: as for `convolved`.
    """
    assert isinstance(up, nn.ConvTranspose3d)
    assert up.kernel_size == (3, 3, 3) and up.stride == (2, 2, 2)
    assert up.padding == (1, 1, 1) and up.output_padding == (1, 1, 1)
    out = onto
    # Slabs are not thinner, because PyTorch uses oneDNN only if batch, channels, depth and height multiply to
    # more than 20480, and its own transposed convolution is seven times as slow.
    for planes in _slabs(x, SLAB_VOXELS // 2):
        # Plane i reaches the planes 2i - 1, 2i and 2i + 1 of the result: one more is needed at the end.
        slab = x[:, :, planes.start : planes.stop + 1]
        part = F.conv_transpose3d(slab, up.weight, up.bias, stride=2, padding=1, output_padding=1)
        part = part[:, :, : 2 * (planes.stop - planes.start)]
        target = slice(2 * planes.start, 2 * planes.stop)
        if onto is not None:
            onto[:, :, target] += part
            continue
        if out is None:
            out = _empty_like(part, (part.shape[1], *(2 * n for n in x.shape[2:])))
        out[:, :, target] = part
    assert out is not None
    return out


def _features(encoder: SegResNetDS2, image: Tensor) -> Tensor:
    init = encoder.encoder.conv_init
    x = convolved(image, init.weight, init.bias)
    finer: list[Tensor] = []
    down: nn.Module = nn.Identity()
    for level in encoder.encoder.layers:
        assert isinstance(level, nn.ModuleDict)
        x = down(x)
        _add_residuals(level["blocks"], x)
        finer.append(x)
        down = level["downsample"]
    finer.pop()
    for level in encoder.up_layers:
        assert isinstance(level, nn.ModuleDict)
        up = level["upsample"].get_submodule("deconv")
        x = doubled(x, up, onto=finer.pop())
        _add_residuals(level["blocks"], x)
        head = level["head"]
    return _in_place(head, x)


def _add_residuals(blocks: nn.Module, x: Tensor) -> None:
    """``x = blocks(x)``."""
    for block in blocks.children():
        assert isinstance(block, SegResBlock)
        _add_residual(block, x)


def _add_residual(block: SegResBlock, x: Tensor) -> None:
    norm = normalised(block.norm1, x)
    y = convolved(x, block.conv1.weight, block.conv1.bias, lambda part: F.relu_(norm(part)))
    norm_after = normalised(block.norm2, y)
    convolved(y, block.conv2.weight, block.conv2.bias, lambda part: F.relu_(norm_after(part)), onto=x)


def _in_place(head: nn.Module, x: Tensor) -> Tensor:
    """A pointwise layer; its result takes the input's memory where it has as many channels."""
    if not isinstance(head, nn.Conv3d) or head.in_channels != head.out_channels:
        return head(x)
    for planes in _slabs(x, SLAB_VOXELS):
        x[:, :, planes] = head(x[:, :, planes])
    return x


def _slabs(x: Tensor, voxels: int) -> Iterator[slice]:
    """Slices of planes with about as many voxels."""
    depth, height, width = x.shape[2:]
    step = max(1, voxels // (height * width))
    return (slice(start, min(start + step, depth)) for start in range(0, depth, step))


def _empty_like(part: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty((1, *shape), dtype=part.dtype, device=part.device, memory_format=LAYOUT)
