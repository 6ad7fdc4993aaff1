"""``convert``: weights of other layouts become a backbone, and a backbone goes out in them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dinoforge.base.errors import ConfigError, WeightsError, unknown
from dinoforge.base.files import new_folder
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.export.compare import compared
from dinoforge.model.features import Features
from dinoforge.model.foreign import Output, features, hf_folder, hf_model
from dinoforge.model.layouts import FORMATS, Opened, composed, open_layout, write_layout
from dinoforge.model.processor import FILE, preprocessing_beside, written_processor
from dinoforge.model.reshape import at_pixels, with_channels
from dinoforge.model.weights import (
    Backbone,
    Misfits,
    Preprocessing,
    assembled,
    load_backbone,
    save_backbone,
)
from dinoforge.verbs.looking import whole

BOUND = 1e-3
"""Features of another library may differ by so much of their greatest value; rounding is far below, a wrong tensor above."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was converted."""

    path: str
    layout: str
    """Of the weights that were read."""
    to: str
    """Layout of what was written."""
    tensors: str
    """How many of how many were found."""
    unmatched: list[str]
    """Empty: a tensor without a place is an error."""
    dropped: list[str]
    """Left out on purpose, each with its reason."""
    differs: list[str]
    """What the image processor beside the weights, or the layout that was written, does otherwise."""
    max_error: float | None
    """Greatest difference between features here and in the other library; null where it was not asked."""
    compared: str
    """With what, or why not."""
    fingerprint: str


@dataclass(slots=True)
class _Told:
    """What is said on the way."""

    layout: str
    dropped: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def convert(
    *, weights: str, out: str, to: str = "backbone", pixels: str | int | None = None, channels: str | int | None = None
) -> Converted:
    """Turn weights of DINOv2 or DINOv3 into a backbone folder, or a backbone into another layout. Nothing is lost in silence.

    Args:
        weights: A backbone folder, a run, or weights whose layout is told by their tensors: official, Hugging Face or timm;
            hf:OWNER/NAME out of Hugging Face's cache.
        out: What to write, which must not exist: a folder, or for official and timm a file, .pth or .safetensors.
        to: Layout of what is written: backbone, official, huggingface or timm.
        pixels: Another native side: the position table is resampled to it. A multiple of the patch.
        channels: Another number of input channels; copies of a channel share its weights, so that they change nothing.
    """
    place, form = at_home(out), to
    _judge(place, out, form)
    side = None if pixels is None else _positive("pixels", pixels)
    many = None if channels is None else _positive("channels", channels)
    weights = _lying(weights)
    backbone, told = _opened(weights)
    say(f"{weights}: {told.layout}, {backbone.loaded}")
    for line in told.dropped:
        say(f"Left out: {line}")
    seen = _read_in(weights, backbone, told.layout)
    if side is not None:
        backbone = at_pixels(backbone, side)
    if many is not None:
        backbone = with_channels(backbone, many)
    written = seen
    reshaped = {k: v for k, v in (("pixels", side), ("channels", many)) if v is not None}
    if form == "backbone":
        lineage = {**backbone.lineage, "layout": told.layout, **reshaped}
        save_backbone(place, dataclasses.replace(backbone, lineage=lineage, known=None))
        mark = load_backbone(place).fingerprint
    else:
        differs, dropped, written = _write(place, backbone, form)
        told.differs += differs
        told.dropped += dropped
        mark = backbone.fingerprint
    error, compared = written if written[0] is not None else seen if seen[0] is not None else written
    say(f"Features {compared}" + ("" if error is None else f": largest difference {error:.2g}"))
    return Converted(
        path=out, layout=told.layout, to=form, tensors=backbone.loaded, unmatched=[], dropped=told.dropped,
        differs=told.differs, max_error=error, compared=compared, fingerprint=mark,
    )  # fmt: skip


def _judge(place: Path, out: str, form: str) -> None:
    """Refuse what could not be written in the end, before anything is read.

    Raises:
        ConfigError: No such layout, something there, or a name that does not fit it.
    """
    if form not in {"backbone", *FORMATS}:
        raise unknown("layout", form, ["backbone", *FORMATS])
    if place.exists():
        raise ConfigError(f"out={out} exists; give a new name, or remove it.")
    if form in {"official", "timm"} and place.suffix not in {".pth", ".safetensors"}:
        raise ConfigError(f"out={out} must end in .pth or .safetensors with to={form}.")
    if form not in {"official", "timm"} and place.suffix in {".pth", ".pt", ".safetensors"}:
        raise ConfigError(f"out={out} names a file, and to={form} writes a folder.")


def _positive(name: str, value: str | int) -> int:
    number = whole(name, value)
    if number < 1:
        raise ConfigError(f"{name} must be above 0; got {value}.")
    return number


