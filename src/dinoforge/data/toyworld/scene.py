"""A picture as layers: ground, things from far to near, something in front; drawn once, with what is true of every pixel.

Space: x to the right and y down, both from -1 to 1 over the picture; distances from the eye in metres.

Axes: C colour channels, Y by X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

Plane = Float[np.ndarray, "Y X"]
Line = Float[np.ndarray, " X"]
Colour = Float[np.ndarray, "3"]
Paint = Float[np.ndarray, "2 3"]

CORE = 0.6
"""Where ``ratio`` is smaller a pixel is part 1 (core) of its thing, elsewhere part 2 (rim)."""
THICKNESS = 0.25
"""How far the middle of a thing of scale 1 stands out towards the eye, in metres."""
NEAREST, FARTHEST = 1.2, 3.2
"""Between these distances things stand; what is in front is nearer, the ground farther."""
FRONT = 0.8
"""Distance of what is in front of all things."""


def of_hue(hue: float, saturation: float, value: float) -> Colour:
    """Red, green and blue of a hue (1 is once around the wheel), a saturation and a value (HSV)."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Surface:
    """A body in its own coordinates, all ``[Y X]``."""

    inside: Plane
    """How far within the outline, in radii; 0 on it, below 0 outside."""
    ratio: Plane
    """0 in the middle, 1 on the outline: for a creature its radius over its outline's."""
    relief: Plane
    """How high it stands out, 0 on the outline to at most 1."""
    mix: Plane
    """Share of the first of its two colours, 0 to 1."""
    shade: Plane
    """Brightness by the form alone."""


@runtime_checkable
class Body(Protocol):
    """An individual: all that stays the same from picture to picture."""

    @property
    def label(self) -> int:
        """Number of its class."""
        ...

    def surface(self, u: Plane, v: Plane, sun: tuple[float, float]) -> Surface:
        """The body at the points (u, v), its outline about one unit from the middle; ``sun`` points to the light."""
        ...


@runtime_checkable
class Ground(Protocol):
    """What is behind everything."""

    def paint(self, axis: Line) -> Float[np.ndarray, "3 Y X"]:
        """Colours over the square ``axis`` by ``axis``."""
        ...


@runtime_checkable
class Front(Protocol):
    """What is in front of everything."""

    @property
    def colour(self) -> Colour:
        """The same all over, 0 to 1."""
        ...

    def cover(self, x: Plane, y: Plane) -> Plane:
        """How far within it a point is, in units of the picture; below 0 outside."""
        ...


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a body is and how it is turned."""

    x: float
    y: float
    turn: float
    """Radians."""
    scale: float
    """Its radius, where 1 is half the picture's side."""
    flip: float
    """-1 shows its mirror image, else 1."""

    def own(self, x: Plane, y: Plane) -> tuple[Plane, Plane]:
        """Points of the picture in the body's coordinates."""
        c, s = np.cos(self.turn) / self.scale, np.sin(self.turn) / self.scale
        dx, dy = x - self.x, y - self.y
        return float(c) * dx + float(s) * dy, self.flip * (float(c) * dy - float(s) * dx)

    def placed(self, u: Line, v: Line) -> tuple[Line, Line]:
        """Points of the body in the picture's coordinates: the inverse of ``own``."""
        c, s = float(np.cos(self.turn)), float(np.sin(self.turn))
        return self.x + self.scale * (c * u - s * self.flip * v), self.y + self.scale * (s * u + c * self.flip * v)

    def sun(self, angle: float) -> tuple[float, float]:
        """A direction of the picture in the body's coordinates."""
        return float(np.cos(angle - self.turn)), self.flip * float(np.sin(angle - self.turn))


@dataclass(frozen=True, slots=True)
class Thing:
    """A body in a picture."""

    body: Body
    pose: Pose
    paint: Paint
    """Its two colours, 0 to 1."""
    distance: float
    """Of its outline from the eye, in metres."""


@dataclass(frozen=True, slots=True)
class Light:
    """Of a whole picture."""

    sun: float
    """Direction it comes from, in radians."""
    slope: float
    """How much brighter a thing is on its lit side."""
    gain: float
    offset: float
    grain: float
    """Standard deviation of the noise of the sensor."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All that a picture shows, before it is drawn at some size."""

    things: tuple[Thing, ...]
    """The first is what the picture's label names; any order, the distances say what hides what."""
    ground: Ground
    front: Front | None
    light: Light


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what is true of it. A pixel belongs to the nearest thing whose outline has its middle inside."""

    pixels: UInt8[np.ndarray, "Y X 3"]
    mask: UInt8[np.ndarray, "Y X"]
    """0 for ground and front, k + 1 for a thing of class k."""
    instance: UInt8[np.ndarray, "Y X"]
    """Number of the thing in its layout, from 1; 0 for none."""
    parts: UInt8[np.ndarray, "Y X"]
    """1 core and 2 rim of a thing; 0 for none."""
    depth: UInt16[np.ndarray, "Y X"]
    """Distance from the eye in millimetres, of ground and front too; never 0."""


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Line, Plane, Plane]:
    """Middles of ``size`` pixels along an axis, and x and y of every pixel; not to be written to."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    for array in (axis, x, y):
        array.setflags(write=False)
    return axis, x, y


