"""What the numbers of a source's pixels are like: per channel mean, deviation, extremes, percentiles; types and sizes.

Axes: P pixels, C channels, L levels of a type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field

from dinoforge.base.config import Config, Count, Ranges
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.picture import HIGHEST, MAX_PIXELS, Broken, Reading, damage, unit
from dinoforge.data.sources.source import Source

PERCENTILES = (0.5, 99.5)
"""Between them a range is proposed: a few dead or glaring pixels must not cost the others their levels."""
_LOOKED_AT = 64
"""Images whose headers tell how many channels the source has."""


class StatsConfig(Config):
    """What is measured, and of how many images."""

    images: Count = Field(default=10_000, gt=0)
    """First so many images, strewn over a source sorted by class."""
    channels: int | None = Field(default=None, gt=0)
    """Channels to measure; null: as most of the first images have, RGB where any of them is."""
    range: Ranges | None = None
    """Numbers that become 0 and 1, one pair or one a channel; null: proposed where 8 bits do not say it."""
    max_pixels: Count = Field(default=MAX_PIXELS, gt=0)
    """Larger images are set aside as decompression bombs."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and sum of squared deviations of so many pixels; two of them add up without loss of precision.

    The update of Chan, Golub and LeVeque (1979), so parts may be measured anywhere and joined in any order.
    """

    count: int
    mean: Float[np.ndarray, " C"]
    squares: Float[np.ndarray, " C"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "P C"], weights: Int[np.ndarray, "P C"] | None = None) -> Moments:
        """Of these values, each counted as often as ``weights`` say, equally often over all in each channel."""
        values = values.astype(np.float64)
        if weights is None:
            mean = values.mean(0)
            return cls(len(values), mean, ((values - mean) ** 2).sum(0))
        count = int(weights[:, 0].sum())
        mean = (weights * values).sum(0) / count
        return cls(count, mean, (weights * (values - mean) ** 2).sum(0))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
        )

    @property
    def std(self) -> Float[np.ndarray, " C"]:
        """Standard deviation over all pixels."""
        return np.sqrt(self.squares / self.count)


@dataclass
class Levels:
    """How often each level of a type occurs, in numbers of the file: exact for 8 and 16 bits.

    Other numbers share a level when the first 16 bits of their float32 agree, which is within 0.8 % of their size.
    """

    kind: np.dtype
    counts: Int[np.ndarray, "L C"]

    @classmethod
    def of(cls, pixels: Shaped[np.ndarray, "P C"]) -> Levels:
        """Of these pixels; numbers that are not finite do not count."""
        kind, size = pixels.dtype, HIGHEST.get(pixels.dtype, 65535) + 1
        columns = []
        for column in pixels.T:
            keys = column if kind in HIGHEST else _float_keys(column.astype(np.float32))
            columns.append(np.bincount(keys, minlength=size))
        return cls(kind, np.stack(columns, axis=1))

    def add(self, other: Levels) -> None:
        """Count the other's too; of the same type."""
        self.counts += other.counts

    def edges(self) -> Float[np.ndarray, " L"]:
        """The lowest number of every level."""
        numbers = np.arange(len(self.counts))
        return numbers.astype(np.float64) if self.kind in HIGHEST else _float_values(numbers)


def _float_keys(column: Float[np.ndarray, " P"]) -> Int[np.ndarray, " n"]:
    """Levels 0 to 65535 of finite numbers, in their order."""
    bits = column[np.isfinite(column)].view(np.uint32)
    return (np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> 16).astype(np.int64)


def _float_values(keys: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L"]:
    """The lowest number of each level."""
    bits = keys.astype(np.uint32) << 16
    found = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):  # the outermost levels stand for no number, and nothing is counted there
        return np.nan_to_num(found.astype(np.float64), nan=np.inf)


