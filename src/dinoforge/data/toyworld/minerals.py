"""Stones and crystals of twelve kinds on a tray or in rubble: another domain than the creatures.

A kind is a habit (which solid: prism, plate, needles, grapes …) with a texture (bands, veins, grains, facets …). An
individual has its own angles and faces, its own grain, and lies in rock of its own hue, which most minerals of a kind share.
Colours are muted, grounds are rough and pale, faces catch the light one by one.

Axes: S solids of a body, F faces of a solid, G grapes, Y by X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from dinoforge.data.toyworld.scene import Body, Colour, Light, Line, Paint, Plane, Surface, blend, of_hue
from dinoforge.data.toyworld.world import World

Solids = Float[np.ndarray, "S F 3"]
_CELLS = 16  # of an individual's table of random numbers, each way


@dataclass(frozen=True, slots=True)
class Kind:
    """What does not change between two minerals of one kind."""

    name: str
    habit: str
    """Which solids; a name in ``HABITS``, or grapes."""
    texture: str
    """A name in ``TEXTURES``."""
    pitch: float
    """Repeats of the texture over one radius."""
    bevel: float
    """How far the slanting faces reach inwards from the outline, in radii; the rest is a flat top."""


TYPICAL = 0.8
"""Share of minerals that lie in the rock of their kind; the others in any."""
ROCK_SPREAD = 0.03
"""Standard deviation of its hue, in turns of the wheel; the next kind's is 1/12 away."""

KINDS = (
    Kind("agate", "pebble", "bands", 4.0, 0.25),
    Kind("quartz", "point", "clear", 1.0, 0.9),
    Kind("rutile", "needles", "fibres", 3.0, 0.2),
    Kind("pyrite", "cube", "layers", 9.0, 0.12),
    Kind("mica", "plate", "fissures", 2.0, 0.05),
    Kind("marble", "slab", "veins", 3.0, 0.08),
    Kind("granite", "pebble", "grains", 7.0, 0.1),
    Kind("fluorite", "octahedron", "clear", 1.0, 2.0),
    Kind("malachite", "grapes", "bands", 2.5, 1.0),
    Kind("staurolite", "cross", "grains", 11.0, 0.15),
    Kind("gypsum", "slab", "fibres", 7.0, 0.1),
    Kind("garnet", "plate", "sectors", 1.0, 0.8),
)


def _prism(angles: list[float], reaches: list[float], *, x: float = 0.0, y: float = 0.0) -> Float[np.ndarray, "F 3"]:
    """Faces as (normal x, normal y, distance from the origin) of a solid around (x, y)."""
    return np.asarray(
        [(np.cos(a), np.sin(a), r + np.cos(a) * x + np.sin(a) * y) for a, r in zip(angles, reaches, strict=True)],
        dtype=np.float32,
    )


def _regular(faces: int, rng: np.random.Generator, *, uneven: float) -> Solids:
    step = 2 * np.pi / faces
    angles = [k * step + rng.uniform(-0.1, 0.1) * step for k in range(faces)]
    return _prism(angles, rng.uniform(1 - uneven, 1, faces).tolist())[None]


def _box(length: float, half: float, turn: float, rng: np.random.Generator) -> Float[np.ndarray, "F 3"]:
    lean = rng.uniform(-0.12, 0.12)
    angles = [turn + k * np.pi / 2 + (lean if k % 2 else 0.0) for k in range(4)]
    return _prism(angles, [length, half, length * rng.uniform(0.9, 1), half])


def _pebble(rng: np.random.Generator) -> Solids:
    return _regular(int(rng.integers(7, 11)), rng, uneven=0.3)


def _point(rng: np.random.Generator) -> Solids:
    tip, half = rng.uniform(0.5, 0.7), rng.uniform(0.36, 0.44)
    return _prism([0.0, tip, np.pi / 2, np.pi, -np.pi / 2, -tip], [1.3, 1.0, half, 1.1, half, 1.0])[None]


