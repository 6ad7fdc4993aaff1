"""What verbs that go by embeddings of whole images share: what embeds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from socket import gethostname

import numpy as np

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.curate.embeddings import LAYOUT, Embed, Embedder
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import image_features
from dinoforge.verbs.opening import extraction, opened, told


def embedder(backbone: str | None, precision: str) -> Embedder:
    """A backbone as an embedder; without one, the descriptor that needs no weights.

    Raises:
        ConfigError: A precision without a backbone.
    """
    if backbone is None:
        if precision != "auto":
            raise ConfigError(f"precision={precision} has no effect without backbone=.")
        return LAYOUT
    found, how = opened(backbone), extraction(precision)
    module = found.module.to(how.device)

    def embed(source: Source) -> tuple[np.ndarray, np.ndarray]:
        vectors, rows = image_features(module, source, found.preprocessing, how, on_broken=told)
        return vectors.numpy(), rows

    seen = fingerprint(found.preprocessing.model_dump(mode="json"))
    weights = f"backbone {found.fingerprint} with preprocessing {seen}"
    mark = f"{weights} {how.precision}"
    elsewhere = Elsewhere(embedder, (backbone, how.precision), mark)
    return Embedder(f"backbone {found.fingerprint}", mark, embed, weights, elsewhere, how.device.type != "cpu")


@dataclass(frozen=True)
class Elsewhere:
    """Makes an embedder in another process, on what device that has, of the same weights."""

    make: Callable[..., Embedder]
    words: tuple[str, ...]
    """Address and precision, which is no longer open."""
    mark: str
    options: tuple[tuple[str, str | None], ...] = ()

    def __call__(self) -> Embed:
        """Open it there.

        Raises:
            WeightsError: Other weights lie at the address there.
        """
        found = self.make(*self.words, **dict(self.options))
        if found.fingerprint != self.mark or found.embed is None:
            raise WeightsError(
                f"A worker on {gethostname()} finds other weights at {self.words[0]}; give them to all alike."
            )
        return found.embed
