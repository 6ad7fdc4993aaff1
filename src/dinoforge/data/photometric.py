"""Colours of a batch of views: jitter, grey, blur, solarise, normalise, each view by its own parameters.

The order and the formulas are those of the augmentations that DINO was trained with. On a processor the views are coloured one
by one in whole levels (``photometric_bytes``); on a device, here, all together, on numbers between 0 and 255 that are not
rounded in between. Views are sorted so that those which a change concerns lie side by side: it then works on a slice of the
batch, in place. What a change needs to know of its views is worked out on the host and sent to the device once.

Axes: V views, C channels, Y by X pixels, P parameters (``augment.PARAMETERS``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinoforge.base.errors import ConfigError
from dinoforge.data.augment import PARAMETERS, ColourConfig

ORDERS = tuple(permutations(range(4)))
"""The 24 orders of brightness, contrast, saturation and hue."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_MIXES = np.asarray([[change for change in order if change != HUE] for order in ORDERS])
"""What else than hue changes in each order, in its sequence."""
_AHEAD = np.asarray([order.index(HUE) for order in ORDERS])
"""How many of these come before hue."""

REACH = 4
"""Pixels to each side that blur looks at: a kernel of 9."""
_TOP = 255.0
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey (ITU-R 601)."""

Images = Float[Tensor, "V C Y X"]
Column = Float[Tensor, "V 1 1 1"]


def recolour(
    views: UInt8[Tensor, "V C Y X"], colours: Float[Tensor, "V P"], config: ColourConfig
) -> Float[Tensor, "V C Y X"]:
    """The views as the networks see them, wherever they lie; a view's result does not depend on those beside it.

    ``colours`` lies on the host: which views a change concerns is known without waiting for the device.

    Raises:
        ConfigError: Something is asked for that only red, green and blue have, or the statistics are of other channels.
    """
    channels = views.shape[1]
    if channels != len(LUMA) and config.needs_rgb:
        raise ConfigError(
            f"images of {channels} channels have no saturation and no hue to change; set colour.saturation, colour.hue "
            "and colour.grey to 0."
        )
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in {1, channels}:
            raise ConfigError(
                f"colour.{name} has {len(values)} numbers for images of {channels} channels; give 1 or {channels}."
            )
    if views.device.type == "cpu":
        from dinoforge.data.photometric_bytes import recolour_bytes  # a device needs no OpenCV

        return recolour_bytes(views, colours, config)
    return recolour_floats(views, colours, config)


def recolour_floats(
    views: UInt8[Tensor, "V C Y X"], colours: Float[Tensor, "V P"], config: ColourConfig
) -> Float[Tensor, "V C Y X"]:
    """See ``recolour``; without rounding."""
    height, width = views.shape[2:]
    plan = _Plan.of(colours.numpy(), config, views.device, reach=min(REACH, height - 1, width - 1))

    def there(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(views.device, non_blocking=True)

    x = views.index_select(0, there(plan.order)).float()
    _jitter(x, plan)
    x = _change(x, plan.grey.nonzero()[0], lambda some: grey(some).repeat(1, some.shape[1], 1, 1))
    blurred = plan.blurred.nonzero()[0]
    x = _change(x, blurred, lambda some: blur(some, plan.weights[there(blurred)]))
    x = _change(x, plan.solarised.nonzero()[0], solarise)
    back = torch.empty_like(x)
    return back.index_copy_(0, there(plan.order), x.mul_(plan.scale).add_(plan.shift))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens to each view, sorted: first those with three changes before that of hue, last those without any."""

    order: Int[np.ndarray, " V"]
    """Which view this is."""
    ahead: Int[np.ndarray, " V"]
    """Changes before that of hue; -1 where colours stay."""
    kinds: Int[np.ndarray, "V 3"]
    """The changes other than of hue, in their sequence."""
    turned: np.ndarray
    grey: np.ndarray
    blurred: np.ndarray
    solarised: np.ndarray
    """Which views these concern."""
    shares: tuple[Float[Tensor, "V 3 1 1 1"], ...]
    """On the device, of each of the three changes: share that is kept, that of the mean grey, that of the pixel's grey."""
    way: Float[Tensor, "V 3 1 1"]
    """On the device: to the turn of the hue from red, green and blue."""
    weights: Float[Tensor, "V R"]
    """On the device: of a pixel in its blur, and of those one, two … pixels away."""
    scale: Float[Tensor, "c 1 1"]
    shift: Float[Tensor, "c 1 1"]
    """On the device: what normalises, c is 1 or C."""

    @classmethod
    def of(cls, colours: Float[np.ndarray, "V P"], config: ColourConfig, device: torch.device, *, reach: int) -> _Plan:
        column = dict(zip(PARAMETERS, colours.T, strict=True))
        number = column["order"].astype(np.int64)
        ahead = np.where(column["jitter"] > 0, _AHEAD[number], -1)
        order = np.lexsort((number, -ahead))
        column = {name: values[order] for name, values in column.items()}
        kinds = _MIXES[number[order]]
        factors = np.stack([column["brightness"], column["contrast"], column["saturation"]], axis=1)
        kept = np.take_along_axis(factors, kinds, axis=1)
        shares = np.stack([kept, *((1 - kept) * (kinds == kind) for kind in (CONTRAST, SATURATION))], axis=2)
        mean, std = (np.asarray(values)[:, None, None] for values in (config.mean, config.std))

        def there(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)

        return cls(
            order=order, ahead=ahead[order], kinds=kinds, turned=column["hue"] != 0, grey=column["grey"] > 0,
            blurred=column["sigma"] > 0, solarised=column["solarise"] > 0,
            shares=there(shares)[..., None, None, None].unbind(1),
            way=there((6 * column["hue"][:, None] - (0, 2, 4) + 3) % 6 - 3)[:, :, None, None],
            weights=there(half_kernel(column["sigma"], reach)), scale=there(1 / (_TOP * std)), shift=there(-mean / std),
        )  # fmt: skip


