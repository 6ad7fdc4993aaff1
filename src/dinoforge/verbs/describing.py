"""What describes images, for verbs that look for near copies: a network made for them, or a backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.log import say
from dinoforge.curate.embeddings import Embedder
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import vectors
from dinoforge.model.sscd import PREPROCESSING, is_file, open_descriptor
from dinoforge.verbs.embedding import embedder
from dinoforge.verbs.opening import extraction, told


def describer(address: str, precision: str, *, trust_sha256: str | None) -> Embedder:
    """Descriptors of near copies: a file of SSCD's, else a backbone's image features.

    Raises:
        WeightsError: It cannot be opened, or is something else.
        ConfigError: A program that nobody vouched for, or a key that is not its or not needed.
    """
    if not is_file(address):
        if trust_sha256 is not None:
            raise ConfigError(f"trust_sha256= has no effect: {address} is no TorchScript file.")
        return embedder(address, precision)
    found = open_descriptor(Path(address).expanduser(), trust_sha256=trust_sha256)
    say(f"{address}: {found.name}, descriptors of width {found.width}.")
    how = extraction(precision)
    module = found.module.to(how.device)

    def embed(source: Source) -> tuple[np.ndarray, np.ndarray]:
        return vectors(module, source, PREPROCESSING, how, on_broken=told)

    seen = PREPROCESSING.model_dump(mode="json")
    weights = f"{found.name} with preprocessing {seen}"
    return Embedder(found.name, f"{weights} {how.precision}", embed, weights)
