"""The loss of masks: by hand, equal to the library's where nothing is ignored, and blind to what is."""

import itertools
import math

import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss

from dinoforge.loss.masks import MaskLossConfig, Target, mask_loss, mask_target, match

IGNORE = 255
CONFIG = MaskLossConfig(points=64)


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(images=2, side=(24, 20), classes=4, seed=0):
    """Every class is there, in random pixels."""
    found = torch.randint(0, classes, (images, *side), generator=generator(seed))
    found[:, 0, :classes] = torch.arange(classes)
    return found


def targets(some):
    return [mask_target(one, ignore=IGNORE) for one in some]


def library(classes, **settings):
    config = Mask2FormerConfig(num_labels=classes, **settings)
    return Mask2FormerLoss(config, {})


def test_a_target_has_one_mask_a_class_that_is_there():
    found = mask_target(torch.tensor([[3, 3, IGNORE], [0, 3, 0]]), ignore=IGNORE)
    assert found.classes.tolist() == [0, 3]
    assert found.masks.tolist() == [[[0, 0, 0], [1, 0, 1]], [[1, 1, 0], [0, 1, 0]]]
    assert found.ignored.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_by_hand():
    """Flat masks and classes: every pixel costs ln 2, a class the log of how many there are.

    With p = 1/2 at P points and a target that fills the picture but for its rim, dice is close to 1 - 2 P/2 / (P/2 + P) = 1/3.
    """
    target = Target(torch.tensor([1]), torch.ones(1, 64, 64), torch.zeros(64, 64))
    how = MaskLossConfig(points=4096, class_weight=0.5, mask_weight=2.0, dice_weight=3.0)
    found = mask_loss(torch.zeros(1, 2, 4), torch.zeros(1, 2, 16, 16), [target], config=how, generator=generator())
    assert found.item() == pytest.approx(0.5 * math.log(4) + 2 * math.log(2) + 3 / 3, abs=0.03)


@pytest.mark.parametrize("uncertain", [0.0, 0.75])
def test_equals_the_library_where_nothing_is_ignored(uncertain):
    """The same points in both: the library draws them from the global generator."""
    classes, masks, some = made(2, 6, 5), 3 * made(2, 6, 6, 5, seed=1), labels()
    how = MaskLossConfig(
        points=64, uncertain=uncertain, no_object=0.3, class_weight=1.5, mask_weight=4.0, dice_weight=6.0
    )
    theirs = library(
        4, no_object_weight=0.3, class_weight=1.5, mask_weight=4.0, dice_weight=6.0, train_num_points=64,
        importance_sample_ratio=uncertain,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        told = theirs(masks, classes, [t.masks for t in targets(some)], [t.classes for t in targets(some)])
    wanted = 1.5 * told["loss_cross_entropy"] + 4.0 * told["loss_mask"] + 6.0 * told["loss_dice"]
    found = mask_loss(classes, masks, targets(some), config=how, generator=generator(7))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_matches_as_the_library():
    classes, masks, target = made(1, 7, 5), 3 * made(1, 7, 6, 5, seed=1), targets(labels(1))[0]
    theirs = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wanted = theirs(masks, classes, [target.masks], [target.classes])[0]
    found = match(classes[0], masks[0], target, config=CONFIG, generator=generator(3))
    assert [some.tolist() for some in found] == [some.tolist() for some in wanted]


def test_takes_the_best_of_all_pairings():
    """Against every permutation, by classes alone: where all masks are alike."""
    target = targets(labels(1, classes=3))[0]
    classes = made(3, 4, seed=5)
    chances = classes.softmax(-1)
    queries, order = match(classes, torch.zeros(3, 6, 5), target, config=CONFIG, generator=generator())
    found = sum(chances[query, which] for query, which in zip(queries, order, strict=True))
    best = max(sum(chances[q, t] for t, q in enumerate(some)) for some in itertools.permutations(range(3)))
    assert float(found) == pytest.approx(float(best))


def test_what_is_ignored_has_no_influence():
    """Neither what masks say there, nor what a target would: one value, and not a trace of a gradient."""
    some = labels(1, (32, 32), classes=3)
    some[:, 8:24, 8:24] = IGNORE
    masks = (3 * made(1, 5, 32, 32)).requires_grad_()
    other = masks.detach().clone()
    other[:, :, 9:23, 9:23] = made(1, 5, 14, 14, seed=9) * 20
    classes, target = made(1, 5, 4), targets(some)[0]
    lying = target.masks.clone()
    lying[:, 8:24, 8:24] = 1
    loss = mask_loss(classes, masks, [target], config=MaskLossConfig(points=512, uncertain=0), generator=generator())
    loss.backward()
    assert masks.grad[0, :, 9:23, 9:23].abs().max() == 0
    assert masks.grad[0, :, :8].abs().max() > 0
    for uncertain in (0.0, 0.75):
        how = MaskLossConfig(points=512, uncertain=uncertain)
        first, second, third = (
            mask_loss(classes, said, [told], config=how, generator=generator()).item()
            for said, told in (
                (masks.detach(), target), (other, target), (masks.detach(), Target(target.classes, lying, target.ignored)),
            )
        )  # fmt: skip
        assert first == second
        assert third == pytest.approx(first)  # a point at the edge is read from four pixels: all or nothing


def test_a_picture_that_is_all_ignored_takes_no_part():
    classes, masks = made(2, 5, 4), made(2, 5, 8, 8)
    some = labels(2, (32, 32), classes=3)
    some[1] = IGNORE
    both = mask_loss(classes, masks, targets(some), config=CONFIG, generator=generator())
    one = mask_loss(classes[:1], masks[:1], targets(some[:1]), config=CONFIG, generator=generator())
    assert both.item() == one.item()
    leaf = masks.clone().requires_grad_()
    none = mask_loss(classes, leaf, targets(torch.full_like(some, IGNORE)), config=CONFIG, generator=generator())
    none.backward()
    assert none.item() == 0
    assert leaf.grad.abs().max() == 0


def test_more_classes_than_queries_and_half_precision():
    some = targets(labels(1, classes=4))
    classes, masks = made(1, 2, 5), made(1, 2, 6, 5)
    full = mask_loss(classes, masks, some, config=CONFIG, generator=generator())
    half = mask_loss(classes.bfloat16(), masks.bfloat16(), some, config=CONFIG, generator=generator())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    assert len(match(classes[0], masks[0], some[0], config=CONFIG, generator=generator())[0]) == 2


def test_the_same_seed_gives_the_same_loss():
    given = (made(2, 6, 5), made(2, 6, 6, 5, seed=1), targets(labels()))
    first, again, other = (mask_loss(*given, config=CONFIG, generator=generator(seed)).item() for seed in (1, 1, 2))
    assert first == again != other
