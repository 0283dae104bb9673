"""The mean of weight files: a "model soup" (Wortsman et al., ICML 2022, uniform soup).

Runs that began with the same weights end in one basin of the loss, and the mean of their parameters is often
better on other data than each of them. Runs that began differently share no basin: their mean is useless.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors import WeightsError
from .files import Kind, load_expert, read_card
from .lineage import LINEAGE, require_new, save_derived, trained_images

ORIGIN = ("licence", "data", "source", "before", "parent", "parents")
"""What the card of a mean holds of each parent besides `LINEAGE`, where the parent's card says it."""


def average(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], command: str | None = None
) -> Path:
    """Write the mean of the parameters of two or more weight files, and its card.

    The mean is taken in float32 and stored as `save_expert` stores what was trained here: parameters as
    float16, buffers as they are. Steps and samples are the most of any parent: the mean adds none, and
    parents of one lineage share some. What was measured on the parents was not measured on the mean and is
    left out.

    Args:
        paths: weight files of one kind and configuration, each with its card.
        out: a new file, ends in ``.safetensors``; missing folders are made.
        command: how to repeat it, for the card.

    Returns:
        The file written.

    Raises:
        WeightsError: there are fewer than two files, two hold the same weights, one can't be used, they
            differ in kind, configuration or a buffer, or the output exists or can't be written. Nothing has
            been written then.
    """
    files, out = [Path(path) for path in paths], Path(out)
    if len(files) < 2:
        raise WeightsError(f"A mean is taken of two or more weight files, but {len(files)} came; name more.")
    require_new(out)
    cards = [read_card(file) for file in files]
    kind: Kind = cards[0]["kind"]
    seen: dict[str, Path] = {}
    for file, card in zip(files, cards, strict=True):
        if card["kind"] != kind:
            raise WeightsError(
                f"'{files[0]}' holds weights of the {kind} expert and '{file}' of the {card['kind']} expert; "
                "a mean is taken of one kind."
            )
        if card["sha256"] in seen:
            raise WeightsError(
                f"'{seen[card['sha256']]}' and '{file}' hold the same weights; name each file once."
            )
        seen[card["sha256"]] = file
    network = _mean(kind, files)
    images = sorted(set[str]().union(*(trained_images(file) for file in files)))
    data = _distinct(cards, "data")
    written = {
        "command": command,
        "steps": _most(cards, "steps"),
        "samples": _most(cards, "samples"),
        "licence": _distinct(cards, "licence"),
        # A mapping, by which learning knows the images that can't be held out.
        "data": {"what": data, "trained": images} if images else data,
        "parents": [
            {"file": file.name}
            | {key: card.get(key) for key in LINEAGE}
            | {key: card[key] for key in ORIGIN if key in card}
            for file, card in zip(files, cards, strict=True)
        ],
    }
    save_derived(network, kind, out, written)
    return out


def _mean(kind: Kind, files: Sequence[Path]) -> nn.Module:
    """A network with the mean of all; no more than two are held at a time."""
    network = load_expert(kind, files[0])
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    total = {name: value.clone() for name, value in network.state_dict().items()}
    for file in files[1:]:
        other = load_expert(kind, file)
        mine, its = cast(Any, network).config.to_dict(), cast(Any, other).config.to_dict()
        if differing := [f"{key} ({mine[key]} and {its[key]})" for key in mine if mine[key] != its[key]]:
            raise WeightsError(
                f"'{files[0]}' and '{file}' are of different configurations: {', '.join(differing)}; "
                "a mean is taken of one configuration."
            )
        for name, value in other.state_dict().items():
            if name in parameters:
                total[name] += value
            elif not torch.equal(total[name], value):
                # Positional frequencies, drawn once for a lineage; all other weights are made for them.
                raise WeightsError(
                    f"'{files[0]}' and '{file}' differ in '{name}', which training does not change: they do "
                    "not come from the same first weights, and their mean would be useless."
                )
    for name in parameters:
        total[name] /= len(files)
    network.load_state_dict(total)
    return network


def _most(cards: Iterable[Mapping[str, Any]], key: str) -> int | None:
    numbers = [card[key] for card in cards if isinstance(card.get(key), int)]
    return max(numbers, default=None)


def _distinct(cards: Iterable[Mapping[str, Any]], key: str) -> str:
    """The cards' values, each once; a mean is bound by the licences of all its parents."""
    found = [card.get(key) for card in cards]
    stated = [value.get("what") if isinstance(value, Mapping) else value for value in found]
    return "; ".join(dict.fromkeys("not stated" if value is None else str(value) for value in stated))
