"""An ONNX model with any batch, height and width, run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoforge.base.errors import WeightsError
from dinoforge.export.dynamic import NAMES, exported, features_of
from dinoforge.export.target import Reopened, Target, Written, transformer
from dinoforge.model.features import Features
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone

FILE = "model.onnx"
_MOST_BYTES = 1_500_000_000
"""Of weights in the file itself, for a protocol buffer ends at 2 GiB; more lie in a file beside it."""

_USAGE = f"""import onnxruntime

session = onnxruntime.InferenceSession("{FILE}")
names = [output.name for output in session.get_outputs()]
features = dict(zip(names, session.run(names, {{"images": images}})))  # NumPy [B, C, Y, X], normalised, float32
features["image"], features["patches"]  # [B, D], [B, H, W, D]"""


def _write(folder: Path, backbone: Backbone) -> Written:
    config: VitConfig = backbone.config
    names = [name for name in NAMES if name != "registers" or config.registers]
    with _quiet():
        program = torch.onnx.export(
            exported(backbone), (), dynamo=True, input_names=["images"], output_names=names, verbose=False
        )
        assert program is not None
        _name_axes(program.model, config)
        size = sum(tensor.numel() * tensor.element_size() for tensor in backbone.module.state_dict().values())
        program.save(folder / FILE, external_data=size > _MOST_BYTES)
    return Written(backbone)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of operators of libraries that are absent, and of Python's own modules."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _name_axes(model: Any, config: VitConfig) -> None:
    """Names of axes that a person can read, for those that a tracer made up."""
    import onnx_ir

    axes: dict[str, list[int | str]] = {
        "images": ["batch", config.channels, "height", "width"],
        "image": ["batch", config.width],
        "registers": ["batch", config.registers, config.width],
        "patches": ["batch", "rows", "columns", config.width],
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape(axes[value.name])


def _reopen(folder: Path, _written: Written) -> Reopened:
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(folder / FILE), full_check=True)
        session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    except Exception as error:  # a damaged file can raise anything
        told = (" ".join(str(error).split()) or type(error).__name__)[:120]
        raise WeightsError(f"{FILE} cannot be opened by ONNX Runtime: {told}") from None
    names = [output.name for output in session.get_outputs()]

    def features(images: Tensor) -> Features:
        found = session.run(names, {"images": images.numpy()})
        return features_of({name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)})

    notes = (
        "of a side that is no multiple of the patch the rest is cut off, for ONNX has no way to refuse it",
        "the file holds float32",
    )
    return Reopened(features, f"ONNX Runtime {onnxruntime.__version__}, processor", notes=notes, half=False)


TARGET = Target(
    title="ONNX",
    needs=("onnx", "onnxruntime", "onnxscript"),
    install="pip install 'dinoforge[onnx]'",
    bound=1e-4,
    library="onnx",
    usage=_USAGE,
    refuse=lambda backbone: transformer("onnx", backbone),
    write=_write,
    reopen=_reopen,
)
