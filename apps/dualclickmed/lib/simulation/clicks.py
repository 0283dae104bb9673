"""Where a simulated annotator clicks: the strategies that training draws its corrections from (paper,
section 2.3).

Every strategy takes a batch of predictions and truths and gives one or several clicks for each sample, as
indices into the grid. Where a sample has nothing to correct its clicks carry the padding label, which
networks ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cc3d
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

PADDING_LABEL = -1
# Paper, section 2.3: Gaussian filter of the false prediction map, and how many of its highest voxels count.
ATTENUATION_SIGMA = 1.0
ATTENUATION_TOP = 64
# Deep inside an error the filtered map is flat but for rounding: so near to the 64th value is as high as it.
ATTENUATION_EQUAL = 1e-5
# Paper, section 2.3: shares of clicks from false positives, false negatives and the confused region.
BALANCED_SHARES = (0.1, 0.5, 0.4)
# Distance from the threshold; the paper has "near the 0.5 decision threshold".
CONFUSED_MARGIN = 0.1


# Scatter of a realistic click about the error's deepest voxel, as a part of the depth there.
SCATTER = 0.35


@dataclass
class Draws:
    """Random numbers for some rows of a batch that is spread over processes.

    Every process draws for the whole batch and keeps its rows, so that two processes see the clicks that one
    with the whole batch sees.

    Attributes:
        generator: seeded alike in every process.
        first, total: the first row of this process, and how many rows there are in all; None: those asked
            for.
    """

    generator: torch.Generator
    first: int = 0
    total: int | None = None

    def rand(self, rows: int, count: int) -> Tensor:
        """(rows, count) uniform numbers in [0, 1)."""
        total = rows if self.total is None else self.total
        numbers = torch.rand((total, count), generator=self.generator, device=self.generator.device)
        return numbers[self.first : self.first + rows]

    def one(self) -> float:
        """One number for the whole batch."""
        return float(torch.rand((), generator=self.generator, device=self.generator.device))


class Clicks(NamedTuple):
    """A batch of simulated clicks.

    Attributes:
        points: (B, N, 3) int64 voxel indices (z, y, x) of the grid.
        labels: (B, N) int64: 1 foreground, 0 background, -1 where a sample has nothing to click.
    """

    points: Tensor
    labels: Tensor


Strategy = Callable[[Tensor, Tensor, Tensor, int, Draws], Clicks]


def _blur(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (B, D, H, W) with zeros outside, as products with one matrix per axis."""
    batch, depth, height, width = values.shape
    along_z, along_y, along_x = (_kernel(n, sigma, values) for n in (depth, height, width))
    values = along_y @ (values @ along_x)
    return (along_z @ values.reshape(batch, depth, height * width)).reshape(batch, depth, height, width)


def _kernel(n: int, sigma: float, like: Tensor) -> Tensor:
    index = torch.arange(n, device=like.device, dtype=like.dtype)
    return torch.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)


