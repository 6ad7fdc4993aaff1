"""Every recipe by its name."""

from __future__ import annotations

from collections.abc import Callable

from dinoforge.base.errors import unknown
from dinoforge.recipes.continued import vit_micro_continue, vit_small_continue, vit_small_heads
from dinoforge.recipes.copies import copy_descriptor
from dinoforge.recipes.distilled import (
    vit_base_distilled,
    vit_large_distilled,
    vit_small_distilled,
    vit_small_matched,
)
from dinoforge.recipes.domains import (
    vit_small_documents,
    vit_small_medical_grey,
    vit_small_microscopy,
    vit_small_satellite,
)
from dinoforge.recipes.large import (
    vit_giant_lvd142m,
    vit_giant_lvd142m_518,
    vit_giant_lvd142m_registers,
    vit_large_imagenet,
    vit_large_imagenet22k,
    vit_large_imagenet_416,
    vit_large_lvd142m,
)
from dinoforge.recipes.one_machine import (
    vit_base_imagenet_1gpu,
    vit_large_imagenet_8gpu,
    vit_large_lvd142m_8gpu,
    vit_small_imagenet_1gpu,
)
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.small import (
    vit_micro_toy,
    vit_small_small_data,
    vit_tiny_photos,
    vit_tiny_small_images,
    vit_tiny_small_images_long,
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    # One desk.
    "vit_micro.toy": vit_micro_toy,
    "vit_tiny.photos": vit_tiny_photos,
    "vit_tiny.small_images": vit_tiny_small_images,
    "vit_tiny.small_images_long": vit_tiny_small_images_long,
    "vit_small.small_data": vit_small_small_data,
    # Other pictures than photographs.
    "vit_small.satellite": vit_small_satellite,
    "vit_small.microscopy": vit_small_microscopy,
    "vit_small.medical_grey": vit_small_medical_grey,
    "vit_small.documents": vit_small_documents,
    # As published, from scratch (large.py), and with the phase at higher resolution.
    "vit_large.imagenet": vit_large_imagenet,
    "vit_large.imagenet22k": vit_large_imagenet22k,
    "vit_large.lvd142m": vit_large_lvd142m,
    "vit_giant.lvd142m": vit_giant_lvd142m,
    "vit_giant.lvd142m_registers": vit_giant_lvd142m_registers,
    "vit_large.imagenet_416": vit_large_imagenet_416,
    "vit_giant.lvd142m_518": vit_giant_lvd142m_518,
    # On from a trained backbone, without forgetting (continued.py).
    "vit_micro.continue": vit_micro_continue,
    "vit_small.continue": vit_small_continue,
    "vit_small.heads": vit_small_heads,
    # To find copies by (copies.py).
    "copy.descriptor": copy_descriptor,
    # Distilled from ViT-g (distilled.py).
    "vit_small.distilled": vit_small_distilled,
    "vit_base.distilled": vit_base_distilled,
    "vit_large.distilled": vit_large_distilled,
    # From any backbone, by its features (distilled.py).
    "vit_small.matched": vit_small_matched,
    # The same for one machine (one_machine.py).
    "vit_small.imagenet_1gpu": vit_small_imagenet_1gpu,
    "vit_base.imagenet_1gpu": vit_base_imagenet_1gpu,
    "vit_large.imagenet_8gpu": vit_large_imagenet_8gpu,
    "vit_large.lvd142m_8gpu": vit_large_lvd142m_8gpu,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: No such recipe; the nearest name is offered.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
