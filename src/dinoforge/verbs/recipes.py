"""``recipes`` and ``schema``: what can be trained, and which settings there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.settle import to_yaml
from dinoforge.recipes.table import RECIPES, recipe


def recipes(*, show: str | None = None) -> dict[str, Any]:
    """List the recipes, or show one with all its settings.

    Args:
        show: Name of a recipe.
    """
    if show is not None:
        return {"recipes": [show], "yaml": to_yaml(recipe(show))}
    return {"recipes": [{"name": name, "what": _first_line(make)} for name, make in RECIPES.items()]}


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check config.yaml."""
    return Recipe.model_json_schema()
