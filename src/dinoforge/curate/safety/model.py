"""A model from a file of the user's: ONNX, run by ONNX Runtime, or TorchScript, run only where its SHA-256 is vouched for.

Axes: n images, Y by X pixels, K numbers that the model gives of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.home import at_home
from dinoforge.curate.safety.filter import Asked, File, Filter, Judged, Kind, Need
from dinoforge.model.program import open_program

_USUAL_SIDE = 224


class ModelConfig(Config):
    """A classifier that says how surely an image must go."""

    file: str
    """The model: an .onnx file (needs the extra onnx), else TorchScript. It takes [n, 3, side, side] or [n, side, side, 3] of
    float32, red, green, blue, and gives one number an image, or several of which column says which one counts."""
    threshold: float
    """Images with a score of at least this are dropped."""
    column: int | None = Field(default=None, ge=0)
    """Which of several numbers counts, the first is 0; null for a model that gives one."""
    scores: Literal["as_is", "sigmoid", "softmax"] = "as_is"
    """What makes a score of the model's numbers: nothing, for a model that gives shares; sigmoid or softmax (over all columns)
    for one that gives logits."""
    side: int | None = Field(default=None, ge=1, le=4096)
    """Pixels of the square that the whole image is resized to, its aspect given up so that nothing is cut off; null takes what
    the file says, else 224."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue on the scale 0 to 1; the default is ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divided by after that; the default is ImageNet's. [0, 0, 0] and [1, 1, 1] give 0 to 1 as it is."""
    licence: str | None = None
    """Of the model, as it is to stand in summary and manifest."""
    trust_sha256: str | None = None
    """The SHA-256 of a TorchScript file that may be run: such a file holds code, so it is run only if this is its own."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model that can be asked."""

    numbers: Callable[[Float32[np.ndarray, "n 3 Y X"]], np.ndarray]
    """What it gives of so many images."""
    side: int | None
    """Of the square that it takes; None for any."""
    at_once: int | None
    """Images that it takes together; None for any."""


@dataclass(frozen=True, kw_only=True)
class Model(Filter):
    """Drops images whose score reaches a threshold."""

    config: ModelConfig
    opened: _Opened
    side: int
    needs: Need = "image"

    def judge(self, asked: Asked) -> Judged:
        """Judge by the model's score; what has none (NaN) goes."""
        scores = self.scores(asked.images)
        return Judged.of(scores < self.config.threshold, "unsafe by model", scores)

    def scores(self, images: Any) -> Float32[np.ndarray, " n"]:
        """A number an image.

        Raises:
            WeightsError: The model cannot be run on them, or gives something else.
        """
        if not len(images):
            return np.zeros(0, np.float32)
        pixels = np.stack([_square(image, self.side) for image in images]).astype(np.float32) / 255
        with np.errstate(all="ignore"):
            ready = (pixels - np.asarray(self.config.mean, np.float32)) / np.asarray(self.config.std, np.float32)
        ready = np.ascontiguousarray(ready.transpose(0, 3, 1, 2), dtype=np.float32)
        size = self.opened.at_once or len(ready)
        parts = [self._numbers(ready[start : start + size]) for start in range(0, len(ready), size)]
        with np.errstate(all="ignore"):  # what is no number stays none, and such an image goes
            return _scores(np.concatenate(parts), self.config)

    def _numbers(self, ready: np.ndarray) -> np.ndarray:
        try:
            found = np.asarray(self.opened.numbers(ready), dtype=np.float32)
        except Exception as error:  # a model can raise anything
            told = (" ".join(str(error).split()) or type(error).__name__)[:160]
            raise WeightsError(
                f"safety.model.file={self.config.file} cannot be run at side {self.side}: {told}"
            ) from None
        if found.ndim == 0 or len(found) != len(ready):
            raise WeightsError(
                f"safety.model.file={self.config.file} gives {list(found.shape)} numbers of {len(ready)} images; it takes "
                "one row an image."
            )
        return found.reshape(len(ready), -1)


def _square(image: UInt8[np.ndarray, "Y X 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    smaller = min(image.shape[:2]) > side
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR))


