"""Every target of ``export`` by its name. A new one is a file and a line here."""

from __future__ import annotations

from dinoforge.export import huggingface, onnx, program, timm
from dinoforge.export.target import Target

EXPORTS: dict[str, Target] = {
    "huggingface": huggingface.TARGET,
    "timm": timm.TARGET,
    "onnx": onnx.TARGET,
    "program": program.TARGET,
}
