"""Vision models of other libraries as frozen backbones: any of Hugging Face's (``hf:``) and of timm's (``timm:``).

What they give becomes ``Features``: tokens before the patches are the image token and registers; maps of convolutional
networks are patches. They are used frozen, and no code that comes with weights is ever run. Nothing is downloaded: a model is
a local folder, or a name whose files are in the library's own cache.

Axes: B images, C channels, Y by X pixels, H by W patches, D channels of a token, T tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, UserError, WeightsError
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.model.features import Features
from dinoforge.model.pixels import Colours, Thumbnails, colour_preprocessing, preprocessing, side_of
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone

_MOST_PREFIX = 32
"""Tokens before the patches at most."""


class ForeignConfig(Config):
    """What is known of a model of another library."""

    kind: Literal["foreign"] = "foreign"
    """Which backbone."""
    model: str
    """Its library, ``hf`` or ``timm``, and the name of its class there."""
    width: int = Field(gt=0)
    """Channels of a token."""
    patch: int = Field(gt=0)
    """Side of what one patch or cell of a map stands for, in pixels."""
    pixels: int = Field(gt=0)
    """Image side that it is described with."""
    channels: int = Field(default=3, gt=0)
    """Channels of an image."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a library's model gives."""

    tokens: Float[Tensor, "B T D"] | Float[Tensor, "B D H W"]
    """Tokens, or a map."""
    prefix: int
    """Tokens before the patches."""
    image: Float[Tensor, "B d"] | None
    """One vector an image, where the model has one of its own; else the first token, or the mean of the patches."""


class Foreign(nn.Module):
    """A frozen model of another library: images in, ``Features`` out, without gradients.

    Args:
        run: What the model makes of images; it is handed the model, so that a copy runs itself.
    """

    def __init__(self, address: str, model: nn.Module, run: Callable[[nn.Module, Tensor], Output]) -> None:
        super().__init__()
        self.address, self.model, self._run = address, model.requires_grad_(False), run
        self.width, self.patch = 0, 1
        super().train(False)

    def train(self, mode: bool = True) -> Foreign:
        """Stays frozen.

        Raises:
            ConfigError: Training is asked for.
        """
        if mode:
            raise ConfigError(f"{self.address} is a frozen backbone and cannot be trained; convert its weights first.")
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C Y X"]) -> Features:
        """Features of normalised images.

        Raises:
            ConfigError: It does not take images of this size.
        """
        try:
            return features(self._run(self.model, images), (images.shape[-2], images.shape[-1]))
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            size, told = "x".join(str(n) for n in images.shape[1:]), (str(error).splitlines() or [""])[0][:120]
            raise ConfigError(
                f"{self.address} does not take images of {size} (channels, rows, columns): {told}"
            ) from None

    def class_attention(self, images: Float[Tensor, "B C Y X"]) -> Float[Tensor, "B 0 H W"]:
        """None of its heads: other libraries do not show them alike."""
        return images.new_zeros(len(images), 0, *self.forward(images).patches.shape[1:3], dtype=torch.float32)


def features(found: Output, size: tuple[int, int]) -> Features:
    """Ours from what a model gave for images of this size, in pixels.

    Raises:
        ValueError: Tokens that lie on no grid.
    """
    tokens = found.tokens
    if tokens.ndim == 4:
        patches, before = tokens.permute(0, 2, 3, 1), tokens.new_zeros(len(tokens), 0, tokens.shape[1])
    else:
        before, rest = tokens[:, : found.prefix], tokens[:, found.prefix :]
        patches = rest.unflatten(1, grid_of(rest.shape[1], size))
    image = found.image
    if image is None or image.shape[-1] != patches.shape[-1]:
        image = before[:, 0] if before.shape[1] else patches.mean((1, 2))
    return Features(image, before[:, 1:], patches)


