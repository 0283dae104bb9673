"""Training recipes as data: every number of a run in one place, written into the checkpoint and the model
card.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..weights import Kind


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training run on generated volumes.

    Attributes:
        kind, preset: which network.
        steps: optimiser steps; the schedule runs over them (or over `minutes` of the command, whichever
            ends first).
        scenes, targets: scenes for each step and objects asked for in each scene.
        interactions, points: rounds of simulated corrections and clicks in each (paper: 5 x 6 for the
            global expert); for the local expert `interactions` predictions with one click each.
        together: an interaction's clicks, between one and `points`, are added at once (global expert only).
        rate: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        cooldown: last share of the run in which the rate falls linearly to zero. A flat rate before it lets
            a run be prolonged at any time.
        weight_decay, clip: AdamW's decay and the largest gradient norm.
        average: decay of the running mean of the weights, which is what ships.
        focal: weight of the focal loss beside the Dice loss.
        size: side of the local window in training, voxels.
        seed: of scenes, clicks and initial weights.
    """

    kind: Kind
    preset: str = "compact"
    steps: int = 100_000
    scenes: int = 4
    targets: int = 2
    interactions: int = 5
    points: int = 6
    together: bool = False
    rate: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.3
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.998
    focal: float = 2.0
    size: int = 96
    seed: int = 1


COMPACT: dict[Kind, Recipe] = {
    "global": Recipe(kind="global", scenes=2, targets=2, interactions=2, points=4, together=True),
    "local": Recipe(kind="local", scenes=1, targets=3, interactions=3, points=1, size=96),
}
