"""The stages of a run, one after another: the plan itself and, where asked for, the high-resolution phase.

Steps, images and groups are counted over the whole run, so nothing is drawn twice; a stage's schedules know its own steps
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dinoforge.recipes.phase import RATE_SHARE, HighResolution
from dinoforge.recipes.recipe import Recipe
from dinoforge.train.observe import due

PHASE = "High-resolution phase"
"""Its name for people."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run that is trained with settings of its own."""

    recipe: Recipe
    """What it would be as a run by itself."""
    steps: int
    """Its own."""
    before: int = 0
    """Steps of the run before its first."""
    images_before: int = 0
    """Images seen in these."""

    @property
    def end(self) -> int:
        """Steps of the run after its last."""
        return self.before + self.steps

    @property
    def batch_setting(self) -> str:
        """What gives its batch, for messages."""
        return "high_resolution.batch" if self.before else "plan.batch"

    @property
    def pixels(self) -> int:
        """Side of its global views and of the images that features are taken of."""
        return self.recipe.data.augment.global_pixels

    @property
    def between(self) -> int:
        """Steps from one checkpoint to the next."""
        return max(1, round(self.recipe.plan.checkpoint_images / self.recipe.plan.batch))

    @property
    def between_looks(self) -> int:
        """Steps from one quality probe to the next."""
        return max(1, round(self.recipe.plan.probe_images / self.recipe.plan.batch))

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after that step of the run."""
        return due(step, every=self.between, steps=self.steps, before=self.before)

    def images(self, step: int) -> int:
        """Images seen in the run after so many of its steps, of which the last is in this stage."""
        return self.images_before + (step - self.before) * self.recipe.plan.batch


def stages(recipe: Recipe, data_images: int) -> tuple[Stage, ...]:
    """The stages of a run on a data set of ``data_images`` images."""
    first = Stage(recipe.model_copy(update={"high_resolution": None}), recipe.plan.steps(data_images))
    if recipe.high_resolution is None:
        return (first,)
    later = _at_high_resolution(recipe, recipe.high_resolution)
    return first, Stage(later, later.plan.steps(data_images), before=first.end, images_before=first.images(first.end))


def stage_after(run: Sequence[Stage], step: int) -> Stage:
    """The stage that the step after so many steps lies in; the last one after the end."""
    return next((stage for stage in run if step < stage.end), run[-1])


def stage_of(run: Sequence[Stage], step: int) -> Stage:
    """The stage whose networks there are after so many steps."""
    return next(stage for stage in run if step <= stage.end)


def _at_high_resolution(recipe: Recipe, phase: HighResolution) -> Recipe:
    """The phase as a recipe: larger views, a table of positions for them, and its own length, batch and learning rate."""
    augment, plan = recipe.data.augment, recipe.plan
    views = {"global_pixels": phase.global_pixels, "local_pixels": phase.local_side(augment, recipe.backbone.patch)}
    resize = recipe.data.resize and round(recipe.data.resize * phase.global_pixels / augment.global_pixels)
    peak = phase.learning_rate or RATE_SHARE * plan.learning_rate.peak
    gram = recipe.objective.gram and recipe.objective.gram.kept()
    return recipe.model_copy(
        update={
            "high_resolution": None,
            "backbone": recipe.backbone.model_copy(update={"pixels": phase.global_pixels}),
            "data": recipe.data.model_copy(update={"augment": augment.model_copy(update=views), "resize": resize}),
            "objective": recipe.objective.model_copy(update={"gram": gram}),
            "plan": plan.model_copy(
                update={
                    "images": phase.images,
                    "passes": None,
                    "batch": phase.batch or plan.batch,
                    "learning_rate": plan.learning_rate.model_copy(update={"peak": peak}),
                }
            ),
        }
    )
