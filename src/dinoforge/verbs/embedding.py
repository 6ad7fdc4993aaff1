"""What verbs that go by embeddings of whole images share: what embeds them."""

from __future__ import annotations

import numpy as np

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError
from dinoforge.curate.embeddings import LAYOUT, Embedder
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
    return Embedder(f"backbone {found.fingerprint}", f"{weights} {how.precision}", embed, weights)
