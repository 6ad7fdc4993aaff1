"""Labels that are carried: against loops over patches, and what holds for all inputs."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinoforge.evaluate import propagation
from dinoforge.evaluate.propagation import PropagationConfig, Track, carried, labels_of, shown_by
from given import noise


def slow_carried(target, frames, labels, config):
    """One patch of the target after the other, in float64."""
    height, width = target.shape[:2]
    found = torch.zeros(labels.shape[1], height, width, dtype=torch.float64)
    for y, x in itertools.product(range(height), range(width)):
        near = []
        for s, b, a in itertools.product(range(len(frames)), range(height), range(width)):
            if config.radius is None or (abs(b - y) <= config.radius and abs(a - x) <= config.radius):
                near.append((float(target[y, x].double() @ frames[s, b, a].double()), labels[s, :, b, a].double()))
        near.sort(key=lambda one: -one[0])
        least = near[min(config.neighbours, len(near)) - 1][0]
        used = [(math.exp(cosine / config.temperature), label) for cosine, label in near if cosine >= least]
        found[:, y, x] = sum(weight * label for weight, label in used) / sum(weight for weight, _ in used)
    return found


def made(*, frames=3, height=6, width=5, labels=4, seed=0):
    x = F.normalize(noise(frames + 1, height, width, 8, seed=seed), dim=-1)
    return x[0], x[1:], noise(frames, labels, height, width, seed=seed + 1).softmax(1)


@pytest.mark.parametrize("radius", [0, 1, 2, None])
@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.1), (5, 0.1), (7, 1.0), (10_000, 0.3)])
def test_is_its_definition(radius, neighbours, temperature):
    config = PropagationConfig(radius=radius, neighbours=neighbours, temperature=temperature)
    target, frames, labels = made()
    found = carried(target, frames, labels, config=config)
    torch.testing.assert_close(found.double(), slow_carried(target, frames, labels, config), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(0), torch.ones(6, 5))


def test_patches_that_are_equally_near_count_alike():
    """All ten of one row are the fifth nearest of each other; no order of theirs decides."""
    frames = F.normalize(torch.ones(1, 2, 5, 8), dim=-1)
    labels = noise(1, 3, 2, 5).softmax(1)
    found = carried(frames[0], frames, labels, config=PropagationConfig(radius=None))
    torch.testing.assert_close(found, labels[0].mean((1, 2))[:, None, None].expand(3, 2, 5))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_at_once_change_nothing(rows, monkeypatch):
    target, frames, labels = made(height=7, seed=3)
    config = PropagationConfig(radius=2)
    whole = carried(target, frames, labels, config=config)
    monkeypatch.setattr(propagation, "_ROWS_AT_ONCE", rows)
    torch.testing.assert_close(carried(target, frames, labels, config=config), whole)


def test_a_radius_beyond_the_frame_is_none():
    target, frames, labels = made(seed=4)
    some = [carried(target, frames, labels, config=PropagationConfig(radius=radius)) for radius in (6, None)]
    torch.testing.assert_close(*some)


def test_a_track_remembers_the_first_frame_and_the_last_few():
    config = PropagationConfig(frames=2, radius=1)
    x = noise(6, 4, 4, 8, seed=5) * 3
    labels = noise(3, 4, 4, seed=6).softmax(0)
    track = Track(x[0], labels, config=config)
    unit, known = F.normalize(x, dim=-1), {0: labels}
    for frame in range(1, 6):
        seen = [0, *range(max(1, frame - 2), frame)]
        known[frame] = carried(unit[frame], unit[seen], torch.stack([known[s] for s in seen]), config=config)
        torch.testing.assert_close(track.follow(x[frame]), known[frame])


def test_without_memory_every_frame_is_compared_with_the_first():
    config, x = PropagationConfig(frames=0), noise(4, 4, 4, 8, seed=7)
    track = Track(x[0], labels := noise(2, 4, 4).softmax(0), config=config)
    for frame in (1, 2, 3):
        unit = F.normalize(x, dim=-1)
        wanted = carried(unit[frame], unit[:1], labels[None], config=config)
        torch.testing.assert_close(track.follow(x[frame]), wanted)


def test_labels_are_those_of_the_pixel_in_the_middle():
    mask = np.zeros((6, 8), np.uint8)
    mask[0:3, 0:4] = 7
    mask[4, 5] = 9  # of the patches of 3 by 2 pixels the last row's third begins at 4
    found = labels_of(mask, np.asarray([7, 9]), grid=(2, 4))
    assert found.sum(0).tolist() == np.ones((2, 4)).tolist()
    assert found[1].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert found[2].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert labels_of(mask, np.asarray([9]), grid=(6, 8))[0].sum() == 47  # what is no object is ground
    assert labels_of(mask, np.asarray([7, 9]), grid=(12, 16)).sum((1, 2)).tolist() == [4 * 48 - 48 - 4, 48, 4]


def test_the_greatest_label_is_shown():
    labels = torch.tensor([[[0.6, 0.2]], [[0.4, 0.8]]])
    assert shown_by(labels, size=(1, 2), stretch=False).tolist() == [[0, 1]]
    # bilinear: 0.2 of a patch beyond the middle of the first, 0.68 against 0.32
    assert shown_by(labels, size=(2, 10), stretch=False).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]] * 2


def test_a_faint_label_is_stretched_and_one_that_is_nowhere_is_not():
    labels = torch.tensor([[[0.9, 0.7]], [[0.1, 0.3]], [[0.0, 0.0]]])
    assert shown_by(labels, size=(1, 2), stretch=False).tolist() == [[0, 0]]
    assert shown_by(labels, size=(1, 2), stretch=True).tolist() == [[0, 1]]
    alone = torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]])
    assert shown_by(alone, size=(3, 2), stretch=True).tolist() == [[0, 0]] * 3
