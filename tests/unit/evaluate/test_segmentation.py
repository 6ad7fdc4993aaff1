"""A linear head on patches: its loss by definition, its module the released one, what it learns and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate.dense.lessons import Lesson
from dinoforge.evaluate.dense.pieces import Viewing
from dinoforge.evaluate.dense.trunk import trunk_of
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.segmentation import (
    SEGMENTATION,
    SEGMENTATION_MS,
    SegmentationConfig,
    SegmentationMsConfig,
    first_head,
    pixel_loss,
)
from dinoforge.model.head_files import read_any_head
from dinoforge.model.released_heads import LinearSegmentation
from dinoforge.verbs.predict import PredictConfig
from given import Painted, noise, painted_eyes

CLASSES = 3
QUICK = {"iterations": 80, "learning_rate": 0.03}


def tells(grey):
    """The class that the grey stands for: 50 apart, one-hot, and a channel of noise."""
    return torch.cat([F.one_hot((grey / 50).round().long().clamp(0, 2), CLASSES).float(), (grey % 7)[..., None]], -1)


def eyes(of=tells, width=CLASSES + 1, **more):
    return painted_eyes(of, width, **more)


def stripes(address, count=6, size=(8, 24)):
    """Three stripes of 8 pixels in an order of their own, in greys 50 apart."""
    rng, masks = np.random.default_rng(0), []
    for _ in range(count):
        masks.append(np.repeat(rng.permutation(CLASSES), 8)[None].repeat(size[0], 0).astype(np.uint8))
    return Painted([50 * mask for mask in masks], masks, address)


def measured(config=None, *, evaluation=SEGMENTATION, known=None, asked=None, with_eyes=None, **more):
    both = Sides(known or stripes("known"), asked or stripes("asked"))
    config = config or evaluation.config(**QUICK)
    return {score.name: score for score in evaluation.measure(with_eyes or eyes(side=8), both, config, **more)}


def lesson_of(truth, step=0):
    return Lesson(step, [], torch.as_tensor(truth))


def test_the_loss_is_the_cross_entropy_of_every_known_pixel():
    trunk = trunk_of(eyes())
    cells, truth = noise(2, CLASSES, 2, 3), torch.randint(0, CLASSES, (2, 7, 11))
    truth[0, :3] = 255
    scores = trunk.on_pixels(cells, 7, 11)
    slowly = [
        -scores[b, :, y, x].log_softmax(0)[truth[b, y, x]]
        for b in range(2)
        for y in range(7)
        for x in range(11)
        if truth[b, y, x] != 255
    ]
    found = pixel_loss(trunk, cells, lesson_of(truth), ignore=255, points=None, seed=0)
    assert found.item() == pytest.approx(torch.stack(slowly).mean().item(), rel=1e-5)
    nothing = pixel_loss(trunk, cells, lesson_of(torch.full((2, 7, 11), 255)), ignore=255, points=None, seed=0)
    assert nothing.item() == 0


def test_drawn_pixels_have_the_loss_of_all_on_the_average():
    trunk = trunk_of(eyes())
    cells, truth = noise(1, CLASSES, 2, 2).requires_grad_(), torch.randint(0, CLASSES, (1, 8, 8))
    truth[0, 0] = 255
    whole = pixel_loss(trunk, cells, lesson_of(truth), ignore=255, points=None, seed=0)
    drawn = [pixel_loss(trunk, cells, lesson_of(truth, step), ignore=255, points=40, seed=0) for step in range(300)]
    assert torch.stack(drawn).mean().item() == pytest.approx(whole.item(), rel=0.03)
    assert drawn[0] != drawn[1]
    again = pixel_loss(trunk, cells, lesson_of(truth, 1), ignore=255, points=40, seed=0)
    assert torch.equal(again, drawn[1])
    (slope,) = torch.autograd.grad(whole, cells)
    (mean,) = torch.autograd.grad(torch.stack(drawn).mean(), cells)
    torch.testing.assert_close(mean, slope, atol=0.01, rtol=0.2)


def test_first_weights_are_functions_of_the_seed():
    trunk = trunk_of(eyes())
    one, again, other = (first_head(trunk, 50, seed).conv_seg.weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.01, rel=0.2)
    assert isinstance(first_head(trunk, 2, 0), LinearSegmentation)


def test_a_backbone_that_knows_is_almost_always_right():
    found = measured()
    assert found["pixel_accuracy"].value > 0.9  # edges lie between patches
    assert found["miou"].value > 0.8
    assert "3 classes" in found["miou"].protocol
    assert found["miou"].n == 6
    assert {"iou_0", "iou_1", "iou_2"} < found.keys()


def test_crops_teach_as_windows_do():
    config = SegmentationConfig(**QUICK, augment="crops", ratio=(0.8, 1.25), points=None, crop=8)
    found = measured(config)
    assert found["pixel_accuracy"].value > 0.85
    assert "80 updates of 16 random crops of 8 pixels, all pixels" in found["miou"].protocol


def test_scores_are_functions_of_the_seed():
    one, again, other = (measured(SegmentationConfig(iterations=5, seed=seed)) for seed in (0, 0, 1))
    assert {name: score.value for name, score in one.items()} == {name: score.value for name, score in again.items()}
    assert one["miou"].value != other["miou"].value


def test_ignored_pixels_are_neither_learnt_nor_judged():
    """A quarter of the masks is nonsense that is ignored, in a picture that would say otherwise."""
    known, asked = stripes("known"), stripes("asked")
    for source in (known, asked):
        for mask in source.masks:
            mask[:2] = 77
    found = measured(SegmentationConfig(**QUICK, ignore=77), known=known, asked=asked)
    assert found["pixel_accuracy"].value > 0.9
    assert "those that are 77" in found["miou"].protocol
    with pytest.raises(DataError, match=r"has the class 2; there are 2, from 0, and 77"):
        measured(SegmentationConfig(**QUICK, ignore=77, classes=2), known=known, asked=asked)


def test_the_stronger_setting_sees_more():
    config = SegmentationMsConfig(**QUICK)
    assert (config.layers, config.flip, len(config.scales), config.enlarge) == (4, True, 5, 1.25)
    found = measured(config, evaluation=SEGMENTATION_MS)
    assert found["pixel_accuracy"].value > 0.85
    assert found["miou"].task == "segmentation_ms"
    assert "short side 12" in found["miou"].protocol  # 10 is as near to 8: up
    assert "scales 1, 1.32, 1.73, 2.28, 3, mirrored too" in found["miou"].protocol


def test_pictures_smaller_than_a_patch_are_segmented():
    known = Painted([[[0, 50]], [[100]]] * 3, [[[0, 1]], [[2]]] * 3, "known")
    found = measured(SegmentationConfig(iterations=10, pixels=2), known=known, asked=known)
    assert found["pixel_accuracy"].n == 6


def test_a_head_is_kept_with_what_it_needs(tmp_path):
    watching = eyes(side=8)
    found = measured(SegmentationConfig(**QUICK, pixels=8, crop=8), with_eyes=watching, save=tmp_path / "head")
    head = read_any_head(tmp_path / "head", watching.backbone)
    facts = head.facts
    assert (facts.kind, facts.classes, facts.ignore, facts.blocks) == ("segmentation", ("0", "1", "2"), 255, ())
    assert (facts.short_side, facts.window, facts.backbone) == (8, 8, "painted")
    assert facts.protocol in found["miou"].protocol
    asked, trunk = stripes("asked"), trunk_of(watching)
    shown = torch.from_numpy(asked.pictures[0][None, None, :, :8].copy())
    answer = trunk.on_pixels(head(trunk(shown)), 8, 8).argmax(1)
    assert (answer[0] == torch.from_numpy(asked.masks[0][:, :8])).all()


def test_one_size_is_given():
    with pytest.raises(ConfigError, match=r"enlarge=2.0 has no effect with pixels=10"):
        SegmentationConfig.build({"enlarge": 2, "pixels": 10})
    assert SegmentationMsConfig(pixels=10).enlarge == 1.25


@pytest.mark.parametrize("ignore", [-1, 1000, 255])
@pytest.mark.parametrize("augment", ["none", "crops"])
def test_what_is_ignored_may_be_a_number_that_no_mask_holds(ignore, augment):
    """Crops and windows reach beyond these pictures, and one mask is stored in more bits than the others."""
    known = stripes("known")
    known.masks[1] = known.masks[1].astype(np.uint16)
    config = SegmentationConfig(**QUICK, augment=augment, crop=12, ignore=ignore)
    assert measured(config, known=known)["pixel_accuracy"].value > 0.8


def test_what_is_ignored_is_a_number_that_masks_can_hold():
    with pytest.raises(ConfigError, match="ignore"):
        SegmentationConfig.build({"ignore": 2**31})


@pytest.mark.parametrize("evaluation", [SEGMENTATION, SEGMENTATION_MS])
@pytest.mark.parametrize("inference", ["slide", "whole"])
def test_a_head_is_used_as_it_was_measured(evaluation, inference, tmp_path):
    watching = eyes(side=8)
    config = evaluation.config(iterations=2, inference=inference, crop=8, scales=(1.0, 1.5))
    measured(config, evaluation=evaluation, with_eyes=watching, save=tmp_path / "head")
    facts = read_any_head(tmp_path / "head", watching.backbone).facts
    assert (facts.window, facts.scales) == (8 if inference == "slide" else None, (1.0, 1.5))
    assert facts.flip == (evaluation is SEGMENTATION_MS)
    used = PredictConfig().viewing(facts)
    assert used == Viewing.of(config, short_side=facts.short_side, window=8)
    other = PredictConfig(scales=(1.0,), flip=not facts.flip).viewing(facts)
    assert (other.scales, other.flip) == ((1.0,), not facts.flip)
