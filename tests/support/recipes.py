"""The recipes of the compact networks, by expert."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping

from dualclickmed.training.recipes import Recipe, load_recipe
from dualclickmed.weights.cards import Kind

COMPACT: Mapping[Kind, Recipe] = types.MappingProxyType(
    {kind: load_recipe(f"{kind}-compact") for kind in typing.get_args(Kind)}
)
