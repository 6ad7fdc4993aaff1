"""``linear``: the best of many linear heads on frozen features (Oquab et al. 2023, sec. 7.1 and app. B.3).

Learning rates times inputs are trained at once, on one pass over the same features; see ``heads.py`` and docs/method.md.

Axes: N images, T tokens (class tokens of the last blocks, then the mean patch of the last), D channels, F channels of an input,
C classes, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError
from dinoforge.base.random import torch_generator
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.classes import Classes, classes_of, told_apart
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.heads import HeadGrid, Inputs
from dinoforge.evaluate.lists import listed, once
from dinoforge.evaluate.metrics import accuracy_scores, ranks, real_right
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.kinds import BLOCKS, shows_blocks
from dinoforge.features.views import cropped
from dinoforge.model.head_files import HeadFacts, save_head
from dinoforge.model.released_heads import LinearClassifier

_REFERENCE = 256
"""Batch for which learning rates are given."""
_PASSES = 10
_ROWS = 1024
_HELD_OUT = 0.1
_DIGITS = 18
"""Most digits of a class number; every number of so many fits into 64 bits."""

_Once = (Field(min_length=1), BeforeValidator(listed), AfterValidator(once))
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], *_Once]
Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=BLOCKS)], ...], *_Once]
Pools = Annotated[tuple[bool, ...], *_Once]


class LinearConfig(Config):
    """The grid of heads and how they are trained.

    On ImageNet the default grid, batch and number of updates are those of the released evaluation. That learns from random
    crops, half of them mirrored, as ``augment=crops`` does; the default looks at every image once, in its middle.
    """

    learning_rates: Rates = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    """For a batch of 256; in proportion for another."""
    layers: Layers = (1, 4)
    """Last blocks whose class tokens a head sees. The default is cut to the blocks that the backbone shows."""
    pool: Pools = (False, True)
    """Whether a head sees the mean patch of the last block too."""
    batch: Count | None = Field(default=None, gt=0)
    """Images an update; null: a hundredth of the images to the nearest power of two, 16 to 1,024, so that small sets get
    enough updates and ImageNet its 1,024."""
    iterations: Count | None = Field(default=None, gt=0)
    """Updates; null: ten passes. 12,500 with a batch of 1,024 were made for the published figures."""
    augment: Literal["none", "crops"] = "none"
    """What is learnt from: the same middle as is tested, or in every pass another random crop, mirrored half of the time."""
    select: Literal["test", "holdout"] = "test"
    """What the best head is chosen on: the test images, as for the published figures, or a tenth of the train images, after
    which that head is trained on all of them."""
    seed: int = Field(default=0, ge=0)
    """Of first weights, orders, crops and what is held out."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A trained head, and how it came about."""

    inputs: Inputs
    weight: Float[Tensor, "C F"]
    bias: Float[Tensor, " C"]
    classes: Classes
    """What its columns stand for."""
    protocol: str

    def logits(self, blocks: Float[Tensor, "N T D"]) -> Float[Tensor, "N C"]:
        """What it says of features of the kind ``blocks``, on the processor."""
        return torch.cat([
            torch.addmm(self.bias, self.inputs.of(some.float()), self.weight.T) for some in blocks.split(_ROWS)
        ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Lesson:
    """Labelled features to learn from, the same rows in every pass."""

    table: Callable[[int], Float[Tensor, "N T D"]]
    """Of a pass."""
    labels: Int[Tensor, " N"]
    classes: int
    config: LinearConfig
    device: torch.device

    def learnt(self, rows: Int[Tensor, " n"], inputs: Sequence[Inputs], rates: Sequence[float]) -> HeadGrid:
        """Heads trained on some of the rows, to a cosine that ends at 0."""
        batch, iterations = extent(self.config, len(rows))
        grid = HeadGrid(
            inputs,
            channels=self.table(0).shape[2],
            classes=self.classes,
            rates=rates,
            seed=self.config.seed,
            device=self.device,
        )
        for done, (number, some) in enumerate(_batches(rows, batch, iterations, self.config.seed)):
            factor = batch / _REFERENCE * (1 + math.cos(math.pi * done / iterations)) / 2
            grid.step(
                self.table(number)[some].float().to(self.device), self.labels[some].to(self.device), factor=factor
            )
        return grid


def extent(config: LinearConfig, images: int) -> tuple[int, int]:
    """Images an update, and updates.

    Raises:
        ConfigError: A batch larger than the images.
    """
    batch = config.batch or min(max(2 ** round(math.log2(images / 100)), 16), 1024, images)
    if batch > images:
        raise ConfigError(f"linear.batch must be at most {images}, the images to learn from; got {batch}.")
    return batch, config.iterations or _PASSES * (images // batch)


def _batches(
    rows: Int[Tensor, " n"], batch: int, iterations: int, seed: int
) -> Iterator[tuple[int, Int[Tensor, " B"]]]:
    """The pass and the rows of every update; every pass in a new order, a rest that fills no batch left out."""
    passes = -(-iterations // (len(rows) // batch))
    every = (
        (number, some)
        for number in range(passes)
        for some in rows[torch.randperm(len(rows), generator=torch_generator(seed, "linear order", number))].split(
            batch
        )
        if len(some) == batch
    )
    return islice(every, iterations)


def fit_linear(eyes: Eyes, sides: Sides, config: LinearConfig) -> LinearHead:
    """The best head of the grid.

    Raises:
        ConfigError: More layers than the backbone shows, or a batch larger than the images.
        DataError: Classes that do not fit together.
    """
    known, asked = _looked(eyes, sides.known, config, 0), eyes.look(sides.asked, "blocks")
    classes = classes_of(known.source, asked.source)
    labels, every = classes.of(known.source), torch.arange(len(known.rows))
    later = lru_cache(1)(lambda number: _looked(eyes, sides.known, config, number).values)
    lesson = _Lesson(
        lambda number: later(number) if number else known.values, labels, len(classes), config, eyes.how.device
    )
    inputs = [Inputs(layers, pool) for layers in _layers(config, known.values.shape[1] - 1) for pool in config.pool]
    if config.select == "test":
        grid = lesson.learnt(every, inputs, config.learning_rates)
        best = _best(grid, asked.values, classes.of(asked.source))
    else:
        order = every[torch.randperm(len(every), generator=torch_generator(config.seed, "linear holdout"))]
        held, rest = order.tensor_split([max(1, round(_HELD_OUT * len(order)))])
        grid = lesson.learnt(rest, inputs, config.learning_rates)
        plain = config.augment == "none"
        middles = known.values[held] if plain else eyes.look(known.source.select(held.numpy()), "blocks").values
        best = _best(grid, middles, labels[held])
        seen, rate, *_ = grid.head(best)
        grid, best = lesson.learnt(every, [seen], [rate]), 0
    seen, rate, weight, bias = grid.head(best)
    protocol = _protocol(config, seen, rate, heads=len(inputs) * len(config.learning_rates), images=len(every))
    return LinearHead(seen, weight.cpu(), bias.cpu(), classes, protocol)


def _looked(eyes: Eyes, source: Source, config: LinearConfig, number: int) -> Look:
    """Features to learn from in a pass."""
    if config.augment == "none":
        return eyes.look(source, "blocks")
    view = cropped(eyes.backbone.preprocessing, seed=config.seed, number=number)
    return eyes.look(source, "blocks", view=view, remember=False)  # a table for every pass would fill any disk


def _layers(config: LinearConfig, shown: int) -> list[int]:
    if config.layers == LinearConfig.model_fields["layers"].default:
        return sorted({min(layers, shown) for layers in config.layers})
    if max(config.layers) > shown:
        raise ConfigError(
            f"linear.layers must be at most {shown}, the blocks that the backbone shows; got {list(config.layers)}."
        )
    return list(config.layers)


def _best(grid: HeadGrid, blocks: Float[Tensor, "N T D"], labels: Int[Tensor, " N"]) -> int:
    """The head that is right most often, of equal ones the first."""
    device = grid.rates.device
    right = [
        (grid.ranks(some.float().to(device), own.to(device)) == 0).sum(1)
        for some, own in zip(blocks.split(_ROWS), labels.split(_ROWS), strict=True)
    ]
    return int(torch.stack(right).sum(0).argmax())


def _protocol(config: LinearConfig, seen: Inputs, rate: float, *, heads: int, images: int) -> str:
    batch, iterations = extent(config, images)
    chosen = "the test images" if config.select == "test" else "a tenth of the train rows, then trained on all"
    return (
        f"best of {heads} heads on {chosen}: learning rate {rate:g}, class tokens of the last {seen.layers}"
        f"{', mean patch' if seen.pool else ''}; {iterations} updates of {batch}, "
        f"{'random crops' if config.augment == 'crops' else 'no augmentation'}, {images} train rows"
    )


def saved_linear(path: Path, eyes: Eyes, known: Source, head: LinearHead) -> None:
    """Write a head as the released ones are: one that sees no mean patch gives it no weight.

    Raises:
        RunError: The folder cannot be written.
    """
    width, shown = int(eyes.backbone.module.width), shows_blocks(eyes.backbone.module)
    depth = len(eyes.backbone.module.blocks) if shown else 0
    module = LinearClassifier(width, head.inputs.layers, len(head.classes)).requires_grad_(False)
    module.weight.zero_()[:, : head.weight.shape[1]] = head.weight
    module.bias.copy_(head.bias)
    labels = tuple(head.classes.labels.tolist())
    facts = HeadFacts(
        kind="classification", width=width, blocks=tuple(range(depth - head.inputs.layers, depth)) if shown else (),
        classes=told_apart(head.classes.names, labels), labels=labels, preprocessing=eyes.backbone.preprocessing,
        backbone=eyes.backbone.fingerprint, data=known.fingerprint, protocol=head.protocol,
    )  # fmt: skip
    save_head(path, module, facts)


def _measure(eyes: Eyes, sides: Sides, config: LinearConfig, *, save: Path | None = None) -> list[Score]:
    head, asked = fit_linear(eyes, sides, config), eyes.look(sides.asked, "blocks")
    if save is not None:
        saved_linear(save, eyes, sides.known, head)
    labels = head.classes.of(asked.source)
    logits = head.logits(asked.values)
    scores = accuracy_scores("linear", ranks(logits, labels), labels, classes=len(head.classes), protocol=head.protocol)
    return scores + _real_scores(asked.source, head, logits)


def _real_scores(asked: Source, head: LinearHead, logits: Float[Tensor, "N C"]) -> list[Score]:
    """``real_accuracy`` where images have labels that were given again (column ``real``: numbers of classes, one a line)."""
    if "real" not in asked.columns:
        return []
    texts = asked.columns["real"].tolist()
    if not all(word.isdecimal() and len(word) <= _DIGITS for text in texts for word in text.split()):
        return []  # a column of that name which is about something else
    given = [[int(number) for number in text.split()] for text in texts]
    labels = torch.full((len(given), max(map(len, given), default=0) or 1), -1)
    for row, numbers in enumerate(given):
        labels[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    answers = torch.from_numpy(head.classes.labels)[logits.argmax(-1)]
    right = real_right(answers, labels).numpy().astype(float)
    if not len(right):
        return []
    how = f"right where it is one of the labels that were given again; {head.protocol}"
    return [Score("linear", "real_accuracy", right.mean(), "fraction", True, len(right), how, mean_interval(right))]


LINEAR = Evaluation(
    LinearConfig, "classes", _measure, check=lambda sides, config: extent(config, len(sides.known)), heads=True
)
