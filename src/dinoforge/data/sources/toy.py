"""``toy://species?images=1000&size=64``, ``toy://minerals``, ``toy://clips``: pictures drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError, unknown
from dinoforge.base.random import key, numpy_generator
from dinoforge.data.decode import Picture, open_picture
from dinoforge.data.sources.source import Source
from dinoforge.data.toyworld.clips import MOTIONS, film
from dinoforge.data.toyworld.pollution import COPY_KINDS, JUNK, copied, junk, png
from dinoforge.data.toyworld.scene import Layout, Scene, draw, landmarks
from dinoforge.data.toyworld.table import WORLDS

_SEEDS = 2**62
EXTRAS = ("mask", "instance", "parts", "depth")
"""Ground truth of a drawn picture that is a picture itself, see ``Scene``."""
POINTS = "keypoints"
"""What is true of some points of it, see ``landmarks``."""


class ToyConfig(Config):
    """What may stand after the question mark of a world of still pictures."""

    images: Count = Field(default=4_000, gt=0, le=100_000_000)
    """Rows of all splits together, copies and junk among them. One in five of the others is for testing."""
    size: int = Field(default=64, ge=8, le=1024)
    """Side of a picture, in pixels."""
    seed: int = Field(default=0, ge=0, lt=_SEEDS)
    """Of the world: other seeds, other individuals."""
    split: str | None = None
    """``train`` or ``test``; null has both."""
    views: int = Field(default=4, ge=1, le=1000)
    """Pictures of each individual; fewer where there would be less than five individuals."""
    objects: int = Field(default=1, ge=1, le=4)
    """Individuals in a picture; the label names the first."""
    copies: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are copies of another training picture."""
    leaks: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that are training pictures copied from a test picture."""
    junk: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that show nothing; they have label -1."""
    imbalance: float = Field(default=1.0, ge=1, le=10_000)
    """How many times as frequent the commonest class of the train split is as the rarest; geometric in between."""


class ClipsConfig(Config):
    """What may stand after the question mark of ``toy://clips``."""

    clips: Count = Field(default=400, gt=0, le=10_000_000)
    """Clips of all splits together; one in five is for testing."""
    frames: int = Field(default=8, ge=1, le=1000)
    """Pictures of a clip, each a row."""
    size: int = Field(default=64, ge=8, le=1024)
    """Side of a picture, in pixels."""
    seed: int = Field(default=0, ge=0, lt=_SEEDS)
    """Of the world."""
    split: str | None = None
    """``train`` or ``test``; null has both."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Every row of a world, of both splits, whichever are kept: a copy's original may lie in the other one.

    Axes: N rows.
    """

    individual: Int[np.ndarray, " N"]
    view: Int[np.ndarray, " N"]
    label: Int[np.ndarray, " N"]
    test: Int[np.ndarray, " N"]
    role: Int[np.ndarray, " N"]
    """Index in ``ROLES``."""
    kind: Int[np.ndarray, " N"]
    """Which kind of copy or junk."""
    number: Int[np.ndarray, " N"]
    """Counts copies, leaks and junk, each from 0."""
    original: Int[np.ndarray, " N"]
    """Row that a copy was made from, else -1."""


ROLES = ("plain", "copy", "leak", "junk")


