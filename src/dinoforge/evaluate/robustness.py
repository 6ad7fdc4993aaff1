"""``robustness``: a linear head of clean pictures, asked about corrupted ones and about other sets of the same classes.

ImageNet-C (Hendrycks & Dietterich 2019), and sets such as ImageNet-A, -R, -Sketch and -V2, as in DINOv2, sec. 7.1 and table 6.

Axes: N images, C classes, c classes that a set has, K corruptions, S severities.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from dinoforge.base.errors import DataError, unknown
from dinoforge.base.log import say
from dinoforge.data.corruptions.table import BENCHMARK, CORRUPTIONS, SEVERITIES
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.classes import Classes, classes_of
from dinoforge.evaluate.corrupted import corrupted, how_corrupted
from dinoforge.evaluate.corruption_error import (
    CLEAN,
    Reference,
    alexnet,
    error_name,
    mean_corruption_error,
    read_reference,
    relative_corruption_error,
)
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.linear import LinearConfig, LinearHead, fit_linear
from dinoforge.evaluate.lists import listed, once
from dinoforge.evaluate.metrics import ranks, top_scores
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.eyes import Eyes, Look

_TASK = "robustness"
_NAMED = 3
"""Classes that an error names."""


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(once)]
Severity = Annotated[int, Field(ge=1, le=SEVERITIES)]


class RobustnessConfig(LinearConfig):
    """What the head is asked about; the head itself is set as that of ``linear``, and its seed is that of all draws."""

    corruptions: Annotated[Names, Field(min_length=1), AfterValidator(_known)] = tuple(BENCHMARK)
    """Names joined by commas; the default are the fifteen of the benchmark."""
    severities: Annotated[
        tuple[Severity, ...], Field(min_length=1), BeforeValidator(listed), AfterValidator(once)
    ] = tuple(range(1, SEVERITIES + 1))  # fmt: skip
    """Of 1 to 5, the worst."""
    jpeg_quality: int | None = Field(default=85, ge=1, le=95)
    """At which corrupted pictures are compressed, as the published ones are; null: not at all."""
    also: Names = ()
    """Other labelled sources to ask about as they are, joined by commas; of their classes, each must be known by its name."""
    reference: str | None = None
    """File of scores of another backbone, whose errors become the unit; null: AlexNet's, where all is measured on ImageNet."""


def _measure(eyes: Eyes, sides: Sides, config: RobustnessConfig) -> list[Score]:
    """Scores of corrupted test images, and of other sets.

    Raises:
        ConfigError: See ``fit_linear``.
        DataError: The backbone takes no colour pictures; another set has classes that are not known; or as
            ``read_reference`` and ``fit_linear``.
    """
    channels = eyes.backbone.preprocessing.channels
    if channels != 3:
        raise DataError(f"Corruptions are of red, green and blue; this backbone takes {channels} channels.")
    classes = classes_of(sides.known, sides.asked)
    others = [_opened(address, classes, sides.known) for address in config.also]
    reference = _reference(sides, classes, config)
    head = fit_linear(eyes, sides, config)
    return [*_corruption_scores(eyes, sides.asked, head, config, reference), *_other_scores(eyes, head, others)]


def _reference(sides: Sides, classes: Classes, config: RobustnessConfig) -> Reference | None:
    if config.reference is None:
        return alexnet(classes.names, config.corruptions, config.severities)
    made = how_corrupted(seed=config.seed, quality=config.jpeg_quality)
    data = f"{sides.known.fingerprint} {sides.asked.fingerprint}"
    return read_reference(Path(config.reference), config.corruptions, config.severities, data=data, made=made)


def _wrong(head: LinearHead, look: Look) -> Bool[np.ndarray, " N"]:
    """Which images the head is wrong about."""
    found: np.ndarray = (ranks(head.logits(look.values), head.classes.of(look.source)) > 0).numpy()
    return found


def _corruption_scores(
    eyes: Eyes, asked: Source, head: LinearHead, config: RobustnessConfig, reference: Reference | None
) -> list[Score]:
    """Errors on clean and on corrupted images."""
    passes = len(config.corruptions) * len(config.severities)
    say(
        f"robustness: {len(config.corruptions)} corruptions x {len(config.severities)} severities of {len(asked):,} images: "
        f"{passes * len(asked):,} images."
    )
    clean = _wrong(head, eyes.look(asked, "blocks"))
    wrong = np.zeros((len(config.corruptions), len(config.severities), len(clean)), bool)
    for row, name in enumerate(config.corruptions):
        for column, severity in enumerate(config.severities):
            view = corrupted(eyes.backbone.preprocessing, name, severity, seed=config.seed, quality=config.jpeg_quality)
            wrong[row, column] = _wrong(head, eyes.look(asked, "blocks", view=view, remember=False))
        say(f"robustness: {name} error {wrong[row].mean():.4f}")
    made = how_corrupted(seed=config.seed, quality=config.jpeg_quality)
    return [
        _score(CLEAN, clean.astype(float), f"clean; {head.protocol}"),
        *_errors(wrong, config, f"{made}; {head.protocol}"),
        *_means(clean, wrong, config, head, reference),
    ]


