"""A small world with exact ground truth: textured creatures of twelve species, drawn in NumPy.

A species is an outline (how many lobes, how deep, how long) with a coat (stripes, spots, rings …). Everything else changes from
picture to picture and says nothing of the species: both colours, pose, size, place, light, background, what stands in front.

Axes: Y by X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

Plane = Float[np.ndarray, "Y X"]


@dataclass(frozen=True, slots=True)
class Species:
    """What does not change between two animals of one species."""

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
    return np.cos(np.pi * pitch * np.hypot(u, v))


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
class Scene:
    """A picture and what is true of it."""

    pixels: UInt8[np.ndarray, "Y X 3"]
    mask: Bool[np.ndarray, "Y X"]
    """True where the animal is seen."""


def render(species: Species, rng: np.random.Generator, *, size: int) -> Scene:
    """One picture of one animal of the species, ``size`` pixels square."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    picture = _background(rng, y, x)

    # The animal's own coordinates: moved, turned, scaled, and squeezed to its length.
    turn, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.42, 0.78)
    middle = rng.uniform(-0.3, 0.3, size=2)
    flip = rng.choice((-1.0, 1.0))
    dx, dy = (x - middle[0]) / scale, (y - middle[1]) / scale
    stretch = np.sqrt(species.length * rng.uniform(0.92, 1.08))
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / stretch
    v = flip * (np.cos(turn) * dy - np.sin(turn) * dx) * stretch
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    outline = 1 + species.depth * rng.uniform(0.85, 1.15) * np.cos(species.lobes * angle)
    wobble = sum(rng.normal(0, 0.02) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    inside = outline + wobble - radius  # above 0 inside, in radii
    alpha = np.clip(inside * scale * size / 2 + 0.5, 0, 1)

    coat = COATS[species.coat](u, v, species.pitch * rng.uniform(0.88, 1.12))
    mix = 1 / (1 + np.exp(-5 * coat))[..., None]
    light, dark = _two_colours(rng)
    skin = mix * light + (1 - mix) * dark

    # A dome lit from one side: the height falls towards the outline.
    height = np.sqrt(np.clip(inside, 0, 1))
    sun = rng.uniform(0, 2 * np.pi)
    shade = (
        0.55 + 0.45 * height + rng.uniform(0.1, 0.4) * (np.cos(sun) * (x - middle[0]) + np.sin(sun) * (y - middle[1]))
    )
    picture += alpha[..., None] * (skin * shade[..., None] - picture)

    front = _in_front(rng, y, x)
    if front is not None:
        cover, colour = front
        picture += cover[..., None] * (colour - picture)
        alpha = alpha * (1 - cover)

    picture = picture * rng.uniform(0.7, 1.2) + rng.uniform(-0.08, 0.08)
    picture += rng.uniform(0.0, 0.05) * rng.standard_normal(picture.shape, dtype=np.float32)
    return Scene((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), alpha > 0.5)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A light and a dark colour that say nothing of the species; which is which is drawn too."""
    first, second = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    first, second = 0.45 + 0.55 * first, 0.5 * second
    return (first, second) if rng.random() < 0.5 else (second, first)


def _background(rng: np.random.Generator, y: Plane, x: Plane) -> Float[np.ndarray, "Y X 3"]:
    """A few waves between two colours: meadow, sand or water, never two the same."""
    waves = np.zeros_like(x)
    for _ in range(4):
        frequency, turn = rng.uniform(0.5, 9.0), rng.uniform(0, 2 * np.pi)
        waves += rng.uniform(0.3, 1.0) * np.sin(
            frequency * (np.cos(turn) * x + np.sin(turn) * y) + rng.uniform(0, 2 * np.pi)
        )
    mix = (1 / (1 + np.exp(-waves * rng.uniform(0.5, 3.0))))[..., None]
    one, other = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    return mix * one + (1 - mix) * other


def _in_front(rng: np.random.Generator, y: Plane, x: Plane) -> tuple[Plane, np.ndarray] | None:
    """In half of the pictures a blade of grass stands before the animal."""
    if rng.random() < 0.5:
        return None
    turn, shift, half = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6), rng.uniform(0.04, 0.14)
    distance = np.abs(np.cos(turn) * x + np.sin(turn) * y - shift + 0.05 * np.sin(3 * (x - y)))
    return np.clip((half - distance) * len(x) / 2 + 0.5, 0, 1), rng.uniform(0, 1, 3).astype(np.float32)