def half_kernel(sigma: Float[np.ndarray, " V"], reach: int) -> Float[np.ndarray, "V R"]:
    """Weights of a blurred pixel and of those one, two … ``reach`` pixels away, for a width each."""
    weights = np.exp(-0.5 * (np.arange(reach + 1) / np.maximum(sigma, 1e-3)[:, None]) ** 2)
    return weights / (2 * weights.sum(1, keepdims=True) - weights[:, :1])


def _change(x: Images, rows: Int[np.ndarray, " n"], change: Callable[[Images], Images]) -> Images:
    """The views, some of them changed."""
    if len(rows) == len(x) == 1:
        return change(x)
    if len(rows):
        index = torch.from_numpy(rows).to(x.device, non_blocking=True)
        x.index_copy_(0, index, change(x.index_select(0, index)))
    return x


def _jitter(x: Images, plan: _Plan) -> None:
    """Brightness, contrast, saturation and hue of sorted views, in place.

    The views that have an n-th change before that of hue are the first ones; those that have it after it end where the
    ones begin whose colours stay.
    """
    ahead = plan.ahead.tolist()
    changed = len(ahead) - ahead.count(-1)
    if not changed:
        return
    before = [sum(number > place for number in ahead) for place in range(3)]
    for place, last in enumerate(before):
        _mix_rows(x, plan, slice(0, last), place)
    if plan.turned[:changed].any():
        hue(_some(x, slice(0, changed)), plan.way[:changed])
    for place, first in enumerate(before):
        _mix_rows(x, plan, slice(first, changed), place)


def _mix_rows(x: Images, plan: _Plan, rows: slice, place: int) -> None:
    if rows.start == rows.stop:
        return
    shares = plan.shares[place][rows].unbind(1)
    kinds = plan.kinds[rows, place].tolist()
    mix(
        _some(x, rows),
        shares[0],
        of_mean=shares[CONTRAST] if CONTRAST in kinds else None,
        of_pixel=shares[SATURATION] if SATURATION in kinds else None,
    )


def _some(x: Images, rows: slice) -> Float[Tensor, "v C Y X"]:
    return x if rows.stop - rows.start == len(x) else x[rows]


def grey(x: Images) -> Float[Tensor, "V 1 Y X"]:
    """Luma of red, green and blue; of other channels their mean."""
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def mix(x: Images, kept: Column, *, of_mean: Column | None, of_pixel: Column | None) -> None:
    """Mix every view, in place, with something grey, and cut off what leaves 0 to 255.

    Brightness mixes it with black, contrast with the view's mean grey, saturation each pixel with its own grey. Above 1,
    what is kept leads away from these.

    Args:
        of_mean: Share of the mean grey, None if it is 0 for all.
        of_pixel: Share of the pixel's grey, None if it is 0 for all.
    """
    # Row by row: summed at once, a mean would depend on how many views and threads there are.
    mean = None if of_mean is None else grey(x.mean(-1, keepdim=True)).mean(-2, keepdim=True).mul_(of_mean)
    base = None if of_pixel is None else grey(x).mul_(of_pixel)
    x.mul_(kept)
    for part in (mean, base):
        if part is not None:
            x.add_(part)
    x.clamp_(0, _TOP)


def hue(x: Float[Tensor, "V 3 Y X"], way: Float[Tensor, "V 3 1 1"]) -> None:
    """Turn the colour wheel, in place; value and saturation of HSV stay.

    With V the largest and m the smallest channel, C = V - m, the hue of a pixel counted in sixths from red is::

        a = 3/2 - (2 (R - m) / C - 1) (3/2 - |G - B| / C),  with the sign of G - B

    one formula for the six cases of HSV: R is V, or is m, or lies between, where |G - B| = C. Back, for a channel whose own
    hue is h::

        V - C clamp(2 - ||a + turn - h| - 3|, 0, 1)

    Args:
        way: ``turn - h`` for red, green and blue, in sixths, taken the short way round: from -3 to 3.
    """
    red, green, blue = x.split(1, dim=1)
    highest, lowest = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(highest, blue, out=highest)
    torch.minimum(lowest, blue, out=lowest)
    chroma = highest - lowest
    inverse = chroma.clamp(min=1e-3).reciprocal_()  # a grey pixel has no hue, and stays grey whatever is computed
    side = green - blue
    angle = torch.sub(red, lowest, out=lowest).mul_(inverse).mul_(2).sub_(1)
    angle.mul_(torch.abs(side).mul_(inverse).sub_(1.5)).add_(1.5).copysign_(side)
    apart = torch.add(angle, way).abs_().sub_(3).abs_().clamp_(1, 2)
    torch.add(apart.mul_(chroma), highest.sub_(chroma, alpha=2), out=x)


def blur(x: Images, weights: Float[Tensor, "V R"]) -> Images:
    """Gaussian blur, every view by its own two kernels, edges mirrored.

    Args:
        weights: Of a pixel and of those one, two … pixels away.
    """
    count, channels = x.shape[:2]
    reach = weights.shape[1] - 1
    kernel = torch.cat([weights[:, 1:].flip(1), weights], dim=1).repeat_interleave(channels, 0)
    flat = F.pad(x, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    return flat.view(x.shape)


def solarise(x: Images) -> Images:
    """Invert what is brighter than half: of whole levels, those from 128 on."""
    return x.sub(_TOP / 2).abs_().neg_().add_(_TOP / 2)
