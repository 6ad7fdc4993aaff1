"""Batches are functions of (seed, step): laws of the order, of groups, of workers, and of broken images."""

import io
import multiprocessing
import os
import signal
import threading
import time
import warnings
from multiprocessing.resource_sharer import _ResourceSharer

import numpy as np
import pytest
import torch
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.augment import AugmentConfig
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.loader import Groups, Loader, _Numbers
from dinoforge.data.masks import MaskConfig
from dinoforge.data.order import EVENLY, SamplingConfig
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


def loader(source, *, batch=8, group=4, workers=0, seed=0, told=None, sampling=EVENLY, **more):
    groups = Groups(source, AUGMENT, MaskConfig(), sampling, seed=seed, group=group, patch=4)
    on_broken = (lambda name, reason: told.append((name, reason))) if told is not None else lambda *_: None
    return Loader(groups, batch=batch, workers=workers, device=torch.device("cpu"), on_broken=on_broken, **more)


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
    ) as kept:
        next(loader(Numbered(4, broken=range(4)), workers=workers).batches(first=0, steps=1))
    assert kept.tb  # holds all that was in use
    assert not multiprocessing.active_children()


class Deadly(Numbered):
    """Reading some images ends the process, of others never ends; once or always."""

    def __init__(self, images, folder, *, deadly=(), endless=(), always=True):
        super().__init__(images)
        self.folder, self.deadly, self.endless, self.always = folder, set(deadly), set(endless), always

    def picture(self, row):
        mark = self.folder / str(row)
        if (row in self.deadly or row in self.endless) and (self.always or not mark.exists()):
            mark.touch()
            if row in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().picture(row)


@pytest.mark.parametrize("kind", ["deadly", "endless"])
def test_an_image_that_ends_or_holds_up_workers_is_named_and_set_aside(kind, tmp_path, capsys):
    told = []
    source = Deadly(12, tmp_path, **{kind: {5}})
    # Long enough for a worker to start on a busy machine.
    patience = 100 if kind == "deadly" else 8
    found = list(loader(source, workers=2, told=told, stall_seconds=patience).batches(first=0, steps=2))
    assert len(found) == 2
    what = "was killed by SIGKILL" if kind == "deadly" else "made nothing for "
    assert [(name, what in reason) for name, reason in dict(told).items()] == [("image 5", True)]
    said = capsys.readouterr().err
    assert "while reading image 5; it is read once more" in said
    assert "again; the image is set aside" in said
    assert not multiprocessing.active_children()
    # What takes its place is what takes the place of any other image that cannot be used.
    for mine, want in zip(found, loader(Numbered(12, broken={5})).batches(first=0, steps=2), strict=True):
        equal(mine, want)


def test_a_worker_that_dies_once_changes_nothing(tmp_path):
    told = []
    source = Deadly(12, tmp_path, deadly={5, 9}, always=False)
    found = list(loader(source, workers=2, told=told).batches(first=0, steps=3))
    assert not told
    for mine, want in zip(found, loader(Numbered(12)).batches(first=0, steps=3), strict=True):
        equal(mine, want)


def test_a_worker_that_dies_while_its_group_is_fetched_changes_nothing(monkeypatch):
    """The connection to it is gone a moment before the process is."""
    connected, deaths = _ResourceSharer.get_connection, []

    def dying(ident):
        if deaths:
            return connected(ident)
        for worker in multiprocessing.active_children():
            deaths.append(threading.Timer(0.2, worker.kill))
            deaths[-1].start()
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(_ResourceSharer, "get_connection", staticmethod(dying))
    told = []
    found = list(loader(Numbered(12), workers=2, told=told).batches(first=0, steps=3))
    assert len(deaths) == 2
    assert not told
    for mine, want in zip(found, loader(Numbered(12)).batches(first=0, steps=3), strict=True):
        equal(mine, want)


def test_workers_that_all_die_end_the_run_with_advice(tmp_path):
    source = Deadly(40, tmp_path, deadly=range(40))
    with pytest.raises(DataError, match=r"^8 workers in a row were lost reading numbered; .*Take fewer speed.workers"):
        next(loader(source, workers=1).batches(first=0, steps=1))
    assert not multiprocessing.active_children()


