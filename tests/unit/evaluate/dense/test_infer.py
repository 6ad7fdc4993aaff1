"""Windows, scales and mirrored pictures, against heads whose answer is known for every pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoforge.base.errors import ConfigError
from dinoforge.evaluate.dense.infer import ViewingConfig, viewed, windows
from dinoforge.evaluate.dense.trunk import trunk_of
from given import painted_eyes
from slow_maps import predicted, seen_at_once, seen_by_windows

trunk = trunk_of(painted_eyes(lambda grey: grey[..., None], 1))
PATCH = trunk.patch


def grey(layers):
    """The mean grey of every patch."""
    return layers[-1].patches.permute(0, 3, 1, 2)


def first_column(layers):
    """1 in the first column of patches of what is seen at once, 0 elsewhere."""
    found = torch.zeros_like(grey(layers))
    found[..., 0] = 1
    return found


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_windows_cover_every_pixel_and_stay_inside(height, width, tall, wide):
    seen = np.zeros((height, width), int)
    corners = [*windows((height, width), (tall, wide))]
    for top, left in corners:
        assert 0 <= top <= max(height - tall, 0)
        assert 0 <= left <= max(width - wide, 0)
        seen[top : top + tall, left : left + wide] += 1
    assert seen.min() > 0
    assert len(set(corners)) == len(corners)


def test_windows_are_those_of_the_published_configuration():
    """2048 by 1024 pixels, windows of 512: steps of 341, the last one moved back (mmsegmentation's rule)."""
    corners = [*windows((1024, 2048), (512, 512))]
    assert sorted({top for top, _ in corners}) == [0, 341, 512]
    assert sorted({left for _, left in corners}) == [0, 341, 682, 1023, 1364, 1536]
    assert [*windows((512, 683), (512, 512))] == [(0, 0), (0, 171)]


def test_where_windows_overlap_the_mean_counts():
    """A head that says 1 in the first patches of each window: every pixel's share is told by a slow loop."""
    image = torch.zeros(1, 8, 20, dtype=torch.uint8)
    found = seen_by_windows(trunk, first_column, image, window=(8, 8))[0]
    total, count = torch.zeros(8, 20), torch.zeros(8, 20)
    whole = F.interpolate(torch.tensor([[[[1.0, 0.0]] * 2]]), (8, 8), mode="bilinear")[0, 0]
    for top, left in windows((8, 20), (8, 8)):
        for row in range(8):
            for column in range(8):
                total[top + row, left + column] += whole[row, column]
                count[top + row, left + column] += 1
    torch.testing.assert_close(found, total / count)
    assert count.max() > 1


def test_a_head_that_looks_at_patches_alone_says_nearly_the_same_whole_and_by_windows():
    """Steps: two thirds of 12 pixels are 8, so windows lie on the patches of the whole."""
    steps = torch.arange(9).repeat_interleave(PATCH).repeat(16, 1)[None].to(torch.uint8) * 20
    whole, by = seen_at_once(trunk, grey, steps), seen_by_windows(trunk, grey, steps, window=(12, 12))
    middle = slice(PATCH // 2, -PATCH // 2)
    assert by.shape == whole.shape == (1, 16, 36)
    assert (by - whole)[:, :, middle].abs().max() <= 10.001  # at the edge of a window the next patch is not known


def test_pictures_smaller_than_a_window_or_a_patch_are_seen_whole():
    for size in ((3, 2), (1, 1), (5, 30)):
        image = torch.full((1, *size), 50, dtype=torch.uint8)
        found = seen_by_windows(trunk, grey, image, window=(8, 8))
        assert found.shape == (1, *size)
        assert torch.equal(seen_by_windows(trunk, grey, image, window=(64, 64)), seen_at_once(trunk, grey, image))


@pytest.mark.parametrize("inference", ["slide", "whole"])
def test_a_map_lies_on_the_pixels_of_the_picture(inference):
    """What a head tells of a picture is where it was: light left, dark right, at any scale, mirrored too."""
    pixels = np.zeros((20, 40, 1), np.uint8)
    pixels[:, :20] = 200
    for config in (
        ViewingConfig(inference=inference),
        ViewingConfig(inference=inference, scales=(0.7, 1.0, 1.6), flip=True),
    ):
        found = predicted(trunk, grey, pixels, config, short_side=28, window=(16, 16))
        assert found.shape == (1, 20, 40)
        assert (found[0, 4:-4, 4:15] > 150).all()
        assert (found[0, 4:-4, 25:-4] < 50).all()


def test_mirrored_pictures_are_mirrored_back():
    """A head that favours the left: both views together favour no side."""
    pixels = np.full((8, 16, 1), 100, np.uint8)
    one = predicted(trunk, first_column, pixels, ViewingConfig(inference="whole"), short_side=8, window=(8, 8))
    both = predicted(
        trunk, first_column, pixels, ViewingConfig(inference="whole", flip=True), short_side=8, window=(8, 8)
    )
    assert not torch.allclose(one, one.flip(-1))
    torch.testing.assert_close(both, both.flip(-1))
    torch.testing.assert_close(both, (one + one.flip(-1)) / 2)


def test_what_is_averaged_is_the_answer():
    pixels = np.full((8, 8, 1), 100, np.uint8)
    config = ViewingConfig(scales=(1.0, 2.0))
    seen = []

    def answer(scores):
        seen.append(scores)
        return scores * 0 + len(seen)

    found = predicted(trunk, grey, pixels, config, short_side=8, window=(8, 8), answer=answer)
    assert (found == 1.5).all()
    assert all(scores.shape == (1, 8, 8) for scores in seen)


def test_it_is_said_how_pictures_were_seen():
    assert viewed(ViewingConfig(), short_side=48, window=32) == "short side 48, windows of 32"
    config = ViewingConfig(inference="whole", scales=(1, 1.5), flip=True)
    assert viewed(config, short_side=48, window=32) == "short side 48, whole, scales 1, 1.5, mirrored too"
    with pytest.raises(ConfigError, match="each value once"):
        ViewingConfig.build({"scales": "1,1"})
