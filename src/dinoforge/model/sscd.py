"""The copy descriptor SSCD (Pizzi et al. 2022) from its released weights: ResNet-50, generalised mean, a projection, length 1.

Weights are the files named ``…torchvision.pt``: tensors by name, read without running code. Files named ``…torchscript.pt``
are programs, which run only where their user vouches for them by their SHA-256.

Axes: B images, Y by X pixels, y by x cells of the last map, D numbers of a descriptor.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.files import sha256
from dinoforge.base.home import at_home
from dinoforge.model.official import read_state
from dinoforge.model.program import open_program
from dinoforge.model.weights import Preprocessing, load_into

SIDE = 320
"""Pixels down and across that a picture is resized to, its aspect given up (SSCD's advice for batches)."""
PREPROCESSING = Preprocessing(short_side=SIDE, side=SIDE)
"""ImageNet's mean and spread. Nothing is cut off: see ``squeezed``."""
POWER = 3.0
"""Of the generalised mean."""

_DEPTHS = (3, 4, 6, 3)
_STEM, _EXPANSION = 64, 4
_COUNTS = ".num_batches_tracked"


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 has the stride (He et al. 2016, in its usual form)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        wide = width * _EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, x: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B E y x"]:
        """The next map."""
        short = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + short)


class ResNet50(nn.Module):
    """The trunk and the projection behind it, by the names that the released files have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, _STEM, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(_STEM)
        channels = _STEM
        for stage, depth in enumerate(_DEPTHS):
            blocks = []
            for number in range(depth):
                inner, stride = _STEM << stage, 2 if stage and not number else 1
                blocks.append(Bottleneck(channels, inner, stride))
                channels = inner * _EXPANSION
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, width)

    def trunk(self, images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B C y x"]:
        """The last map, at a 32nd of the size."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(len(_DEPTHS)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x

    def forward(self, images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        """Projected generalised means."""
        projected: Tensor = self.fc(generalised_mean(self.trunk(images)))
        return projected


def generalised_mean(x: Float[Tensor, "B C y x"], *, power: float = POWER) -> Float[Tensor, "B C"]:
    """The p-th root of the mean of p-th powers over all cells (GeM, Radenović et al. 2018); 1e-6 is the least number."""
    return x.clamp(min=1e-6).pow(power).mean(dim=(2, 3)).pow(1 / power)


class Sscd(nn.Module):
    """Normalised images in, descriptors of length 1 out."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.backbone = ResNet50(width)

    def forward(self, images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        """Descriptors of length 1."""
        return F.normalize(self.backbone(images), dim=1)


class Script(nn.Module):
    """A TorchScript program that gives a vector an image, used as a descriptor."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Float[Tensor, "B 3 Y X"]) -> Float[Tensor, "B D"]:
        """Descriptors of length 1."""
        return F.normalize(self.program(images).float(), dim=1)


@dataclass(frozen=True, slots=True)
class Opened:
    """A descriptor network, and what it is called in artefacts."""

    module: nn.Module
    name: str
    """Its kind and the first 16 digits of its file's SHA-256."""
    width: int
    """Numbers of a descriptor."""


def is_file(address: str) -> bool:
    """Whether an address is a file that ``open_descriptor`` opens, and not a backbone."""
    return at_home(address).is_file() and Path(address).suffix in {".pt", ".pth", ".safetensors"}


def open_descriptor(path: Path, *, trust_sha256: str | None = None) -> Opened:
    """A descriptor network from a file.

    Args:
        trust_sha256: Of a TorchScript file, whose code is run then.

    Raises:
        WeightsError: No such file, a damaged one, or one of something else.
        ConfigError: A program that nobody vouched for, or a key that is not the file's or not needed.
    """
    if not path.is_file():
        raise WeightsError(f"descriptor={path} does not exist.")
    if _is_program(path):
        return _opened_program(*open_program(path, trusted=trust_sha256, name=str(path), setting="trust_sha256"), path)
    if trust_sha256 is not None:
        raise ConfigError(f"trust_sha256= has no effect: {path} holds tensors, which are read without running code.")
    state = read_state(path)
    if "embeddings.1.weight" in state:
        raise WeightsError(f"{path} is laid out as in Classy Vision; take the file that ends in .torchvision.pt.")
    projection = state.get("backbone.fc.weight")
    if "backbone.conv1.weight" not in state or not isinstance(projection, Tensor) or projection.ndim != 2:
        begin = ", ".join(list(state)[:3]) or "nowhere"
        raise WeightsError(
            f"{path} is no SSCD descriptor: it lacks backbone.conv1.weight or backbone.fc.weight; its names begin {begin}."
        )
    module = Sscd(len(projection))
    # How many batches were seen is not used, and files written by early versions of torch have no such number.
    counts = {name: tensor for name, tensor in module.state_dict().items() if name.endswith(_COUNTS)}
    load_into(module, {**counts, **state}, name=str(path))
    return Opened(module.eval(), f"sscd {sha256(path)[:16]}", len(projection))


def _is_program(path: Path) -> bool:
    """Whether a file holds TorchScript: an archive with code inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _opened_program(program: Any, mark: str, path: Path) -> Opened:
    try:
        noise = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = program(noise)
    except Exception as error:  # a program can raise anything
        told = (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]
        raise WeightsError(f"{path} cannot be run as a descriptor: {told}") from None
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not torch.isfinite(found).all():
        raise WeightsError(f"{path} is no descriptor: for 2 images it gives {shape}, not 2 finite vectors.")
    return Opened(Script(program), f"script {mark[:16]}", found.shape[1])