def _lying(address: str) -> str:
    """Where the weights of another library lie: they are read as tensors, not as that library's model.

    Raises:
        WeightsError: They are not on this machine.
    """
    library, colon, name = address.partition(":")
    if not colon or library not in {"hf", "timm"}:
        return address
    if library == "hf":
        return str(hf_folder(address, name))
    if not at_home(name).exists():
        raise WeightsError(
            f"weights={address} is timm's name of a model; give the file or folder that its weights lie in."
        )
    return name


def _opened(address: str) -> tuple[Backbone, _Told]:
    """The backbone, and of which layout it is.

    Raises:
        WeightsError: It cannot be read; tensors without a place are said one by one.
    """
    place = at_home(address)
    ours = any((place / name).exists() for name in ("backbone.json", "backbone/backbone.json"))
    if not place.exists() or ours:
        found = load_backbone(address)
        if getattr(found.config, "kind", None) != "vit":
            raise WeightsError(f"{address} is a {found.config.kind} backbone; convert is for vision transformers.")
        return found, _Told("backbone")
    if place.is_dir() and not (place / "config.json").exists():
        load_backbone(address)  # says what would be right
    opened: Opened = open_layout(place)
    how, differs = preprocessing_beside(place, opened.parsed.config.channels)
    try:
        found = assembled(address, opened.parsed.config, opened.parsed.state, how)
    except Misfits as error:
        for name in error.names:
            say(f"{address}: {name}")
        raise
    dropped = [f"{name} ({why})" for name, why in opened.parsed.dropped.items()]
    return found, _Told(opened.layout.name, dropped, differs)


def _read_in(address: str, backbone: Backbone, layout: str) -> tuple[float | None, str]:
    """How features here differ from those of the code that the weights are of."""
    place = at_home(address)
    if layout == "backbone":
        return None, "not compared: it is a backbone of ours"
    if layout.startswith("Hugging Face"):
        folder = place if place.is_dir() else place.parent
        if not (folder / "config.json").exists():
            return None, "not compared: there is no config.json beside the weights"
        return _against(folder, backbone, f"from={address}", native_only=False)
    if layout.startswith("timm"):
        return None, "not compared: a state dict does not name timm's model"
    return None, "not compared: the official code is no library"


def _write(place: Path, backbone: Backbone, form: str) -> tuple[list[str], list[str], tuple[float | None, str]]:
    """Write a layout; what differs in it, what it has no place for, and how its features compare.

    Raises:
        WeightsError: It would lose something, or its library computes other features of it.
    """
    layout, found, differs = composed(backbone.config, backbone.module.state_dict(), form)
    dropped = [f"{name} ({why})" for name, why in found.dropped.items()]
    for line in (*(f"Left out: {line}" for line in dropped), *differs):
        say(line)
    if form != "huggingface":
        how = backbone.preprocessing
        if how != Preprocessing.usual(how.channels):
            differs.append("the file does not hold how pictures are read; mean, std and sides are to be given again")
            say(differs[-1])
        write_layout(place, found)
        return differs, dropped, (None, f"not compared: a file for {layout.name} names no model")
    if backbone.preprocessing.range is not None:
        differs.append("the image processor has no form for range; numbers are to be brought to 0 to 1 before")
        say(differs[-1])
    with new_folder(place) as folder:  # what turns out wrong does not stay
        write_layout(folder, found, beside={FILE: written_processor(backbone.preprocessing)})
        return differs, dropped, _against(folder, backbone, f"out={place}", native_only=bool(differs))


def _against(folder: Path, backbone: Backbone, name: str, *, native_only: bool) -> tuple[float | None, str]:
    """The largest difference from the features that ``transformers`` computes, on noise of the native and another size.

    Raises:
        WeightsError: It cannot open them, or above the bound.
    """
    try:
        import transformers
    except ImportError:
        return None, 'not compared: transformers is not installed (pip install "dinoforge[interop]")'
    theirs = hf_model(transformers, name, folder)
    config = backbone.config
    where = [(1, config.pixels, config.pixels), *([] if native_only else [(1, 4 * config.patch, 6 * config.patch)])]

    def there(images: Tensor) -> Features:
        found = Output(theirs(pixel_values=images).last_hidden_state, 1 + config.registers, None)
        return features(found, (images.shape[-2], images.shape[-1]))

    seen = compared(backbone.module, there, where, channels=config.channels)
    wrong = next((one for one in seen if not one.relative <= BOUND), None)
    if wrong is not None:
        raise WeightsError(
            f"{name}: features differ by {wrong.max_error:.2g} from {type(theirs).__name__}'s at "
            f"{wrong.height}x{wrong.width}; none is kept."
        )
    told = f"compared with {type(theirs).__name__} of transformers {transformers.__version__}"
    return max(one.max_error for one in seen), told
