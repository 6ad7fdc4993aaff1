"""Every recipe by its name."""

from __future__ import annotations

from collections.abc import Callable

from dinoforge.base.errors import unknown
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.small import vit_tiny_small_images

RECIPES: dict[str, Callable[[], Recipe]] = {
    "vit_tiny.small_images": vit_tiny_small_images,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: No such recipe; the nearest name is offered.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
