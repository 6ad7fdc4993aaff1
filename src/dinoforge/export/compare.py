"""Features of what was written against those of the backbone.

Axes: B images, C channels, Y by X pixels, T tokens, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.base.hardware import Precision, compute_context
from dinoforge.model.features import Features

COSINE = 0.9999
"""Smallest cosine that a token of another runtime may have with ours, both in float32."""
HALF_RELATIVE, HALF_COSINE = 0.1, 0.99
"""The bounds of a runtime in bfloat16, whose numbers have 8 bits of precision in each of a network's hundreds of products."""

Size = tuple[int, int, int]
"""Images, rows and columns of pixels."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How far features are apart on noise of one size."""

    images: int
    height: int
    width: int
    max_error: float
    """Greatest difference of two numbers."""
    relative: float
    """The same as a share of the greatest number."""
    cosine: float
    """Smallest between a token here and the same there."""
    precision: Precision = "fp32"
    """Of the other runtime; ours is float32."""

    def within(self, bound: float) -> bool:
        """Whether that is near enough; never where a number is not finite.

        Args:
            bound: Of ``relative`` in float32.
        """
        half = self.precision == "bf16"
        return self.relative <= (HALF_RELATIVE if half else bound) and self.cosine >= (HALF_COSINE if half else COSINE)


@dataclass(frozen=True, slots=True)
class Checked:
    """How the features of what was written compare."""

    runtime: str
    """What computed them, or why the target's own did not."""
    compared: bool
    """Whether that is the target's own."""
    bound: float
    """Of ``relative``."""
    seen: list[Seen]
    differs: list[str]
    """What the target does otherwise."""
    notes: tuple[str, ...]
    """What else was seen."""
    dropped: list[str]
    """What the target has no place for."""

    def lines(self) -> list[str]:
        """For a person at a terminal."""
        rule = "; away from the native size positions are resampled as there" if self.differs else ""
        return [
            f"{'Compared with' if self.compared else 'NOT compared:'} {self.runtime}{rule}",
            *(
                f"  {one.precision}, {one.images} x {one.height} x {one.width}: largest difference {one.max_error:.2g} "
                f"({one.relative:.2g} of the greatest feature), smallest cosine {one.cosine:.7f}"
                for one in self.seen
            ),
            *(f"  {line}" for line in (*self.differs[-1:], *self.notes)),
        ]


def sizes(pixels: int, patch: int) -> list[Size]:
    """The native square, a wide and a tall image, and a small square, one and several at a time."""
    return [(1, pixels, pixels), (2, 4 * patch, 7 * patch), (1, 6 * patch, 3 * patch), (3, 5 * patch, 5 * patch)]


def tokens(features: Features) -> Float[Tensor, "B T D"]:
    """Image token, registers and patches, one behind the other."""
    return torch.cat([features.image.unsqueeze(1), features.registers, features.patches.flatten(1, 2)], dim=1)


@torch.no_grad()
def compared(
    mine: Callable[[Tensor], Features], theirs: Callable[[Tensor], Features], where: Iterable[Size], *, channels: int,
    precision: Precision = "fp32",
) -> list[Seen]:  # fmt: skip
    """Both on the same noise, size by size: mine in float32, theirs in a precision.

    Raises:
        WeightsError: Features of another shape.
    """
    found = []
    for count, height, width in where:
        images = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))
        want = mine(images)
        with compute_context(precision, images.device):
            other = theirs(images)
        if other.patches.shape != want.patches.shape or other.registers.shape != want.registers.shape:
            told = ", ".join(f"{list(one.registers.shape)} and {list(one.patches.shape)}" for one in (other, want))
            raise WeightsError(f"registers and patches have another shape there: {told} are due.")
        ours, there = tokens(want).float(), tokens(other).float()
        error = float((ours - there).abs().max())
        scale = float(ours.abs().max())
        cosine = float(F.cosine_similarity(ours.double(), there.double(), dim=-1).min())
        relative = error / scale if scale else error
        found.append(Seen(count, height, width, error, relative, cosine, precision))
    return found


def worst(seen: list[Seen]) -> Seen:
    """The size at which features are furthest apart; one with numbers that are not finite before all others."""
    return max(seen, key=lambda one: one.relative if one.relative == one.relative else float("inf"))


def judge(seen: list[Seen], bound: float, *, name: str) -> None:
    """Nothing that computes other features passes.

    Raises:
        WeightsError: A size at which they are further apart than the bound.
    """
    wrong = [one for one in seen if not one.within(bound)]
    if wrong:
        one = worst(wrong)
        half = one.precision == "bf16"
        limits = f"{HALF_RELATIVE if half else bound:g} and {HALF_COSINE if half else COSINE}"
        raise WeightsError(
            f"{name}: features differ by {one.relative:.2g} of their greatest and a cosine of {one.cosine:.6f} at "
            f"{one.images}x{one.height}x{one.width} (images, rows, columns) in {one.precision}; {limits} are the bounds. "
            "Nothing is kept."
        )
