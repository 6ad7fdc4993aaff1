"""Where a verb is told of a manifest: itself, or what was made with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dinoforge.base.errors import ConfigError
from dinoforge.base.home import at_home
from dinoforge.data.manifest import is_manifest, read_manifest
from dinoforge.data.sources.columns import SPLITS
from dinoforge.data.sources.options import shown, split_address
from dinoforge.features.descriptors import Descriptors, stored_beside
from dinoforge.recipes.opened import training_rows
from dinoforge.recipes.settle import settle


def stored_at(name: str, path: Path) -> tuple[Path, Descriptors]:
    """The manifest that is meant by a folder of curate, a manifest, or a run that was trained on one, and what it stored.

    Of a run, of the images that it was trained on: those of one split, where the manifest has splits.

    Args:
        name: Of the setting that says so, for messages.

    Raises:
        ConfigError: No manifest is meant.
        DataError: It is none, or has descriptors of another one.
    """
    if not path.exists():
        raise ConfigError(f"{name}={path} does not exist; give a folder of curate, a manifest or a run.")
    if path.is_file():
        return path, stored_beside(path)
    if (path / "manifest.parquet").exists():
        return path / "manifest.parquet", stored_beside(path / "manifest.parquet")
    if not (path / "config.yaml").exists():
        raise ConfigError(f"{name}={path} holds neither manifest.parquet nor a run.")
    address = settle({"config": str(path / "config.yaml")}).recipe.data.source
    place, options = split_address(address or "")
    manifest = at_home(place)
    if not place or not is_manifest(manifest):
        raise ConfigError(
            f"{name}={path} was trained on {shown(str(address))}, which is no manifest; give the manifest of its images."
        )
    _unchanged(path, str(address), name)
    return manifest, _of_rows(stored_beside(manifest), _trained_on(manifest, options.get("split")))


def _unchanged(run: Path, address: str, name: str) -> None:
    """Refuse a manifest that was written anew since a run was trained on it: it would answer for other images.

    Raises:
        ConfigError: It was.
    """
    try:
        known = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing says what it was trained on
    if known != training_rows(address).fingerprint:
        raise ConfigError(
            f"{name}={run}: the images of {shown(address)} are others than those it was trained on; give the manifest of these."
        )


def _trained_on(manifest: Path, asked: str | None) -> Int[np.ndarray, " n"]:
    """The rows of a manifest that training takes: of the split that was asked for, else of ``train`` where there is one."""
    splits = read_manifest(manifest, columns=["split"]).column("split")
    split = SPLITS.get(asked.lower(), asked) if asked is not None else "train"
    return np.flatnonzero(splits == split) if asked is not None or (splits == split).any() else np.arange(len(splits))


def _of_rows(whole: Descriptors, rows: Int[np.ndarray, " n"]) -> Descriptors:
    if len(rows) == len(whole.ids):
        return whole  # mapped from its files, not copied
    parts = {name: getattr(whole, name)[rows] for name in ("ids", "sha256", "thumbnails", "values")}
    return replace(whole, **parts)
