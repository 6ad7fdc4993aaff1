"""Images that show several classes each: who shows what, and a regression for every class (Pascal VOC 2007).

Sources say so by columns of names, one a line: ``labels``, and ``difficult`` for what is so hard to see that it does not count.

Axes: N images, D channels, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.random import torch_generator
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.metrics import average_precision, mean_average_precision
from dinoforge.evaluate.regression import HELD_OUT, Logistic, LogisticConfig, strengths
from dinoforge.evaluate.score import Score, interval
from dinoforge.features.eyes import Look

_RESAMPLES = 100


def shows_several(source: Source) -> bool:
    """Whether images of a source have several classes each, and none of their own."""
    return "labels" in source.columns and "label" not in source.columns


def shown_classes(known: Source, asked: Source) -> tuple[list[str], Int[np.ndarray, "N C"], Int[np.ndarray, "M C"]]:
    """The classes in the order of their names; which of them an image shows: 1, 0, or -1 where it does not count.

    Raises:
        DataError: No class, none in ``asked``, or some there that ``known`` lacks.
    """
    sets = [
        {name for text in source.columns["labels"].tolist() for name in text.splitlines()} for source in (known, asked)
    ]
    names = sorted(sets[0])
    new = sorted(sets[1] - sets[0])
    if not names or new:
        what = f"has classes that {known.address} lacks: {', '.join(new[:5])}" if new else "and the rest show no class"
        raise DataError(f"{asked.address} {what}.")
    if not sets[1]:
        raise DataError(
            f"{asked.address}: no image that is asked shows a class; a test set without its truth cannot be scored."
        )
    return names, _marks(known, names), _marks(asked, names)


def _marks(source: Source, names: list[str]) -> Int[np.ndarray, "N C"]:
    found, place = np.zeros((len(source), len(names)), np.int64), {name: column for column, name in enumerate(names)}
    for column, mark in (("difficult", -1), ("labels", 1)):
        for row, text in enumerate(source.columns[column].tolist() if column in source.columns else []):
            found[row, [place[name] for name in text.splitlines() if name in place]] = mark
    return found


class _OneByOne:
    """A regression of two answers for every class, on the images that count for it."""

    def __init__(self, features: Float[Tensor, "N D"], marks: Int[np.ndarray, "N C"], config: LogisticConfig) -> None:
        self._of = []
        for column in marks.T:
            rows = torch.from_numpy(np.flatnonzero(column >= 0))
            labels = torch.from_numpy(column[column >= 0])
            self._of.append(Logistic(features[rows], labels, classes=2, config=config))

    def fit(self, c: float) -> None:
        for one in self._of:
            one.fit(c)

    def scores(self, features: Float[Tensor, "M D"]) -> Float[np.ndarray, "M C"]:
        """How much more each image speaks for a class than against it."""
        both = [one.scores(features) for one in self._of]
        return torch.stack([one[:, 1] - one[:, 0] for one in both], dim=1).cpu().numpy()


def several_scores(known: Look, asked: Look, *, config: LogisticConfig, device: torch.device, how: str) -> list[Score]:
    """``map11``, the mean over classes of the 11-point average precision; one C for all, the best on a held-out tenth.

    Args:
        how: What was seen of the images, for the protocol.

    Raises:
        DataError: See ``shown_classes``.
    """
    names, ours, theirs = shown_classes(known.source, asked.source)
    x, c = known.values.to(device), strengths(config)[0]
    whole = _OneByOne(x, ours, config)
    if len(strengths(config)) > 1:
        order = torch.randperm(len(ours), generator=torch_generator(config.seed, "logistic holdout"))
        held, rest = order.tensor_split([max(1, round(HELD_OUT * len(order)))])
        if not (ours[held.numpy()] == 1).any():
            raise DataError(f"{known.source.address}: none of the {len(held)} images held out to choose C shows a class; give "
                            "logistic.c=.")  # fmt: skip
        tried, best = _OneByOne(x[rest], ours[rest.numpy()], config), -1.0
        for one in strengths(config):
            tried.fit(one)
            precision = mean_average_precision(tried.scores(x[held]), ours[held.numpy()])
            if precision > best:
                best, c = precision, one
    whole.fit(c)
    found = whole.scores(asked.values.to(device))
    protocol = (
        f"11-point mean average precision of {len(names)} classes, one regression a class, C={c:.3g}, {how}, "
        f"{len(known.rows)} train rows"
    )
    within = interval(
        lambda rows: np.asarray([mean_average_precision(found[some], theirs[some]) for some in rows]), len(theirs),
        resamples=_RESAMPLES,
    )  # fmt: skip
    each = [
        Score("logistic", f"ap11_{name}", average_precision(found[:, place], theirs[:, place]), "fraction", True,
              int((theirs[:, place] >= 0).sum()), protocol)
        for place, name in enumerate(names) if (theirs[:, place] == 1).any()
    ]  # fmt: skip
    value = mean_average_precision(found, theirs)
    sure = within if np.isfinite(within).all() else None  # in a sample drawn for it nobody showed a class: so few do
    return [Score("logistic", "map11", value, "fraction", True, len(theirs), protocol, interval=sure), *each]
