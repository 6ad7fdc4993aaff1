"""Drawn pictures: a function of their numbers, with a ground truth that holds pixel by pixel."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from dinoforge.base.random import numpy_generator
from dinoforge.data.sources import toy
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.scene import FRONT, LANDMARKS, THICKNESS, Light, Pose, Thing, draw
from dinoforge.data.toyworld.species import SPECIES as KINDS
from dinoforge.data.toyworld.species import Creature, meadow
from dinoforge.data.toyworld.table import WORLDS
from dinoforge.data.toyworld.world import SHARE_SEEN
from dinoforge.evaluate.knn import KnnConfig, knn_scores

QUIET = Light(sun=0.3, slope=0.1, gain=1.0, offset=0.0, grain=0.0)


def noise():
    return numpy_generator(0, "noise", 0)


def grown(mask):
    """The mask and two pixels around it: as far as soft edges reach."""
    return binary_dilation(mask, structure=np.ones((3, 3)), iterations=2)


def layout_of(world, *labels, seed=0, front=None):
    """A quiet layout of the labels' individuals; ``front`` None leaves it to chance, False takes it away."""
    rng = numpy_generator(seed, "layout", *labels)
    layout = WORLDS[world].arrange([WORLDS[world].body(label, rng) for label in labels], rng)
    if front is not None:
        layout = replace(layout, front=WORLDS[world].front(rng) if front else None)
    return replace(layout, light=QUIET)


@pytest.mark.parametrize("world", WORLDS)
def test_a_picture_is_a_function_of_its_generators(world):
    for label in range(len(WORLDS[world].classes)):
        one, same, other = (draw(layout_of(world, label, seed=seed), noise(), size=32) for seed in (0, 0, 1))
        assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in ("pixels", *toy.EXTRAS))
        assert not np.array_equal(one.pixels, other.pixels)
        assert one.pixels.shape == (32, 32, 3)
        assert 0.01 < (one.mask > 0).mean() < 0.9


@pytest.mark.parametrize("world", WORLDS)
def test_a_mask_is_its_thing(world):
    """Give one thing other colours: every pixel of its instance moves, and none beyond the soft edge around it."""
    for seed in range(4):
        layout = layout_of(world, 3 + seed, 7 - seed, 0, seed=seed, front=True)
        dark = np.asarray([[0.1] * 3, [0.2] * 3], np.float32)
        layout = replace(layout, things=tuple(replace(thing, paint=dark) for thing in layout.things))
        plain = draw(layout, noise(), size=96)
        for number, thing in enumerate(layout.things, start=1):
            bright = replace(thing, paint=dark + 0.7)
            things = tuple(bright if other is thing else other for other in layout.things)
            changed = (draw(replace(layout, things=things), noise(), size=96).pixels != plain.pixels).any(-1)
            own = plain.instance == number
            assert changed[own].all()
            whole = draw(replace(layout, things=(thing,)), noise(), size=96).instance == 1
            assert not (changed & ~grown(whole)).any()
            others = (plain.instance != number) & ~grown(own)
            assert (changed & others).mean() < 0.01  # a soft edge that shines through the soft edge of a nearer thing


@pytest.mark.parametrize("world", WORLDS)
def test_depth_orders_occlusion(world):
    """A picture of several things is, pixel by pixel, the nearest of pictures of each alone."""
    for seed in range(5):
        layout = layout_of(world, 1, 5, 9, 11, seed=seed, front=True)
        whole = draw(layout, noise(), size=64)
        alone = [draw(replace(layout, things=(thing,), front=None), noise(), size=64) for thing in layout.things]
        empty = draw(replace(layout, things=()), noise(), size=64)
        depths = np.stack([empty.depth, *(scene.depth for scene in alone)])
        assert np.array_equal(whole.depth, depths.min(axis=0))
        assert np.array_equal(whole.instance, depths.argmin(axis=0))
        assert (empty.depth == FRONT * 1000).any()
        assert whole.depth.min() >= FRONT * 1000
        assert whole.depth[whole.instance > 0].max() < whole.depth[(whole.instance == 0) & (empty.depth > 1000)].min()


@pytest.mark.parametrize("world", WORLDS)
def test_mask_instance_and_parts_agree(world):
    classes = len(WORLDS[world].classes)
    for seed in range(classes):
        layout = layout_of(world, seed, (seed + 4) % classes, (seed + 9) % classes, seed=seed)
        scene = draw(layout, noise(), size=64)
        labels = np.asarray([0, *(thing.body.label + 1 for thing in layout.things)])
        assert np.array_equal(scene.mask, labels[scene.instance])
        assert np.array_equal(scene.parts > 0, scene.instance > 0)
        assert set(np.unique(scene.parts[scene.instance == 1])) == {1, 2}
        # The core lies inside: no core pixel touches ground, unless something in front cuts it.
        bare = draw(replace(layout, things=layout.things[:1], front=None), noise(), size=256)
        assert not ((bare.parts == 1) & binary_dilation(bare.parts == 0)).any()


