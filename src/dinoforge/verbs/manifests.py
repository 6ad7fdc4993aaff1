"""Where a verb is told of a manifest: itself, or what was made with it."""

from __future__ import annotations

from pathlib import Path

from dinoforge.base.errors import ConfigError
from dinoforge.data.manifest import is_manifest
from dinoforge.recipes.settle import settle


def manifest_at(name: str, path: Path) -> Path:
    """The manifest that is meant by a folder of curate, a manifest, or a run that was trained on one.

    Args:
        name: Of the setting that says so, for messages.

    Raises:
        ConfigError: None is.
    """
    if not path.exists():
        raise ConfigError(f"{name}={path} does not exist; give a folder of curate, a manifest or a run.")
    if path.is_file():
        return path
    if (path / "manifest.parquet").exists():
        return path / "manifest.parquet"
    if (path / "config.yaml").exists():
        data = settle({"config": str(path / "config.yaml")}).recipe.data.source
        if data is not None and is_manifest(Path(data)):
            return Path(data)
        raise ConfigError(
            f"{name}={path} was trained on {data}, which is no manifest; give the manifest of its images."
        )
    raise ConfigError(f"{name}={path} holds neither manifest.parquet nor a run.")
