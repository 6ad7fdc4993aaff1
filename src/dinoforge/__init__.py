"""DINOv2 whole: from a heap of unlabelled images to frozen features that serve.

One function a verb, with the words of the command line: ``dinoforge.pretrain(data="photos/", out="runs/a")``. ``load`` gives
a backbone as a module: ``module(images)`` has ``.image``, ``.registers`` and ``.patches``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

__version__ = "0.1.0"

__all__ = ["load", "open_source", "prepared"]


def load(backbone: str | Path) -> Any:
    """A frozen backbone: a folder of ours, a run, weights in any layout that ``convert`` reads, hf:FOLDER or timm:NAME.

    Raises:
        WeightsError: Nothing there, unsafe, damaged, or tensors that do not fit.
        ConfigError: No address.
    """
    from dinoforge.base.given import as_text
    from dinoforge.model.foreign import open_backbone

    return open_backbone(as_text(backbone, "backbone")).module.requires_grad_(False).eval()


def prepared(backbone: str | Path, images: Iterable[np.ndarray | Image]) -> Tensor:
    """Decoded pictures as a backbone takes them: ``[B, C, side, side]``, normalised.

    Args:
        images: Arrays of uint8, ``[Y, X, C]`` or ``[Y, X]`` each, or Pillow's images. Grey and transparency as in files: the
            one is repeated, the other dropped.

    Raises:
        DataError: No picture, something else, or channels that the backbone does not take.
        WeightsError: As ``load``.
    """
    import torch

    from dinoforge.base.given import as_text
    from dinoforge.data.augment import centre
    from dinoforge.data.handed import handed
    from dinoforge.features.extract import normalised
    from dinoforge.model.foreign import open_backbone

    how = open_backbone(as_text(backbone, "backbone")).preprocessing
    views = [centre(image, short_side=how.short_side, side=how.side) for image in handed(images, how.channels)]
    return normalised(torch.stack(views), how)


def open_source(address: str | Path) -> Any:
    """The images at an address: a folder, a Parquet file, ``toy://species``."""
    from dinoforge.data.sources.table import open_source as opened

    return opened(address)


def _verb(name: str) -> Callable[..., Any] | None:
    # The verbs are imported when first used, so that `import dinoforge` is quick.
    from dinoforge.verbs.table import VERBS

    return VERBS.get(name)


class _Room(ModuleType):
    """A folder that has the name of a verb: called, it is the verb."""

    def __call__(self, **settings: Any) -> Any:
        verb = _verb(self.__name__.rpartition(".")[2])
        assert verb is not None
        return verb(**settings)


class _Package(ModuleType):
    """``evaluate``, ``report`` and ``recipes`` are verbs and folders: whichever was imported first, both serve."""

    def __getattribute__(self, name: str) -> Any:
        try:
            found = super().__getattribute__(name)
        except AttributeError:
            verb = None if name.startswith("_") else _verb(name)
            if verb is None:
                raise AttributeError(f"module 'dinoforge' has no attribute {name!r}") from None
            return verb
        if type(found) is ModuleType and found.__name__ == f"dinoforge.{name}" and _verb(name) is not None:
            found.__class__ = _Room
        return found


sys.modules[__name__].__class__ = _Package
