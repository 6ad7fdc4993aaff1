"""What describes images, for verbs that look for near copies: a network made for them, or a backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.curate.embeddings import Embedder
from dinoforge.data.sources.source import Source
from dinoforge.features.copies import NAME
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.extract import vectors
from dinoforge.model.sscd import PREPROCESSING, is_file, open_descriptor
from dinoforge.verbs.embedding import Elsewhere, embedder
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
    found = open_descriptor(at_home(address), trust_sha256=trust_sha256)
    say(f"{address}: {found.name}, descriptors of width {found.width}.")
    how = extraction(precision)
    module = found.module.to(how.device)

    def embed(source: Source) -> tuple[np.ndarray, np.ndarray]:
        return vectors(module, source, PREPROCESSING, how, on_broken=told)

    seen = PREPROCESSING.model_dump(mode="json")
    weights = f"{found.name} with preprocessing {seen}"
    mark = f"{weights} {how.precision}"
    elsewhere = Elsewhere(describer, (address, how.precision), mark, (("trust_sha256", trust_sha256),))
    return Embedder(found.name, mark, embed, weights, elsewhere, how.device.type != "cpu")


def describer_of(
    path: Path, stored: Descriptors, descriptor: str | None, *, trust_sha256: str | None, precision: str
) -> Embedder | None:
    """What describes the asked images as the stored ones were; None for the descriptor that needs no weights.

    Raises:
        ConfigError: Another one, one that is missing, or settings of one that is not used.
    """
    what = f"{path} has descriptors {stored.name!r} of width {stored.values.shape[1]} beside it"
    if stored.name == NAME:
        for name, value in (("descriptor", descriptor), ("trust_sha256", trust_sha256)):
            if value is not None:
                raise ConfigError(f"{name}={value} has no effect: {what}, which need no weights.")
        if precision != "auto":
            raise ConfigError(f"precision={precision} has no effect without descriptor=.")
        return None
    if descriptor is None:
        raise ConfigError(f"{what}; give descriptor= with the weights that made them.")
    found = describer(descriptor, precision, trust_sha256=trust_sha256)
    if found.name != stored.name:
        raise ConfigError(f"descriptor={descriptor} is {found.name!r}; {what}. Give the weights that made them.")
    return found
