"""``tracking``: objects marked in the first frame of a clip, followed through it by patch features alone.

The semi-supervised task of DAVIS 2017 (Pont-Tuset et al. 2017) with frozen features, as DINO measures it (Caron et al. 2021,
sec. 4.2.2): J and F of every object in every frame but the first and the last, their mean over the frames of a clip, and the
mean of those over all objects of all clips.

A clip is all rows with one text in the column ``clip``, in the order of ``frame``; what is true of a frame is the drawn
``instance`` or the ``mask``, whose numbers other than 0 are objects where the first frame has them.

Axes: T frames of a clip, n objects, Y by X pixels, H by W patches, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Num
from pydantic import Field
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.propagation import PropagationConfig, Track, labels_of, shown_by
from dinoforge.evaluate.regions import SLACK, decay, outline_agreement, overlap
from dinoforge.evaluate.score import Score, shared_interval
from dinoforge.features.extract import NoneUsable
from dinoforge.features.eyes import Eyes
from dinoforge.features.views import View, shortest

_TASK = "tracking"
_FEWEST = 3
_AT_ONCE = 8
"""Frames of a forward pass at most: they are large, and only the last few are remembered anyway."""
_HALF = 0.5


class TrackingConfig(PropagationConfig):
    """How frames are seen, how labels are carried, and how outlines are compared."""

    shortest: int = Field(default=480, gt=0)
    """Whole frames are seen, their short side so many pixels (DINO: 480)."""
    slack: float = Field(default=SLACK, gt=0, lt=1)
    """How far apart outlines may lie in F, as a share of the diagonal (Perazzi et al. 2016: 0.008)."""


@dataclass(frozen=True, slots=True)
class Followed:
    """J and F of every object of a clip in every frame that counts."""

    region: Float64[np.ndarray, "T n"]
    outline: Float64[np.ndarray, "T n"]


def clips_of(source: Source) -> dict[str, Int[np.ndarray, " T"]]:
    """Rows of every clip in the order of its frames.

    Raises:
        DataError: No columns ``clip`` and ``frame``, or a clip has a frame twice.
    """
    if not {"clip", "frame"} <= source.columns.keys() or not any(source.columns["clip"].tolist()):
        raise DataError(f"{source.address} has no clips; its frames take columns clip (a text) and frame (a number).")
    rows = dict[str, list[int]]()
    for row, name in enumerate(source.columns["clip"].tolist()):
        if name:
            rows.setdefault(name, []).append(row)
    found = {}
    for name, some in rows.items():
        frames = source.columns["frame"][some]
        if len(np.unique(frames)) < len(frames):
            raise DataError(f"clip {name} of {source.address} has a frame twice; column frame numbers each once.")
        found[name] = np.asarray(some)[np.argsort(frames)]
    return found


def truth(source: Source, row: int, *, size: tuple[int, int]) -> Num[np.ndarray, "Y X"] | None:
    """Which object every pixel of a frame shows, 0 for none; None where nothing says it.

    Args:
        size: Height and width of the frames.

    Raises:
        DataError: The mask cannot be read, or is of another size than its picture.
    """
    name = source.columns["id"][row]
    try:
        found = source.extra(row, "instance")
        found = source.extra(row, "mask") if found is None else found
    except Broken as error:
        raise DataError(f"the mask of {name} cannot be read: {error}") from None
    if found is not None and found.shape != size:
        raise DataError(f"{name} has {size[1]}x{size[0]} pixels and a mask of {found.shape[1]}x{found.shape[0]}.")
    return found


def _size(source: Source, rows: Int[np.ndarray, " T"]) -> tuple[int, int] | None:
    """Height and width of the frames of a clip, None where none can be read.

    Raises:
        DataError: They differ.
    """
    found: tuple[int, int] | None = None
    for row in rows.tolist():
        try:
            picture = source.picture(row)
        except Broken:
            continue
        own = picture.height, picture.width
        if found is not None and own != found:
            name = source.columns["id"][row]
            raise DataError(
                f"{name} has {own[1]}x{own[0]} pixels, a frame before it {found[1]}x{found[0]}; a clip has one size."
            )
        found = own
    return found


def _frames(eyes: Eyes, source: Source, rows: Int[np.ndarray, " T"], view: View) -> Iterator[tuple[int, Tensor]]:
    """Usable frames of a clip and their patches, a few at once."""
    count = min(eyes.how.rows_at_once, _AT_ONCE)
    for part in np.split(rows, range(count, len(rows), count)):
        try:
            look = eyes.look(source.select(part), "patches", view=view, remember=False)
        except NoneUsable:
            continue
        yield from zip(part[look.rows].tolist(), look.values, strict=True)


def followed(eyes: Eyes, source: Source, rows: Int[np.ndarray, " T"], config: TrackingConfig) -> Followed | str:
    """The objects of the first frame in every frame that counts, or why the clip cannot be asked for.

    Raises:
        DataError: See ``truth``; or frames of several sizes.
    """
    if len(rows) < _FEWEST:
        return f"fewer than {_FEWEST} frames"
    size = _size(source, rows)
    if size is None:
        return "no frame that can be read"
    mask = truth(source, int(rows[0]), size=size)
    if mask is None or not mask.any():
        return "no object in the first frame"
    objects = np.unique(mask[mask != 0]).astype(np.int64)
    region, outlines = list[list[float]](), list[list[float]]()
    for row, labels in _carried(eyes, source, rows, mask, objects, config):
        true = truth(source, row, size=size) if row != rows[-1] else None
        if true is None:
            continue
        shown = shown_by(labels, size=size, stretch=config.stretch)
        both = [(shown == place, true == number) for place, number in enumerate(objects.tolist(), start=1)]
        region.append([overlap(*one) for one in both])
        outlines.append([outline_agreement(*one, slack=config.slack) for one in both])
    if not region:
        return "no usable frame with a mask between its first and its last one"
    return Followed(np.asarray(region), np.asarray(outlines))


def _carried(
    eyes: Eyes, source: Source, rows: Int[np.ndarray, " T"], mask: Num[np.ndarray, "Y X"], objects: Int[np.ndarray, " n"],
    config: TrackingConfig,
) -> Iterator[tuple[int, Float[Tensor, "C H W"]]]:  # fmt: skip
    """Labels of every usable frame after the first; nothing where the first cannot be used."""
    track: Track | None = None
    for row, patches in _frames(eyes, source, rows, shortest(config.shortest, patch=eyes.backbone.module.patch)):
        x = patches.to(eyes.how.device)
        if track is not None:
            yield row, track.follow(x)
        elif row == rows[0]:
            track = Track(x, labels_of(mask, objects, grid=(len(x), x.shape[1])).to(x.device), config=config)
        else:
            return


def _measure(eyes: Eyes, sides: Sides, config: TrackingConfig) -> list[Score]:
    clips = clips_of(sides.asked)
    found, left = list[Followed](), dict[str, str]()
    for name, rows in clips.items():
        one = followed(eyes, sides.asked, rows, config)
        if isinstance(one, str):
            left[one] = left.get(one, name)
            continue
        found.append(one)
    if not found:
        why = "; ".join(f"{name} has {reason}" for reason, name in left.items())
        raise DataError(f"none of the {len(clips)} clips of {sides.asked.address} can be followed: {why}.")
    return _scores(found, config, len(clips) - len(found))


def _scores(found: list[Followed], config: TrackingConfig, left: int) -> list[Score]:
    """Of every object J, F and their mean; how often each is above one half, and how much is lost on the way."""
    where = "in the whole frame" if config.radius is None else f"within {config.radius} patches"
    how = (
        f"short side {config.shortest}, the first frame and the last {config.frames}, {config.neighbours} nearest patches "
        f"{where}, temperature {config.temperature:g}{', labels stretched' if config.stretch else ''}; J overlap of regions, F "
        f"agreement of outlines within {config.slack:g} of the diagonal, recall the share of frames above {_HALF}, decay the "
        "first quarter of the frames less the last; mean over the frames of a clip but the first and the last, then over "
        f"objects, intervals over clips; {len(found)} clips, {left} left out"
    )
    means, scores = list[np.ndarray](), list[Score]()
    clip_of = np.repeat(np.arange(len(found)), [one.region.shape[1] for one in found])
    for name, values in (("J", [one.region for one in found]), ("F", [one.outline for one in found])):
        objects = [clip[:, number] for clip in values for number in range(clip.shape[1])]
        means.append(np.asarray([one.mean() for one in objects]))
        scores += [
            _score(name, "fraction", means[-1], clip_of, how),
            _score(f"{name}_recall", "fraction", np.asarray([(one > _HALF).mean() for one in objects]), clip_of, how),
            _score(f"{name}_decay", "difference", np.asarray([decay(one) for one in objects]), clip_of, how),
        ]
    return [_score("J&F", "fraction", (means[0] + means[1]) / 2, clip_of, how), *scores]


def _score(name: str, unit: str, values: Float64[np.ndarray, " n"], clip_of: Int[np.ndarray, " n"], how: str) -> Score:
    spread = shared_interval(values, np.ones(len(values)), clip_of[:, None])
    return Score(_TASK, name, float(values.mean()), unit, unit == "fraction", len(values), how, interval=spread)


TRACKING = Evaluation(TrackingConfig, "asked", _measure, check=lambda sides, _: clips_of(sides.asked), once=True)
