"""Objects followed through clips: what counts, by hand, and what is refused."""

import dataclasses

import numpy as np
import pytest

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.tracking import TRACKING, TrackingConfig, clips_of, followed
from given import Listed
from marked import Marked, MarkedEyes, jumping

EVERYWHERE = {"radius": None}


def measured(source, eyes=None, **settings):
    config = TrackingConfig(**(EVERYWHERE | settings))
    scores = TRACKING.measure(eyes or MarkedEyes(patch=1), Sides(source, source, itself=True), config)
    return {score.name: score for score in scores}


def clip(masks, **columns):
    """A clip whose features are the objects themselves."""
    masks = np.asarray(masks, np.uint8)
    count = len(masks)
    return Marked(
        np.eye(10)[masks], size=masks.shape[1:], masks=list(masks),
        **({"clip": ["a"] * count, "frame": np.arange(count)} | columns),
    )  # fmt: skip


def still(count=5, side=12):
    masks = np.zeros((count, side, side), np.uint8)
    masks[:, 2:6, 2:6] = 1
    masks[:, 8:11, 4:9] = 2
    return masks


def test_the_first_and_the_last_frame_do_not_count():
    masks = still()
    features = masks.copy()
    masks[-1] = 0  # what is said of the last frame
    source = clip(features)
    source.masks = list(masks)
    assert measured(source)["J&F"].value == 1.0
    masks[-2][masks[-2] == 2] = 0  # of three frames that count, one says that the second object is gone
    found = followed(MarkedEyes(patch=1), source, np.arange(5), TrackingConfig(**EVERYWHERE))
    assert found.region.tolist() == [[1, 1], [1, 1], [1, 0]]
    assert found.outline.tolist() == [[1, 1], [1, 1], [1, 0]]
    scores = measured(source)
    assert scores["J"].value == scores["F"].value == pytest.approx((1 + 2 / 3) / 2)
    assert scores["J_recall"].value == pytest.approx((1 + 2 / 3) / 2)
    assert scores["J_decay"].value == pytest.approx(1 / 2)  # of the second: frames 0 and 1 less frame 2
    assert not scores["J_decay"].higher_is_better
    assert scores["J&F"].n == 2


def test_an_object_counts_once_whatever_the_length_of_its_clip():
    """A clip of 3 frames with one object and one of 6 with two: three objects, one of them never found."""
    long, short = still(6), still(3)
    features = np.concatenate([long, short])
    masks = features.copy()
    masks[:6][masks[:6] == 2] = 0
    masks[0][8:11, 4:9] = 2
    short[short == 2] = 0
    masks[6:] = short
    source = Marked(
        np.eye(10)[features], size=(12, 12), masks=list(masks), clip=["a"] * 6 + ["b"] * 3, frame=[*range(6), *range(3)]
    )
    scores = measured(source)
    assert scores["J"].n == 3
    assert scores["J"].value == pytest.approx(2 / 3)
    assert scores["J"].interval == (0.5, 1.0)  # clips are drawn: the object that is lost comes with one that is not
    assert measured(source.select(np.arange(6)))["J"].interval is None  # one clip says nothing of others


def test_rows_may_lie_in_any_order():
    source = jumping(clips=2, frames=5)
    source.columns["frame"][1] = 99  # so that the second frame becomes the last
    wanted = measured(source, radius=4)
    order = np.random.default_rng(0).permutation(10)
    mixed = source.select(order)
    assert {name: score.value for name, score in measured(mixed, radius=4).items()} == {
        name: score.value for name, score in wanted.items()
    }


