"""Points found in another picture: against loops, by hand, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate import correspondence
from dinoforge.evaluate.correspondence import CORRESPONDENCE, CorrespondenceConfig, chosen_pairs, matched, within
from dinoforge.evaluate.evaluation import Sides
from given import noise
from marked import Marked, MarkedEyes, pointed


def measured(source, eyes=None, **settings):
    scores = CORRESPONDENCE.measure(
        eyes or MarkedEyes(), Sides(source, source, itself=True), CorrespondenceConfig(**settings)
    )
    return {score.name: score for score in scores}


def slow_match(first, second, points, *, window, temperature):
    """One point after the other, in float64: the four patches around it, weighed by how near their middles are."""
    found = []
    height, width = first.shape[:2]
    for x, y in points.tolist():
        column, row = min(max(x * width - 0.5, 0), width - 1), min(max(y * height - 0.5, 0), height - 1)
        mine = torch.zeros(first.shape[2], dtype=torch.float64)
        for b in (math.floor(row), math.floor(row) + 1):
            for a in (math.floor(column), math.floor(column) + 1):
                weight = max(0, 1 - abs(row - b)) * max(0, 1 - abs(column - a))
                if weight:
                    mine += weight * first[b, a].double()
        cosine = {
            (b, a): float(mine @ second[b, a].double() / mine.norm() / second[b, a].double().norm())
            for b in range(second.shape[0])
            for a in range(second.shape[1])
        }
        best = max(cosine, key=cosine.get)
        near = {at: c for at, c in cosine.items() if max(abs(at[0] - best[0]), abs(at[1] - best[1])) <= window}
        total = sum(math.exp(c / temperature) for c in near.values())
        spot = [
            sum(math.exp(c / temperature) * (at[axis] + 0.5) / second.shape[axis] for at, c in near.items()) / total
            for axis in (1, 0)
        ]
        found.append(spot)
    return torch.tensor(found)


@pytest.mark.parametrize("window", [0, 1, 2, 9])
def test_is_its_definition(window):
    first, second = noise(4, 6, 8), noise(5, 3, 8, seed=1)
    points = torch.cat(
        [torch.rand(20, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.0, 0], [1, 1], [0, 1]])]
    )
    found = matched(first, second, points, window=window, temperature=0.2)
    torch.testing.assert_close(
        found, slow_match(first, second, points, window=window, temperature=0.2), rtol=1e-4, atol=1e-5
    )


def test_a_picture_is_found_in_itself_patch_by_patch():
    x = noise(5, 7, 32)
    places = torch.cartesian_prod((torch.arange(7) + 0.5) / 7, (torch.arange(5) + 0.5) / 5)
    torch.testing.assert_close(matched(x, x, places), places)
    mirrored = matched(x, x.flip(1), places)
    torch.testing.assert_close(mirrored, torch.stack([1 - places[:, 0], places[:, 1]], 1))


def test_how_near_is_near_enough():
    true = np.asarray([[10.0, 10], [10, 10], [10, 10]])
    found = np.asarray([[13.0, 14], [10, 15], [10, 15.01]])
    assert within(found, true, reach=5).tolist() == [True, True, False]


def by_hand(relative_to):
    """Two pictures of 80 by 40 pixels in 4 by 8 patches; the second is not the first, so that sides matter.

    Of four points two are found in their patch, one 20 pixels and one 30 pixels away.
    """
    first, second = np.zeros((4, 8, 5)), np.zeros((4, 8, 5))
    first[..., 4] = second[..., 4] = 1
    texts = [{}, {}]
    for number, (column, shift) in enumerate([(0, 0), (2, 0), (4, 2), (1, 3)]):
        first[1, column], second[3, column + shift] = np.eye(5)[number], np.eye(5)[number]
        texts[0][str(number)] = [column * 10 + 5, 15]
        texts[1][str(number)] = [column * 10 + 5, 35]
    box = [json.dumps([0, 0, 10, 10]), json.dumps([0, 0, 50, 20])]
    return Marked(
        [first, second], size=(40, 80), keypoints=[json.dumps(text) for text in texts], box=box,
        pairs=["", ""], group=[1, 1], relative=[relative_to] * 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("relative_to", "wanted"),
    [("box", {0.05: 0.5, 0.4: 0.75, 0.6: 1.0}), ("image", {0.05: 0.5, 0.25: 0.75, 0.376: 1.0})],
)
def test_pck_by_hand(relative_to, wanted):
    """20 pixels are 0.4 of the second's box, 0.25 of its longer side; asked the other way round the box is 10 wide."""
    source = by_hand(relative_to)
    source.columns["pairs"] = np.asarray(
        [json.dumps({"with": "marked/1", "points": [[*json.loads(source.columns["keypoints"][0])[k], *v] for k, v in
                     json.loads(source.columns["keypoints"][1]).items()], "box": [0, 0, 50, 20]}), ""], object
    )  # fmt: skip
    scores = measured(source, alpha=tuple(wanted), relative_to=relative_to)
    assert {alpha: scores[f"PCK_at_{alpha:g}"].value for alpha in wanted} == wanted
    assert scores["PCK_at_0.05"].n == 1
    assert scores["PCK_at_0.05_per_keypoint"].n == 4
    assert scores["PCK_at_0.05"].interval is None  # nothing says how other pictures would differ


