"""Seconds from a click to a mask beside the peers: every network at its published size, with random weights.

Only computing is measured, not files, windows beyond the first, or transfer; work that a peer repeats at
every click is repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn

from ..benchmarks.growth import SIDE, growing_prompts, random_experts, synthetic
from ..benchmarks.measure import forget_peak, in_process, least_seconds, peak_bytes
from ..benchmarks.networks import NetworkCase, measure
from ..benchmarks.tables import BenchSection
from ..imaging.geometry import Box
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import from_array
from ..networks.configs import PRESETS
from . import classical

GB = 1e9
VOLUME = 128
"""Side of the volume in which ours and the classical methods answer."""
NNINTERACTIVE = {
    "channels": 8,
    "side": 192,
    "features": (32, 64, 128, 256, 320, 320),
    "blocks": (1, 3, 4, 6, 6, 6),
}
"""nnInteractive 1.0: image and seven maps of prompts and of the mask so far."""
DEEPEDIT = {"channels": 3, "side": 128}
"""MONAI Label's DeepEdit for one label: image, and a map of the clicks for label and background."""


@dataclass(frozen=True)
class PeerRow:
    """One line of the table.

    Attributes:
        name: who answers which click.
        size: what the network or the method sees.
        seconds: from prompts to a mask.
        gigabytes: most memory above what lay there before the first answer.
        unit: whether the others are stated as multiples of this one.
    """

    name: str
    size: str
    seconds: float
    gigabytes: float
    unit: bool = False


def peers(threads: int, repeats: int = 3) -> Iterator[PeerRow]:
    """Each row as soon as it is measured, the quick ones first, each in a process of its own."""
    for preset in ("compact", "paper"):
        # One run of the large one: it takes seconds.
        yield from in_process(threads, ours, preset, repeats if preset == "compact" else 1)
    for name in ("graph_cut", "random_walker"):
        yield in_process(threads, classical_answer, name, repeats)
    yield in_process(threads, one_pass, "MONAI Label's DeepEdit, every click", "deepedit")
    yield from in_process(threads, published, "global", "SAM-Med3D, published form")
    yield from in_process(threads, published, "local", "VISTA3D's point branch, published form")
    # A minute or more.
    yield in_process(threads, one_pass, "nnInteractive's network, every click", "nninteractive")


def peers_section(rows: Sequence[PeerRow]) -> BenchSection:
    """The table, with each row as a multiple of our further click."""
    unit = next(row.seconds for row in rows if row.unit)
    return BenchSection(
        "Beside the peers",
        "Random weights at the published sizes; seconds from prompts to a mask, computing alone. Times: "
        "of our further click with a box, compact preset. GB: above the network and the image.",
        ("method", "sees", "seconds", "times", "GB"),
        [(r.name, r.size, f"{r.seconds:.2f}", f"{r.seconds / unit:.1f}", f"{r.gigabytes:.2f}") for r in rows],
    )


def ours(preset: str, repeats: int) -> list[PeerRow]:
    """Whole answers with both experts of a preset: the first click, and a further one."""
    rows = []
    volume = from_array(synthetic((VOLUME,) * 3), modality="ct")
    dual, cache = random_experts(PRESETS[preset])
    window = f"{PRESETS[preset][1].window}^3"
    for expert, what, size in (("global", "box", "the box, enlarged"), ("local", "click alone", window)):
        one, two = growing_prompts(dual, volume, expert, 2)
        found = []
        for _ in range(repeats):
            cache.clear()
            found.append([_measured(lambda asked=asked: dual.segment(volume, asked)) for asked in (one, two)])  # type: ignore[misc]
        used = max(gigabytes for turn in found for _, gigabytes in turn)
        first, further = (min(turn[at][0] for turn in found) for at in (0, 1))
        rows.append(PeerRow(f"ours, {preset}, {what}: first", size, first, used))
        unit = preset == "compact" and expert == "global"
        rows.append(PeerRow(f"ours, {preset}, {what}: further", size, further, used, unit))
    return rows