def test_objects_of_one_pixel_and_such_as_vanish_or_come_later():
    masks = np.zeros((5, 8, 8), np.uint8)
    masks[:, 3, 3] = 5
    masks[:2, 6, 6] = 6  # vanishes
    masks[2:, 0:2, 0:2] = 7  # was not there: ground
    rows = np.arange(5)
    found = followed(MarkedEyes(patch=1), clip(masks), rows, TrackingConfig(stretch=False, **EVERYWHERE))
    assert found.region.tolist() == [[1, 1]] * 3  # where it is not and is not shown, both are empty
    assert found.outline.tolist() == [[1, 1]] * 3
    stretched = followed(MarkedEyes(patch=1), clip(masks), rows, TrackingConfig(**EVERYWHERE))
    assert stretched.region.tolist() == [[1, 1], [1, 0], [1, 0]]  # the least trace of it is stretched too


def test_frames_are_seen_a_few_at_once():
    eyes = MarkedEyes(patch=1)
    source = jumping(clips=1, frames=10)
    whole = measured(source, eyes)
    assert eyes.views == [(count, "patches", "short side 480, sides multiples of 1") for count in (8, 2)]
    few = MarkedEyes(patch=1)
    few.how = dataclasses.replace(few.how, rows_at_once=3)
    assert measured(source, few) == whole
    assert [count for count, *_ in few.views] == [3, 3, 3, 1]


def test_a_frame_without_a_mask_or_that_is_broken_is_passed_over():
    source = clip(still(6))
    source.masks[2] = None
    found = followed(MarkedEyes(patch=1, gone={"marked/3"}), source, np.arange(6), TrackingConfig(**EVERYWHERE))
    assert len(found.region) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.select(np.arange(2)), "fewer than 3 frames"),
        (lambda s: s.masks[0].fill(0), "no object in the first frame"),
        (lambda s: s.masks.__setitem__(0, None), "no object in the first frame"),
        (
            lambda s: s.masks.__setitem__(slice(1, 5), [None] * 4),
            "no usable frame with a mask between its first and its last",
        ),
    ],
)
def test_a_clip_that_cannot_be_followed_is_left_out_or_one_line(change, why):
    source = clip(still())
    source = change(source) or source
    with pytest.raises(DataError) as error:
        measured(source)
    assert str(error.value).startswith(f"none of the 1 clips of marked can be followed: a has {why}")
    assert len(str(error.value).splitlines()) == 1
    both = np.concatenate([still(3), still(3)])
    both[3] = 0
    source = clip(both, clip=["good"] * 3 + ["bad"] * 3, frame=[0, 1, 2] * 2)
    scores = measured(source)
    assert scores["J&F"].n == 2
    assert "1 clips, 1 left out" in scores["J&F"].protocol


def test_a_first_frame_that_is_broken_leaves_the_clip_out():
    with pytest.raises(DataError, match="can be followed: a has no usable frame"):
        measured(clip(still()), MarkedEyes(patch=1, gone={"marked/0"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.masks.__setitem__(2, np.zeros((12, 13), np.uint8)), "marked/2 has 12x12 pixels and a mask of 13x12."),
        (lambda s: s.__setattr__("size", [(12, 12)] * 3 + [(12, 9)] * 2),
         "marked/3 has 9x12 pixels, a frame before it 12x12; a clip has one size."),
        (lambda s: s.columns["frame"].fill(1), "clip a of marked has a frame twice; column frame numbers each once."),
        (lambda s: s.columns.pop("frame"),
         "marked has no clips; its frames take columns clip (a text) and frame (a number)."),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(change, said):
    source = clip(still())
    change(source)
    with pytest.raises(DataError) as error:
        measured(source)
    assert str(error.value) == said


def test_clips_are_rows_of_one_text():
    source = Listed("some", 6, clip=["b", "", "a", "b", "a", ""], frame=[2, 0, 5, 1, 3, 0])
    assert {name: rows.tolist() for name, rows in clips_of(source).items()} == {"b": [3, 0], "a": [4, 2]}


def test_a_patch_larger_than_the_frame_is_refused():
    with pytest.raises(ConfigError, match="short side of 8 pixels is less than a patch of 14"):
        measured(clip(still()), MarkedEyes(patch=14), shortest=8)
