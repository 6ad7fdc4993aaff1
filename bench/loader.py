"""Images a second that one core reads, decodes, crops and colours, beside plain Pillow; one JSON line.

``python bench/loader.py [ADDRESS] [ROUNDS]``: ADDRESS is any source of pictures, made JPEGs of 500 by 375 at quality 90;
without one they are drawn. Rates count processor time of one thread; what is compared alternates within every round.

The other pipeline is the published definition, view after view: Pillow in whole levels, its 8-bit HSV for hue, and a
convolution in floats for the blur. It is given the same boxes and parameters, so pictures can be compared as well as rates.

Axes: V views, Y by X pixels, P colour parameters.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dinoforge.base.hardware import versions
from dinoforge.base.random import numpy_generator
from dinoforge.data.augment import GLOBAL_VIEWS, PARAMETERS, AugmentConfig, Views, crop_box, draw_views
from dinoforge.data.decode import Picture, open_picture
from dinoforge.data.photometric import ORDERS, recolour
from dinoforge.data.sources.table import open_source

IMAGES, GROUP = 96, 16
WIDTH, HEIGHT, QUALITY = 500, 375, 90
CONFIG = AugmentConfig()
STAGES = ("read", "decode", "geometry", "colour")


def write_jpegs(folder: Path, address: str | None) -> list[Path]:
    """Pictures of that source, or drawn ones: a few waves of each colour and grain, about as large as photos when coded."""
    source = open_source(address) if address else None
    rng, files = np.random.default_rng(0), []
    for number in range(IMAGES):
        if source is not None:
            pixels = source.pixels(number * len(source) // IMAGES)
        else:
            y, x, n = np.mgrid[0:HEIGHT, 0:WIDTH, 0:3] / WIDTH
            waves = sum(
                np.sin(rng.uniform(3, 60) * x + rng.uniform(3, 60) * y + n * rng.uniform(0, 3)) for _ in range(4)
            )
            pixels = (128 + 28 * waves + rng.normal(0, 5, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
            files[-1], quality=QUALITY
        )
    return files


def ours(files: list[Path], seconds: dict[str, float]) -> tuple[list[Views], list[Float[Tensor, "V 3 Y X"]]]:
    """A group of images, stage after stage; seconds are added up."""
    times = [time.process_time()]
    encoded = [file.read_bytes() for file in files]
    times.append(time.process_time())
    pixels = [open_picture(one).pixels() for one in encoded]
    times.append(time.process_time())
    views = [draw_views(Picture.of(one), drawing(file), CONFIG) for file, one in zip(files, pixels, strict=True)]
    times.append(time.process_time())
    colours = torch.from_numpy(np.stack([one.colours for one in views]))
    wide, near = torch.stack([one.globals for one in views]), torch.stack([one.locals for one in views])
    coloured = [
        recolour(part.flatten(0, 1), numbers.flatten(0, 1), CONFIG.colour)
        for part, numbers in ((wide, colours[:, :GLOBAL_VIEWS]), (near, colours[:, GLOBAL_VIEWS:]))
    ]
    times.append(time.process_time())
    for stage, began, ended in zip(STAGES, times, times[1:], strict=False):
        seconds[stage] += ended - began
    return views, coloured


def drawing(file: Path) -> np.random.Generator:
    return numpy_generator(0, "views", int(file.stem))


def by_pillow(
    file: Path, colours: Float[np.ndarray, "V P"]
) -> tuple[list[UInt8[np.ndarray, "Y X 3"]], list[np.ndarray]]:
    """The views of one image before and after their colours change, the latter normalised."""
    image, rng = Image.open(file).convert("RGB"), drawing(file)
    cut, done = [], []
    for view, row in enumerate(colours):
        side, scale = (CONFIG.global_pixels, CONFIG.global_scale)
        if view >= GLOBAL_VIEWS:
            side, scale = (CONFIG.local_pixels, CONFIG.local_scale)
        top, left, height, width = crop_box(
            rng, height=image.height, width=image.width, scale=scale, aspect=CONFIG.aspect
        )
        square = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
        cut.append(ImageOps.mirror(square) if rng.random() < CONFIG.flip else square)
        done.append(recoloured(cut[-1], dict(zip(PARAMETERS, row.tolist(), strict=True))))
    return [np.asarray(one) for one in cut], done


def recoloured(image: Image.Image, value: dict[str, float]) -> Float[np.ndarray, "3 Y X"]:
    if value["jitter"]:
        for change in ORDERS[int(value["order"])]:
            if change == 3:
                hue, saturation, light = image.convert("HSV").split()
                turned = (np.asarray(hue).astype(np.int16) + int(value["hue"] * 255)).astype(np.uint8)
                image = Image.merge("HSV", (Image.fromarray(turned), saturation, light)).convert("RGB")
            else:
                kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
                image = kind(image).enhance(value[("brightness", "contrast", "saturation")[change]])
    if value["grey"]:
        image = Image.merge("RGB", [image.convert("L")] * 3)
    if value["sigma"]:
        image = Image.fromarray(blurred(np.asarray(image), value["sigma"]))
    if value["solarise"]:
        image = ImageOps.solarize(image, 128)
    x = np.asarray(image, dtype=np.float32) / 255
    mean, std = np.float32(CONFIG.colour.mean), np.float32(CONFIG.colour.std)
    return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1))


def blurred(pixels: UInt8[np.ndarray, "Y X 3"], sigma: float) -> UInt8[np.ndarray, "Y X 3"]:
    """In floats, with one square kernel, and rounded, as the library does that the published pipeline calls."""
    line = torch.exp(-0.5 * (torch.arange(-4.0, 5.0) / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).unsqueeze(0).float()
    x = F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), kernel.expand(3, 1, 9, 9), groups=3)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def agreement(files: list[Path]) -> dict[str, float]:
    """Decibels, of the pictures and of their colours: the least and the median of all views."""
    views, coloured = ours(files, dict.fromkeys(STAGES, 0.0))
    std = np.asarray(CONFIG.colour.std)[:, None, None]
    cut, colour = [], []
    for number, (file, one) in enumerate(zip(files, views, strict=True)):
        want, done = by_pillow(file, one.colours)
        got = [*one.globals.numpy(), *one.locals.numpy()]
        cut += [
            decibels(mine.transpose(1, 2, 0) - theirs.astype(float)) for mine, theirs in zip(got, want, strict=True)
        ]
        parts = [part.unflatten(0, (len(files), -1))[number].numpy() for part in coloured]
        mine = [*parts[0], *parts[1]]
        colour += [decibels((a - b) * std * 255) for a, b in zip(mine, done, strict=True)]
    return {
        f"{name}_{kind}_db": round(of(values), 1)
        for name, values in (("geometry", cut), ("colour", colour)) for kind, of in (("least", min), ("median", median))
    }  # fmt: skip


def decibels(difference: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(float(np.mean(difference**2)), 1e-3))


def main(address: str | None, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), address)
        groups = [files[first : first + GROUP] for first in range(0, IMAGES, GROUP)]
        agreed = agreement(groups[0])
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            seconds, pillow = dict.fromkeys(STAGES, 0.0), 0.0
            for group in groups:
                views, _ = ours(group, seconds)
                began = time.process_time()
                for file, one in zip(group, views, strict=True):
                    by_pillow(file, one.colours)
                pillow += time.process_time() - began
            seconds |= {"worker": seconds["read"] + seconds["decode"] + seconds["geometry"], "pillow": pillow}
            seconds["everything"] = seconds["worker"] + seconds["colour"]
            for name, value in seconds.items():
                rates.setdefault(name, []).append(IMAGES / value)
        size = sum(file.stat().st_size for file in files) // IMAGES
    print(
        json.dumps(
            {
                "bench": "loader", "pictures": address or "drawn", "size": [HEIGHT, WIDTH], "bytes": size, "rounds": rounds,
                "views": f"{GLOBAL_VIEWS}x{CONFIG.global_pixels} + {CONFIG.local_views}x{CONFIG.local_pixels}",
                "images_per_cpu_second": {name: round(median(values), 1) for name, values in rates.items()},
                "over_pillow": {
                    name: round(median(a / b for a, b in zip(rates[name], rates["pillow"], strict=True)), 2)
                    for name in ("worker", "everything")
                },
                "agreement": agreed, "threads": 1, **versions(),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    count = int(given.pop()) if given and given[-1].isdigit() else 5
    main(given[0] if given else None, count)
