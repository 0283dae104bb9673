"""The recipes of our own small networks; the global one is a transformer, after the published one."""

from __future__ import annotations

import types
from collections.abc import Mapping

from dualclickmed.training.recipes import Recipe, load_recipe
from dualclickmed.weights.cards import Kind

RECIPE: Mapping[Kind, Recipe] = types.MappingProxyType(
    {"global": load_recipe("global-transformer"), "local": load_recipe("local-compact")}
)
