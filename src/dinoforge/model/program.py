"""TorchScript: a file that is a program. It runs only where its user vouches for it by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from dinoforge.base.errors import ConfigError, WeightsError


def open_program(path: Path, *, trusted: str | None, name: str, setting: str) -> tuple[Any, str]:
    """The program in a file, and its SHA-256.

    Args:
        trusted: The SHA-256 that the user vouches for.
        name: What the file is called in messages.
        setting: Where the user says so.

    Raises:
        ConfigError: Nobody vouches for it, or for another one.
        WeightsError: It is no TorchScript file.
    """
    content = path.read_bytes()
    key = hashlib.sha256(content).hexdigest()  # of the very bytes that are run: the file may change meanwhile
    if trusted is None:
        raise ConfigError(
            f"{name} would be run as TorchScript, which is a program; where you trust it, say {setting}={key}."
        )
    if trusted.lower() != key:
        raise ConfigError(f"{setting}={trusted} is not the SHA-256 of {name}, which is {key}; it was not run.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, its files are still about
            return torch.jit.load(io.BytesIO(content), map_location="cpu").eval(), key
    except Exception as error:  # a damaged file can raise anything
        told = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"{name} is no TorchScript file: {told}") from None
