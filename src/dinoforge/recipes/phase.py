"""The high-resolution phase: the last part of a run, at larger views (DINOv2, app. B.2; DINOv3, sec. 5.1)."""

from __future__ import annotations

import math

from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.data.augment import AugmentConfig

RATE_SHARE = 0.25
"""Peak of the phase's learning rate as a share of the plan's. DINOv2 lowered it and never said to what; DINOv3's configurations
have 1.25e-5 after 5e-5."""


class HighResolution(Config):
    """A last part of the run at larger views, on top of ``plan``.

    Everything else is as in the plan; its schedules, which are shares of it, are run through once more in the length of the
    phase, the warm-up of the learning rate and the frozen prototypes among them ("compressed", DINOv2). AdamW begins anew.
    """

    images: Count = Field(gt=0)
    """Images to see on top of those of the plan; published are 10,000 steps."""
    global_pixels: int = Field(gt=0)
    """Side of a global view, in pixels, and of the images that features are taken of from then on; 518 in DINOv2."""
    local_pixels: int | None = Field(default=None, gt=0)
    """Side of a local view, in pixels; null: as much larger as the global views are, to a whole patch, so that both go on
    showing things at one scale."""
    batch: int | None = Field(default=None, gt=0)
    """Images a step; null: as in the plan."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak of the learning rate at the reference batch of 1,024 images; null: a quarter of the plan's, as in DINOv3."""

    def local_side(self, augment: AugmentConfig, patch: int) -> int:
        """Side of a local view, in pixels, where those before were ``augment``'s."""
        if self.local_pixels is not None:
            return self.local_pixels
        return (
            max(1, math.floor(augment.local_pixels * self.global_pixels / augment.global_pixels / patch + 0.5)) * patch
        )

    def check(self, augment: AugmentConfig, *, patch: int, group: int) -> None:
        """Refuse what does not fit the rest of a recipe.

        Raises:
            ValueError: Views that are no larger, or no multiple of the patch; a batch that is no multiple of the group; local
                views where there are none.
        """
        name = "high_resolution"
        if self.local_pixels is not None and not augment.local_views:
            raise ValueError(
                f"{name}.local_pixels={self.local_pixels} has no effect with data.augment.local_views=0; leave it out."
            )
        sides = {"global_pixels": self.global_pixels, "local_pixels": self.local_pixels or patch}
        for field, pixels in sides.items():
            if pixels % patch:
                raise ValueError(
                    f"{name}.{field}={pixels} is no multiple of backbone.patch={patch}; {near(pixels, patch)} would be."
                )
        if self.global_pixels <= augment.global_pixels:
            raise ValueError(
                f"{name}.global_pixels={self.global_pixels} must be above data.augment.global_pixels={augment.global_pixels}."
            )
        if self.batch is not None and self.batch % group:
            raise ValueError(
                f"{name}.batch={self.batch} is no multiple of objective.group={group}; {near(self.batch, group)} would be."
            )


def near(value: int, unit: int) -> str:
    """The multiples of ``unit`` on both sides of ``value``, in words."""
    below, above = value // unit * unit, (value // unit + 1) * unit
    return f"{below} or {above}" if below else str(above)
