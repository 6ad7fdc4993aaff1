"""``predict``: what a head that was trained on a frozen backbone says of new pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dinoforge.base.config import Config, with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.base.interrupt import interruptible
from dinoforge.base.log import say, track
from dinoforge.data.decode import Broken
from dinoforge.data.picture import damage
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.dense.infer import Scales
from dinoforge.evaluate.dense.pieces import Viewing
from dinoforge.evaluate.dense.trunk import Trunk
from dinoforge.features.extract import NoneUsable, reading
from dinoforge.model.head_files import HeadFacts, read_any_head
from dinoforge.verbs.maps import Maker, colours_of, format_of
from dinoforge.verbs.opening import extraction, opened, told
from dinoforge.verbs.places import refuse_within
from dinoforge.verbs.predicted import Folder, noted

_LARGEST = 16_384
"""Pixels that a side is resized to at most, and that a window has."""


def _word(word: str) -> BeforeValidator:
    """The word that stands for 0."""
    return BeforeValidator(lambda value: 0 if value == word else value)


class PredictConfig(Config):
    """How new pictures are looked at; null is as the head was trained."""

    pixels: Annotated[int, Field(ge=0, le=_LARGEST), _word("own")] | None = None
    """Short side that pictures are resized to; own, or 0: they are not."""
    window: Annotated[int, Field(ge=0, le=_LARGEST), _word("whole")] | None = None
    """Side of the square that is seen at once; whole, or 0: all of a picture."""
    stride: int | None = Field(default=None, gt=0)
    """Pixels from one window to the next; null: two thirds of a window that is given."""
    scales: Scales | None = None
    """Sizes, relative to ``pixels``, at which a picture is seen."""
    flip: bool | None = None
    """Whether a picture is seen mirrored too."""
    format: Literal["png", "npy"] | None = None
    """Of maps; null: png where it holds them."""
    scores: bool = False
    """Whether the scores of all classes are written."""

    def viewing(self, facts: HeadFacts) -> Viewing:
        """With what the head says.

        Raises:
            ConfigError: A stride that has no effect, or leaves gaps.
        """
        window = facts.window if self.window is None else self.window or None
        stride = facts.stride if self.window is None and self.stride is None else self.stride
        if stride is not None and window is None:
            raise ConfigError(f"stride={stride} has no effect: pictures are seen whole; give window=.")
        if stride is not None and window is not None and stride > window:
            raise ConfigError(f"stride={stride} leaves gaps between windows of {window} pixels; give {window} or less.")
        side = facts.short_side if self.pixels is None else self.pixels or None
        scales = facts.scales if self.scales is None else self.scales
        return Viewing(side, window, stride, scales, facts.flip if self.flip is None else self.flip)


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was written."""

    images: int
    """Pictures that there are predictions of."""
    reused: int
    """Of these, the ones that an earlier start had finished."""
    quarantined: int
    """Pictures that could not be used."""
    kind: str
    """classification, segmentation or depth."""
    out: str


