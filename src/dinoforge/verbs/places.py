"""Where a verb writes, against where it reads: files of ours are not to be read as images, nor written over what is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dinoforge.base.config import differences
from dinoforge.base.errors import ConfigError
from dinoforge.base.files import resolved
from dinoforge.base.home import at_home
from dinoforge.data.sources.options import scheme_of, split_address


def lies_within(out: str | Path, images: str) -> bool:
    """Whether a path is the file or lies in the folder that an address names.

    Raises:
        RunError: The path is a loop of links.
    """
    place = place_of(images)
    return place is not None and resolved(Path(out)).is_relative_to(place)


def place_of(images: str) -> Path | None:
    """The file or folder that an address names, without links; None for what is no path: the source says so."""
    if scheme_of(images):
        return None
    try:
        return at_home(split_address(images)[0]).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links is a RuntimeError
        return None


def refuse_others(folder: Path, known: Collection[str]) -> None:
    """Refuse to replace a folder that holds something besides what was written there: it would be lost.

    Args:
        known: Names of what was written.

    Raises:
        ConfigError: It does.
    """
    others = (
        sorted(one.name for one in folder.iterdir() if one.name not in known and not one.name.startswith("."))
        if folder.is_dir()
        else []
    )
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(f"out={folder} holds {others[0]}{more} besides what is to be replaced; give a new folder.")


def refuse_different(out: Path, what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to replace what was made otherwise, or to mix it with what is made now.

    Args:
        what: What the folder holds, in a word.
        before: Everything that what is there depends on, as far as it counts.

    Raises:
        ConfigError: It was made otherwise.
    """
    if told := "; ".join(differences(before, now)):
        raise ConfigError(f"out={out} holds other {what}. They differ in: {told}. Give a new folder, or remove {out}.")


def refuse_within(out: str | Path, images: str, *, name: str, setting: str = "out") -> None:
    """Refuse to write where images are read from: the next start would read what this one wrote.

    Args:
        name: Of the setting that names the images.
        setting: The one that says where is written.

    Raises:
        ConfigError: It would.
    """
    if lies_within(out, images):
        raise ConfigError(f"{setting}={out} lies within {name}={images}; give a folder beside it.")
