"""Crops against a slow definition and Pillow's resize; what is drawn against its distribution."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from dinoforge.base.errors import ConfigError
from dinoforge.data.augment import PARAMETERS, AugmentConfig, centre, crop_box, draw_views, resize
from dinoforge.data.decode import Picture


def picture(height, width, seed=0):
    """A smooth picture with some detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(9 * (i + 1) * x + 7 * y * (i - 1)) for i in range(3)]
    return ((np.stack(waves, -1) * 0.35 + 0.5 + rng.normal(0, 0.05, (height, width, 3))).clip(0, 1) * 255).astype(
        np.uint8
    )


@pytest.mark.parametrize(("height", "width", "side"), [(90, 70, 32), (33, 47, 64), (200, 100, 24)])
def test_resize_is_pillows(height, width, side):
    pixels = picture(height, width)
    want = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    got = resize(torch.from_numpy(pixels).permute(2, 0, 1), side, side).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 1


def slow_box(rng, height, width, scale, aspect):
    """The published rule, from its description: area uniform, log of the aspect uniform, ten trials, else the middle."""
    for _ in range(10):
        area = rng.uniform(scale[0], scale[1]) * height * width
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        w, h = int(np.round(np.sqrt(area * ratio))), int(np.round(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    if width / height < aspect[0]:
        w, h = width, int(np.round(width / aspect[0]))
    elif width / height > aspect[1]:
        w, h = int(np.round(height * aspect[1])), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.05, 0.32)), (375, 500, (0.32, 1.0)), (120, 400, (0.5, 1.0))]
)
def test_boxes_are_distributed_as_the_definition_says(height, width, scale):
    """Kolmogorov and Smirnov on what a box shows and where it lies; two samples of 4,000, fixed seeds."""
    aspect = (3 / 4, 4 / 3)
    mine, slow = np.random.default_rng(1), np.random.default_rng(2)
    got = np.asarray([crop_box(mine, height=height, width=width, scale=scale, aspect=aspect) for _ in range(4000)])
    want = np.asarray([slow_box(slow, height, width, scale, aspect) for _ in range(4000)])
    for boxes in (got, want):
        assert (boxes[:, 0] + boxes[:, 2] <= height).all()
        assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    for name, of in {
        "area": lambda box: box[:, 2] * box[:, 3], "aspect": lambda box: np.log(box[:, 3] / box[:, 2]),
        "down": lambda box: box[:, 0] + box[:, 2] / 2, "across": lambda box: box[:, 1] + box[:, 3] / 2,
    }.items():  # fmt: skip
        assert scipy.stats.ks_2samp(of(got), of(want)).pvalue > 1e-3, name


def test_area_and_aspect_of_boxes_that_always_fit():
    """Against the distributions themselves: no trial fails here."""
    rng = np.random.default_rng(0)
    boxes = np.asarray(
        [crop_box(rng, height=3000, width=4000, scale=(0.1, 0.4), aspect=(3 / 4, 4 / 3)) for _ in range(4000)]
    )
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 12e6, np.log(boxes[:, 3] / boxes[:, 2])
    assert scipy.stats.kstest(areas, "uniform", args=(0.1, 0.3)).pvalue > 1e-3
    low, high = math.log(3 / 4), math.log(4 / 3)
    assert scipy.stats.kstest(ratios, "uniform", args=(low, high - low)).pvalue > 1e-3
    tops = boxes[:, 0] / (3000 - boxes[:, 2])
    assert scipy.stats.kstest(tops, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (1, 7)])
def test_boxes_of_extreme_images_are_the_middle(height, width):
    box = crop_box(np.random.default_rng(0), height=height, width=width, scale=(0.9, 1.0), aspect=(3 / 4, 4 / 3))
    top, left, h, w = slow_box(np.random.default_rng(0), height, width, (0.9, 1.0), (3 / 4, 4 / 3))
    assert box == (top, left, max(h, 1), max(w, 1))
    assert 1 <= box[2] <= height
    assert 1 <= box[3] <= width


def drawn(seed, picture, config):
    """The boxes and mirrorings of all views, drawn one after the other as ``draw_views`` promises."""
    rng = np.random.default_rng(seed)
    kinds = [(config.global_pixels, config.global_scale)] * 2
    kinds += [(config.local_pixels, config.local_scale)] * config.local_views
    for side, scale in kinds:
        box = crop_box(rng, height=picture.height, width=picture.width, scale=scale, aspect=config.aspect)
        yield side, box, rng.random() < config.flip


