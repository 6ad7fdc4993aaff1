"""Short clips in which one creature moves in one of ten ways.

A place, an angle and a size each lie somewhere on a track of fixed length; a motion takes one of them along its track, the
others stand anywhere on theirs. So over the frames of a clip, place, angle and size are spread alike whether it goes left or
right, turns, grows or stands still: one frame says next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dinoforge.data.toyworld.scene import Layout, Pose
from dinoforge.data.toyworld.species import SPECIES, WORLD, creature

Draw = np.random.Generator

CAST = tuple(number for number, species in enumerate(SPECIES) if species.name not in {"moon disc", "target urchin"})
"""Species whose turning can be seen from one frame to the next."""

_TRACKS = {"x": 0.6, "y": 0.6, "turn": 2.0, "size": 0.7}
"""Lengths: half pictures, radians, natural logarithm of the scale."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Which track is taken, and where on it (0 to 1) the creature is at a time from 0 to 1."""

    track: str
    at: Callable[[float], float]


def _forward(time: float) -> float:
    return time


def _back(time: float) -> float:
    return 1 - time


def _to_and_fro(time: float) -> float:
    """Two and a half times across, at an even speed."""
    phase = (2.5 * time) % 2
    return phase if phase <= 1 else 2 - phase


MOTIONS: dict[str, Motion | None] = {
    "still": None,
    "left": Motion("x", _back),
    "right": Motion("x", _forward),
    "rise": Motion("y", _back),
    "fall": Motion("y", _forward),
    "spin clockwise": Motion("turn", _forward),
    "spin counterclockwise": Motion("turn", _back),
    "grow": Motion("size", _forward),
    "shrink": Motion("size", _back),
    "shake": Motion("x", _to_and_fro),
}
"""By name; a new one is a line here."""


def film(motion: str, rng: Draw, *, frames: int) -> list[Layout]:
    """The frames of one clip; creature, colours, light and surroundings are drawn once and stay."""
    body = creature(CAST[int(rng.integers(len(CAST)))], rng)
    start = WORLD.arrange([body], rng)
    middle = {
        "x": rng.uniform(-0.3, 0.3), "y": rng.uniform(-0.3, 0.3), "turn": rng.uniform(0, 2 * np.pi),
        "size": float(np.log(0.42)),
    }  # fmt: skip
    stands = {track: rng.random() for track in _TRACKS}
    moving = MOTIONS[motion]
    layouts = []
    for frame in range(frames):
        at = dict(stands)
        if moving is not None:
            at[moving.track] = moving.at(frame / max(1, frames - 1))
        value = {track: middle[track] + length * (at[track] - 0.5) for track, length in _TRACKS.items()}
        pose = Pose(value["x"], value["y"], value["turn"], float(np.exp(value["size"])), start.things[0].pose.flip)
        layouts.append(replace(start, things=(replace(start.things[0], pose=pose),)))
    return layouts
