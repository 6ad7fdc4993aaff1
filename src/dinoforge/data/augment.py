"""Views of an image: what is cropped is decided and done here in uint8, what is coloured is decided here and done later.

DINO's multi-crop (Caron et al. 2020, 2021) with the *effective* probabilities of the released DINOv2 (docs/method.md).
Everything is drawn before a pixel is decoded, so that no more of them are decoded than the views need.

Axes: Y by X pixels, C channels, V views, P colour parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.data.picture import Picture

GLOBAL_VIEWS = 2
_TRIALS = 10
_CUBIC = Image.Resampling.BICUBIC
_FLIPS = {(False, False): None, (False, True): 1, (True, False): 0, (True, True): -1}
"""OpenCV's words for exchanging top and bottom, left and right."""
_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)

Share = Annotated[float, Field(ge=0, le=1)]


def _area(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"an area takes two shares of the image, 0 < low <= high <= 1; got {list(scale)}.")
    return scale


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"a range takes 0 < low <= high; got {list(pair)}.")
    return pair


def _channels(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values:
        raise ValueError("one number for all channels, or one a channel; got none.")
    return values


Area = Annotated[tuple[float, float], AfterValidator(_area)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PerChannel = Annotated[tuple[float, ...], AfterValidator(_channels)]


class ColourConfig(Config):
    """How the colours of a view change. Probabilities are those with which a thing happens."""

    jitter: Share = 0.8
    """Probability of the four changes below, in random order."""
    brightness: Share = 0.4
    """Largest relative change of brightness."""
    contrast: Share = 0.4
    """Largest relative change of contrast."""
    saturation: Share = 0.2
    """Largest relative change of saturation."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Largest turn of the hue, in whole turns."""
    grey: Share = 0.2
    """Probability of losing all colour."""
    blur: tuple[Share, Share, Share] = (0.0, 0.9, 0.5)
    """Probability of blur in the first global, the second global and a local view. What the released models were trained
    with; the intended (1.0, 0.1, 0.5) came out inverted (docs/method.md)."""
    blur_sigma: Range = (0.1, 2.0)
    """Width of the Gaussian blur, in pixels of the view; its kernel is 9 pixels wide."""
    solarise: Share = 0.2
    """Probability of inverting the bright half of the second global view."""
    mean: PerChannel = (0.485, 0.456, 0.406)
    """Subtracted from each channel in the end, on the scale 0 to 1: one number for all or one a channel (ImageNet's)."""
    std: PerChannel = (0.229, 0.224, 0.225)
    """Divided by after that, given likewise."""

    @model_validator(mode="after")
    def _fits_together(self) -> ColourConfig:
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0; got {list(self.std)}.")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ValueError(f"mean has {len(self.mean)} channels and std has {len(self.std)}; give each 1 or as many.")
        return self

    @property
    def needs_rgb(self) -> bool:
        """Whether something is asked for that only red, green and blue have: saturation, hue, or losing them."""
        return bool(self.grey or (self.jitter and (self.saturation or self.hue)))


class AugmentConfig(Config):
    """Two global and some local views."""

    global_pixels: int = Field(default=224, gt=0)
    """Side of a global view, in pixels."""
    local_pixels: int = Field(default=98, gt=0)
    """Side of a local view, in pixels; 96 with patches of 16."""
    local_views: int = Field(default=8, ge=0)
    """Number of local views."""
    global_scale: Area = (0.32, 1.0)
    """Share of the image's area that a global view shows, lowest and highest."""
    local_scale: Area = (0.05, 0.32)
    """Share of the image's area that a local view shows, lowest and highest."""
    aspect: Range = (3 / 4, 4 / 3)
    """Width over height of what is cropped, before it becomes square."""
    flip: Share = 0.5
    """Probability that left and right are exchanged."""
    flip_vertical: Share = 0.0
    """Probability that top and bottom are exchanged: for pictures without an up."""
    turn: Share = 0.0
    """Probability of a turn by one, two or three quarters, each as likely; 0.75 makes all four directions as likely."""
    colour: ColourConfig = ColourConfig()
    """What happens to the colours."""


PARAMETERS = ("jitter", "brightness", "contrast", "saturation", "hue", "order", "grey", "sigma", "solarise")
"""Columns of the colour parameters of a view; ``sigma`` 0 is no blur, ``order`` numbers one of the 24 orders."""


@dataclass(frozen=True, slots=True)
class Views:
    """All views of one image, still in the image's own colours, and the colour parameters of each."""

    globals: UInt8[Tensor, "2 C Y X"]
    locals: UInt8[Tensor, "L C y x"]
    colours: Float[np.ndarray, "V P"]


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a view shows: the box in the whole image, and how its square then lies."""

    side: int
    box: tuple[int, int, int, int]
    mirrored: bool
    upside_down: bool = False
    quarters: int = 0


def draw_views(picture: Picture, rng: np.random.Generator, config: AugmentConfig) -> Views:
    """Crop, resize, mirror and turn; the colours are drawn, not yet applied.

    An image much larger than its views is decoded at a reduced scale, whose pixels the boxes are then rounded to; no view is
    enlarged by that.

    Raises:
        Broken: The picture cannot be decoded.
    """
    cuts = _cuts(picture, rng, config)
    colours = np.stack([_colours(rng, view, config.colour) for view in range(len(cuts))])
    cuts = _turned(cuts, rng, config)
    # A view that is shown smaller than its box leaves room for as much; one that is enlarged anyway leaves none.
    pixels = picture.pixels(max(1, min(min(cut.box[2:]) // cut.side for cut in cuts)))
    wide, near = (
        torch.empty(count, pixels.shape[2], side, side, dtype=torch.uint8)
        for count, side in ((GLOBAL_VIEWS, config.global_pixels), (config.local_views, config.local_pixels))
    )
    for view, cut in zip([*wide.numpy(), *near.numpy()], cuts, strict=True):
        _square(pixels, cut, height=picture.height, width=picture.width, out=view)
    return Views(globals=wide, locals=near, colours=colours)


def _cuts(picture: Picture, rng: np.random.Generator, config: AugmentConfig) -> list[_Cut]:
    kinds = [(config.global_pixels, config.global_scale)] * GLOBAL_VIEWS
    kinds += [(config.local_pixels, config.local_scale)] * config.local_views
    cuts = []
    for side, scale in kinds:
        box = crop_box(rng, height=picture.height, width=picture.width, scale=scale, aspect=config.aspect)
        cuts.append(_Cut(side, box, mirrored=rng.random() < config.flip))
    return cuts


def _turned(cuts: list[_Cut], rng: np.random.Generator, config: AugmentConfig) -> list[_Cut]:
    """Drawn last: a recipe that turns nothing sees the views it would see if turning did not exist."""
    if not (config.flip_vertical or config.turn):
        return cuts
    chance, quarters = rng.random((len(cuts), 2)), rng.integers(1, 4, len(cuts))
    return [
        replace(cut, upside_down=bool(flip < config.flip_vertical), quarters=int(quarter) if turn < config.turn else 0)
        for cut, (flip, turn), quarter in zip(cuts, chance, quarters, strict=True)
    ]


def _square(
    pixels: UInt8[np.ndarray, "Y X C"], cut: _Cut, *, height: int, width: int, out: UInt8[np.ndarray, "C y x"]
) -> None:
    """A view out of the pixels of an image whose whole is ``height`` by ``width``, into its place."""
    top, left, tall, wide = cut.box
    if pixels.shape[:2] != (height, width):
        top, tall = _scaled(top, tall, length=height, pixels=pixels.shape[0])
        left, wide = _scaled(left, wide, length=width, pixels=pixels.shape[1])
    # Channels innermost and no gaps between rows: what torch's fastest resize takes; it would copy anything else slowly.
    box = np.ascontiguousarray(pixels[top : top + tall, left : left + wide])
    view = resize(torch.from_numpy(box).permute(2, 0, 1), cut.side, cut.side).numpy()
    flip, turn = _FLIPS[cut.upside_down, cut.mirrored], _TURNS[cut.quarters]
    for plane, place in zip(view, out, strict=True):
        if turn is not None:
            place[:] = cv2.rotate(plane if flip is None else cv2.flip(plane, flip), turn)
        elif flip is None:
            place[:] = plane
        else:
            cv2.flip(plane, flip, place)


def _scaled(start: int, extent: int, *, length: int, pixels: int) -> tuple[int, int]:
    """A stretch of an axis of ``length``, to the nearest of the fewer ``pixels`` that it was decoded to."""
    scale: float = round(length / pixels)
    if math.ceil(length / scale) != pixels:  # decoders reduce by whole numbers, and fill up the last pixel
        scale = length / pixels
    short = min(max(1, round(extent / scale)), pixels)
    return min(round(start / scale), pixels - short), short


def crop_box(
    rng: np.random.Generator, *, height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part: area uniform, aspect log-uniform; the middle if ten trials do not fit.

    (The rule of torchvision's RandomResizedCrop, which all methods of this family were trained with.)
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_TRIALS):
        # One call for all four: a call costs more than its numbers.
        of_area, of_ratio, down, right = rng.random(4).tolist()
        area = height * width * (scale[0] + (scale[1] - scale[0]) * of_area)
        ratio = math.exp(low + (high - low) * of_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: UInt8[Tensor, "C Y X"], height: int, width: int) -> UInt8[Tensor, "C y x"]:
    """Bicubic and antialiased, in uint8, which is Pillow's resize to within one grey level."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image.unsqueeze(0), (height, width), mode="bicubic", antialias=True)[0]


def squeezed(pixels: UInt8[np.ndarray, "Y X C"], *, side: int) -> UInt8[Tensor, "C y x"]:
    """All of a picture as a square, its aspect given up: bilinear and antialiased, as SSCD is fed."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return F.interpolate(image, (side, side), mode="bilinear", antialias=True)[0]


_STRIP = 4
"""Long side over short side from which on an image is not resized whole before its centre is cut out."""


def centre(pixels: UInt8[np.ndarray, "Y X C"], *, short_side: int, side: int) -> UInt8[Tensor, "C y x"]:
    """The middle square for features: the short side resized, the centre cut out (checkpoints' preprocessing).

    Of a long strip only what the square needs is computed, so it takes no more memory than a square image; the square is
    that of the resized whole to within one grey level.
    """
    height, width = pixels.shape[:2]
    factor = short_side / min(height, width)
    tall, wide = max(round(height * factor), side), max(round(width * factor), side)
    if max(height, width) > _STRIP * min(height, width):
        return _centre_of_strip(pixels, tall, wide, side=side)
    image = resize(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), tall, wide)
    top, left = (tall - side) // 2, (wide - side) // 2
    return image[:, top : top + side, left : left + side].contiguous()


def _centre_of_strip(pixels: UInt8[np.ndarray, "Y X C"], tall: int, wide: int, *, side: int) -> UInt8[Tensor, "C y x"]:
    """The middle of the image resized to ``tall`` by ``wide``, from the pixels that it is made of."""
    rows, top, bottom = _middle(pixels.shape[0], tall, side)
    columns, left, right = _middle(pixels.shape[1], wide, side)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels[rows, columns], -1, 0)]
    # Across first, then down, as the resize of a whole does: grey levels are cut off at 0 and 255 in between.
    narrow = [plane.resize((side, plane.height), _CUBIC, box=(left, 0, right, plane.height)) for plane in planes]
    square = [plane.resize((side, side), _CUBIC, box=(0, top, side, bottom)) for plane in narrow]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in square]))


def _middle(length: int, resized: int, side: int) -> tuple[slice, float, float]:
    """The pixels of an axis that the middle ``side`` of its ``resized`` ones are made of, and from where to where these lie.

    Where they lie is counted from the first of those pixels. The cubic filter reaches two pixels of the coarser grid to
    each side; one more is for rounding.
    """
    scale = length / resized
    low = (resized - side) // 2 * scale
    high = low + side * scale
    reach = math.ceil(2 * max(scale, 1)) + 1
    first, last = max(math.floor(low) - reach, 0), min(math.ceil(high) + reach, length)
    return slice(first, last), low - first, min(high, float(length)) - first


def _colours(rng: np.random.Generator, view: int, config: ColourConfig) -> Float[np.ndarray, " P"]:
    """The parameters of one view. Every number is drawn whether it is used or not, so probabilities move nothing else."""
    jitter, brightness, contrast, saturation, hue, order, grey, blur, sigma, solarise = rng.random(10).tolist()
    narrow, wide = config.blur_sigma
    return np.asarray(
        [
            jitter < config.jitter,
            1 + config.brightness * (2 * brightness - 1),
            1 + config.contrast * (2 * contrast - 1),
            1 + config.saturation * (2 * saturation - 1),
            config.hue * (2 * hue - 1),
            int(24 * order),
            grey < config.grey,
            narrow + (wide - narrow) * sigma if blur < config.blur[min(view, GLOBAL_VIEWS)] else 0.0,
            view == 1 and solarise < config.solarise,
        ],
        dtype=np.float32,
    )