def _needles(rng: np.random.Generator) -> Solids:
    turns = np.arange(5) * np.pi / 5 + rng.uniform(-0.2, 0.2, 5)
    return np.stack([_box(rng.uniform(0.9, 1.35), rng.uniform(0.07, 0.13), turn, rng) for turn in turns.tolist()])


def _cube(rng: np.random.Generator) -> Solids:
    return _box(0.85, rng.uniform(0.75, 0.9), 0.0, rng)[None]


def _plate(rng: np.random.Generator) -> Solids:
    return _regular(6, rng, uneven=0.15)


def _slab(rng: np.random.Generator) -> Solids:
    return _box(1.15, rng.uniform(0.5, 0.65), 0.0, rng)[None]


def _octahedron(rng: np.random.Generator) -> Solids:
    lean = rng.uniform(0.62, 0.9)
    reach = rng.uniform(0.7, 0.8)
    return _prism([lean, np.pi - lean, np.pi + lean, -lean], [reach] * 4)[None]


def _cross(rng: np.random.Generator) -> Solids:
    turn = rng.uniform(np.pi / 3, np.pi / 2)
    return np.stack([_box(1.1, rng.uniform(0.24, 0.34), turn * k, rng) for k in range(2)])


HABITS = {"pebble": _pebble, "point": _point, "needles": _needles, "cube": _cube, "plate": _plate, "slab": _slab,
          "octahedron": _octahedron, "cross": _cross}  # fmt: skip
"""Solids with plane faces."""


@dataclass(frozen=True, slots=True)
class Mineral:
    """One individual of a kind."""

    label: int
    kind: Kind
    solids: Solids | None
    """Faces of each solid; None for grapes."""
    grapes: Float[np.ndarray, "G 3"]
    """Middle and radius of each grape; empty for all others."""
    table: Float[np.ndarray, "16 16"]
    """Random numbers from 0 to 1: the individual's grain."""
    pitch: float
    gloss: float
    """How much faces differ under the light."""
    rock: float
    """Hue of the rock that it lies in, in turns of the wheel."""

    def surface(self, u: Plane, v: Plane, sun: tuple[float, float]) -> Surface:
        """Faces or grapes under a texture; each face has one brightness."""
        found = self._grapes(u, v, sun) if self.solids is None else self._faces(u, v, sun, self.solids)
        inside, ratio, relief, shade, face = found
        mix = TEXTURES[self.kind.texture](self, u, v, ratio, face)
        return Surface(inside, ratio, relief, mix, shade)

    def _faces(
        self, u: Plane, v: Plane, sun: tuple[float, float], solids: Solids
    ) -> tuple[Plane, Plane, Plane, Plane, Int[np.ndarray, "Y X"]]:
        faces = solids[:, :, :, None, None]
        lines = faces[:, :, 2] - faces[:, :, 0] * u - faces[:, :, 1] * v
        flat = lines.reshape(-1, *u.shape)
        nearest = lines.min(axis=1)
        solid = nearest.argmax(axis=0)
        inside = np.take_along_axis(nearest, solid[None], axis=0)[0]
        own = np.take_along_axis(lines.argmin(axis=1), solid[None], axis=0)[0]
        face = solid * solids.shape[1] + own
        deepest = _deepest(solids)[solid]
        relief = np.clip(inside / np.minimum(deepest, self.kind.bevel), 0, 1)
        facing = (solids[:, :, 0] * sun[0] + solids[:, :, 1] * sun[1]).reshape(-1)
        light = np.append(0.72 + self.gloss * facing, np.float32(0.82))  # the flat top comes last
        face = np.where(inside < self.kind.bevel, face, len(flat))
        return inside, np.clip(1 - inside / deepest, 0, None), relief, light[face], face

    def _grapes(
        self, u: Plane, v: Plane, sun: tuple[float, float]
    ) -> tuple[Plane, Plane, Plane, Plane, Int[np.ndarray, "Y X"]]:
        x, y, radius = self.grapes.T[:, :, None, None]
        du, dv = u - x, v - y
        reach = radius - np.sqrt(du * du + dv * dv)
        face = reach.argmax(axis=0)
        inside = np.take_along_axis(reach, face[None], axis=0)[0]
        own = self.grapes[:, 2][face]
        relief = np.sqrt(np.clip(inside / own, 0, 1))
        lit = (np.take_along_axis(du, face[None], axis=0)[0] * sun[0]
               + np.take_along_axis(dv, face[None], axis=0)[0] * sun[1]) / own  # fmt: skip
        return inside, np.clip(1 - inside / own, 0, None), relief, 0.4 + 0.45 * relief + self.gloss * lit, face