def published(expert: str, name: str) -> list[PeerRow]:
    """A published forward pass: encoding and decoding, then decoding alone."""
    config = PRESETS["paper"][0 if expert == "global" else 1]
    row = measure(NetworkCase(expert, "paper", config, published=True, repeats=1))
    used = (row.peak - row.resting) / GB
    first = row.encode_seconds + row.click_seconds
    return [
        PeerRow(f"{name}: first", "128^3", first, used),
        PeerRow(f"{name}: further", "128^3", row.click_seconds, used),
    ]


def one_pass(name: str, which: str) -> PeerRow:
    """One forward pass of a network that has no encoding to keep, after one of a smaller size."""
    torch.manual_seed(0)
    network: nn.Module
    if which == "nninteractive":
        sizes: dict[str, Any] = NNINTERACTIVE
        network = ResidualEncoderUNet(sizes["channels"], sizes["features"], sizes["blocks"])
    else:
        sizes = DEEPEDIT
        strides: list[int | tuple[int, int, int]] = [1, 2, 2, 2, 2, (2, 2, 1)]
        network = DynUNet(3, sizes["channels"], 2, [3] * 6, strides, strides[1:], res_block=True)
    network.eval()
    side = sizes["side"]
    with torch.inference_mode():
        network(torch.zeros(1, sizes["channels"], *[side // 2] * 3))
        image = torch.randn(1, sizes["channels"], side, side, side)
        seconds, used = _measured(lambda: network(image))
    return PeerRow(name, f"{side}^3", seconds, used)


def classical_answer(name: str, repeats: int) -> PeerRow:
    """A classical method on an object with a box and two clicks, as `evaluate` runs it."""
    volume = from_array(synthetic((VOLUME,) * 3), modality="ct")
    low, high = (VOLUME - SIDE) // 2, (VOLUME + SIDE) // 2
    middle = VOLUME // 2
    clicks = (Click((middle,) * 3, True), Click((low + 2,) * 3, False))
    prompts = Prompts(clicks, Box((low,) * 3, (high,) * 3))
    method = getattr(classical, name)
    found = [_measured(lambda: method(volume, prompts)) for _ in range(repeats)]
    return PeerRow(
        f"{name.replace('_', ' ')}, every click",
        "cells about the box",
        min(seconds for seconds, _ in found),
        max(used for _, used in found),
    )


def _measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, with one thread those of the processor, and GB at most above what was there before."""
    forget_peak()
    before = peak_bytes()
    seconds = least_seconds(work, 1)
    return seconds, (peak_bytes(least=before) - before) / GB


class _Block(nn.Module):
    """Two convolutions with instance normalisation beside a path that at most pools and projects."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels, stride)
        self.second = nn.Sequential(
            nn.Conv3d(channels, channels, 3, padding=1), nn.InstanceNorm3d(channels, affine=True)
        )
        beside: list[nn.Module] = [] if stride == 1 else [nn.AvgPool3d(stride)]
        if channels_in != channels:
            beside += [
                nn.Conv3d(channels_in, channels, 1, bias=False),
                nn.InstanceNorm3d(channels, affine=True),
            ]
        self.beside = nn.Sequential(*beside)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(self.second(self.first(x)) + self.beside(x))


def _convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels, 3, stride, 1),
        nn.InstanceNorm3d(channels, affine=True),
        nn.LeakyReLU(),
    )


class ResidualEncoderUNet(nn.Module):
    """The layout of nnU-Net's residual encoder (dynamic-network-architectures), which nnInteractive uses.

    Args:
        channels: of the input.
        features: channels of each stage; each but the first halves the size.
        blocks: residual blocks of each stage. The decoder has one convolution for each.
    """

    def __init__(self, channels: int, features: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = _convolution(channels, features[0])
        before = (features[0], *features[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Block(entering, own, 1 if stage == 0 else 2),
                *(_Block(own, own, 1) for _ in range(count - 1)),
            )
            for stage, (entering, own, count) in enumerate(zip(before, features, blocks, strict=True))
        )
        pairs = list(zip(features[:0:-1], features[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(below, own, 2, 2) for below, own in pairs)
        self.joined = nn.ModuleList(_convolution(2 * own, own) for _, own in pairs)
        self.head = nn.Conv3d(features[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = []
        for stage in self.stages:
            x = stage(x)
            kept.append(x)
        for up, joined, beside in zip(self.up, self.joined, kept[-2::-1], strict=True):
            x = joined(torch.cat([up(x), beside], dim=1))
        return self.head(x)
