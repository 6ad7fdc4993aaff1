"""What ``evaluate`` keeps, against the images that it reads: kept among them it would be read as images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dinoforge.base.config import Config
from dinoforge.base.home import at_home
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.verbs.places import refuse_within
from dinoforge.verbs.sides import Named
from dinoforge.verbs.states import texts


def refuse_among_images(
    named: Named, configs: Mapping[str, Config], *, features: str | None, save_heads: str | None
) -> None:
    """Refuse folders that lie within images of any side or task.

    Args:
        configs: Of every task.
        features: A folder, none, or null for the usual one.

    Raises:
        ConfigError: One does.
    """
    kept = {"features": None if features == "none" else features, "save_heads": save_heads}
    for name, images in _read(named, configs):
        for setting, folder in kept.items():
            if folder is not None:
                refuse_within(at_home(folder), images, name=name, setting=setting)


def _read(named: Named, configs: Mapping[str, Config]) -> Iterator[tuple[str, str]]:
    """Every address of images, behind the setting that names it."""
    yield from ((name, images) for name in ("data", "train", "test") if (images := getattr(named, name)) is not None)
    for name, config in configs.items():
        for field in EVALUATIONS[name].images:
            yield from ((f"{name}.{field}", images) for images in texts(getattr(config, field)))