def predict(  # noqa: PLR0913 - the keys of the verb
    *, backbone: str, head: str, images: str, out: str, range_: str | tuple[float, float] | None = None,
    pixels: str | int | None = None, window: str | int | None = None, stride: str | int | None = None,
    scales: str | float | tuple[float, ...] | None = None, flip: str | bool | None = None, format: str | None = None,
    scores: str | bool | None = None, precision: str = "auto",
) -> Predicted:  # fmt: skip
    """Apply a head to new pictures: a picture to look at and an array of each, and predictions.jsonl with a line of each.

    Interrupted, the same command goes on: finished pictures are not made again, unless their file changed.

    Args:
        backbone: The backbone that the head was trained on: a folder, a run, weights, hf:FOLDER or timm:NAME.
        head: A head's folder (evaluate save_heads=), or a file released with DINOv2 (segmentation, depth, classification).
        images: Images: a folder, a Parquet file, toy://species.
        out: Folder to write: pictures/, and maps/ with a class number a pixel, or with depth.
        range: Least and largest depth in metres, of released depth heads: 0.001,10 for NYU Depth, 0.001,80 for KITTI.
        pixels: Short side that pictures are resized to, or own for their own size [as the head was trained].
        window: Side of the square that is seen at once, in pixels, or whole [as the head was trained].
        stride: Pixels from one window to the next; where they overlap answers are averaged [two thirds of a window].
        scales: Sizes relative to pixels, joined by commas, at which a picture is seen; answers are averaged
            [as the head was trained].
        flip: Whether a picture is seen mirrored too, and the answers averaged [as the head was trained].
        format: Of maps: png (class numbers; depth in whole millimetres up to 65.5 metres) or npy (float32 metres)
            [png where it holds the depth].
        scores: Whether the scores of all classes are written too: scores/, float16, softmax [false].
        precision: auto, fp32 or bf16; auto stays with that of finished pictures.
    """
    typed = {"pixels": pixels, "window": window, "stride": stride, "scales": scales, "flip": flip, "format": format,
             "scores": scores}  # fmt: skip
    given = {name: value for name, value in typed.items() if value is not None}
    config, limits = with_settings(PredictConfig(), given), None if range_ is None else _limits(range_)
    refuse_within(out, images, name="images")
    source, found = open_source(images), opened(backbone)
    one = read_any_head(head, found, range=limits)
    facts = one.facts
    _check(facts, given, head)
    how, preprocessing = extraction(precision, noted(Path(out))), facts.preprocessing or found.preprocessing
    trunk = Trunk(found.module.to(how.device).eval(), preprocessing, how, facts.blocks or 1, facts.norm, facts.pictures)
    one.module.to(how.device)
    viewing = config.viewing(facts)
    maker = Maker(one, trunk, viewing, format_of(facts, config.format), config.scores)
    about = {
        "images": source.address, "backbone": found.fingerprint, "head": one.fingerprint, "precision": how.precision,
        "preprocessing": preprocessing.model_dump(mode="json"), **asdict(viewing), "format": maker.format,
        "scores": config.scores,
    }  # fmt: skip
    with Folder(Path(out), about, _legend(facts)) as folder, interruptible("finished pictures are kept"):
        reused, broken = _each(folder, source, maker)
    return Predicted(len(folder), reused, broken, facts.kind, out)


def _limits(typed: str | tuple[float, float]) -> tuple[float, float]:
    """Least and largest depth as typed.

    Raises:
        ConfigError: Something else.
    """
    try:
        near, far = (float(part) for part in (typed.split(",") if isinstance(typed, str) else typed))
    except ValueError:
        near = far = 0.0
    if not 0 <= near < far < math.inf:
        raise ConfigError(f"range takes two numbers of metres, the smaller first, such as 0.001,10; got {typed!r}.")
    return near, far


def _check(facts: HeadFacts, given: Mapping[str, Any], head: str) -> None:
    """Refuse settings that would be ignored.

    Raises:
        ConfigError: There is one.
    """
    idle = {"classification": tuple(PredictConfig.model_fields), "depth": ("scores",), "segmentation": ()}[facts.kind]
    for name, value in given.items():
        if name in idle:
            raise ConfigError(f"{name}={value} has no effect: {head} is a head for {facts.kind}.")


def _legend(facts: HeadFacts) -> dict[str, Any]:
    """What the numbers of maps mean."""
    if facts.range is not None:
        return {"kind": facts.kind, "range": facts.range, "unit": facts.unit}
    rows = zip(facts.numbers, facts.classes, colours_of(facts), strict=True)
    return {
        "kind": facts.kind,
        "classes": [{"label": label, "name": name, "colour": colour} for label, name, colour in rows],
    }


def _each(folder: Folder, source: Source, maker: Maker) -> tuple[int, int]:
    """Predict every picture that is not there yet; how many are there, and how many could not be used.

    Raises:
        NoneUsable: Not one picture could be used.
    """
    reused, broken, how = 0, list[tuple[int, str]](), reading(maker.trunk.preprocessing)
    ids = source.columns["id"].tolist()
    for row in track(range(len(source)), "predict", len(source)):
        try:
            with damage():
                encoded = source.encoded(row)
            if folder.has(ids[row], encoded):
                reused += 1
                continue
            with damage():
                pixels = source.pixels(row, how)
            folder.add(ids[row], maker(folder, ids[row], pixels))
        except Broken as error:
            told(ids[row], str(error))
            broken.append((row, str(error)))
    if reused:
        say(f"{reused:,} of {len(source):,} images are there from an earlier start.")
    folder.finish(ids, [*source.rejected, *((ids[row], reason) for row, reason in broken)])
    if not len(folder):
        raise NoneUsable.of(source, broken)
    return reused, len(broken) + len(source.rejected)