def _scores(numbers: Float32[np.ndarray, "n K"], config: ModelConfig) -> Float32[np.ndarray, " n"]:
    count = numbers.shape[1]
    if config.column is None and count != 1:
        raise ConfigError(
            f"safety.model.column= is required: {config.file} gives {count} numbers an image, 0 to {count - 1}."
        )
    column = config.column or 0
    if column >= count:
        raise ConfigError(f"safety.model.column={column} is not there: {config.file} gives {count} numbers an image.")
    if config.scores == "softmax" and count == 1:
        raise ConfigError(
            f"safety.model.scores=softmax makes 1 of every image: {config.file} gives one number; give sigmoid or as_is."
        )
    if config.scores == "softmax":
        shifted = np.exp(numbers - numbers.max(axis=1, keepdims=True))
        return np.asarray((shifted / shifted.sum(axis=1, keepdims=True))[:, column], dtype=np.float32)
    chosen = numbers[:, column]
    if config.scores == "sigmoid":
        chosen = 1 / (1 + np.exp(-chosen.astype(np.float64).clip(-80, 80)))
    return np.asarray(chosen, dtype=np.float32)


def _make(config: ModelConfig) -> Model:
    if 0 in config.std:
        raise ConfigError(f"safety.model.std={list(config.std)} divides by 0; give numbers above 0.")
    file = File.read(config.file, "safety.model.file", config.licence)
    onnx = Path(config.file).suffix.lower() == ".onnx"
    opened = _onnx(config) if onnx else _torchscript(config)
    if config.side is not None and opened.side is not None and config.side != opened.side:
        raise ConfigError(f"safety.model.side={config.side} does not fit: {config.file} takes {opened.side}.")
    found = Model(config=config, opened=opened, side=opened.side or config.side or _USUAL_SIDE, files=(file,))
    found.scores([np.zeros((8, 8, 3), np.uint8)])  # what does not fit is said before a million images are read
    return found


def _onnx(config: ModelConfig) -> _Opened:
    if config.trust_sha256 is not None:
        raise ConfigError(f"safety.model.trust_sha256= has no effect: {config.file} is ONNX, which holds no code.")
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("safety.model.file= of ONNX needs ONNX Runtime: pip install 'dinoforge[onnx]'.") from None
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # a share of the cores where shards run side by side
        session = onnxruntime.InferenceSession(str(at_home(config.file)), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a damaged file can raise anything
        told = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"safety.model.file={config.file} cannot be opened by ONNX Runtime: {told}") from None
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or (shape[1] != 3 and not last) or inputs[0].type != "tensor(float)":
        told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise WeightsError(
            f"safety.model.file={config.file} takes {told}; a filter takes one input [n, 3, side, side] or [n, side, side, 3] "
            "of float32."
        )
    sides = {side for side in (shape[1:3] if last else shape[2:]) if isinstance(side, int)}
    if len(sides) > 1:
        raise WeightsError(
            f"safety.model.file={config.file} takes images of {sorted(sides)} pixels; a filter takes squares."
        )
    name, output = inputs[0].name, session.get_outputs()[0].name

    def numbers(images: Float32[np.ndarray, "n 3 Y X"]) -> np.ndarray:
        given = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if last else images
        return np.asarray(session.run([output], {name: given})[0])

    return _Opened(numbers, sides.pop() if sides else None, shape[0] if isinstance(shape[0], int) else None)


def _torchscript(config: ModelConfig) -> _Opened:
    """A file of TorchScript; raises what ``open_program`` does."""
    module, _ = open_program(
        at_home(config.file), trusted=config.trust_sha256, name=f"safety.model.file={config.file}",
        setting="safety.model.trust_sha256",
    )  # fmt: skip

    def numbers(images: Float32[np.ndarray, "n 3 Y X"]) -> np.ndarray:
        with torch.no_grad():
            found = module(torch.from_numpy(images))
        return np.asarray(found.float().numpy())

    return _Opened(numbers, None, None)


MODEL = Kind("what a model from a file of yours scores as unsafe", ModelConfig, _make)
