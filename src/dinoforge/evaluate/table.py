"""Every evaluation by its name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from dinoforge.base.config import Config
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.evaluate.score import Score

EVALUATIONS: dict[str, tuple[type[Config], Callable[..., list[Score]]]] = {
    "knn": (KnnConfig, knn_scores),
}