def disc(scale, distance, x=0.0):
    body = Creature(2, KINDS[2], stretch=1.0, depth=0.0, wobble=(), pitch=3.5, shift=(0.0, 0.0), hue=0.0)
    return Thing(body, Pose(x, 0.0, 0.4, scale, 1.0), np.full((2, 3), 0.5, np.float32), distance)


def test_a_disc_by_hand():
    """A round creature of radius 0.8 in the middle: areas, parts and the depth of its dome."""
    layout = replace(layout_of("species", 2, front=False), things=(disc(0.8, 2.0),))
    scene = draw(layout, noise(), size=201)
    assert (scene.mask > 0).mean() == pytest.approx(np.pi * 0.8**2 / 4, rel=0.01)
    assert (scene.parts == 1).sum() / (scene.parts > 0).sum() == pytest.approx(0.6**2, rel=0.01)
    assert scene.depth[100, 100] == round(1000 * (2.0 - THICKNESS * 0.8))
    row = scene.depth[100].astype(int)
    half = 100 + 40  # half way out, the dome is sqrt(0.5) high
    assert row[half] == pytest.approx(1000 * (2.0 - THICKNESS * 0.8 * 0.5**0.5), abs=2)
    assert scene.depth[0, 0] == pytest.approx(1000 * (4.5 + 0.8), abs=5)


@pytest.mark.parametrize("world", WORLDS)
def test_the_labelled_thing_is_kept_in_sight(world):
    for objects in (1, 2, 4):
        for seed in range(25):
            layout = layout_of(world, *range(seed % 9, seed % 9 + objects), seed=seed)
            whole = draw(replace(layout, things=layout.things[:1], front=None), noise(), size=48).instance == 1
            seen = draw(layout, noise(), size=48).instance == 1
            assert seen.sum() >= (SHARE_SEEN - 0.06) * whole.sum(), seed  # the rule is judged on a coarser grid
            assert seen.mean() > 0.004, seed
            # And no two things stand in one another: the near one's outline is nearer than the far one's middle.
            near_to_far = sorted(layout.things, key=lambda thing: thing.distance)
            for near, far in pairwise(near_to_far):
                assert near.distance < far.distance - THICKNESS * far.pose.scale


