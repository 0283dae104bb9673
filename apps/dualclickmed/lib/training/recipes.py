"""Training recipes as data: every number of a run in one place, written into the checkpoint and the model
card.

The recipes are files, `training/recipes/NAME.toml`; `load_recipe` reads one, and `changed` overrides any of
its numbers.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomllib

from ..errors import UserError
from ..networks.configs import GlobalConfig, LocalConfig, outside_of
from ..simulation.modes import Mode
from ..weights.cards import Kind

if TYPE_CHECKING:
    from ..imaging.geometry import Outside

RECIPES = Path(__file__).with_name("recipes")
# Of a fine-tuning: its part of the recipe's learning rate, and its share of generated scenes.
FINE_TUNE_RATE = 0.1
REPLAY = 0.3

ClickRule = Literal["boundary", "balanced", "uniform", "realistic"]
Schedule = Literal["flat", "multistep", "cosine"]
Keep = Literal["average", "last", "best"]

BAD_SHARE = 0.05
"""A training fails when more than this part of its cases is unusable, unless told otherwise."""


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training run.

    Attributes:
        kind, preset: which network.
        steps: optimiser steps; the schedule runs over them (or over `minutes` of the command, whichever
            ends first).
        epochs: passes over the objects of the labelled cases instead of `steps`; 0 leaves it to `steps`.
        scenes, targets: scenes or cases for each batch of a process, and objects asked for in each.
        accumulate: batches whose gradients are added up for one step.
        interactions, points: rounds of simulated corrections and clicks in each (paper: 5 x 6 for the
            global expert); for the local expert `interactions` predictions with one click each.
        mode: how the global expert sees an interaction's clicks: alternatives (paper), chain or together
            (`simulation.modes.Mode`).
        clicks: how corrections are drawn: boundary, balanced (paper, section 2.3), uniform or realistic.
        last_only: the network sees the newest click instead of all (ablation of section 4.3).
        starts: shares of the global expert's first prompts: box, extreme points, corner points, one point.
        exact_boxes: simulated boxes enclose the object exactly instead of as a user draws them.
        grid, hold_edges: of the global expert's regions; a run takes its network's own (`fitted`).
        clicked: share of the global expert's objects asked for by a click in a window, without a box.
        components: share of the global expert's objects of which one connected part is asked for.
        parts: share of the global expert's generated objects of which only a piece is asked for.
        rate: peak learning rate of AdamW.
        decoder_rate: learning rate of everything but the image encoder, as a part of `rate`.
        freeze_encoder: leave the image encoder as it is.
        schedule: flat with a cool-down, multistep or cosine.
        warmup: first share of the run in which the rate rises linearly.
        cooldown: last share of the run in which a flat rate falls linearly to zero. A flat rate before it
            lets a run be prolonged at any time.
        milestones, drop: shares of the run after which a multistep rate is multiplied by `drop`.
        betas, weight_decay: AdamW's decays of its moments and of the weights.
        clip: the largest gradient norm.
        average: decay of the running mean of the weights.
        keep: which weights are written at the end: the running mean, the last, or the best on validation.
        focal: weight of the focal loss beside the Dice loss.
        size: side of the local window in training, voxels; best that in which the network is served
            (`LocalConfig.window`).
        smallest: objects of labelled cases with fewer voxels are left out.
        replay: share of generated scenes beside labelled cases.
        point_only: labelled objects that a box describes badly alone (section 4.5; local expert).
        affine: how often labelled objects are scaled and moved on the global grid.
        scale_z, scale_xy: least and greatest scale along z, and along x and y.
        shift: greatest translation in voxels of the grid.
        flip, rotate: how often labelled windows are flipped along each axis, and turned by 90 degrees.
        intensity: how often each of scaling, shifting and noise changes a labelled window.
        intensity_scale, intensity_shift, noise: how far each of them goes, for values in [0, 1].
        seed: of scenes, clicks and initial weights.
    """

    kind: Kind
    preset: str = "compact"
    steps: int = 100_000
    epochs: int = 0
    scenes: int = 4
    targets: int = 2
    accumulate: int = 1
    interactions: int = 5
    points: int = 6
    mode: Mode = "alternatives"
    clicks: ClickRule = "boundary"
    last_only: bool = False
    starts: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    exact_boxes: bool = False
    grid: int = 64
    hold_edges: bool = False
    clicked: float = 0.0
    components: float = 0.0
    parts: float = 0.0
    rate: float = 1e-3
    decoder_rate: float = 1.0
    freeze_encoder: bool = False
    schedule: Schedule = "flat"
    warmup: float = 0.02
    cooldown: float = 0.3
    milestones: tuple[float, ...] = ()
    drop: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 1e-4
    clip: float = 1.0
    average: float = 0.998
    keep: Keep = "average"
    focal: float = 2.0
    size: int = 96
    smallest: int = 24
    replay: float = 0.0
    point_only: bool = False
    affine: float = 0.0
    scale_z: tuple[float, float] = (0.9, 1.1)
    scale_xy: tuple[float, float] = (0.5, 1.5)
    shift: float = 4.0
    flip: float = 0.0
    rotate: float = 0.0
    intensity: float = 0.0
    intensity_scale: float = 0.1
    intensity_shift: float = 0.1
    noise: float = 0.1
    seed: int = 1

    @property
    def outside(self) -> Outside:
        """What the global expert's regions hold beyond the image."""
        return outside_of(self.hold_edges)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(
                    f"The recipe's {name} must be at least {least}, but it is {getattr(self, name)}."
                )
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"The recipe's {name} must lie between 0 and 1, but it is {getattr(self, name)}."
                )
        for name in ("scale_z", "scale_xy"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(
                    f"The recipe's {name} must be positive and ascending, but it is {low}, {high}."
                )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"The recipe's betas must be at least 0 and below 1, but they are {self.betas}.")
        if self.size % 16:
            raise UserError(f"The recipe's size must be a multiple of 16, but it is {self.size}.")
        if min(self.starts) < 0 or sum(self.starts) <= 0:
            raise UserError(f"The recipe's starts must be shares, but they are {self.starts}.")
        if self.replay == 1:
            raise UserError("The recipe's replay must leave room for labelled cases: below 1.")


