"""Batches are functions of (seed, step): laws of the order, of groups, of workers, and of broken images."""

import numpy as np
import pytest
import torch

from dinoforge.base.errors import DataError
from dinoforge.data.augment import AugmentConfig
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.loader import Groups, Loader
from dinoforge.data.masks import MaskConfig
from dinoforge.data.order import permute, rows_at
from dinoforge.data.sources.source import Source


class Numbered(Source):
    """Image n is grey level n; some cannot be used."""

    def __init__(self, images, broken=()):
        self.address, self.broken = "numbered", set(broken)
        self.columns = {"id": np.asarray([f"image {n}" for n in range(images)])}

    def encoded(self, row):
        raise Broken("its pixels come from no file")

    def picture(self, row):
        if row in self.broken:
            raise Broken("made so")
        return Picture.of(np.full((20, 20, 3), row, np.uint8))


AUGMENT = AugmentConfig(global_pixels=16, local_pixels=8, local_views=2)


def loader(source, *, batch=8, group=4, workers=0, seed=0, told=None):
    groups = Groups(source, AUGMENT, MaskConfig(), seed=seed, group=group, patch=4)
    on_broken = (lambda name, reason: told.append((name, reason))) if told is not None else lambda *_: None
    return Loader(groups, batch=batch, workers=workers, device=torch.device("cpu"), on_broken=on_broken)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 16, 17, 1000])
def test_every_pass_is_a_permutation(images):
    for number in range(3):
        found = permute(np.arange(images), images=images, seed=number)
        assert sorted(found.tolist()) == list(range(images))


def test_passes_differ_and_hold_every_image_once():
    rows, passes = rows_at(np.arange(300), images=100, seed=3)
    assert passes.tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert all(sorted(part) == list(range(100)) for part in rows.reshape(3, 100).tolist())
    assert (rows[:100] != rows[100:200]).mean() > 0.9
    some, _ = rows_at(np.asarray([150, 7]), images=100, seed=3)
    assert some.tolist() == [rows[150], rows[7]]


def test_order_looks_random():
    """Over many seeds each image comes first about equally often: chi squared of 16 bins, far below its 1e-6 quantile."""
    first = np.asarray([permute(np.zeros(1, int), images=16, seed=seed)[0] for seed in range(4000)])
    counts = np.bincount(first, minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 60


def equal(one, other):
    for name in ("globals", "locals", "masks", "masked_index", "mask_weight"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.groups == other.groups


def test_starting_late_and_other_workers_change_nothing():
    source = Numbered(30)
    whole = list(loader(source).batches(first=0, steps=5))
    assert len(whole) == 5
    for mine, want in zip(loader(source).batches(first=3, steps=5), whole[3:], strict=True):
        equal(mine, want)
    for mine, want in zip(loader(source, workers=2).batches(first=0, steps=5), whole, strict=True):
        equal(mine, want)
    other = next(loader(source, seed=1).batches(first=0, steps=1))
    assert not torch.equal(other.globals, whole[0].globals)


def test_a_batch_is_its_groups_side_by_side():
    source = Numbered(30)
    large, small = (
        list(loader(source, batch=batch).batches(first=0, steps=steps)) for batch, steps in ((8, 2), (4, 4))
    )
    for step in range(2):
        halves = small[2 * step : 2 * step + 2]
        for name in ("globals", "locals", "masks"):
            joined = torch.cat([getattr(half, name) for half in halves], dim=1)
            assert torch.equal(getattr(large[step], name), joined), name
        assert large[step].groups == halves[0].groups + halves[1].groups


def test_shapes_and_masks():
    batch = next(loader(Numbered(30)).batches(first=0, steps=1))
    assert batch.globals.shape == (2, 8, 3, 16, 16)
    assert batch.locals.shape == (2, 8, 3, 8, 8)
    assert batch.masks.shape == (2, 8, 16)
    assert (batch.masks.any(-1).sum() == 8).all()  # half of the 16 global views
    assert torch.equal(batch.masked_index, batch.masks.flatten().nonzero().flatten())


def test_broken_images_are_replaced_and_told_of():
    told = []
    source = Numbered(10, broken={3, 7})
    batches = list(loader(source, told=told).batches(first=0, steps=3))
    assert len(batches) == 3
    assert {name for name, _ in told} == {"image 3", "image 7"}
    assert all(reason == "made so" for _, reason in told)
    again = list(loader(source).batches(first=0, steps=3))
    equal(batches[2], again[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_is_an_error(workers):
    with pytest.raises(
        DataError, match=r"^32 images drawn from numbered could not be used; the last is image \d: made so.$"
    ):
        next(loader(Numbered(4, broken=range(4)), workers=workers).batches(first=0, steps=1))
