"""A ``torch.export`` program: one file that torch alone runs, with any batch, height and width."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.export.dynamic import exported, features_of
from dinoforge.export.target import Reopened, Target, Written, transformer
from dinoforge.model.features import Features
from dinoforge.model.weights import Backbone

FILE = "model.pt2"

_USAGE = f"""import torch

model = torch.export.load("{FILE}").module()
features = model(images)  # [B, C, Y, X], normalised, float32
features["image"], features["patches"]  # [B, D], [B, H, W, D]"""


def _write(folder: Path, backbone: Backbone) -> Written:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        torch.export.save(exported(backbone), folder / FILE)
    return Written(backbone)


def _reopen(folder: Path, _written: Written) -> Reopened:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = torch.export.load(folder / FILE).module()
    except Exception as error:  # a damaged archive can raise anything
        told = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise WeightsError(f"{FILE} cannot be opened by torch.export.load: {told}") from None

    def features(images: Tensor) -> Features:
        return features_of(run(images))

    return Reopened(
        features, f"torch.export of torch {torch.__version__}", notes=("the program computes in float32",), half=False
    )


TARGET = Target(
    title="torch.export",
    needs=(),
    install="",
    bound=1e-5,
    library="pytorch",
    usage=_USAGE,
    refuse=lambda backbone: transformer("program", backbone),
    write=_write,
    reopen=_reopen,
)