def blend(mix: Plane, colours: Paint) -> Float[np.ndarray, "3 Y X"]:
    """The first colour where ``mix`` is 1, the second where it is 0; plane after plane, which is what NumPy is fast at."""
    first, second = colours[:, :, None, None]
    return second + mix * (first - second)


def draw(layout: Layout, rng: np.random.Generator, *, size: int) -> Scene:
    """The picture of a layout, ``size`` pixels square; ``rng`` gives the noise of the sensor and nothing else."""
    axis, x, y = grid(size)
    light = layout.light
    picture = layout.ground.paint(axis)
    depth = 4.5 - 0.8 * y
    mask, instance, parts = (np.zeros((size, size), np.uint8) for _ in range(3))
    for number, thing in sorted(enumerate(layout.things, start=1), key=lambda pair: -pair[1].distance):
        pose = thing.pose
        surface = thing.body.surface(*pose.own(x, y), pose.sun(light.sun))
        slope = light.slope * (float(np.cos(light.sun)) * (x - pose.x) + float(np.sin(light.sun)) * (y - pose.y))
        alpha = np.clip(surface.inside * (pose.scale * size / 2) + 0.5, 0, 1)
        _lay(picture, alpha, thing.paint, surface.mix, surface.shade + slope)
        seen = surface.inside > 0
        depth = np.where(seen, thing.distance - THICKNESS * pose.scale * surface.relief, depth)
        mask[seen], instance[seen] = thing.body.label + 1, number
        parts = np.where(seen, np.where(surface.ratio < CORE, np.uint8(1), np.uint8(2)), parts)
    if layout.front is not None:
        cover = layout.front.cover(x, y)
        alpha = np.clip(cover * (size / 2) + 0.5, 0, 1)
        picture += alpha * (layout.front.colour[:, None, None] - picture)
        hidden = cover > 0
        depth = np.where(hidden, np.float32(FRONT), depth)
        mask[hidden] = instance[hidden] = parts[hidden] = 0
    picture *= light.gain
    picture += light.offset
    picture += light.grain * rng.standard_normal(picture.shape, dtype=np.float32)
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)), mask, instance, parts, (depth * 1000 + 0.5).astype(np.uint16)
    )


def _lay(picture: Float[np.ndarray, "3 Y X"], alpha: Plane, paint: Paint, mix: Plane, shade: Plane) -> None:
    """Paint a thing over the picture, in place: the caller made the picture and nobody else holds it."""
    skin = blend(mix, paint)
    skin *= shade
    skin -= picture
    skin *= alpha
    picture += skin


def visible_share(layout: Layout, *, size: int = 32) -> float:
    """How much of the first thing's outline within the picture is hidden by nothing; 0 where it is not in the picture."""
    _, x, y = grid(size)
    first, *others = layout.things

    def within(thing: Thing) -> Bool[np.ndarray, "Y X"]:
        return thing.body.surface(*thing.pose.own(x, y), (1.0, 0.0)).inside > 0

    whole = within(first)
    seen = whole.copy()
    for other in others:
        if other.distance < first.distance:
            seen &= ~within(other)
    if layout.front is not None:
        seen &= layout.front.cover(x, y) <= 0
    return float(seen.sum() / max(1, whole.sum()))


_AROUND = np.arange(8) * np.pi / 4
LANDMARKS = np.concatenate([np.zeros((1, 2)), 0.5 * np.stack([np.cos(_AROUND), np.sin(_AROUND)], axis=1)])
"""Points of a body in its own coordinates: its middle, and eight half a unit around it."""


def landmarks(thing: Thing, instance: UInt8[np.ndarray, "Y X"], *, number: int = 1) -> Float[np.ndarray, "K 3"]:
    """Where ``LANDMARKS`` of a thing are in a picture, x and y in pixels from its corner, and 1 where they can be seen.

    Args:
        instance: Of the picture, see ``Scene``.
        number: Of the thing there.
    """
    size = len(instance)
    at = (np.stack(thing.pose.placed(*LANDMARKS.T), axis=1) + 1) / 2 * size
    pixel = np.floor(at).astype(np.int64)
    within = ((pixel >= 0) & (pixel < size)).all(axis=1)
    x, y = np.clip(pixel, 0, size - 1).T
    return np.column_stack([at, within & (instance[y, x] == number)]).astype(np.float32)
