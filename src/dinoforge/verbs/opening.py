"""What verbs that use a backbone begin with: the backbone, the device and the precision, each said aloud."""

from __future__ import annotations

from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Precision, choose_precision, device, resumed_precision
from dinoforge.base.log import say
from dinoforge.data.sources.clips import frame_of
from dinoforge.features.extract import Extraction
from dinoforge.model.foreign import open_backbone
from dinoforge.model.weights import Backbone


def opened(address: str) -> Backbone:
    """The backbone at an address; how many of its tensors were found is said."""
    found = open_backbone(address)
    say(f"{address}: {found.loaded}")
    return found


def extraction(precision: str, before: Precision | None = None) -> Extraction:
    """How features are computed here; device and precision are said.

    Args:
        before: In which precision some of them are there already; ``auto`` stays with it.

    Raises:
        ConfigError: No such precision.
    """
    if precision not in {"auto", "fp32", "bf16"}:
        raise ConfigError(f"precision must be one of auto, fp32, bf16; got {precision!r}.")
    where = device("auto")
    choice = resumed_precision(precision, choose_precision(precision, where), before)
    say(f"Device {where}, precision {choice.precision}: {choice.why}.")
    return Extraction(where, choice.precision)


_TOLD = set[str]()
"""Videos that were told of: which of their frames are asked for is not known here."""


def told(name: str, reason: str) -> None:
    """Say that an image was set aside; of a video, all of whose frames are, once."""
    file, frame = frame_of(name)
    if frame == 0 or file not in _TOLD:
        say(f"Set aside {file}: {reason}")
    if file != name:
        _TOLD.add(file)