def _score(name: str, items: Float[np.ndarray, " N"], protocol: str, *, unit: str = "fraction") -> Score:
    """A mean over the images, lower is better."""
    return Score(_TASK, name, float(items.mean()), unit, False, len(items), protocol, interval=mean_interval(items))


def _errors(wrong: Bool[np.ndarray, "K S N"], config: RobustnessConfig, protocol: str) -> list[Score]:
    """The error under every corruption, and under each of its severities."""
    found = list[Score]()
    for name, rows in zip(config.corruptions, wrong, strict=True):
        drawn = "; frost is drawn, not photographed" if name == "frost" else ""
        found.append(_score(f"error_{name}", rows.mean(0), f"{protocol}; mean of severities {_said(config)}{drawn}"))
        found += [
            Score(_TASK, error_name(name, severity), float(row.mean()), "fraction", False, len(row), protocol + drawn)
            for severity, row in zip(config.severities, rows, strict=True)
        ]
    return found


def _means(
    clean: Bool[np.ndarray, " N"], wrong: Bool[np.ndarray, "K S N"], config: RobustnessConfig, head: LinearHead,
    reference: Reference | None,
) -> list[Score]:  # fmt: skip
    """What all corruptions together cost: as it is, less what clean pictures cost, and both by the reference."""
    protocol = (
        f"{how_corrupted(seed=config.seed, quality=config.jpeg_quality)}; mean of {len(wrong)} corruptions and severities "
        f"{_said(config)}; {head.protocol}"
    )
    overall = wrong.mean((0, 1))
    found = [
        _score("mean_corruption_error", overall, protocol),
        _score("mean_error_increase", overall - clean, f"{protocol}; less the error on clean images"),
    ]
    if reference is None:
        return found
    errors, by = wrong.mean(-1), f"{protocol}; by the errors of {reference.name}"
    mce = (wrong.sum(1) / reference.sums[:, None]).mean(0)
    found.append(
        Score(
            _TASK, "mce", mean_corruption_error(errors, reference), "ratio", False, len(clean), by, mean_interval(mce)
        )
    )
    if (reference.sums > wrong.shape[1] * reference.clean).all():
        value = relative_corruption_error(errors, float(clean.mean()), reference)
        found.append(
            Score(_TASK, "relative_mce", value, "ratio", False, len(clean), f"{by}; both less those on clean images")
        )
    else:
        say(
            f"robustness: no relative_mce, for {reference.name} errs under some corruption no more than on clean images."
        )
    return found


def _said(config: RobustnessConfig) -> str:
    return ", ".join(map(str, config.severities))


def _opened(address: str, classes: Classes, known: Source) -> Source:
    """Another set: its test images, else its val, else all; every one of a known class.

    Raises:
        DataError: It has no labels, not for every image, or classes that are not known.
    """
    whole = open_source(address)
    split = next((name for name in ("test", "val") if has_split(whole, name)), None)
    found = whole if split is None else whole.select(np.flatnonzero(whole.columns["split"] == split))
    if "label" not in found.columns or (found.columns["label"] < 0).any():
        raise DataError(f"{found.address} has no labels, or not for every image.")
    own = {*_names(found)}
    twice = sorted(name for name in own if classes.names.count(name) > 1)
    if twice:
        raise DataError(
            f"{known.address} has several classes of the name {', '.join(map(repr, twice[:_NAMED]))}, and those of "
            f"{found.address} are matched by name (robustness.also); give each a name of its own (column label_name)."
        )
    new = sorted(own - {*classes.names})
    if new:
        raise DataError(
            f"{found.address} has {len(new)} classes that {known.address} lacks, such as {', '.join(new[:_NAMED])}; they are "
            "matched by name."
        )
    return found


def _names(source: Source) -> list[str]:
    """The class of every image by its name."""
    names: list[str] = source.columns.get("label_name", source.columns["label"].astype(str)).tolist()
    return names


def _other_scores(eyes: Eyes, head: LinearHead, others: list[Source]) -> list[Score]:
    """Accuracy on other sets, among the classes that each has."""
    found = []
    for source in others:
        look = eyes.look(source, "blocks")
        place = among(head.logits(look.values), _names(look.source), head.classes.names)
        present = len({*_names(look.source)})
        protocol = (
            f"among the {present} of {len(head.classes)} classes that {source.address} has ({source.fingerprint}); "
        )
        found += top_scores(
            _TASK, place, classes=present, protocol=protocol + head.protocol, suffix=f" {source.address}"
        )
    return found


def among(logits: Float[Tensor, "N C"], own: list[str], names: tuple[str, ...]) -> Int[Tensor, " N"]:
    """At which place each image's class stands among those that occur (``metrics.ranks``); other scores do not count.

    Args:
        own: The class of each image.
        names: The class of each score.
    """
    there = {*own}
    columns = [column for column, name in enumerate(names) if name in there]
    place = {names[column]: number for number, column in enumerate(columns)}
    return ranks(logits[:, columns], torch.tensor([place[name] for name in own]))


ROBUSTNESS = Evaluation(
    RobustnessConfig, "classes", _measure, images=("also",), files=("reference",), of_one_seed=("reference",), once=True
)
