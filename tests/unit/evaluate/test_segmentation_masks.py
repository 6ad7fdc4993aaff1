"""``segmentation.head=mask2former``: learnt, kept and read again; padding and unknown pixels teach nothing."""

import numpy as np
import pytest
import torch

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError
from dinoforge.evaluate.dense.lessons import Lesson
from dinoforge.evaluate.dense.trunk import trunk_of
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.segmentation import SegmentationConfig
from dinoforge.evaluate.segmentation_masks import MasksConfig, first_masks, masks_loss
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.model.head_files import read_any_head
from given import Painted, noise, painted_eyes

CLASSES, SIDE = 3, 40
SMALL = {"width": 32, "heads": 2, "hidden": 32, "queries": 5, "decoder_layers": 2, "points": 128}
CONFIG = SegmentationConfig(
    head="mask2former", mask2former=MasksConfig(**SMALL), iterations=80, batch=4, learning_rate=3e-3, warmup=0
)


def tells(grey):
    """The class, which is the grey."""
    return torch.nn.functional.one_hot(grey.round().long().clamp(max=CLASSES), CLASSES + 1).float()


def halves(count, seed=0):
    """Two classes a picture, one left of a line, one right."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        left, right = rng.choice(CLASSES, 2, replace=False)
        found.append(np.where(np.arange(SIDE) < rng.integers(3, 8) * 4, left, right) + np.zeros((SIDE, 1), int))
    return found


def measured(config=CONFIG, save=None):
    """Of a head that is asked what it has learnt."""
    eyes, scenes = painted_eyes(tells, CLASSES + 1, side=SIDE), halves(4)
    sides = Sides(Painted(scenes, scenes, "known"), Painted(scenes, scenes, "asked"))
    found = EVALUATIONS["segmentation"].measure(eyes, sides, config, save=save)
    return eyes, {score.name: score for score in found}


def test_a_head_learns_and_says_the_same_when_it_is_read_again(tmp_path):
    eyes, found = measured(save=tmp_path / "head")
    assert found["miou"].value > 0.8
    assert "Mask2Former of 1 and 2 layers, 5 queries" in found["miou"].protocol
    assert "128 points a mask" in found["miou"].protocol
    head = read_any_head(tmp_path / "head", eyes.backbone)
    trunk = trunk_of(eyes, 1, pictures=head.facts.pictures)
    pictures = torch.from_numpy(np.stack(halves(4))).to(torch.uint8)
    with torch.no_grad():
        said = head(trunk(pictures[:, None])).argmax(1)
    assert (said == pictures).float().mean().item() == pytest.approx(found["pixel_accuracy"].value, abs=1e-6)


def test_the_same_seed_gives_the_same_scores():
    short = CONFIG.model_copy(update={"iterations": 4})
    first, again, other = (measured(short.model_copy(update={"seed": seed}))[1] for seed in (0, 0, 1))
    values = [{name: score.value for name, score in one.items()} for one in (first, again, other)]
    assert values[0] == values[1] != values[2]


def test_neither_padding_nor_unknown_pixels_teach():
    """Windows of 42 pixels on patches of 4 are padded by one on every side; what is guessed there, or where masks say 255,
    costs nothing. Seen in the gradient of the masks: 11 by 11 places, of which the rim alone reaches the padding."""
    eyes = painted_eyes(tells, CLASSES + 1, side=SIDE)
    trunk = trunk_of(eyes, 1, pictures=True)
    head = first_masks(trunk, CLASSES, CONFIG.masks, seed=0)
    truth = torch.randint(0, CLASSES, (2, 42, 42), generator=torch.Generator().manual_seed(0))
    truth[:, 8:32, 8:32] = 255
    lesson = Lesson(0, trunk(torch.zeros(2, 1, 42, 42, dtype=torch.uint8)), truth)
    assert lesson.layers[0].patches.shape == (2, 44, 44, 1)
    masks = noise(2, 5, 44, 44).requires_grad_()  # a place a pixel, of the padded window
    head.said = lambda layers: [type(said)(said.classes, masks) for said in type(head).said(head, layers)]
    config = CONFIG.masks.model_copy(update={"points": 2048})
    masks_loss(trunk, head, lesson, config, ignore=255, seed=0).backward()
    felt = masks.grad.abs().amax((0, 1))
    assert felt[[0, -1]].max() == felt[:, [0, -1]].max() == 0
    assert felt[10:32, 10:32].max() == 0
    assert (felt[2:8, 2:42] > 0).float().mean() > 0.9


def test_settings_of_the_other_head_are_refused():
    for settings, told in (
        ({"mask2former.width": "96"}, "take head=mask2former"),
        ({"head": "mask2former", "points": "100"}, "give mask2former.points"),
        ({"head": "mask2former", "mask2former.width": "50"}, "mask2former.width=50 is no multiple of 32"),
        ({"head": "masks"}, "head must be one of 'linear' or 'mask2former'"),
    ):
        with pytest.raises(ConfigError, match=told):
            with_settings(SegmentationConfig(), settings)
    found = with_settings(SegmentationConfig(), {"head": "mask2former", "mask2former.points": "100"})
    assert (found.masks.points, found.masks.width, found.seen) == (100, 64, 4)
    assert (SegmentationConfig().seen, SegmentationConfig(layers=2).seen) == (1, 2)