def test_the_mean_over_pairs_and_the_share_of_points():
    """One pair has two points and finds both, the other has six and finds none: 1/2 of the pairs, 1/4 of the points."""
    x = noise(3, 8, 8, 32).numpy()
    pairs = [
        {"with": "marked/1", "points": [[5, 5, 5, 5], [15, 5, 15, 5]], "box": [0, 0, 10, 10]},
        {"with": "marked/2", "points": [[5, 10 * n + 5, 75, 5] for n in range(6)], "box": [0, 0, 10, 10]},
    ]
    x[1] = x[2] = x[0]
    source = Marked(x, size=(80, 80), pairs=np.asarray(["\n".join(map(json.dumps, pairs)), "", ""], object))
    scores = measured(source, alpha=0.1)
    assert scores["PCK_at_0.1"].value == 0.5
    assert scores["PCK_at_0.1_per_keypoint"].value == 0.25
    assert (scores["PCK_at_0.1"].n, scores["PCK_at_0.1_per_keypoint"].n) == (2, 8)
    assert scores["PCK_at_0.1"].interval == (0.0, 1.0)


def test_intervals_are_over_pictures():
    """Of five pictures one is unlike the others: its 8 of 20 pairs fail together, and a third of the samples lack it."""
    x = noise(5, 8, 8, 32).numpy()
    x[1:] = x[1]
    pairs = [
        [json.dumps({"with": f"marked/{b}", "points": [[5, 5, 5, 5]], "box": [0, 0, 1, 1]}) for b in range(5) if b != a]
        for a in range(5)
    ]
    source = Marked(x, size=(80, 80), pairs=np.asarray(["\n".join(lines) for lines in pairs], object))
    scores = measured(source, alpha=0.1)
    for name in ("PCK_at_0.1", "PCK_at_0.1_per_keypoint"):
        assert scores[name].value == 0.6
        low, high = scores[name].interval
        assert low < 0.3  # pairs drawn alone would give 0.4 to 0.8
        assert high == 1


def test_pictures_come_again_and_few_are_held(monkeypatch):
    source = pointed(groups=4)
    eyes = MarkedEyes()
    whole = measured(source, eyes)
    assert len(eyes.views) == 8
    assert eyes.views[0] == (1, "patches", "long side 840, sides multiples of 10")
    monkeypatch.setattr(correspondence, "_HELD", 1)
    again = MarkedEyes()
    assert {name: score.value for name, score in measured(source, again).items()} == {
        name: score.value for name, score in whole.items()
    }
    assert len(again.views) == 8  # a pair of each group, either way


def test_pairs_that_cannot_be_asked_for_are_left_out_and_counted():
    source = pointed(groups=3)
    source.columns["keypoints"][0] = '{"p9": [1, 1]}'
    scores = measured(source, MarkedEyes(gone={"marked/2"}))
    assert scores["PCK_at_0.1"].n == 2
    assert "2 pairs without common keypoints and 2 with a broken picture left out" in scores["PCK_at_0.1"].protocol
    with pytest.raises(
        DataError, match=r"^none of 6 pairs of marked can be asked for: 2 have no keypoint [^\n]*, 4 a picture"
    ):
        measured(source, MarkedEyes(gone={"marked/2", "marked/5"}))


def test_a_keypoint_outside_the_picture_is_one_line():
    source = pointed(groups=1)
    source.columns["keypoints"] = np.asarray(['{"p0": [80, 81]}', '{"p0": [1, 1]}'])
    with pytest.raises(DataError) as error:
        measured(source)
    assert str(error.value) == "marked/0 has a keypoint at (80.0, 81.0), outside its 80x80 pixels."


def test_images_without_keypoints_are_told_what_is_missing():
    source = Marked(noise(2, 4, 4, 3).numpy(), size=(40, 40), group=[0, 0])
    with pytest.raises(DataError, match=r'column keypoints, \{"name": \[x, y\]\} as JSON'):
        measured(source, relative_to="image")


def test_settings_that_would_be_ignored_are_refused():
    with pytest.raises(ConfigError, match=r"temperature=0.2 has no effect with window=0"):
        CorrespondenceConfig.build({"temperature": 0.2})
    source = by_hand("box")
    source.columns["pairs"] = np.asarray([json.dumps({"with": "marked/1", "points": []}), ""], object)
    with pytest.raises(ConfigError, match=r"correspondence.by=label has no effect: marked lists its pairs."):
        chosen_pairs(source, CorrespondenceConfig(by="label"))
    with pytest.raises(ConfigError, match="less than a patch of 10"):
        measured(pointed(groups=1), longest=9)


def test_fewer_pairs_than_are_listed_are_drawn():
    line = json.dumps({"with": "marked/0", "points": []})
    source = Marked(noise(2, 2, 2, 3).numpy(), size=(20, 20), pairs=np.asarray(["\n".join([line] * 9), line], object))
    assert len(chosen_pairs(source, CorrespondenceConfig())) == 10
    some = chosen_pairs(source, CorrespondenceConfig(pairs=4, seed=1))
    assert len(some) == 4
    assert some == chosen_pairs(source, CorrespondenceConfig(pairs=4, seed=1))