def _labels(config: ToyConfig, individual: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, " n"]:
    """The class of each individual, even in test, as skewed as asked for in train.

    Multiples of the golden section fall evenly over 0 to 1, so any number of individuals has about the shares asked
    for, and yet each one's class is known without the others.
    """
    rank = np.arange(classes)
    order = numpy_generator(config.seed, "common classes").permutation(classes)
    even, skewed = np.ones(classes), config.imbalance ** (-rank / (classes - 1))
    test = individual % 5 == 4
    number = np.where(test, individual // 5, individual - individual // 5)
    start = key(config.seed, "first class") / 2**63
    place = (start + number * ((5**0.5 - 1) / 2)) % 1.0
    found = np.zeros(len(individual), dtype=np.int64)
    for rows, weight in ((test, even), (~test, skewed)):
        edges = np.cumsum(weight)[:-1] / weight.sum()
        found[rows] = order[np.searchsorted(edges, place[rows], side="right")]
    return found


def _counts(config: ToyConfig, world: str) -> list[int]:
    """How many rows are copies, leaks and junk.

    Raises:
        ConfigError: Shares that leave no plain picture, or no test picture to leak.
    """
    shares = (config.copies, config.leaks, config.junk)
    counts = [round(share * config.images) for share in shares]
    plain = config.images - sum(counts)
    if sum(shares) >= 1 or plain < 1:
        raise ConfigError(
            f"toy://{world}?copies, leaks and junk must be below 1 together and leave a picture; got "
            f"{' + '.join(f'{share:g}' for share in shares)} of {config.images} images."
        )
    if counts[1] and plain < 5:
        raise ConfigError(
            f"toy://{world}?leaks={config.leaks:g} needs a test picture to copy, one in five of the plain ones, and "
            f"images={config.images} leaves {plain} of those; give more images."
        )
    return counts


def _table(config: ToyConfig, world: str, classes: int) -> _Table:
    """All rows: plain ones view after view, the others strewn among them."""
    counts = _counts(config, world)
    plain = config.images - sum(counts)
    individuals = -(-plain // (5 * config.views)) * 5
    numbers = np.arange(plain)
    individual, view = numbers % individuals, numbers // individuals
    test = (individual % 5 == 4).astype(np.int64)
    label = _labels(config, individual, classes)

    # Where a row lies in the finished table: the others at even distances, in random order.
    others = sum(counts)
    places = (np.arange(others) * 2 + 1) * config.images // max(1, 2 * others)
    at = np.setdiff1d(np.arange(config.images), places)
    role = np.repeat([1, 2, 3], counts)
    number = np.concatenate([np.arange(count) for count in counts])
    rng = numpy_generator(config.seed, f"{world} pollution")
    mixed = rng.permutation(others)
    role, number = role[mixed], number[mixed]
    kind = np.where(role == 3, number % len(JUNK), number % len(COPY_KINDS))
    chosen = np.full(others, -1)
    for which, pool in ((1, np.flatnonzero(test == 0)), (2, np.flatnonzero(test == 1))):
        chosen[role == which] = pool[rng.integers(0, max(1, len(pool)), int((role == which).sum()))]

    def joined(of_plain: np.ndarray, of_others: np.ndarray) -> np.ndarray:
        column = np.empty(config.images, dtype=np.int64)
        column[at], column[places] = of_plain, of_others
        return column

    is_copy = chosen >= 0
    return _Table(
        individual=joined(individual, np.where(is_copy, individual[chosen], -1)),
        view=joined(view, np.where(is_copy, view[chosen], -1)),
        label=joined(label, np.where(is_copy, label[chosen], -1)),
        test=joined(test, np.zeros(others)),
        role=joined(np.zeros(plain), role),
        kind=joined(np.full(plain, -1), kind),
        number=joined(np.full(plain, -1), number),
        original=joined(np.full(plain, -1), np.where(is_copy, at[chosen], -1)),
    )


class Pictures(Source):
    """Individuals of a world, each in some pictures. Test individuals and their surroundings are in no plain training picture.

    Columns besides the usual: ``group`` is the individual's number (-1 for junk); ``role`` (plain, copy, leak, junk),
    ``copy_of`` (the original's id), ``copy_kind``, ``copy_strength`` (unit by kind, NaN where there is none), ``junk_kind``.
    """

    def __init__(self, world: str, config: ToyConfig) -> None:
        self.address, self._config, self._world = f"toy://{world}", config, world
        classes = WORLDS[world].classes
        self._rows = rows = _table(config, world, len(classes))
        test = rows.test == 1
        self._kept = kept = np.flatnonzero(test == (config.split == "test")) if config.split else np.arange(len(test))
        names, kinds, junks = np.asarray([*classes, ""]), np.asarray([*COPY_KINDS, ""]), np.asarray([*JUNK, ""])
        copy = rows.original >= 0
        self.columns = {
            "id": np.asarray([self._id(row) for row in kept.tolist()], dtype=np.str_),
            "label": rows.label[kept],
            "label_name": names[rows.label[kept]],
            "split": np.where(test, "test", "train")[kept],
            "group": rows.individual[kept],
            "role": np.asarray(ROLES)[rows.role[kept]],
            "copy_of": np.asarray(
                [self._id(row) if row >= 0 else "" for row in rows.original[kept].tolist()], dtype=np.str_
            ),
            "copy_kind": kinds[np.where(copy, rows.kind, -1)[kept]],
            "copy_strength": self._strengths(kept),
            "junk_kind": junks[np.where(rows.role == 3, rows.kind, -1)[kept]],
        }

    def _id(self, row: int) -> str:
        """Names all that the picture depends on."""
        config, rows = self._config, self._rows
        edition = WORLDS[self._world].edition
        place = f"{self._world}{f'.{edition}' if edition > 1 else ''}/{config.seed}/{config.size}"
        place += f"x{config.objects}" if config.objects > 1 else ""
        place += f"/skew{config.imbalance:g}" if config.imbalance > 1 else ""
        role = ROLES[rows.role[row]]
        if role == "plain":
            return f"{place}/{rows.individual[row]}-{rows.view[row]}"
        if role == "junk":
            return f"{place}/junk-{rows.number[row]}"
        of = f"{rows.individual[row]}-{rows.view[row]}"
        return f"{place}/{role}-{rows.number[row]}-of-{of}"

    def _strengths(self, kept: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        strengths = np.full(len(kept), np.nan)
        for place in np.flatnonzero(self._rows.original[kept] >= 0).tolist():
            kind = COPY_KINDS[tuple(COPY_KINDS)[self._rows.kind[kept[place]]]]
            strengths[place] = kind.strength(self._rng(int(kept[place]), "strength"))
        return strengths

    def _rng(self, row: int, purpose: str) -> np.random.Generator:
        """A generator of a row that is no plain picture."""
        rows = self._rows
        return numpy_generator(self._config.seed, f"{ROLES[rows.role[row]]} {purpose}", int(rows.number[row]))

    def _scene(self, row: int) -> Scene:
        """A plain picture with its ground truth."""
        layout, rng = self._layout(row)
        return draw(layout, rng, size=self._config.size)

    def _layout(self, row: int) -> tuple[Layout, np.random.Generator]:
        """What a plain picture shows, and the generator that it is drawn with."""
        config, world, rows = self._config, WORLDS[self._world], self._rows
        split = "test" if rows.test[row] else "train"
        individual, view = int(rows.individual[row]), int(rows.view[row])
        first = world.body(int(rows.label[row]), numpy_generator(config.seed, f"{split} individual", individual))
        rng = numpy_generator(config.seed, f"{split} picture", individual, view)
        others = [world.body(int(rng.integers(len(world.classes))), rng) for _ in range(config.objects - 1)]
        return world.arrange([first, *others], rng), rng

    def encoded(self, row: int) -> bytes:
        """The picture as a PNG file, or what kind of file a copy is; an exact copy has its original's bytes."""
        at, kind = self._whole(row)
        if kind is None:
            return png(self._scene(at).pixels)
        if self._rows.original[at] < 0:
            return junk(kind, self._config.size, self._rng(at, "picture"))
        pixels = self._scene(int(self._rows.original[at])).pixels
        return copied(kind, pixels, float(self.columns["copy_strength"][row]), self._rng(at, "picture"))

    def stamp(self, row: int) -> str:
        """Nothing: the id names all that a picture depends on."""
        return ""

    def picture(self, row: int) -> Picture:
        """The picture itself, for a plain one without the way through a file.

        Raises:
            Broken: Junk of that kind.
        """
        at, kind = self._whole(row)
        return Picture.of(self._scene(at).pixels) if kind is None else open_picture(self.encoded(row))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask``, ``instance``, ``parts``, ``depth`` of the picture (see ``Scene``); a copy has its original's, moved along.

        And ``keypoints`` of the first thing of a picture that is no copy. None for junk, and for a copy with text: the
        letters stand in front of what was true.
        """
        at, kind = self._whole(row)
        if name == POINTS and kind is None:
            layout, rng = self._layout(at)
            return landmarks(layout.things[0], draw(layout, rng, size=self._config.size).instance)
        if name not in EXTRAS:
            return None
        if kind is None:
            return np.asarray(getattr(self._scene(at), name))
        original = int(self._rows.original[at])
        follow = COPY_KINDS[kind].follow if original >= 0 else None
        if follow is None:
            return None
        truth = getattr(self._scene(original), name)
        moved = follow(truth, float(self.columns["copy_strength"][row]), self._rng(at, "picture"))
        return np.ascontiguousarray(moved)

    def _whole(self, row: int) -> tuple[int, str | None]:
        """The row among all splits, and the kind of copy or junk that it is."""
        at = int(self._kept[row])
        if self._rows.role[at] == 0:
            return at, None
        return at, tuple(COPY_KINDS if self._rows.original[at] >= 0 else JUNK)[self._rows.kind[at]]


class Clips(Source):
    """Clips of one moving creature, a row a frame; the label is the motion. Test clips share nothing with training ones.

    Columns besides the usual: ``clip`` and ``frame``, from 0; ``group`` is the clip.
    """

    def __init__(self, config: ClipsConfig) -> None:
        self.address, self._config = "toy://clips", config
        clips = np.arange(config.clips)
        if config.split:
            clips = clips[(clips % 5 == 4) == (config.split == "test")]
        clip, frame = np.repeat(clips, config.frames), np.tile(np.arange(config.frames), len(clips))
        motions = [key(config.seed, "motion", int(number)) % len(MOTIONS) for number in clips.tolist()]
        label = np.repeat(np.asarray(motions, dtype=np.int64), config.frames)
        place = f"clips/{config.seed}/{config.size}/{config.frames}"
        self.columns = {
            "id": np.asarray(
                [f"{place}/{c}-{f}" for c, f in zip(clip.tolist(), frame.tolist(), strict=True)], dtype=np.str_
            ),
            "label": label,
            "label_name": np.asarray(tuple(MOTIONS))[label],
            "split": np.where(clip % 5 == 4, "test", "train"),
            "group": clip,
            "clip": clip.astype(np.str_),
            "frame": frame,
        }

    def _layout(self, row: int) -> tuple[Layout, np.random.Generator]:
        """What a frame shows, and the generator that it is drawn with."""
        config, columns = self._config, self.columns
        clip, frame, split = int(columns["group"][row]), int(columns["frame"][row]), str(columns["split"][row])
        layouts = film(
            str(columns["label_name"][row]), numpy_generator(config.seed, f"{split} clip", clip), frames=config.frames
        )
        return layouts[frame], numpy_generator(config.seed, f"{split} frame", clip, frame)

    def _scene(self, row: int) -> Scene:
        layout, noise = self._layout(row)
        return draw(layout, noise, size=self._config.size)

    def encoded(self, row: int) -> bytes:
        """The frame as a PNG file."""
        return png(self._scene(row).pixels)

    def stamp(self, row: int) -> str:
        """Nothing: the id names all that a clip depends on."""
        return ""

    def picture(self, row: int) -> Picture:
        """The frame itself, without the way through a file."""
        return Picture.of(self._scene(row).pixels)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask``, ``instance``, ``parts``, ``depth`` of the frame, see ``Scene``, and ``keypoints`` of the creature."""
        if name == POINTS:
            return landmarks(self._layout(row)[0].things[0], self._scene(row).instance)
        return np.asarray(getattr(self._scene(row), name)) if name in EXTRAS else None


def open_toy(world: str, options: Mapping[str, str]) -> Source:
    """The toy world of that name.

    Raises:
        ConfigError: No such world, option or value, or values that exclude each other.
    """
    if world not in {*WORLDS, "clips"}:
        raise unknown("toy world", world, [*WORLDS, "clips"])
    settings: type[Config] = ClipsConfig if world == "clips" else ToyConfig
    unknown_option = next((name for name in options if name not in settings.model_fields), None)
    if unknown_option:
        raise unknown(f"option of toy://{world}", unknown_option, settings.model_fields)
    if options.get("split") not in {None, "train", "test"}:
        raise unknown(f"split of toy://{world}", options["split"], ["train", "test"])
    config = settings.build(options, prefix=f"toy://{world}?")
    return Clips(config) if world == "clips" else Pictures(world, config)