@dataclass
class Stats:
    """What was found."""

    channels: int
    range: tuple[tuple[float, float], ...] | None = None
    """What became 0 and 1; null: 0 and the type's highest."""
    moments: Moments | None = None
    """Of numbers from 0 to 1."""
    levels: dict[np.dtype, Levels] = field(default_factory=dict)
    """Of the file's numbers."""
    lowest: Float[np.ndarray, " C"] | None = None
    highest: Float[np.ndarray, " C"] | None = None
    types: Counter[str] = field(default_factory=Counter)
    """Images of each type of numbers."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of every image."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why images were set aside, and how many."""

    def percentile(self, percent: float, kind: np.dtype | None = None) -> Float[np.ndarray, " C"]:
        """The number of the file below which so much of each channel lies, to the level; of one type, or of all."""
        some = [levels for levels in self.levels.values() if kind in {None, levels.kind}]
        edges = np.concatenate([levels.edges() for levels in some])
        counts = np.concatenate([levels.counts for levels in some])
        order = np.argsort(edges, kind="stable")
        below = counts[order].cumsum(0)
        place = [np.searchsorted(column, max(column[-1] * percent / 100, 1)) for column in below.T]
        return edges[order][np.minimum(place, len(order) - 1)]

    def count(self, pixels: Shaped[np.ndarray, "Y X C"]) -> None:
        """Add an image: its levels, and its moments where what 0 and 1 are is known."""
        self.types[str(pixels.dtype)] += 1
        self.sizes.append(pixels.shape[:2])
        flat = pixels.reshape(-1, self.channels)
        levels = Levels.of(flat)
        if pixels.dtype in self.levels:
            self.levels[pixels.dtype].add(levels)
        else:
            self.levels[pixels.dtype] = levels
        known = flat if flat.dtype.kind in "ui" else np.where(np.isfinite(flat), flat, np.nan)
        low, high = (pick.reduce(known, axis=0).astype(np.float64) for pick in (np.fmin, np.fmax))
        self.lowest = low if self.lowest is None else np.fmin(self.lowest, low)
        self.highest = high if self.highest is None else np.fmax(self.highest, high)
        if self.range is not None or pixels.dtype in HIGHEST:
            self.weigh(flat, levels)

    def weigh(self, flat: Shaped[np.ndarray, "P C"], levels: Levels | None = None) -> None:
        """Add an image to the moments."""
        if levels is not None and flat.dtype == np.uint8:
            every = np.repeat(np.arange(256, dtype=np.uint8)[:, None], self.channels, axis=1)
            found = Moments.of(unit(every, self.range), levels.counts)
        else:
            found = Moments.of(unit(flat, self.range))
        self.moments = found if self.moments is None else self.moments + found

    def proposed(self) -> tuple[tuple[float, float], ...] | None:
        """A range for each channel, between ``PERCENTILES``; None where those of the types serve, or no one fits them all.

        8 bits never need one, and beside 8 or 16 bits no range of another type fits: what is 0 and 1 there is known.
        """
        if not self._lacking() or (len(self.levels) > 1 and self.levels.keys() & HIGHEST.keys()):
            return None
        low, high = (self.percentile(percent) for percent in PERCENTILES)
        pairs = [(float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in zip(low, high, strict=True)]
        return tuple((a, b if b > a else a + 1) for a, b in pairs)

    def mixed(self) -> str | None:
        """What to know where types are mixed that one range does not serve, unless the range was given."""
        if len(self.levels) == 1 or not self._lacking():
            return None
        names = " and ".join(str(kind) for kind in self.levels)
        if self.range is not None:
            return f"{names} are mixed; the range fits only if their numbers are of the same unit."
        told = f"{names} are mixed and no one range fits; give them apart."
        aside = " and ".join(str(kind) for kind in self.levels if kind not in HIGHEST)
        return told + (
            f" Without one pretrain sets {aside} aside; mean and deviation are of the rest." if aside else ""
        )

    def _lacking(self) -> list[np.dtype]:
        """The types whose own range does not serve.

        It does for 8 bits, and for 16 bits of which a channel uses half; 12 bits stored in 16 would be left 16 levels.
        """
        found = []
        for kind in self.levels:
            low, high = (self.percentile(percent, kind) for percent in PERCENTILES)
            if kind not in HIGHEST or (kind != np.uint8 and (high - low).max() <= HIGHEST[kind] / 2):
                found.append(kind)
        return found


def measured(
    source: Source,
    config: StatsConfig,
    *,
    on_broken: Callable[[str, str], None],
    shown: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Stats:
    """The statistics of a source, image after image; every pixel counts the same.

    One pass; a second one where a range has to be proposed, for mean and deviation are those of numbers within it.

    Args:
        shown: Passes rows on and shows how many are done.

    Raises:
        DataError: Not one image could be used.
        ConfigError: A range for another number of channels.
    """
    channels = config.channels or _channels(source)
    if config.range is not None and len(config.range) not in {1, channels}:
        raise ConfigError(f"range is for {len(config.range)} channels, the images have {channels}.")
    found, reading = Stats(channels, config.range), Reading(channels, max_pixels=config.max_pixels)

    def set_aside(name: str, reason: str) -> None:
        found.reasons[reason] += 1
        on_broken(name, reason)

    for pixels in _pixels(source, reading, shown, set_aside):
        found.count(pixels)
    if not found.types:
        reason = next(reversed(found.reasons), "there is none").rstrip(".")
        raise DataError(f"No image of {source.address} could be used: {reason}.")
    if config.range is None:
        found.range = found.proposed()
    if config.range is None and found.range is not None:
        found.moments = None
        for pixels in _pixels(source, reading, shown, lambda *_: None):
            found.weigh(pixels.reshape(-1, channels))
    return found


def _pixels(
    source: Source,
    reading: Reading,
    shown: Callable[[Iterable[int]], Iterable[int]],
    on_broken: Callable[[str, str], None],
) -> Iterator[Shaped[np.ndarray, "Y X C"]]:
    """Every usable image, in the numbers of its file."""
    for row in shown(range(len(source))):
        try:
            with damage():
                found = reading.numbers(source.picture(row)).pixels()
        except Broken as error:
            on_broken(str(source.columns["id"][row]), str(error))
        else:
            yield found


def _channels(source: Source) -> int:
    """Channels of the first images, transparency left out: 3 where grey and RGB are mixed, else what most have."""
    counts: Counter[int] = Counter()
    for row in range(min(_LOOKED_AT, len(source))):
        try:
            with damage():
                picture = source.picture(row)
        except Broken:
            continue
        counts[picture.channels - picture.alpha] += 1
    most = counts.most_common(1)[0][0] if counts else 3
    return 3 if most == 1 and counts[3] else most