class Textured(Source):
    """Noise of several sizes in JPEG files: any other crop, mirror image or decoding shows."""

    def __init__(self, images):
        self.address, self.files = "textured", []
        for number in range(images):
            file = io.BytesIO()
            shape = (40 + number % 7, 50 + number % 11, 3)
            Image.fromarray(np.random.default_rng(number).integers(0, 255, shape, np.uint8)).save(file, "JPEG")
            self.files.append(file.getvalue() if number % 40 != 17 else b"broken")
        self.columns = {"id": np.arange(images).astype(str), "weight": np.linspace(0.1, 3, images)}

    def encoded(self, row):
        return self.files[row]


def test_the_same_thousand_positions_for_any_workers_ranks_and_start():
    """13 batches of 80 images in groups of 4, by weight: byte for byte the same, whoever makes them and from wherever."""
    first, seed = (int(number) for number in np.random.default_rng(6).integers([2, 0], [11, 2**40]))
    source = Textured(90)
    how = {"batch": 80, "group": 4, "seed": seed, "sampling": SamplingConfig(weight="weight")}
    want = list(loader(source, **how).batches(first=0, steps=13))
    assert len(want) * 80 > 1000
    for workers in (1, 2, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch counts cores
            found = list(loader(source, workers=workers, **how).batches(first=first, steps=13))
        for mine, other in zip(found, want[first:], strict=True):
            equal(mine, other)
    for world in (2, 4):
        shares = [list(loader(source, rank=r, world=world, **how).batches(first=first, steps=13)) for r in range(world)]
        for step, other in enumerate(want[first:]):
            for name in ("globals", "locals", "masks"):
                joined = torch.cat([getattr(share[step], name) for share in shares], dim=1)
                assert torch.equal(joined, getattr(other, name)), name
            assert sum((share[step].groups for share in shares), ()) == other.groups


class Raising(Numbered):
    """Reading image 5 meets a fault of a library."""

    def picture(self, row):
        if row == 5:
            raise RuntimeError("out of\nluck")
        return super().picture(row)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_fault_of_a_library_costs_one_image(workers):
    told = []
    found = list(loader(Raising(12), workers=workers, told=told).batches(first=0, steps=3))
    assert set(told) == {("image 5", "cannot be read: RuntimeError: out of luck")}
    for mine, want in zip(found, loader(Numbered(12, broken={5})).batches(first=0, steps=3), strict=True):
        equal(mine, want)


def test_what_the_user_must_put_right_ends_the_run_from_a_worker_too():
    class Asking(Numbered):
        def picture(self, row):
            raise ConfigError("the extra is missing")

    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"^the extra is missing$"):
            next(loader(Asking(8), workers=workers).batches(first=0, steps=1))


def test_what_is_never_to_be_seen_replaces_nothing():
    source = Numbered(10, broken={0, 1})
    source.columns["weight"] = np.asarray([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    seen = set()
    read = source.picture
    source.picture = lambda row: (seen.add(row), read(row))[1]
    list(loader(source, sampling=SamplingConfig(weight="weight")).batches(first=0, steps=4))
    assert seen == {0, 1, 2}


def test_a_run_of_a_thousand_million_groups_begins_at_once():
    """Group numbers are computed: those of ranks 0 and 1 of a step side by side are the step's."""
    for rank in range(2):
        numbers = _Numbers(7 * 8 + rank * 4, 10**9, share=4, many=8)
        assert len(numbers) == 10**9
        assert [numbers[n] for n in range(6)] == [56 + rank * 4 + n for n in (0, 1, 2, 3, 8, 9)]
        assert numbers[10**9 - 1] == 56 + rank * 4 + (10**9 // 4 - 1) * 8 + 3
        later = numbers[5:]
        assert (len(later), later[0], later[3]) == (10**9 - 5, numbers[5], numbers[8])


def test_groups_that_do_not_divide_among_ranks():
    with pytest.raises(ConfigError, match=r"24 is 6 groups of .*=4 images, which do not divide among 4 ranks; 3 or 6 "):
        loader(Numbered(30), batch=24, world=4)
