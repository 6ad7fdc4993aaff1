"""Creatures of twelve species in meadow, sand or water.

A species is an outline (how many lobes, how deep, how long) with a coat (stripes, spots, rings …), and most of its creatures
are of a like hue. An individual has its own proportions, its own unevenness, its hue, and its coat in its own place.
Everything else changes from picture to picture and says nothing of the species: how full and how bright both colours are,
pose, size, place, light, ground, what stands in front.

Axes: Y by X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dinoforge.data.toyworld.scene import Body, Colour, Light, Line, Paint, Plane, Surface, blend, of_hue
from dinoforge.data.toyworld.world import World


@dataclass(frozen=True, slots=True)
class Species:
    """What does not change between two creatures of one species."""

    name: str
    lobes: int
    """Bulges around the outline."""
    depth: float
    """How far they stand out, as a share of the radius."""
    length: float
    """Length over width of the body."""
    coat: str
    """Pattern; a name in ``COATS``."""
    pitch: float
    """Repeats of the pattern across the body."""


TYPICAL = 0.95
"""Share of creatures that have the hue of their species; the others have any."""
HUE_SPREAD = 0.02
"""Standard deviation of that hue, in turns of the wheel; the next species' is 1/12 away."""

SPECIES = (
    Species("ribbon ray", 2, 0.05, 2.1, "stripes", 5.0),
    Species("tiger star", 5, 0.34, 1.0, "stripes", 6.0),
    Species("moon disc", 0, 0.0, 1.0, "rings", 3.5),
    Species("target urchin", 9, 0.16, 1.0, "rings", 5.0),
    Species("leopard bean", 2, 0.16, 1.6, "spots", 5.0),
    Species("dotted clover", 3, 0.32, 1.0, "spots", 7.0),
    Species("harlequin", 4, 0.20, 1.0, "checks", 4.0),
    Species("chequered worm", 2, 0.0, 2.6, "checks", 6.0),
    Species("pinwheel", 6, 0.24, 1.0, "spokes", 6.0),
    Species("sun pod", 2, 0.10, 1.5, "spokes", 10.0),
    Species("marbled cross", 4, 0.40, 1.0, "marble", 2.5),
    Species("cloud egg", 1, 0.12, 1.35, "marble", 4.0),
)


def _stripes(u: Plane, v: Plane, pitch: float) -> Plane:
    return np.sin(np.pi * pitch * u)


def _rings(u: Plane, v: Plane, pitch: float) -> Plane:
    return np.cos(np.pi * pitch * np.sqrt(u * u + v * v))


def _spots(u: Plane, v: Plane, pitch: float) -> Plane:
    return 2.6 * np.cos(np.pi * pitch * u) * np.cos(np.pi * pitch * v) - 1.0


def _checks(u: Plane, v: Plane, pitch: float) -> Plane:
    return 3.0 * np.sin(np.pi * pitch * u) * np.sin(np.pi * pitch * v)


def _spokes(u: Plane, v: Plane, pitch: float) -> Plane:
    return np.sin(pitch * np.arctan2(v, u))


def _marble(u: Plane, v: Plane, pitch: float) -> Plane:
    return np.sin(np.pi * pitch * (u + 0.5 * np.sin(pitch * 1.7 * v) + 0.3 * np.sin(pitch * 3.1 * u + 1.0)))


COATS = {"stripes": _stripes, "rings": _rings, "spots": _spots, "checks": _checks, "spokes": _spokes, "marble": _marble}


@dataclass(frozen=True, slots=True)
class Creature:
    """One individual of a species."""

    label: int
    species: Species
    stretch: float
    """Root of its length over its width."""
    depth: float
    """How far its lobes stand out, in radii."""
    wobble: tuple[tuple[int, float, float], ...]
    """Unevenness of its outline: waves around it, their height in radii, their phase."""
    pitch: float
    shift: tuple[float, float]
    """Where its coat has its middle, in radii."""
    hue: float
    """Of its coat, in turns of the wheel."""

    def surface(self, u: Plane, v: Plane, sun: tuple[float, float]) -> Surface:
        """A dome under a coat; the sun of the picture does all the shading."""
        u, v = u / self.stretch, v * self.stretch
        radius, angle = np.sqrt(u * u + v * v), np.arctan2(v, u)
        outline = 1 + self.depth * np.cos(self.species.lobes * angle)
        for waves, height, phase in self.wobble:
            outline += height * np.cos(waves * angle + phase)
        inside = outline - radius
        coat = COATS[self.species.coat](u - self.shift[0], v - self.shift[1], self.pitch)
        relief = np.sqrt(np.clip(inside, 0, 1))
        return Surface(inside, radius / outline, relief, 1 / (1 + np.exp(-5 * coat)), 0.55 + 0.45 * relief)