def test_a_mineral_is_the_union_of_its_solids():
    """A point is inside if it is behind every face of one solid, or in one grape; told point by point."""
    axis = np.linspace(-1.4, 1.4, 15, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for label in range(len(WORLDS["minerals"].classes)):
        body = WORLDS["minerals"].body(label, numpy_generator(label, "body", 0))
        surface = body.surface(u, v, (1.0, 0.0))
        for place in np.ndindex(u.shape):
            point = np.asarray([u[place], v[place]])
            if body.solids is None:
                inside = any(np.hypot(*(point - grape[:2])) < grape[2] for grape in body.grapes)
            else:
                inside = any(all(face[:2] @ point < face[2] for face in solid) for solid in body.solids)
            assert inside == (surface.inside[place] > 0)
        within = surface.inside > 0
        assert within.any()
        for plane in (surface.ratio[within], surface.relief[within], surface.mix[within]):
            assert plane.min() >= 0
            assert plane.max() <= 1


def test_ground_is_its_sum_of_waves():
    creature = WORLDS["species"].body(0, numpy_generator(0, "body", 0))
    ground = meadow(creature, numpy_generator(0, "ground", 0))
    axis = np.linspace(-1, 1, 9, dtype=np.float32)
    first, second = ground.colours.astype(float)
    for row, y in enumerate(axis):
        for column, x in enumerate(axis):
            height = sum(h * np.sin(fx * x + fy * y + p) for h, fx, fy, p in ground.waves.astype(float))
            share = 1 / (1 + np.exp(-height))
            np.testing.assert_allclose(
                ground.paint(axis)[:, row, column], share * first + (1 - share) * second, atol=1e-4
            )


@pytest.mark.parametrize("world", WORLDS)
def test_size_changes_the_grid_alone(world):
    """A thing covers the same share of a small and a large picture."""
    layout = layout_of(world, 3, front=False)
    small, large = (draw(layout, noise(), size=size) for size in (48, 192))
    assert (small.mask > 0).mean() == pytest.approx((large.mask > 0).mean(), abs=0.01)
    assert abs(small.pixels.mean(axis=(0, 1)) - large.pixels.mean(axis=(0, 1))).max() < 4


@pytest.mark.parametrize("world", WORLDS)
def test_pixels_and_colours_do_not_tell_the_class(world):
    """k-NN on thumbnails and on colour histograms stays near chance (1 in 12): the worlds are hard on purpose."""
    train, test = (open_source(f"toy://{world}?images=1200&size=32&split={split}") for split in ("train", "test"))

    def histogram(pixels):
        cells = (pixels // 64).long().flatten(0, 1) @ torch.tensor([16, 4, 1])
        return torch.bincount(cells, minlength=64).float()

    def thumbnail(pixels):
        return pixels[::2, ::2].flatten() - 128

    labels = [torch.from_numpy(source.columns["label"]) for source in (train, test)]
    drawn = [[torch.from_numpy(source.pixels(n)).float() for n in range(len(source))] for source in (train, test)]
    for how, limit in ((thumbnail, 0.35), (histogram, 0.40)):
        known, asked = (torch.stack([how(pixels) for pixels in part]) for part in drawn)
        (score,) = knn_scores(known, labels[0], asked, labels[1], config=KnnConfig(neighbours=10))
        assert score.value <= limit, how.__name__


def shown(source, row):
    return source._layout(row)[0]


@pytest.mark.parametrize("world", WORLDS)
def test_an_individual_stays_the_same_in_all_its_views(world):
    source = open_source(f"toy://{world}?images=60&size=16&views=3")
    groups = source.columns["group"]
    assert {int((groups == group).sum()) for group in set(groups)} == {3}
    assert not set(groups[source.columns["split"] == "train"]) & set(groups[source.columns["split"] == "test"])
    seen = {}
    for row in range(60):
        layout = shown(source, row)
        (thing,) = layout.things
        assert thing.body.label == source.columns["label"][row]
        seen.setdefault(int(groups[row]), []).append((repr(thing.body), repr(thing.pose), repr(layout.ground)))
    for views in seen.values():
        assert [len(set(column)) for column in zip(*views, strict=True)] == [1, 3, 3]
    assert len({views[0][0] for views in seen.values()}) == 20


def test_rows_beside_each_other_are_different_individuals():
    """The first rows are what a probe takes; they must not be views of a few individuals."""
    groups = open_source("toy://species?images=200&size=8").columns["group"]
    assert len(set(groups[:50].tolist())) == 50


def test_a_picture_does_not_depend_on_how_many_are_asked_for():
    few, many = (open_source(f"toy://species?images={images}&size=16&objects=2") for images in (20, 90))
    rows = {name: row for row, name in enumerate(many.columns["id"].tolist())}
    for row, name in enumerate(few.columns["id"].tolist()):
        assert np.array_equal(few.pixels(row), many.pixels(rows[name]))
        assert few.columns["label"][row] == many.columns["label"][rows[name]]
    other = open_source("toy://species?images=20&size=16&objects=2&seed=1")
    assert not set(other.columns["id"].tolist()) & set(rows)
    assert not np.array_equal(other.pixels(0), few.pixels(0))


@pytest.mark.parametrize("images", [1, 4, 5, 11, 21, 500])
def test_one_in_five_is_for_testing(images):
    source = open_source(f"toy://species?images={images}&size=8")
    assert len(source) == images
    assert (source.columns["split"] == "test").sum() == images // 5


def test_several_things_come_in_the_labels_order():
    source = open_source("toy://minerals?images=10&size=16&objects=4")
    for row in range(10):
        layout = shown(source, row)
        assert len(layout.things) == 4
        assert layout.things[0].body.label == source.columns["label"][row]


def test_classes_are_as_skewed_as_asked_for():
    source = open_source("toy://species?images=9000&size=8&imbalance=20")
    labels, test = source.columns["label"], source.columns["split"] == "test"
    counts = np.sort(np.bincount(labels[~test], minlength=12))[::-1]
    assert counts[0] / counts[-1] == pytest.approx(20, rel=0.1)
    np.testing.assert_allclose(counts[:-1] / counts[1:], 20 ** (1 / 11), rtol=0.1)
    even = np.bincount(labels[test], minlength=12)
    assert even.max() / even.min() < 1.1
    plain = np.bincount(open_source("toy://species?images=9000&size=8").columns["label"], minlength=12)
    assert plain.max() / plain.min() < 1.05


@pytest.mark.parametrize("world", ["species", "minerals"])
def test_landmarks_are_the_same_points_of_the_thing(world):
    """Where they are put in a picture, the body's own coordinates are those that were asked for, mirrored or not."""
    source = toy.open_toy(world, {"images": "40", "size": "64", "seed": "5"})
    flips = set()
    for row in range(0, 40, 3):
        layout, _ = source._layout(row)
        points = source.extra(row, "keypoints")
        x, y = (points[:, :2].T / 64 * 2 - 1).astype(np.float64)
        u, v = layout.things[0].pose.own(x[None], y[None])
        np.testing.assert_allclose(np.concatenate([u, v]).T, LANDMARKS, atol=1e-5)
        flips.add(layout.things[0].pose.flip)
        instance = source.extra(row, "instance")
        for across, down, seen in points.tolist():
            inside = 0 <= across < 64 and 0 <= down < 64
            assert bool(seen) == (inside and instance[int(down), int(across)] == 1)
    assert flips == {-1, 1}
    assert source.extra(0, "keypoints").dtype == np.float32


def test_landmarks_move_with_the_creature_of_a_clip():
    source = toy.open_toy("clips", {"clips": "30", "frames": "5", "size": "64"})
    rows = np.flatnonzero(source.columns["label_name"] == "right")[:5]
    middles = np.asarray([source.extra(int(row), "keypoints")[0] for row in rows])
    assert (np.diff(middles[:, 0]) > 1).all()
    assert np.ptp(middles[:, 1]) < 1e-3
