"""Faces: found by the cascade that OpenCV 4 brings along, or by a YuNet model from a file; noted, blurred, or a reason to drop.

The cascade (Viola and Jones 2001, the stumps of haarcascade_frontalface_default) sees upright faces from the front. YuNet
(Wu, Peng, Yu 2023) also sees those that are turned; its file, face_detection_yunet_*.onnx, comes from OpenCV's model zoo.

Axes: n images, Y by X pixels, b faces of an image.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.hardware import cores
from dinoforge.base.home import at_home
from dinoforge.curate.safety.filter import Asked, File, Filter, Judged, Kind, Need

_OPENCV: Any = cv2
"""For what only version 4 has."""
CASCADE = "haarcascade_frontalface_default.xml"
_LICENCE = "Intel License Agreement For Open Source Computer Vision Library (BSD)"
_LEAST_PIXELS = 20
"""The cascade was trained on 24 pixels, and scales from there in steps."""


class FacesConfig(Config):
    """What is done with faces."""

    then: Literal["note", "blur", "drop"]
    """note: their boxes go into the manifest. blur: that, and whoever reads the manifest's images (pretrain, embed …) gets
    them with these places blurred; the files stay as they are. drop: images with a face are left out."""
    yunet: str | None = None
    """A YuNet model (.onnx) that finds them; null takes the cascade of OpenCV 4 (extra faces), which sees faces from the
    front."""
    least_score: float = Field(default=0.6, ge=0, lt=1)
    """YuNet alone: how sure it must be of a face."""
    neighbours: int = Field(default=3, ge=1)
    """The cascade alone: how many windows beside one another must see a face; more find fewer, and fewer that are none."""
    smallest: float = Field(default=0.05, gt=0, le=1)
    """The cascade alone: side of the smallest face, as a share of the image's shorter side."""
    licence: str | None = None
    """Of the YuNet model, as it is to stand in summary and manifest."""


@dataclass(frozen=True, kw_only=True)
class Faces(Filter):
    """Finds faces; every thread has a detector of its own, for none may be asked by two at once."""

    config: FacesConfig
    path: str
    needs: Need = "image"
    _own: threading.local = field(default_factory=threading.local, compare=False)

    def judge(self, asked: Asked) -> Judged:
        """Judge by the faces that are found; the score is how many."""
        with ThreadPoolExecutor(max_workers=cores()) as crew:
            boxes = list(crew.map(self.boxes, asked.images))
        count = np.asarray([len(found) for found in boxes], np.float32)
        keep = count == 0 if self.config.then == "drop" else np.ones(len(count), bool)
        return Judged.of(keep, "shows a face", count, boxes)

    def boxes(self, image: UInt8[np.ndarray, "Y X 3"]) -> Float32[np.ndarray, "b 4"]:
        """The faces of an image: left, top, right, bottom, in shares of its sides."""
        if not hasattr(self._own, "detector"):
            self._own.detector = _yunet(self.config) if self.config.yunet else _OPENCV.CascadeClassifier(self.path)
        height, width = image.shape[:2]
        detect = self._by_yunet if self.config.yunet else self._by_cascade
        found = np.asarray(detect(self._own.detector, image), dtype=np.float64).reshape(-1, 4)
        corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
        inside = (corners / [width, height, width, height]).clip(0, 1)
        return np.asarray(inside[np.lexsort(inside.T)], dtype=np.float32)

    def _by_cascade(self, detector: Any, image: np.ndarray) -> Any:
        grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        least = max(_LEAST_PIXELS, round(self.config.smallest * min(grey.shape)))
        return detector.detectMultiScale(
            grey, scaleFactor=1.1, minNeighbors=self.config.neighbours, minSize=(least, least)
        )

    def _by_yunet(self, detector: Any, image: np.ndarray) -> Any:
        detector.setInputSize((image.shape[1], image.shape[0]))
        found = detector.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        return np.zeros((0, 4)) if found is None else found[:, :4]


def _yunet(config: FacesConfig) -> Any:
    try:
        detector = cv2.FaceDetectorYN.create(str(at_home(str(config.yunet))), "", (320, 320), config.least_score)
        detector.detect(np.zeros((320, 320, 3), np.uint8))  # what it cannot run is found out here
        return detector
    except cv2.error as error:
        told = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"safety.faces.yunet={config.yunet} is no YuNet model that OpenCV can run: {told}") from None


def _make(config: FacesConfig) -> Faces:
    _refuse_ignored(config)
    blurs = config.then == "blur"
    if config.yunet is not None:
        file = File.read(config.yunet, "safety.faces.yunet", config.licence)
        _yunet(config)
        return Faces(config=config, path=config.yunet, files=(file,), blurs=blurs)
    path = _cascade()
    file = File.read(str(path), "safety.faces", _LICENCE)
    return Faces(config=config, path=str(path), files=(file,), blurs=blurs)


def _cascade() -> Path:
    """Where OpenCV keeps its cascade.

    Raises:
        ConfigError: It keeps none, as version 5 does.
    """
    path = Path(cv2.__file__).parent / "data" / CASCADE
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise ConfigError(
            f"safety.faces needs the cascade of OpenCV 4, and this is OpenCV {cv2.__version__}: pip install "
            "'dinoforge[faces]', or give a YuNet model as safety.faces.yunet=."
        )
    return path


def _refuse_ignored(config: FacesConfig) -> None:
    plain = {name: field.default for name, field in FacesConfig.model_fields.items()}
    other = ("neighbours", "smallest") if config.yunet is not None else ("least_score", "licence")
    for name in other:
        value = getattr(config, name)
        if value != plain[name]:
            by = "YuNet finds the faces" if config.yunet is not None else "the cascade finds the faces"
            raise ConfigError(f"safety.faces.{name}={value} has no effect: {by}.")


FACES = Kind("images with faces, or blur or note the faces", FacesConfig, _make)
