"""The mean corruption error, and what it is measured by (Hendrycks & Dietterich 2019).

Axes: K corruptions, S severities.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dinoforge.base.errors import DataError
from dinoforge.base.files import read_lines
from dinoforge.data.corruptions.table import BENCHMARK, SEVERITIES

ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}  # fmt: skip
"""Mean error of AlexNet over the five severities, as the authors give it; the paper's table 1 rounds it."""
_ALEXNET_CLEAN = 0.435
"""Error of AlexNet on clean pictures (table 1)."""
_IMAGENET = 1000, "n01440764", "n15075141"
"""Classes of ImageNet-1k, and the first and the last of their names."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Whose errors are one."""

    name: str
    clean: float
    sums: Float[np.ndarray, " K"]
    """Errors of each corruption, summed over the severities."""


def mean_corruption_error(errors: Float[np.ndarray, "K S"], reference: Reference) -> float:
    """Mean over the corruptions of the sum of errors, over that of the reference (their CE and mCE)."""
    return float((errors.sum(1) / reference.sums).mean())


def relative_corruption_error(errors: Float[np.ndarray, "K S"], clean: float, reference: Reference) -> float:
    """The same of what the errors exceed those on clean pictures by (their relative mCE)."""
    severities = errors.shape[1]
    return float(((errors.sum(1) - severities * clean) / (reference.sums - severities * reference.clean)).mean())


def alexnet(classes: Sequence[str], corruptions: Sequence[str], severities: Sequence[int]) -> Reference | None:
    """The benchmark's own reference; None unless all of the benchmark is measured on the classes of ImageNet-1k."""
    count, first, last = _IMAGENET
    ours = len(classes) == count and (min(classes), max(classes)) == (first, last)
    whole = {*corruptions} == {*BENCHMARK} and len(severities) == SEVERITIES
    if not whole or not ours or not all(re.fullmatch(r"n\d{8}", name) for name in classes):
        return None
    return Reference("AlexNet", _ALEXNET_CLEAN, np.asarray([SEVERITIES * ALEXNET[name] for name in corruptions]))


def error_name(corruption: str, severity: int) -> str:
    """What the error under one corruption of one severity is called among scores."""
    return f"error_{corruption}_{severity}"


CLEAN = "error_clean"
"""What the error on clean pictures is called."""


def read_reference(
    path: Path, corruptions: Sequence[str], severities: Sequence[int], *, data: str, made: str
) -> Reference:
    """The errors of another backbone, from a file of scores.

    Args:
        data: Fingerprints that the scores must carry.
        made: How pictures are corrupted; what the protocols of their scores must begin with.

    Raises:
        DataError: No such file, a score is not in it, or the reference makes no error under some corruption.
    """
    if not path.is_file():
        raise DataError(f"reference={path} is no file; give one that evaluate wrote with out= for another backbone.")
    rows = [row for row in read_lines(path) if row.get("task") == "robustness" and row.get("data") == data]
    found = {
        row["name"]: float(row["value"])
        for row in rows
        if row["name"] == CLEAN or str(row["protocol"]).startswith(f"{made};")
    }
    if len({row.get("backbone") for row in rows}) > 1:
        raise DataError(f"{path} has scores of several backbones; give a file of one.")
    wanted = [CLEAN, *(error_name(name, severity) for name in corruptions for severity in severities)]
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise DataError(
            f"{path} has no score {lacking[0]} of these images ({made}), and lacks {len(lacking)} of {len(wanted)} in all."
        )
    sums = np.asarray([sum(found[error_name(name, severity)] for severity in severities) for name in corruptions])
    if not sums.all():
        name = corruptions[int(np.argmin(sums))]
        raise DataError(f"{path} makes no error under {name}; a reference must make some under every corruption.")
    return Reference(str(path), found[CLEAN], sums)
