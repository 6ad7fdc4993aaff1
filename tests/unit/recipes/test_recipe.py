"""Settings of a recipe that do not fit each other."""

import pytest

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.recipes.table import recipe


def test_a_loss_on_patches_that_are_never_hidden():
    """It would be 0 throughout, and nobody would know."""
    message = "objective.ibot_weight=1 has no effect with data.masks.probability=0, which hides no patch"
    for name, settings in (
        ("vit_tiny.small_images", {"objective.ibot_weight": 1}),
        ("vit_micro.toy", {"data.masks.probability": 0}),
        ("vit_small.distilled", {"data.masks.probability": 0, "distil.patches": "drawn"}),
    ):
        with pytest.raises(ConfigError, match=message):
            with_settings(recipe(name), settings)
    made = with_settings(recipe("vit_tiny.small_images"), {"objective.ibot_weight": 1, "data.masks.probability": 0.5})
    assert made.data.masks.probability == 0.5


def test_a_probability_that_masks_no_view_of_a_group():
    """One whole view of 2 times 4 images is an eighth of them."""
    message = (
        r"objective.ibot_weight=1 has no effect with data.masks.probability=0.12, which hides no patch in the 8 global "
        r"views of objective.group=4 images; set data.masks.probability=0.5 \(1/8 at least\), or objective.ibot_weight=0"
    )
    few = {"objective.group": 4, "data.masks.probability": 0.12}
    for name, settings in (("vit_micro.toy", few), ("vit_small.distilled", few | {"distil.patches": "drawn"})):
        with pytest.raises(ConfigError, match=message):
            with_settings(recipe(name), settings)
    for settings in ({"data.masks.probability": 0.125}, {"objective.group": 8}, {"objective.ibot_weight": 0}):
        with_settings(recipe("vit_micro.toy"), few | settings)


def test_a_ratio_that_hides_no_patch_of_a_view():
    """A 36th of 48 by 48 pixels in patches of 8 is one patch."""
    message = (
        r"data.masks.ratio=\[0.0, 0.027\], which hides none of the 36 patches of a view; .* \(0.028 at least\), or"
    )
    for name, settings in (("vit_micro.toy", {}), ("vit_small.distilled", {"distil.patches": "drawn"})):
        sides = {"data.augment.global_pixels": 48, "data.augment.local_pixels": 24, "backbone.patch": 8}
        few = settings | sides | {"data.masks.ratio": [0, 0.027]}
        with pytest.raises(ConfigError, match=message):
            with_settings(recipe(name), few)
        for mended in ({"data.masks.ratio": [0, 0.028]}, {"objective.ibot_weight": 0}):
            with_settings(recipe(name), few | mended)


def test_a_student_that_sees_every_patch_needs_no_masks():
    """Some would be hidden from nobody; none at all is what the student is shown."""
    made = with_settings(recipe("vit_small.distilled"), {"data.masks.probability": 0})
    assert made.distil.patches == "all"
    with pytest.raises(ConfigError, match=r"data.masks has no effect with distil.patches=all"):
        with_settings(recipe("vit_small.distilled"), {"data.masks.probability": 0.1})
