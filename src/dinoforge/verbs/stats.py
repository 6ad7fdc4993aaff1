"""``stats``: what the pixels of a source are like, and the settings that follow from it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dinoforge.base.config import with_settings
from dinoforge.base.log import say, track
from dinoforge.data.sources.source import first_rows
from dinoforge.data.stats import PERCENTILES, Stats, StatsConfig, measured
from dinoforge.recipes.opened import training_rows
from dinoforge.verbs.opening import told


@dataclass(frozen=True, slots=True)
class Measured:
    """What the pixels are like. Lists hold a number a channel."""

    images: int
    """How many were measured."""
    rejected: int
    reasons: dict[str, int]
    """Why images were set aside, and how many."""
    channels: int
    types: dict[str, int]
    """Images of each type of numbers."""
    height: dict[str, float]
    """Lowest, median, highest, in pixels."""
    width: dict[str, float]
    min: list[float]
    """Of the numbers in the files, as the percentiles."""
    max: list[float]
    percentiles: dict[str, list[float]]
    range: list[list[float]] | None
    """Numbers that become 0 and 1; null: 0 and the type's highest."""
    mean: list[float]
    """Of numbers from 0 to 1."""
    std: list[float]
    settings: str
    """What to give to pretrain and plan."""


def stats(
    *, data: str, images: str | int = "10k", channels: str | int | None = None, range: object = None,
    max_pixels: str | int | None = None,
) -> Measured:  # fmt: skip
    """Measure the pixels of a source, channel by channel, and print the settings of pretrain that follow from them.

    Args:
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        images: First so many images, strewn over a source sorted by class.
        channels: Channels to measure; as most images have if not given, RGB where grey and RGB are mixed.
        range: Numbers that become 0 and 1, [0,10000] or a pair a channel; proposed if not given where 8 bits do not say it.
        max_pixels: Images with more are set aside.
    """
    given = {"images": images, "channels": channels, "range": range, "max_pixels": max_pixels}
    config = with_settings(StatsConfig(), {name: value for name, value in given.items() if value is not None})
    source = training_rows(data)
    some = first_rows(source, config.images)

    def shown(rows: Iterable[int]) -> Iterable[int]:
        return track(rows, "stats", len(some))

    found = measured(some, config, on_broken=told, shown=shown)
    assert found.moments is not None
    reasons = dict(found.reasons)
    for _, reason in source.rejected:
        reasons[reason] = reasons.get(reason, 0) + 1
    settings = _settings(found)
    if config.range is None and (mixed := found.mixed()) is not None:
        say(mixed)
    say(f"Settings for pretrain: {settings}")
    return Measured(
        images=sum(found.types.values()), rejected=sum(reasons.values()), reasons=reasons, channels=found.channels,
        types=dict(found.types),
        height=_spread([height for height, _ in found.sizes]), width=_spread([width for _, width in found.sizes]),
        min=_plain(found.lowest), max=_plain(found.highest),
        percentiles={f"{percent:g}": _plain(found.percentile(percent)) for percent in PERCENTILES},
        range=None if found.range is None else [list(pair) for pair in found.range],
        mean=_plain(found.moments.mean), std=_plain(found.moments.std), settings=settings,
    )  # fmt: skip


def _settings(found: Stats) -> str:
    """The settings, as a shell takes them."""
    assert found.moments is not None
    # A channel that never changes is left as it is rather than divided by nothing.
    deviation = [value if value >= 5e-5 else 1.0 for value in found.moments.std]
    words = {"data.augment.colour.mean": _list(found.moments.mean), "data.augment.colour.std": _list(deviation)}
    if found.range is not None:
        words["data.range"] = "[" + ",".join(f"[{low:g},{high:g}]" for low, high in found.range) + "]"
    if found.channels != 3:
        words["backbone.channels"] = str(found.channels)
        words |= {f"data.augment.colour.{name}": "0" for name in ("saturation", "hue", "grey")}
    return " ".join(shlex.quote(f"{name}={value}") for name, value in words.items())


def _list(values: Sequence[float] | np.ndarray) -> str:
    return "[" + ",".join(f"{value:.4f}" for value in values) + "]"


def _spread(sides: list[int]) -> dict[str, float]:
    return {"min": min(sides), "median": float(np.median(sides)), "max": max(sides)}


def _plain(values: np.ndarray | None) -> list[float]:
    return [] if values is None else [float(value) for value in values]
