"""One teacher for the students of several ranks: each image is looked at once, and nobody is handed what was not asked for."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dinoforge.base import dist
from dinoforge.base.teams import split
from dinoforge.data.batch import masked_positions
from dinoforge.loss.matching import MatchingConfig
from dinoforge.train.distil import DistilConfig
from dinoforge.train.exchange import Exchange
from dinoforge.train.observe import Stop
from dinoforge.train.step import PLAIN
from ranks import on_ranks
from tiny import AT, batch, pretrain

pytestmark = pytest.mark.dist

KINDS = {
    "heads": DistilConfig(), "drawn": DistilConfig(patches="drawn"), "matching": DistilConfig(matching=MatchingConfig()),
}  # fmt: skip


def cut(whole, images):
    masks = whole.masks[:, :images]
    index, weight = masked_positions(masks)
    return replace(
        whole,
        globals=whole.globals[:, :images],
        locals=whole.locals[:, :images],
        masks=masks,
        masked_index=index,
        mask_weight=weight,
        groups=(0,),
    )


def rows(targets, kind):
    """Everything that a student is told of one part."""
    if kind == "matching":
        return [targets.image, targets.patches]
    return [targets.images.rows(), targets.patches.rows()]


def looked(kind, parts, count):
    """What each rank of one team each is told, and the operations of it."""
    step = pretrain(distilled=KINDS[kind])
    _, alike = split(count)
    step.shared = step.looks = Exchange(alike, Stop())
    with dist.within(dist.Team((dist.rank(),), {})), FlopCounterMode(display=False) as counter:
        told = step.targets(parts, AT)
    return [rows(part, kind) for part in told], counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [8, 4])
def test_all_are_told_what_one_process_would_find(kind, images):
    """Three ranks: eight images or four do not divide, so some are looked at twice. Two parts in a row."""
    parts = [cut(batch(images=8, seed=seed), images) for seed in (0, 1)]
    step = pretrain(distilled=KINDS[kind])
    with FlopCounterMode(display=False) as counter:
        want = [rows(part, kind) for part in step.targets(parts, AT)]
    each = -(-images // 3) / images
    for told, flops in on_ranks(3, lambda: looked(kind, parts, 3)):
        for mine, theirs in zip(told, want, strict=True):
            for value, expected in zip(mine, theirs, strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        if kind == "matching":  # else heads see patches that are not drawn, and prototypes are each one's own
            assert flops == pytest.approx(counter.get_total_flops() * each)
        else:
            assert flops < counter.get_total_flops() * (each + 0.3)


def asking(orders):
    """What was made, together or alone, by a rank that asks for those batches one after another, then leaves."""
    _, alike = split(dist.world())
    exchange, made = Exchange(alike, Stop()), []
    for number in orders[dist.rank()]:
        exchange.once(([(number,)], 0.05), lambda number=number: made.append((number, exchange.divided)) or [number])
    exchange.leave()
    return made


@pytest.mark.parametrize(
    ("orders", "want"),
    [
        # all the same
        ([[0, 1], [0, 1]], [[(0, True), (1, True)], [(0, True), (1, True)]]),
        # the second goes back to an earlier one, then ends: the first waits, then is alone
        ([[0, 1, 2, 3], [0, 1, 0, 1, 2]],
         [[(0, True), (1, True), (2, True), (3, False)], [(0, True), (1, True), (0, False), (1, False), (2, True)]]),
        # asked for again, as by a second student
        ([[5, 5], [5]], [[(5, True)], [(5, True)]]),
        # the second begins later, and a third has nothing to do
        ([[0, 4], [4], []], [[(0, False), (4, False)], [(4, False)], []]),
    ],
)  # fmt: skip
def test_who_is_ahead_waits_and_who_ends_is_not_waited_for(orders, want):
    assert on_ranks(len(orders), lambda: asking(orders)) == want


def test_other_parts_of_the_same_batch_are_made_alone():
    def work():
        _, alike = split(2)
        exchange, number = Exchange(alike, Stop()), dist.rank()
        exchange.once(([(0, 1)] if number else [(0,), (1,)], 0.05), lambda: [number])
        exchange.leave()
        return exchange.divided

    assert on_ranks(2, work) == [False, False]


@pytest.mark.parametrize("kind", ["heads", "matching"])
def test_in_another_precision_each_is_told_what_it_would_find_alone(kind):
    """What ranks tell one another has one type: bf16 would be taken for half as many numbers of fp32."""
    whole = cut(batch(), 8)

    def work():
        step, (_, alike) = pretrain(distilled=KINDS[kind]), split(2)
        compute = torch.autocast("cpu", torch.bfloat16) if dist.rank() else PLAIN
        exchange = Exchange(alike, Stop())
        with dist.within(dist.Team((dist.rank(),), {})):
            (want,) = step.made([whole], AT, compute)
            step.shared = step.looks = exchange
            (found,) = step.targets([whole], AT, compute)
        exchange.leave()
        pairs = zip(rows(found, kind), rows(want, kind), strict=True)
        return exchange.divided, all(torch.equal(mine, theirs) for mine, theirs in pairs)

    assert on_ranks(2, work) == [(False, True)] * 2