def decibels(got, want):
    error = np.mean((np.asarray(got, dtype=float) - np.asarray(want, dtype=float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-9))


def by_pillow(pixels, side, box):
    """The definition: every channel cut out and resized by Pillow, ``[y, x, C]``; the box may lie between pixels."""
    top, left, height, width = box
    area = (left, top, left + width, top + height)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0)]
    return np.stack([plane.resize((side, side), Image.Resampling.BICUBIC, box=area) for plane in planes], axis=-1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_views_are_those_of_the_definition(channels):
    """40 decibels are asked for; of photographs the bench measures 54 at least."""
    whole = Picture.of(np.concatenate([picture(375, 500, seed=seed) for seed in (0, 1)], axis=-1)[:, :, :channels])
    config = AugmentConfig(local_views=3)
    views = draw_views(whole, np.random.default_rng(3), config)
    pixels, mirrored = whole.pixels(), []
    for view, (side, box, mirror) in zip([*views.globals, *views.locals], drawn(3, whole, config), strict=True):
        top, left, height, width = box
        cut = pixels[top : top + height, left : left + width]
        want = by_pillow(cut, side, (0, 0, height, width))
        got = view.permute(1, 2, 0).numpy()
        assert decibels(got, want[:, ::-1] if mirror else want) > 50
        mirrored.append(mirror)
    assert len(set(mirrored)) == 2, "choose a seed that mirrors some views only"


class Reducible:
    """A picture that can be decoded at half, a quarter … of its size, by averages; it notes what it was asked for."""

    def __init__(self, pixels, finest=8):
        self.pixels, self.asked, self.finest = pixels, [], finest
        self.picture = Picture(*pixels.shape, decoded=self.decoded)

    def decoded(self, reduction):
        self.asked.append(reduction)
        factor = max(f for f in (1, 2, 4, 8) if f <= min(reduction, self.finest))
        height, width = (-(-length // factor) * factor for length in self.pixels.shape[:2])
        padded = np.pad(
            self.pixels, ((0, height - self.pixels.shape[0]), (0, width - self.pixels.shape[1]), (0, 0)), "edge"
        )
        blocks = padded.reshape(height // factor, factor, width // factor, factor, -1)
        return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


@pytest.mark.parametrize("finest", [2, 4, 8])
def test_large_pictures_are_decoded_small(finest):
    """Boxes are rounded to the pixels of the reduced picture; of those boxes, the views are the definition's."""
    large = Image.fromarray(picture(45, 60)).resize((1601, 1203), Image.Resampling.BICUBIC)
    source = Reducible(np.asarray(large), finest)
    config = AugmentConfig(global_pixels=96, local_pixels=32, local_views=4, local_scale=(0.1, 0.32))
    views = draw_views(source.picture, np.random.default_rng(4), config)
    cuts = list(drawn(4, source.picture, config))
    asked = source.asked[0]
    assert asked == min(min(height, width) // side for side, (_, _, height, width), _ in cuts)
    factor = max(f for f in (1, 2, 4, 8) if f <= min(asked, finest))
    assert factor > 1, "choose a seed with larger boxes"
    for view, (side, (top, left, height, width), mirror) in zip([*views.globals, *views.locals], cuts, strict=True):
        tall, wide = round(height / factor), round(width / factor)
        assert min(tall, wide) >= side, "enlarged"
        down, across = (
            min(round(top / factor), -(-1203 // factor) - tall),
            min(round(left / factor), -(-1601 // factor) - wide),
        )
        box = (down * factor, across * factor, min(tall * factor, 1203), min(wide * factor, 1601))
        want = by_pillow(source.pixels, side, box)
        assert decibels(view.permute(1, 2, 0), want[:, ::-1] if mirror else want) > 40


def test_no_view_is_enlarged_for_being_decoded_small():
    config = AugmentConfig(global_pixels=24, local_pixels=8, local_views=2)
    for seed in range(40):
        source = Reducible(np.zeros((150, 200, 1), np.uint8))
        draw_views(source.picture, np.random.default_rng(seed), config)
        boxes = [(side, *box[2:]) for side, box, _ in drawn(seed, source.picture, config)]
        assert source.asked == [max(1, min(length // side for side, *extent in boxes for length in extent))]


def test_small_pictures_are_decoded_whole():
    source = Reducible(picture(150, 200))
    draw_views(source.picture, np.random.default_rng(0), AugmentConfig(local_views=2))
    assert source.asked == [1]


def test_views_are_a_function_of_the_generator():
    config, whole = AugmentConfig(global_pixels=32, local_pixels=16, local_views=3), Picture.of(picture(50, 60))
    one, same, other = (draw_views(whole, np.random.default_rng(seed), config) for seed in (1, 1, 2))
    assert one.globals.shape == (2, 3, 32, 32)
    assert one.locals.shape == (3, 3, 16, 16)
    assert one.colours.shape == (5, len(PARAMETERS))
    assert torch.equal(one.globals, same.globals)
    assert torch.equal(one.locals, same.locals)
    assert np.array_equal(one.colours, same.colours)
    assert not torch.equal(one.globals, other.globals)
    assert not torch.equal(one.globals[0], one.globals[1])
    assert draw_views(whole, np.random.default_rng(1), config.model_copy(update={"local_views": 0})).locals.shape == (
        0,
        3,
        16,
        16,
    )


def test_views_turn_about():
    """Upside down first, then by quarters, after all else was drawn: what a view shows stays."""
    plain = AugmentConfig(global_pixels=24, local_pixels=12, local_views=2)
    whole = Picture.of(picture(50, 60))

    def views(seed=1, **settings):
        made = draw_views(whole, np.random.default_rng(seed), plain.model_copy(update=settings))
        return [*made.globals, *made.locals], made.colours

    want, colours = views()
    got, same = views(flip_vertical=1.0)
    assert np.array_equal(colours, same)
    for view, upright in zip(got, want, strict=True):
        assert torch.equal(view, upright.flip(1))
    seen = []
    for seed in range(30):
        want = views(seed)[0]
        for view, upright in zip(views(seed, turn=1.0)[0], want, strict=True):
            seen.append([torch.equal(view, upright.rot90(quarters, (1, 2))) for quarters in range(4)].index(True))
    counts = np.bincount(seen, minlength=4)
    assert counts[0] == 0
    assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3


def test_how_often_views_turn_and_flip():
    """A picture that tells its four corners apart, seen whole; counted within five standard errors."""
    corners = np.zeros((8, 8, 1), np.uint8)
    corners[:4, :4], corners[:4, 4:], corners[4:, :4] = 250, 170, 80
    config = AugmentConfig(global_pixels=8, local_views=0, global_scale=(1, 1), aspect=(1, 1), flip=0.3, flip_vertical=0.2,
                           turn=0.4)  # fmt: skip
    rng, draws = np.random.default_rng(0), 3000
    seen = {}
    for _ in range(draws):
        view = draw_views(Picture.of(corners), rng, config).globals[0, 0]
        key = tuple(view[[1, 1, 6, 6], [1, 6, 1, 6]].tolist())
        seen[key] = seen.get(key, 0) + 1
    wanted = {}
    for mirror, upside, quarters in product((0, 1), (0, 1), range(4)):
        view = corners[:, :, 0]
        view = view[:, ::-1] if mirror else view
        view = np.rot90(view[::-1] if upside else view, quarters)
        key = tuple(view[[1, 1, 6, 6], [1, 6, 1, 6]].tolist())
        share = (0.3 if mirror else 0.7) * (0.2 if upside else 0.8) * (0.6 if quarters == 0 else 0.4 / 3)
        wanted[key] = wanted.get(key, 0) + share
    assert seen.keys() == wanted.keys()
    assert (
        scipy.stats.chisquare([seen[key] for key in wanted], [draws * share for share in wanted.values()]).pvalue > 1e-3
    )


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 300), (10, 900), (64, 64)])
def test_centre_is_pillows_resize_and_middle(height, width):
    pixels = picture(height, width)
    got = centre(pixels, short_side=64, side=56)
    assert got.shape == (3, 56, 56)
    factor = 64 / min(height, width)
    size = (max(round(width * factor), 56), max(round(height * factor), 56))
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(int)
    top, left = (size[1] - 56) // 2, (size[0] - 56) // 2
    want = whole[top : top + 56, left : left + 56]
    assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - want).max() <= 1


def test_centre_is_that_of_the_resized_whole_for_any_size():
    """Against the plain way, by torch's resize: one grey level for ordinary sizes, one a direction for tiny and thin ones."""
    rng = np.random.default_rng(5)
    sizes = [tuple(rng.integers(1, 160, 2).tolist()) for _ in range(40)]
    for height, width in [*sizes, (56, 56), (56, 61), (1, 1), (1, 300), (300, 2)]:
        pixels = picture(height, width, seed=height)
        short_side = int(rng.choice([56, 64]))
        factor = short_side / min(height, width)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        whole = resize(image, max(round(height * factor), 56), max(round(width * factor), 56)).int()
        top, left = (whole.shape[1] - 56) // 2, (whole.shape[2] - 56) // 2
        got = centre(pixels, short_side=short_side, side=56).int()
        ordinary = min(height, width) >= 28
        apart = (got - whole[:, top : top + 56, left : left + 56]).abs()
        assert apart.max() <= (1 if ordinary else 2), (height, width, short_side)
        assert (apart > 1).float().mean() < 0.001


@pytest.mark.parametrize("shape", [(1, 65_535, 3), (65_535, 1, 3)])
def test_centre_of_a_strip_takes_little_memory(shape):
    """The resized whole would be 13 GB; the limit leaves 512 MB."""
    resource = pytest.importorskip("resource")
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        pytest.skip("no /proc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + (512 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        got = centre(np.full(shape, 77, dtype=np.uint8), short_side=256, side=224)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert (got == 77).all()


@pytest.mark.parametrize(
    "settings",
    [{"global_scale": (0.5, 0.2)}, {"local_scale": (0, 0.5)}, {"global_scale": (0.5, 1.1)}, {"aspect": (2, 1)}, {"flip": 1.5},
     {"colour": {"blur": (0.1, 2.0, 0.0)}}, {"local_views": -1}, {"turn": -0.1}, {"flip_vertical": 2}, {"colour": {"mean": ()}},
     {"colour": {"std": (1, 0)}}, {"colour": {"mean": (0, 0), "std": (1, 1, 1)}}],
)  # fmt: skip
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        AugmentConfig.build(settings)
