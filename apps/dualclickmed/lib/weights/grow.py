"""A larger network that goes on where a smaller one has stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import WeightsError
from ..networks.early_fusion import EarlyFusionNetwork
from ..networks.growth import grown
from .files import load_expert, read_card
from .lineage import LINEAGE, require_new, save_derived, trained_images

KEPT = ("steps", "samples", "hours", "licence", "data", "source")
"""What the card of the larger network takes over: it has learned what the smaller one has."""


def grow(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    channels: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    command: str | None = None,
    seed: int = 0,
    walks: bool = False,
) -> Path:
    """Write the weights of a larger U-Net that answers as a smaller one does, and its card.

    Args:
        path: weights of a compact global expert.
        out: a new file, ends in ``.safetensors``; missing folders are made.
        channels, blocks: as `growth.grown` takes them; None for those of the smaller one.
        command: how to repeat it, for the card.
        seed: of the new weights.
        walks: as `growth.grown` takes it.

    Returns:
        The file written.

    Raises:
        WeightsError: the weights are of another network, it can't grow like that, or the output exists or
            can't be written. Nothing has been written then.
    """
    path, out = Path(path), Path(out)
    require_new(out)
    card = read_card(path)
    network = load_expert(card["kind"], path)
    if not isinstance(network, EarlyFusionNetwork):
        raise WeightsError(
            f"Only the U-Net of the compact global expert can grow, but '{path}' holds another network."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = network.config
            larger = grown(network, channels or config.unet_channels, blocks or config.unet_blocks, walks)
        except ValueError as error:
            raise WeightsError(str(error)) from error
    written = {key: card[key] for key in KEPT if key in card}
    written |= {"command": command, "seed": seed}
    written["parents"] = [{"file": path.name} | {key: card.get(key) for key in LINEAGE}]
    if images := sorted(trained_images(path)):
        # By these learning knows the images that can't be held out.
        data = card.get("data")
        written["data"] = {"what": data.get("what") if isinstance(data, dict) else data, "trained": images}
    save_derived(larger, "global", out, written)
    return out
