"""The rounds of clicks that training runs (paper, section 2.3), on one image embedding for each sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..networks.global_network import GlobalFeatures, RegionNetwork, box_centre_prompt
from ..networks.local_network import LocalFeatures, LocalNetwork
from .clicks import Clicks, Draws, Strategy, balanced, boundary_attenuated
from .modes import Mode


@dataclass(frozen=True)
class GlobalRounds:
    """The interactions of one training step of the global expert.

    Attributes:
        interactions: rounds of corrections after the mask of the box (5 in the paper).
        points: clicks that an interaction draws (6 in the paper).
        mode: how they are shown, see `modes.Mode`.
        last_only: show the network the newest click instead of all.
    """

    interactions: int
    points: int
    mode: Mode = "alternatives"
    last_only: bool = False

    @property
    def masks(self) -> int:
        """Predictions for each image: the box's and those of all interactions."""
        return 1 + self.interactions * (1 if self.mode == "together" else self.points)


@dataclass(frozen=True)
class LocalRounds:
    """The predictions of one training step of the local expert.

    Attributes:
        masks: predictions for each object, the first one after its first click.
        last_only: show the network the newest click instead of all.
    """

    masks: int
    last_only: bool = False


class Targets(NamedTuple):
    """What a batch asks for, both (B, D, H, W) bool on the grid of the images.

    Attributes:
        truth: the objects.
        valid: voxels that lie in the image; clicks are drawn there.
    """

    truth: Tensor
    valid: Tensor


def global_rounds(
    network: RegionNetwork,
    features: GlobalFeatures,
    targets: Targets,
    rounds: GlobalRounds,
    draws: Draws,
    strategy: Strategy = boundary_attenuated,
    first: tuple[Tensor, Tensor] | None = None,
    boxed: Tensor | None = None,
) -> Iterator[Tensor]:
    """Predict from the box and after the simulated clicks.

    The first mask comes from the box alone. Each interaction then draws clicks from the errors of the mask so
    far and shows them as `rounds.mode` says. The mask prompt is the mask at the start of the interaction or
    the first mask, at random: serving passes the first mask with all clicks, the challenge passes the last
    one.

    Masks are made one at a time as the iterator is advanced, so that a caller can free one, with what its
    gradient needs, before the next is made.

    Args:
        network: the global network, which decodes the clicks.
        features: of B encoded images.
        targets: of the grid (G, G, G).
        rounds: how many clicks, and how they are shown.
        draws: random numbers of the batch.
        strategy: how clicks are drawn.
        first: further first prompts: points (B, N, 3) in grid voxels and labels (B, N).
        boxed: (B,) bool, which samples have a box (None: all).

    Yields:
        Logits (B, K, G, G, G), resampled when the network's mask is smaller: K masks of each image that are
        alternatives to each other, one but for interactions of the mode "alternatives".
    """
    truth, valid = targets
    grid = truth.shape[-1]
    points, labels = box_centre_prompt(network, len(truth), grid, truth.device)
    if boxed is not None:
        labels = torch.where(boxed[:, None], labels, -1)
    if first is not None:
        points = torch.cat([points, first[0].to(points.dtype)], dim=1)
        labels = torch.cat([labels, first[1]], dim=1)
    raw = network.decode(features, points, labels, None)
    output = _full(raw, grid)
    raw = raw.detach()
    begun = network.to_mask_prompt(raw)
    shown = output.detach().float()
    yield output[:, None]
    for _ in range(rounds.interactions):
        together = rounds.mode == "together"
        count = 1 + int(draws.one() * rounds.points) if together else rounds.points
        clicks = strategy(shown, truth, valid, count, draws)
        mask = network.to_mask_prompt(raw) if draws.one() < 0.5 else begun
        for new in _turns(clicks, rounds.mode):
            k = len(new.points) // len(truth)
            points = torch.cat([_repeated(points, k), new.points.to(points.dtype)], dim=1)
            labels = torch.cat([_repeated(labels, k), new.labels], dim=1)
            seen = slice(-1, None) if rounds.last_only else slice(None)
            raw = network.decode(features.expand(k), points[:, seen], labels[:, seen], _repeated(mask, k))
            output = _full(raw, grid)
            # What comes next goes on from the first of the alternatives.
            points, labels, raw = points[::k], labels[::k], raw.detach()[::k]
            shown = output.detach()[::k].float()
            yield output.unflatten(0, (-1, k))


def _turns(clicks: Clicks, mode: Mode) -> list[Clicks]:
    """The clicks of one interaction in the order in which they are shown; alternatives (B x K, 1) as one."""
    if mode == "alternatives":
        return [Clicks(clicks.points.flatten(0, 1)[:, None], clicks.labels.flatten(0, 1)[:, None])]
    if mode == "together":
        return [clicks]
    count = clicks.points.shape[1]
    return [Clicks(clicks.points[:, i : i + 1], clicks.labels[:, i : i + 1]) for i in range(count)]


def _repeated(values: Tensor, times: int) -> Tensor:
    """Every row `times` times in a row."""
    return values if times == 1 else values.repeat_interleave(times, dim=0)


def local_rounds(
    network: LocalNetwork,
    features: LocalFeatures,
    targets: Targets,
    owner: Tensor,
    first_points: Tensor,
    rounds: LocalRounds,
    draws: Draws,
    strategy: Strategy = balanced,
) -> Iterator[Tensor]:
    """Predict after the first click and after every correction of the mask so far, one mask at a time.

    Args:
        network: the local network, which decodes the clicks.
        features: of W encoded windows.
        targets: the objects asked for; several may share a window.
        owner: (B,) int64, the window of each object.
        first_points: (B, 1, 3) the first, positive click of each object.
        rounds: how many predictions, and the clicks that each sees.
        draws: random numbers of the batch.
        strategy: how clicks are drawn.

    Yields:
        `rounds.masks` logits, each (B, 1, D, H, W): one mask of each object.
    """
    points = first_points.to(torch.float32)
    labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
    for turn in range(rounds.masks):
        start = points.shape[1] - 1 if rounds.last_only else 0
        logits = network.decode(features.index(owner), points[:, start:], labels[:, start:])
        shown = logits.detach()[:, 0].float()
        yield logits
        if turn + 1 < rounds.masks:
            clicks = strategy(shown, *targets, 1, draws)
            points = torch.cat([points, clicks.points.to(points.dtype)], dim=1)
            labels = torch.cat([labels, clicks.labels], dim=1)


def _full(logits: Tensor, grid: int) -> Tensor:
    """(B, 1, M, M, M) logits at the grid's size, without the channel."""
    if logits.shape[-1] != grid:
        logits = torch.nn.functional.interpolate(
            logits, size=(grid,) * 3, mode="trilinear", align_corners=False
        )
    return logits[:, 0]