def _indices(flat: Tensor, shape: torch.Size) -> Tensor:
    """Flat positions (B, N) to (z, y, x) triples (B, N, 3)."""
    _, height, width = shape
    return torch.stack([flat // (height * width), flat // width % height, flat % width], dim=-1)


def _labelled(flat: Tensor, truth: Tensor, found: Tensor) -> Clicks:
    labels = torch.gather(truth.flatten(1).long(), 1, flat)
    labels = torch.where(found, labels, torch.full_like(labels, PADDING_LABEL))
    return Clicks(_indices(flat, truth.shape[1:]), labels)


def boundary_attenuated(logits: Tensor, truth: Tensor, valid: Tensor, count: int, draws: Draws) -> Clicks:
    """Clicks inside the errors, away from their surface (paper, section 2.3; the global expert's strategy).

    The false prediction map is filtered by a Gaussian of sigma 1; clicks are drawn uniformly from the voxels
    that are among its 64 highest values: all at or above the 64th one, since from about four voxels' depth on
    the map is flat and thousands of voxels are equal. Only false voxels count, so that a small error gets its
    click inside it. The clicks of a sample are distinct where it has enough such voxels.

    Args:
        logits: (B, D, H, W) prediction, foreground above 0.
        truth: (B, D, H, W) bool.
        valid: (B, D, H, W) bool, the voxels that a user can click (inside the image).
        count: clicks for each sample.
        draws: random numbers on the tensors' device.
    """
    wrong = ((logits > 0) != truth) & valid
    depth = (_blur(wrong.float(), ATTENUATION_SIGMA) * wrong).flatten(1)
    top = torch.topk(depth, min(ATTENUATION_TOP, depth.shape[1]), dim=1).values
    # Where fewer than 64 voxels are false, all of them; where none is, none.
    least = (top[:, -1:] * (1 - ATTENUATION_EQUAL)).clamp_min(torch.finfo(depth.dtype).tiny)
    return _drawn(depth >= least, truth, draws.rand(len(logits), count))


def uniform_error(logits: Tensor, truth: Tensor, valid: Tensor, count: int, draws: Draws) -> Clicks:
    """Distinct clicks drawn uniformly from all false voxels: what SAM-Med3D and VISTA3D do, kept for
    comparison.
    """
    wrong = (((logits > 0) != truth) & valid).flatten(1)
    return _drawn(wrong, truth, draws.rand(len(wrong), count))


def balanced(logits: Tensor, truth: Tensor, valid: Tensor, count: int, draws: Draws) -> Clicks:
    """Clicks from false positives, false negatives and the confused region in the shares 0.1, 0.5 and 0.4.

    The local expert's strategy (paper, section 2.3). The region is drawn for each click; an empty region's
    share goes to the others. A click in the confused region carries the truth there. Arguments as in
    `boundary_attenuated`.
    """
    positive = logits > 0
    regions = torch.stack(
        [
            positive & ~truth & valid,
            ~positive & truth & valid,
            ((torch.sigmoid(logits) - 0.5).abs() < CONFUSED_MARGIN) & valid,
        ],
        dim=1,
    ).flatten(2)
    shares = torch.tensor(BALANCED_SHARES, device=logits.device)[None] * regions.any(dim=2)
    found = shares.sum(dim=1, keepdim=True) > 0
    # The region is the first whose share, added to those before it, exceeds the draw.
    reached = shares.cumsum(dim=1) / shares.sum(dim=1, keepdim=True).clamp_min(1e-6)
    turns = draws.rand(len(logits), count)
    kind = (turns[:, :, None] >= reached[:, None, :]).sum(dim=2).clamp_max(2)
    kind = torch.where(shares.gather(1, kind) > 0, kind, shares.argmax(dim=1, keepdim=True))
    ranks = draws.rand(len(logits), count)
    flat = torch.stack([_draw(regions[:, each], ranks) for each in range(3)], dim=2)
    return _labelled(flat.gather(2, kind[:, :, None])[:, :, 0], truth, found)


def realistic(logits: Tensor, truth: Tensor, valid: Tensor, count: int, draws: Draws) -> Clicks:
    """Clicks as people place them: in the largest error, near its middle, not exactly on it.

    The click lies about the deepest voxel of the largest 26-connected piece of the error, off by a Gaussian
    of a third of the depth there, within the piece. Arguments as in `boundary_attenuated`; on a GPU the map
    goes through the processor's memory.
    """
    wrong = (((logits > 0) != truth) & valid).numpy(force=True)
    misses = torch.erfinv((2 * draws.rand(len(logits), 3 * count) - 1).clamp(-0.999, 0.999)) * 2**0.5
    offsets = misses.reshape(len(logits), count, 3).numpy(force=True)
    flat = np.zeros((len(wrong), count), dtype=np.int64)
    for sample, error in enumerate(wrong):
        if error.any():
            points = _near_the_middle(error, offsets[sample])
            flat[sample] = np.ravel_multi_index(tuple(points.T), error.shape)
    found = torch.from_numpy(wrong.any(axis=(1, 2, 3)))[:, None].to(logits.device)
    return _labelled(torch.from_numpy(flat).to(logits.device), truth, found)


def _near_the_middle(error: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(count, 3) voxels of the largest piece of an error, off its deepest one by `offsets` x the scatter."""
    # As bytes: of some boolean lines cc3d 4.1 counts the pieces wrongly and raises.
    pieces, number = cc3d.connected_components(error.astype(np.uint8), connectivity=26, return_N=True)
    if number > 1:
        error = pieces == 1 + int(np.argmax(np.bincount(pieces.reshape(-1))[1:]))
    place = ndimage.find_objects(error.astype(np.uint8))[0]
    piece = np.pad(error[place], 1)
    depth = ndimage.distance_transform_edt(piece)
    middle = np.array(np.unravel_index(int(depth.argmax()), depth.shape))
    inside = np.argwhere(piece)
    aims = middle + offsets * SCATTER * float(depth.max())
    nearest = ((inside[None] - aims[:, None]) ** 2).sum(axis=2).argmin(axis=1)
    return np.asarray(inside[nearest] - 1 + np.array([s.start for s in place]))


STRATEGIES: dict[str, Strategy] = {
    "boundary": boundary_attenuated,
    "balanced": balanced,
    "uniform": uniform_error,
    "realistic": realistic,
}
"""Names in recipes. Random clicks of section 4.3's ablations are "uniform"."""


def _drawn(region: Tensor, truth: Tensor, draw: Tensor) -> Clicks:
    """Clicks in a boolean (B, V) region, distinct where it has enough voxels; `draw` as in `_draw`."""
    running = region.cumsum(dim=1, dtype=torch.int32)
    total = running[:, -1:]
    ranks = torch.where(total < draw.shape[1], (draw * total).to(torch.int32), _distinct(draw, total))
    return _labelled(_at_ranks(running, ranks), truth, total > 0)


def _draw(region: Tensor, draw: Tensor) -> Tensor:
    """Flat positions (B, count) drawn uniformly from a boolean (B, V) region; position 0 where it is empty.

    Args:
        region: (B, V) bool.
        draw: (B, count) uniform numbers in [0, 1).
    """
    running = region.cumsum(dim=1, dtype=torch.int32)
    return _at_ranks(running, (draw * running[:, -1:]).to(torch.int32))


def _at_ranks(running: Tensor, ranks: Tensor) -> Tensor:
    """Flat positions of the true voxels of those ranks, from 0, found in their running count (B, V): one pass
    however many voxels there are.
    """
    last = (running[:, -1:] - 1).clamp_min(0)
    return torch.searchsorted(running, ranks.minimum(last) + 1).clamp_max(running.shape[1] - 1)


def _distinct(draw: Tensor, total: Tensor) -> Tensor:
    """Ranks (B, count) below `total` (B, 1), drawn without putting back: all sets alike likely.

    The n-th number chooses among the ranks that are left, counted in ascending order.
    """
    ranks = torch.empty_like(draw, dtype=torch.int32)
    taken = ranks[:, :0]
    for turn in range(draw.shape[1]):
        left = (total - turn).clamp_min(1)
        rank = (draw[:, turn : turn + 1] * left).to(torch.int32).minimum(left - 1)
        # Of the taken ones in ascending order, those that at most `rank` free ones precede.
        before = taken - torch.arange(turn, device=taken.device, dtype=torch.int32)
        rank = rank + (before <= rank).sum(dim=1, keepdim=True, dtype=torch.int32)
        ranks[:, turn : turn + 1] = rank
        taken = torch.cat([taken, rank], dim=1).sort(dim=1).values
    return ranks
