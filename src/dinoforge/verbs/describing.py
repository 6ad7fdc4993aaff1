"""What embeds images, for verbs that look for copies or neighbours: a backbone, or a network made for copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.log import say
from dinoforge.curate.embeddings import Embedder
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction, image_features, vectors
from dinoforge.model.sscd import PREPROCESSING, is_file, open_descriptor
from dinoforge.verbs.opening import opened, told


def embedder(address: str, how: Extraction) -> Embedder:
    """The image features of a backbone.

    Raises:
        WeightsError: It cannot be opened.
    """
    found = opened(address)
    module = found.module.to(how.device)

    def embed(source: Source) -> tuple[np.ndarray, np.ndarray]:
        features, rows = image_features(module, source, found.preprocessing, how, on_broken=told)
        return features.numpy(), rows

    seen = found.preprocessing.model_dump(mode="json")
    return Embedder(f"backbone {found.fingerprint}", f"{found.fingerprint} {seen} {how.precision}", embed)


def describer(address: str, how: Extraction, *, trust_sha256: str | None) -> Embedder:
    """Descriptors of near copies: a file of SSCD's, else a backbone's image features.

    Raises:
        WeightsError: It cannot be opened, or is something else.
        ConfigError: A program that nobody vouched for, or a key that is not its or not needed.
    """
    if not is_file(address):
        if trust_sha256 is not None:
            raise ConfigError(f"trust_sha256= has no effect: {address} is no TorchScript file.")
        return embedder(address, how)
    found = open_descriptor(Path(address).expanduser(), trust_sha256=trust_sha256)
    say(f"{address}: {found.name}, descriptors of width {found.width}.")
    module = found.module.to(how.device)

    def embed(source: Source) -> tuple[np.ndarray, np.ndarray]:
        return vectors(module, source, PREPROCESSING, how, on_broken=told)

    seen = PREPROCESSING.model_dump(mode="json")
    return Embedder(found.name, f"{found.name} {seen} {how.precision}", embed)