def _deepest(solids: Solids) -> Float[np.ndarray, " S"]:
    """How far the middle of each solid is from its nearest face; solids lie around the origin."""
    return solids[:, :, 2].min(axis=1)


def _bands(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    along = np.clip(ratio + 0.05 * np.sin(5 * u + 4 * v), 0, 1.999) * (body.pitch * 4)
    return body.table.reshape(-1)[along.astype(np.int64)]


def _clear(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    return np.clip(0.5 + 0.35 * np.sin(1.3 * u + 6 * body.table[0, 0]) + 0.3 * v, 0, 1)


def _sectors(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    return (face % 2).astype(np.float32) * 0.7 + 0.15


def _cell(at: Plane) -> Int[np.ndarray, "Y X"]:
    return np.floor(at).astype(np.int64) % _CELLS


def _layers(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    # Neighbouring faces are striped at right angles, as on pyrite.
    return body.table[0][_cell(np.where(face % 2 == 0, u, v) * body.pitch)]


def _fibres(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    at = v * body.pitch + 0.3 * np.sin(2 * u + 6 * body.table[1, 0])
    part = at - np.floor(at)
    return body.table[0][_cell(at)] * (1 - part) + body.table[0][_cell(at + 1)] * part


def _grains(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    bend = 0.4 * np.sin(9 * (u + v))
    return (body.table[_cell(v * body.pitch + bend), _cell(u * body.pitch - bend)] > 0.6).astype(np.float32)


def _veins(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    phase = body.table[0] * 6
    wave = (
        np.sin(body.pitch * u + phase[0] + np.sin(body.pitch * 1.3 * v + phase[1]))
        + np.sin(body.pitch * 0.8 * v - body.pitch * 0.6 * u + phase[2])
        + 0.4 * np.sin(body.pitch * 3 * (u + v) + phase[3])
    )
    return 1 / (1 + (wave / 0.15) ** 2)


def _fissures(body: Mineral, u: Plane, v: Plane, ratio: Plane, face: Int[np.ndarray, "Y X"]) -> Plane:
    """Straight thin lines in the three directions of a hexagon."""
    shift = body.table[0] * 2
    mix = np.zeros_like(u)
    for k, (c, s) in enumerate(((1.0, 0.0), (0.5, 0.866), (0.5, -0.866))):
        at = (c * u + s * v) * body.pitch + shift[k]
        mix = np.maximum(mix, np.clip(1 - np.abs(at - np.round(at)) * 9, 0, 1))
    return mix


TEXTURES = {"bands": _bands, "clear": _clear, "sectors": _sectors, "layers": _layers, "fibres": _fibres, "grains": _grains,
            "veins": _veins, "fissures": _fissures}  # fmt: skip
"""Share of the first colour at every point of a mineral."""


def mineral(label: int, rng: np.random.Generator) -> Mineral:
    """An individual of ``KINDS[label]``."""
    kind = KINDS[label]
    rock = label / len(KINDS) + rng.normal(0, ROCK_SPREAD)
    return Mineral(
        label=label,
        kind=kind,
        solids=HABITS[kind.habit](rng) if kind.habit != "grapes" else None,
        grapes=_bunch(rng) if kind.habit == "grapes" else np.zeros((0, 3), np.float32),
        table=rng.random((_CELLS, _CELLS), dtype=np.float32),
        pitch=kind.pitch * rng.uniform(0.88, 1.12),
        gloss=rng.uniform(0.15, 0.3),
        rock=rock if rng.random() < TYPICAL else rng.random(),
    )


def _bunch(rng: np.random.Generator) -> Float[np.ndarray, "G 3"]:
    """One grape in the middle and five around it."""
    turn = np.arange(5) * 2 * np.pi / 5 + rng.uniform(-0.3, 0.3, 5)
    out = rng.uniform(0.5, 0.7, 5)
    around = np.stack([out * np.cos(turn), out * np.sin(turn), rng.uniform(0.3, 0.48, 5)], axis=1)
    return np.concatenate([[[0.0, 0.0, 0.5]], around]).astype(np.float32)


def muted_colours(_body: Body, rng: np.random.Generator) -> Paint:
    """Whatever the mineral, a grey with a tinge and a fuller colour, one of them bright; which is which is drawn too."""
    grey = rng.uniform(0.15, 0.95)
    full = rng.random(3, dtype=np.float32)
    colours = np.stack([np.clip(grey + 0.06 * rng.standard_normal(3), 0, 1), full * (0.5 if grey > 0.5 else 1.0)])
    return (colours if rng.random() < 0.5 else colours[::-1]).astype(np.float32)


@lru_cache(maxsize=64)
def _spread(size: int, cells: int) -> Float[np.ndarray, "Y n"]:
    """Weights that spread ``cells`` values linearly over ``size`` pixels."""
    at = (np.arange(size) + 0.5) / size * (cells - 1)
    weight = np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1).astype(np.float32)
    weight.setflags(write=False)
    return weight


@dataclass(frozen=True, slots=True)
class Rubble:
    """Rough ground: random heights at three scales between two pale colours."""

    heights: tuple[Float[np.ndarray, "_ _"], ...]
    colours: Paint

    def paint(self, axis: Line) -> Float[np.ndarray, "3 Y X"]:
        """Colours over the square ``axis`` by ``axis``."""
        total = np.zeros((len(axis), len(axis)), np.float32)
        for heights in self.heights:
            weight = _spread(len(axis), len(heights))
            total += weight @ heights @ weight.T
        return blend(1 / (1 + np.exp(-total)), self.colours)


def rubble(body: Body, rng: np.random.Generator) -> Rubble:
    """From smooth to coarse by chance, of the hue of the mineral's own rock, pale or full, dark or light."""
    assert isinstance(body, Mineral)
    heights = tuple(
        (rng.uniform(0.2, 2.0) * rng.standard_normal((cells, cells), dtype=np.float32)).astype(np.float32)
        for cells in (4, 13, 37)
    )
    colours = [
        of_hue(body.rock + rng.normal(0, 0.02), rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.9)) for _ in range(2)
    ]
    return Rubble(heights, np.stack(colours))


@dataclass(frozen=True, slots=True)
class Ledge:
    """The edge of a rock that hides a side or a corner of the picture."""

    turn: float
    edge: float
    """Its distance from the middle, where the picture is 2 wide."""
    colour: Colour

    def cover(self, x: Plane, y: Plane) -> Plane:
        """How far within it a point is."""
        along = float(np.cos(self.turn)) * x + float(np.sin(self.turn)) * y
        across = float(np.cos(self.turn)) * y - float(np.sin(self.turn)) * x
        return along - self.edge + 0.04 * np.sin(11 * across) + 0.03 * np.sin(23 * across + 1)


def ledge(rng: np.random.Generator) -> Ledge:
    """A rock at any side."""
    grey = rng.uniform(0.1, 0.8)
    colour = np.clip(grey + 0.05 * rng.standard_normal(3), 0, 1).astype(np.float32)
    return Ledge(turn=rng.uniform(0, 2 * np.pi), edge=rng.uniform(0.3, 0.8), colour=colour)


def lamp(rng: np.random.Generator) -> Light:
    """A lamp at any side; brighter, with less fall-off and less noise than daylight."""
    return Light(
        sun=rng.uniform(0, 2 * np.pi),
        slope=rng.uniform(0.0, 0.2),
        gain=rng.uniform(0.8, 1.3),
        offset=rng.uniform(-0.05, 0.05),
        grain=rng.uniform(0.0, 0.03),
    )


WORLD = World("minerals", tuple(kind.name for kind in KINDS), mineral, muted_colours, rubble, ledge, lamp, edition=2)
