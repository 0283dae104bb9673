"""How a round of retraining is carried out."""

from __future__ import annotations

from dataclasses import dataclass

HELD_OUT = 0.2
"""Part of the labelled images that is held out, at least two of them."""
ORDERS = ("first", "random", "disagreement", "expected_clicks")
"""Strategies for the next image, as a server offers them."""


@dataclass(frozen=True)
class Settings:
    """How a round is carried out.

    Attributes:
        minutes: the training ends after them at the latest; reading and measuring come on top.
        steps: the training ends after as many optimiser steps at the latest.
        epochs: or after as many passes over the labelled cases; 0 leaves it to `steps`.
        rate: peak learning rate; 0 takes the recipe's.
        replay: share of generated volumes, against forgetting.
        freeze_encoder: train everything but the image encoder.
        device: "cpu" or "cuda:N".
        seed: of everything random.
        name: what the client calls this training.
        pretrained: begin with the weights that are served; otherwise with those that learning began with.
        patience: the training ends after as many passes over the labelled cases without a lower mean loss; 0
            or less: never.
        held_out: part of the labelled images that the result is measured on.
        batch: labelled cases of a step; 0 takes the recipe's.
        processes: that train together, one for each GPU.
        events: write TensorBoard's events.
    """

    minutes: float = 8.0
    steps: int = 600
    epochs: int = 0
    rate: float = 0.0
    replay: float = 0.3
    freeze_encoder: bool = False
    device: str = "cpu"
    seed: int = 1
    name: str = ""
    pretrained: bool = True
    patience: int = 0
    held_out: float = HELD_OUT
    batch: int = 0
    processes: int = 1
    events: bool = True