def creature(label: int, rng: np.random.Generator) -> Creature:
    """An individual of ``SPECIES[label]``."""
    species = SPECIES[label]
    typical = label / len(SPECIES) + rng.normal(0, HUE_SPREAD)
    return Creature(
        label=label,
        species=species,
        stretch=float(np.sqrt(species.length * rng.uniform(0.92, 1.08))),
        depth=species.depth * rng.uniform(0.85, 1.15),
        wobble=tuple((waves, rng.normal(0, 0.02), rng.uniform(0, 2 * np.pi)) for waves in (2, 3, 5)),
        pitch=species.pitch * rng.uniform(0.88, 1.12),
        shift=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        hue=typical if rng.random() < TYPICAL else rng.random(),
    )


def coat_colours(body: Body, rng: np.random.Generator) -> Paint:
    """A light and a dark colour near the creature's own hue, fuller in one picture than in another; which is which is drawn."""
    assert isinstance(body, Creature)
    light = of_hue(body.hue + rng.normal(0, 0.02), rng.uniform(0.35, 0.8), rng.uniform(0.7, 1.0))
    dark = of_hue(body.hue + rng.normal(0.08, 0.04), rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.45))
    return np.stack([light, dark] if rng.random() < 0.5 else [dark, light])


@dataclass(frozen=True, slots=True)
class Meadow:
    """A few waves between two colours: meadow, sand or water, never two the same."""

    waves: Float[np.ndarray, "W 4"]
    """Height, frequency along x and along y, phase."""
    colours: Paint

    def paint(self, axis: Line) -> Float[np.ndarray, "3 Y X"]:
        """Colours over the square ``axis`` by ``axis``."""
        height, along_x, along_y, phase = (column[None, :] for column in self.waves.T)
        across, down = axis[:, None] * along_x + phase, axis[:, None] * along_y
        # sin(across + down) by its two products: two small matrices instead of a plane a wave
        left = np.concatenate([height * np.cos(down), height * np.sin(down)], axis=1)
        heights = left @ np.concatenate([np.sin(across), np.cos(across)], axis=1).T
        return blend(1 / (1 + np.exp(-heights)), self.colours)


def meadow(_body: Body, rng: np.random.Generator) -> Meadow:
    """Whatever the creature: four waves of any direction under a contrast of its own."""
    turn, contrast = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.5, 3.0)
    frequency = rng.uniform(0.5, 9.0, 4)
    waves = [
        rng.uniform(0.3, 1.0, 4) * contrast,
        frequency * np.cos(turn),
        frequency * np.sin(turn),
        rng.uniform(0, 2 * np.pi, 4),
    ]
    return Meadow(np.stack(waves, axis=1).astype(np.float32), rng.random((2, 3), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Blade:
    """A blade of grass across the whole picture."""

    turn: float
    shift: float
    half: float
    """Half its width, where the picture is 2 wide."""
    colour: Colour

    def cover(self, x: Plane, y: Plane) -> Plane:
        """How far within it a point is."""
        c, s = float(np.cos(self.turn)), float(np.sin(self.turn))
        return self.half - np.abs(c * x + s * y - self.shift + 0.05 * np.sin(3 * (x - y)))


def blade(rng: np.random.Generator) -> Blade:
    """A blade of any direction, not far from the middle."""
    return Blade(
        turn=rng.uniform(0, np.pi),
        shift=rng.uniform(-0.6, 0.6),
        half=rng.uniform(0.04, 0.14),
        colour=rng.random(3, dtype=np.float32),
    )


def daylight(rng: np.random.Generator) -> Light:
    """Sun from any side, an exposure and a sensor of its own."""
    return Light(
        sun=rng.uniform(0, 2 * np.pi),
        slope=rng.uniform(0.1, 0.4),
        gain=rng.uniform(0.7, 1.2),
        offset=rng.uniform(-0.08, 0.08),
        grain=rng.uniform(0.0, 0.05),
    )


WORLD = World("species", tuple(species.name for species in SPECIES), creature, coat_colours, meadow, blade, daylight)