_LEAST = {
    "steps": 1,
    "epochs": 0,
    "scenes": 1,
    "targets": 1,
    "accumulate": 1,
    "interactions": 1,
    "points": 1,
    "rate": 0,
    "decoder_rate": 0,
    "weight_decay": 0,
    "focal": 0,
    "size": 16,
    "smallest": 1,
}
_SHARES = (
    "cooldown", "warmup", "parts", "components", "clicked", "average", "replay", "affine", "flip", "rotate",
    "intensity", "drop",
)  # fmt: skip


def recipe_names() -> list[str]:
    """The recipes that ship, by name: global-paper, local-compact, ..."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str | Path) -> Recipe:
    """A recipe that ships, by its name, or of a file of one's own.

    Raises:
        UserError: there is none of that name, the file is damaged, or it has a key that recipes don't have.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = RECIPES / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no recipe '{name}'; there are: {', '.join(recipe_names())}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The recipe '{path}' can't be read ({error}).") from error
    if values.get("kind") not in typing.get_args(Kind):
        raise UserError(f'The recipe \'{path}\' must have kind = "global" or "local".')
    return changed(Recipe(kind=values.pop("kind")), values)


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with other numbers; text is read as the type that the recipe has there.

    Raises:
        UserError: a name is unknown, or a value is not of its type.
    """
    kinds = typing.get_type_hints(Recipe)
    unknown = [name for name in values if name not in kinds]
    if unknown:
        raise UserError(f"Recipes have no '{unknown[0]}'; they have {', '.join(kinds)}.")
    return dataclasses.replace(
        recipe, **{name: _converted(name, value, kinds[name]) for name, value in values.items()}
    )


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint or a card recorded; names that recipes no longer have are left out, and
    names of earlier versions are translated.
    """
    kinds = typing.get_type_hints(Recipe)
    known = {name: value for name, value in values.items() if name in kinds and name != "kind"}
    if "together" in values:
        known["mode"] = "together" if values["together"] else "chain"
    if known.get("warmup", 0) > 1:
        # Earlier versions counted steps.
        known["warmup"] = min(1.0, known["warmup"] / max(1, known.get("steps", 1)))
    return changed(Recipe(kind=values["kind"]), known)


def fitted(recipe: Recipe, config: GlobalConfig | LocalConfig) -> Recipe:
    """The recipe with samples as a network takes them: its grid, what is outside images, and no windows about
    clicks where it knows boxes only.
    """
    if isinstance(config, LocalConfig):
        return recipe
    clicked = recipe.clicked if config.unet_channels else 0.0
    return dataclasses.replace(recipe, grid=config.image_size, hold_edges=config.hold_edges, clicked=clicked)


def fine_tune(kind: Kind, preset: str = "compact") -> Recipe:
    """For going on from trained weights with a few labelled cases: a tenth of the rate, a share of generated
    scenes so that nothing is forgotten, and gentle augmentation.
    """
    recipe = load_recipe(f"{kind}-{preset}")
    return changed(
        recipe,
        {
            "rate": recipe.rate * FINE_TUNE_RATE,
            "epochs": 0,
            "steps": 500,
            "schedule": "flat",
            "warmup": 0.04,
            "cooldown": 0.5,
            "average": 0.98,
            "keep": "average",
            "replay": REPLAY,
            "affine": 0.3,
            "scale_z": (0.9, 1.1),
            "scale_xy": (0.9, 1.1),
            "flip": 0.2,
            "intensity": 0.2,
            "exact_boxes": False,
        },
    )


def _converted(name: str, value: Any, wanted: Any) -> Any:
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    text = value.strip() if isinstance(value, str) else value
    try:
        if origin is Literal:
            if text not in options:
                raise ValueError(f"one of {', '.join(map(str, options))}")
            return text
        if origin is tuple:
            parts = text.replace(",", " ").split() if isinstance(text, str) else list(text)
            found = tuple(float(part) for part in parts)
            if options[-1] is not Ellipsis and len(found) != len(options):
                raise ValueError(f"{len(options)} numbers")
            return found
        if wanted is bool:
            meant = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if isinstance(text, bool):
                return text
            if not isinstance(text, str) or text.lower() not in meant:
                raise ValueError("true or false")
            return meant[text.lower()]
        if wanted is int:
            if isinstance(text, bool) or (not isinstance(text, str) and text != int(text)):
                raise ValueError("a whole number")
            return int(text)
        if wanted is float:
            return float(text)
        return str(text)
    except (TypeError, ValueError) as error:
        expected = {int: "a whole number", float: "a number"}.get(wanted, str(error))
        raise UserError(f"The recipe's {name} must be {expected}, but it is {value!r}.") from error
