"""The checkpoint of a run: read with care, with the states of the random numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .recipes import Recipe

CHECKPOINT = "checkpoint.pt"


def read_checkpoint(path: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """The state that a run saved, on a device.

    Raises:
        UserError: the file can't be read, or belongs to a run of another network or seed.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        was, now = state["recipe"], dataclasses.asdict(recipe)
    except Exception as error:  # PyTorch lets a damaged file end in errors of a dozen types.
        first = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"The checkpoint '{path}' can't be read ({first}); remove it or name another folder."
        ) from error
    differ = [key for key in ("kind", "preset", "seed") if was[key] != now[key]]
    if differ:
        raise UserError(
            "The checkpoint in '{}' belongs to another run: {}.".format(
                path.parent, ", ".join(f"{key} is {was[key]}, asked for {now[key]}" for key in differ)
            )
        )
    return state


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the global random numbers."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Put back what `random_states` gave."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
