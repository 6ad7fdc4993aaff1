"""A head learns: rates by hand, lessons that are functions of the seed, windows and crops that agree."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.dense import lessons
from dinoforge.evaluate.dense.cut import CropsConfig, resized_to
from dinoforge.evaluate.dense.infer import windows
from dinoforge.evaluate.dense.learn import LearnConfig, learn, rate_at
from dinoforge.evaluate.dense.lessons import Crops, LessonsConfig, Truths, Windows, rows_of
from dinoforge.evaluate.dense.trunk import trunk_of
from given import Painted, noise, painted_eyes

PLAIN = CropsConfig(ratio=(1.0, 1.0), most_of_one=1, mirror=0.0, distort=False)
TRUTHS = Truths("mask", 255, 8, (8, 8))


def trunk():
    return trunk_of(painted_eyes(lambda grey: grey[..., None], 1))


def source(count=5, size=(8, 14)):
    maps = [np.full(size, 10 * number) for number in range(count)]
    return Painted([*maps], maps)


def test_rates_of_the_published_schedule():
    """mmsegmentation: a line to 0 over 40,000 updates, of which 1,500 rise linearly from a millionth."""
    config = LearnConfig(iterations=40_000)
    for step, expected in (
        (0, 1e-9),
        (750, 1e-3 * (1 - 750 / 40_000) * (0.5 + 0.5e-6)),
        (1500, 1e-3 * 0.9625),
        (20_000, 5e-4),
    ):
        assert rate_at(step, config) == pytest.approx(expected, rel=1e-6)
    assert rate_at(39_999, config) == pytest.approx(1e-3 / 40_000)


def test_rates_of_one_cycle():
    config = LearnConfig(iterations=100, schedule="cosine", warmup=20, learning_rate=2.0)
    rates = [rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(2e-6)
    assert rates[10] == pytest.approx(1.0, rel=1e-5)
    assert rates[20] == max(rates) == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert LearnConfig(iterations=10, warmup=0).warmup == 0
    assert rate_at(0, LearnConfig(iterations=10, warmup=0)) == 1e-3


def test_a_linear_head_learns_what_is_linear():
    """Least squares by gradients: the weights that made the data."""
    x, true = noise(400, 3), torch.tensor([[1.0, -2.0, 0.5]])
    head = torch.nn.Linear(3, 1)
    config = LearnConfig(iterations=600, learning_rate=0.05, weight_decay=0.0)
    batches = ((x, x @ true.T) for _ in range(config.iterations))
    learn(head, batches, lambda batch: F.mse_loss(head(batch[0]), batch[1]), config)
    torch.testing.assert_close(head.weight.data, true, atol=1e-3, rtol=0)
    assert not head.training


def test_gradients_are_cut_and_weights_decay():
    """One step of AdamW by hand: m/(sqrt(v)+eps) is 1 in every coordinate; before it the weights shrink by rate times decay."""
    config = LearnConfig(iterations=1, learning_rate=0.1, weight_decay=0.5, warmup=0, clip=1e-3)
    head = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(head.weight, 1.0)
    seen = []
    head.weight.register_hook(lambda slope: seen.append(slope.norm().item()))
    learn(head, [None], lambda _: head(torch.ones(1, 2)).sum() * 7, config)
    torch.testing.assert_close(head.weight.data, torch.full((1, 2), 1 - 0.1 * 0.5 - 0.1), atol=1e-4, rtol=0)
    assert seen[0] > 1  # which would not be seen after AdamW's scaling
    assert head.weight.grad.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_no_number_is_one_line():
    head = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"the loss of thing is nan after 0 updates; try a lower learning_rate"):
        learn(
            head,
            [None],
            lambda _: head(torch.full((1, 1), float("nan"))).sum(),
            LearnConfig(iterations=1),
            title="thing",
        )


def test_every_picture_is_seen_once_a_pass():
    rows = np.concatenate([rows_of(step, count=7, batch=3, seed=1) for step in range(7)])
    assert [sorted(rows[start : start + 7]) for start in (0, 7, 14)] == [[*range(7)]] * 3
    assert rows[:7].tolist() != rows[7:14].tolist()
    assert np.array_equal(rows_of(4, count=7, batch=3, seed=1), rows[12:15])
    assert len(rows_of(0, count=2, batch=5, seed=1)) == 5


def test_windows_hold_features_and_truth_of_the_same_place():
    found = Windows(trunk(), source(), TRUTHS, on_broken=print)
    assert len(found) == 5 * 3  # 14 pixels by windows of 8: at 0, 5 and 6
    given = [*found.lessons(LearnConfig(iterations=4, batch=6))]
    assert [lesson.step for lesson in given] == [0, 1, 2, 3]
    for lesson in given:
        assert lesson.truth.shape == (6, 8, 8)
        assert lesson.layers[0].patches.shape == (6, 2, 2, 1)
        torch.testing.assert_close(
            lesson.layers[0].patches[:, 0, 0, 0], lesson.truth[:, 0, 0].float(), atol=0.5, rtol=0
        )
    again = [*Windows(trunk(), source(), TRUTHS, on_broken=print).lessons(LearnConfig(iterations=4, batch=6))]
    assert all(torch.equal(a.truth, b.truth) for a, b in zip(given, again, strict=True))


def test_crops_hold_features_and_truth_of_the_same_place():
    crops = Crops(trunk(), source(), TRUTHS, PLAIN, on_broken=print)
    given = [*crops.lessons(LearnConfig(iterations=3, batch=4, seed=3))]
    for lesson in given:
        torch.testing.assert_close(
            lesson.layers[0].patches[:, 1, 1, 0], lesson.truth[:, 5, 5].float(), atol=0.5, rtol=0
        )
        assert lesson.truth.dtype == torch.int64
    seen = {int(truth) for lesson in given for truth in lesson.truth[:, 0, 0]}
    assert seen == {0, 10, 20, 30, 40}
    varied = Crops(trunk(), source(), TRUTHS, CropsConfig(), on_broken=print)
    one, again, other = (
        torch.cat([lesson.truth for lesson in varied.lessons(LearnConfig(iterations=2, batch=4, seed=seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_lesson_is_the_same_wherever_it_is_begun():
    crops = Crops(trunk(), source(), TRUTHS, CropsConfig(), on_broken=print)
    long = [*crops.pictures(LearnConfig(iterations=5, batch=2))]
    short = [*crops.pictures(LearnConfig(iterations=2, batch=2))]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(long, short, strict=False))
    stopped = crops.pictures(LearnConfig(iterations=5, batch=2))
    next(stopped)
    stopped.close()  # whoever stops asking is not kept waiting


def test_broken_pictures_are_told_of_once_and_others_take_their_place():
    told, made = [], source()
    made.masks[2] = None
    crops = Crops(trunk(), made, TRUTHS, PLAIN, on_broken=lambda name, reason: told.append((name, reason)))
    lessons_ = [*crops.lessons(LearnConfig(iterations=5, batch=5))]
    assert told == [("painted/2", "it has no mask")]
    assert 20 not in {int(truth) for lesson in lessons_ for truth in lesson.truth[:, 0, 0]}
    made.masks = [None] * 5
    with pytest.raises(DataError, match="no mask that can be read"):
        next(crops.lessons(LearnConfig(iterations=1, batch=1)))
    with pytest.raises(DataError, match="no mask that can be read"):
        Windows(trunk(), made, TRUTHS, on_broken=lambda *_: None)


def test_features_that_memory_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setattr(lessons, "free_memory_bytes", lambda device: 100)
    with pytest.raises(DataError, match=r"learn from crops \(augment=crops\)"):
        Windows(trunk(), source(), TRUTHS, on_broken=print)


def test_the_memory_that_is_asked_for_is_that_of_all_windows_and_their_maps(monkeypatch):
    """The first picture has one window and the second more: features of five numbers in float32 and maps of 64 in int32."""
    made = source(2, size=(8, 8))
    made.pictures[1] = made.masks[1] = np.full((8, 8 + 7 * 5), 7)
    assert resized_to((8, 43), 8) == (6, 32)
    windows_ = len([*windows((6, 32), (8, 8))]) + 1
    needed = 4 * windows_ * (1 + 4 + 64)
    monkeypatch.setattr(lessons, "free_memory_bytes", lambda device: 2 * needed)
    assert len(Windows(trunk(), made, TRUTHS, on_broken=print)) == windows_ == 7
    monkeypatch.setattr(lessons, "free_memory_bytes", lambda device: 2 * needed - 1)
    with pytest.raises(DataError, match=r"the features and maps of painted would take"):
        Windows(trunk(), made, TRUTHS, on_broken=print)


def test_a_picture_that_breaks_off_leaves_no_gap():
    made = source()
    made.masks[1] = None
    found = Windows(trunk(), made, TRUTHS, on_broken=lambda *_: None)
    assert len(found) == 4 * 3
    truths = [lesson.truth for lesson in found.lessons(LearnConfig(iterations=1, batch=12))]
    assert sorted(truths[0][:, 0, 0].tolist()) == sorted([0, 20, 30, 40] * 3)


def test_settings_of_crops_have_no_effect_on_windows():
    with pytest.raises(ConfigError, match=r"mirror=0.1 has no effect with augment=none; take augment=crops"):
        LessonsConfig.build({"mirror": 0.1})
    assert LessonsConfig.build({"mirror": 0.1, "augment": "crops"}).mirror == 0.1