def grid_of(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of so many patches in an image of this size; what a patch does not fill is cut off, or filled up.

    Raises:
        ValueError: No side of a patch gives as many.
    """
    height, width = size
    for patch in range(min(size), 0, -1):
        for rows, columns in ((height // patch, width // patch), (-(-height // patch), -(-width // patch))):
            if rows * columns == tokens:
                return rows, columns
    raise ValueError(f"its {tokens} patch tokens are no grid in an image of {height}x{width}.")


def open_backbone(address: str | Path) -> Backbone:
    """A backbone to use frozen: what ``load_backbone`` opens, ``hf:FOLDER``, ``hf:OWNER/NAME``, ``timm:NAME``, ``pixels:SIDE``,
    ``colours:SIDE``.

    Raises:
        WeightsError: Nothing there, unsafe, damaged, or no vision model.
        ConfigError: The extra is not installed.
    """
    library, colon, name = str(address).partition(":")
    if not colon or library not in _DOORS:
        return load_backbone(address)
    if not name:
        raise WeightsError(f"backbone {address} names no model; write {library}:FOLDER or {library}:NAME.")
    return _DOORS[library](str(address), name)


def _installed(address: str, name: str) -> Any:
    """A library by its name.

    Raises:
        ConfigError: It is absent.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if name == "timm":
            told = f"pip install timm (it brings torchvision; {error})"
        else:
            told = f'pip install "dinoforge[interop]" ({error})'
        raise ConfigError(f"backbone {address} needs {name}, which is not installed: {told}.") from None


def _finished(address: str, module: Foreign, preprocessing: Preprocessing, model: str, channels: int) -> Backbone:
    """The backbone, once it has been seen to give the same features twice.

    Raises:
        WeightsError: It does not, or gives none.
    """
    side = preprocessing.side
    noise = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
    first, again = module(noise), module(noise)
    if not torch.allclose(first.patches, again.patches, atol=1e-4) or not torch.isfinite(first.image).all():
        raise WeightsError(
            f"{address} gives other features each time, or none that are finite; it cannot be used frozen."
        )
    module.width, module.patch = first.patches.shape[-1], max(round(side / first.patches.shape[1]), 1)
    config = ForeignConfig.build(
        {"model": model, "width": module.width, "patch": module.patch, "pixels": side, "channels": channels}
    )
    count = sum(1 for _ in module.model.state_dict())
    return Backbone(
        module, config, preprocessing, {"weights": address}, f"{count}/{count} tensors of {config.model}, frozen"
    )


def _hf(address: str, name: str) -> Backbone:
    """A vision model of Hugging Face's, from its folder or its cache."""
    transformers = _installed(address, "transformers")
    folder = hf_folder(address, name)
    model = hf_model(transformers, f"backbone {address}", folder)
    config = model.config
    channels = int(getattr(config, "num_channels", 3) or 3)
    preprocessing = _hf_preprocessing(address, folder, config, channels)
    prefix, behind = _hf_others(model)

    def run(model: Any, images: Tensor) -> Output:
        native = getattr(config, "image_size", None)
        other = native is not None and tuple(images.shape[-2:]) != _pair(native)
        more = {"interpolate_pos_encoding": True} if other and _takes(model, "interpolate_pos_encoding") else {}
        out = model(pixel_values=images, **more)
        tokens = getattr(out, "last_hidden_state", None)
        if tokens is None:
            raise ValueError(f"{type(model).__name__} gives no last_hidden_state, so it is no vision encoder.")
        pooled = getattr(out, "pooler_output", None)
        before = 0
        if tokens.ndim == 3:
            # A first token that is what the model pools is no patch, though no parameter tells of it: DINOv3's ConvNeXt.
            before = prefix or int(pooled is not None and torch.equal(tokens[:, 0], pooled))
            tokens = tokens[:, : tokens.shape[1] - behind]
        after = getattr(model, "post_layernorm", None)  # CLIP's: its last norm is applied to the class token alone
        image = after(tokens[:, 0]) if before and after is not None else None
        if not before and pooled is not None:
            image = pooled.flatten(1)
        return Output(tokens, before, image)

    module = Foreign(address, model, run)
    return _finished(address, module, preprocessing, f"hf {type(model).__name__}", channels)


def hf_folder(address: str, name: str) -> Path:
    """A folder, or where Hugging Face's cache has a model of that name.

    Raises:
        WeightsError: It is in neither.
    """
    if at_home(name).is_dir():
        return at_home(name)
    hub = _installed(address, "huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except Exception:  # a name that is none, or one whose files are not there
        raise WeightsError(
            f"backbone {address}: {name} is no folder and not in Hugging Face's cache; download it first (hf download {name})."
        ) from None


def hf_model(transformers: Any, name: str, folder: Path) -> Any:
    """The vision encoder in a folder, every tensor of it from the file.

    Args:
        name: What it is called in messages.

    Raises:
        WeightsError: It cannot be opened, or takes no pictures.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(f"{name}: {folder} has no config.json, so it is no Hugging Face model.")
    try:
        model, told = transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
        )
    except UserError:
        raise
    except Exception as error:  # a library of hundreds of models can raise anything
        line = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"{name} cannot be opened by transformers: {line}") from None
    missing = sorted(key for key in told["missing_keys"] if not _unused(key))
    vision = getattr(model, "vision_model", model)  # of a model of pictures and words
    if missing:
        raise WeightsError(f"{name}: {len(missing)} tensors are missing: {', '.join(missing[:4])} …")
    if getattr(vision, "main_input_name", "pixel_values") != "pixel_values":
        raise WeightsError(f"{name} is a {type(model).__name__}, which does not take pictures.")
    return vision.eval()


def _unused(name: str) -> bool:
    """Whether features do without this tensor: ``ViTModel`` has a pooler that few weights bring, and we do not read it."""
    return name.startswith("pooler.dense.") or name.endswith(("mask_token", "position_ids"))


def _takes(model: Any, argument: str) -> bool:
    return argument in model.forward.__code__.co_varnames or argument in str(model.forward.__doc__)


def _pair(value: Any) -> tuple[int, int]:
    """Height and width, of which some configurations give a number, a list, or each by its name."""
    if isinstance(value, Mapping):
        value = [value[name] for name in ("height", "width")]
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) else (int(value), int(value))


def _hf_others(model: Any) -> tuple[int, int]:
    """Tokens of the embedding layer before the patches, those of a class and of registers, and behind them, of detections."""
    before = behind = 0
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last in {"cls_token", "class_embedding", "distillation_token"}:
            before += 1
        elif last == "register_tokens":
            before += int(parameter.shape[-2])
        elif last == "detection_tokens":
            behind += int(parameter.shape[-2])
    return min(before, _MOST_PREFIX), behind


def _hf_preprocessing(address: str, folder: Path, config: Any, channels: int) -> Preprocessing:
    from dinoforge.model.processor import FILE, read_processor

    if (folder / FILE).exists():
        found, differs = read_processor(folder / FILE, channels)
        for line in differs:
            say(f"{address}: {line}.")
        return found
    side = _pair(getattr(config, "image_size", None) or 224)[0]
    say(f"{address}: no {FILE}; ImageNet's mean and std, {side} pixels.")
    usual = Preprocessing.usual(channels)
    return usual.model_copy(update={"side": side, "short_side": round(side * usual.short_side / usual.side)})


def _timm(address: str, name: str) -> Backbone:
    """A model of timm's, from its cache, or from a folder in its form."""
    from dinoforge.model.processor import timm_preprocessing

    timm = _installed(address, "timm")
    place = at_home(name)
    try:
        with _offline():
            model = timm.create_model(f"local-dir:{place}" if place.is_dir() else name, pretrained=True, num_classes=0)
    except Exception as error:  # as above
        line = (" ".join(str(error).split()) or type(error).__name__)[:160]
        raise WeightsError(f"backbone {address} cannot be opened: {line} (nothing is downloaded here)") from None
    model = model.eval()
    preprocessing, differs = timm_preprocessing(timm.data.resolve_model_data_config(model))
    for line in differs:
        say(f"{address}: {line}.")

    def run(model: Any, images: Tensor) -> Output:
        tokens = model.forward_features(images)
        if tokens.ndim == 4 and str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"):
            tokens = tokens.permute(0, 3, 1, 2)
        image = model.forward_head(tokens, pre_logits=True)
        return Output(tokens, int(getattr(model, "num_prefix_tokens", 0)), image if image.ndim == 2 else None)

    return _finished(
        address,
        Foreign(address, model, run),
        preprocessing,
        f"timm {type(model).__name__}",
        preprocessing.channels,
    )


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's client reads its cache alone."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _pixels(address: str, name: str) -> Backbone:
    """Thumbnails of a side."""
    side = side_of(address, name)

    def run(model: Any, images: Tensor) -> Output:
        image, parts = model(images)
        return Output(parts, 0, image)

    return _finished(address, Foreign(address, Thumbnails(side), run), preprocessing(side), f"pixels {side}", 3)


def _colours(address: str, name: str) -> Backbone:
    """Pixels of patches of a side."""
    side = side_of(address, name)
    module = Foreign(address, Colours(side), lambda model, images: Output(model(images), 0, None))
    return _finished(address, module, colour_preprocessing(side), f"colours {side}", 3)


_DOORS: dict[str, Callable[[str, str], Backbone]] = {"hf": _hf, "timm": _timm, "pixels": _pixels, "colours": _colours}


def is_foreign(address: str) -> bool:
    """Whether an address is that of a model of another library."""
    library, colon, _ = address.partition(":")
    return bool(colon) and library in _DOORS
