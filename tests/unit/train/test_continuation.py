"""Going on from a backbone: what stands still does not move, what opens when, what is done about lost skill."""

import contextlib
import math

import pytest
import torch

from dinoforge.base import dist
from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, SentinelStop
from dinoforge.base.schedule import Cosine
from dinoforge.model.table import build
from dinoforge.recipes.table import recipe
from dinoforge.train.continuation import ContinueConfig, RetentionConfig
from dinoforge.train.diary import Diary
from dinoforge.train.guard import Guard
from dinoforge.train.loop import Done, fit
from dinoforge.train.optim import multipliers, optimizer
from dinoforge.train.parallel import StepSpeed, shard
from dinoforge.train.plan import PlanConfig, Scheduled
from dinoforge.train.retention import DRIFT, KNN, LOST, Retention, blend_back
from ranks import on_ranks
from tiny import VIT, batch, pretrain

PLAN = PlanConfig(
    images=8 * 20,
    batch=8,
    learning_rate=Cosine(peak=1e-2, end=1e-3),
    last_layer_frozen=0,
    layer_decay=0.5,
    patch_rate=0.2,
)
HOW = ContinueConfig(warmup=0.1, unfreeze=0.4, backbone_rate=0.3)


def test_rates_and_openings_by_hand():
    """Two blocks, 20 steps: heads and mask token from step 0, the last block and norm from 2, the first from 2 + 4, the
    tokens from 2 + 8."""
    found = {
        name: multipliers(name, blocks=2, plan=PLAN, continuation=HOW)
        for name in ("mask_token", "norm.weight", "blocks.1.attn.qkv.weight", "blocks.0.norm1.bias", "pos_embed",
                     "patch_embed.proj.weight")
    }  # fmt: skip
    want = [(1, 0), (0.3, 0.1), (0.3 * 0.5, 0.1), (0.3 * 0.25, 0.3), (0.3 * 0.125, 0.5), (0.3 * 0.125 * 0.2, 0.5)]
    for one, (rate, opens) in zip(found.values(), want, strict=True):
        assert (one.rate, one.opens) == pytest.approx((rate, opens))
    head = multipliers("mlp.0.weight", blocks=0, plan=PLAN)
    assert (head.rate, head.opens) == (1, 0)


@pytest.mark.parametrize("fused", [False, True])
def test_what_stands_still_does_not_move_at_all(fused):
    """Every step of a run: exactly those parameters move that are open by then, in the average too."""
    step = pretrain()
    student, average = step.student, step.average
    adamw = optimizer(student, PLAN, fused=fused, continuation=HOW)
    opens = {"heads": 0, "mask": 0, "norm": 2, "blocks.1": 2, "blocks.0": 6, "lowest": 10}

    def part(name):
        if "_head" in name:
            return "heads"
        name = name.removeprefix("backbone.")
        return next((p for p in ("mask", "blocks.0", "blocks.1", "norm") if name.startswith(p)), "lowest")

    def taken(module):
        return {name: value.detach().clone() for name, value in module.named_parameters()}

    before = [taken(student), taken(average)]
    moved = []

    def look(done):
        now = [taken(student), taken(average)]
        for old, new in zip(before, now, strict=True):
            for name, value in new.items():
                still = torch.equal(value, old[name])
                assert still == (done.step - 1 < opens[part(name)]), (done.step, name)
        moved.append(done.step)
        before[:] = now

    plan = PLAN.model_copy(update={"teacher_momentum": Cosine(peak=0.5, end=0.5)})
    fit(step, adamw, [batch(seed=n) for n in range(12)], plan=plan, steps=20, observers=[look])
    assert moved == list(range(1, 13))


def test_without_continuation_nothing_changes():
    assert multipliers("blocks.0.norm1.bias", blocks=2, plan=PLAN).opens == 0
    assert Scheduled(1, 1, 0, 0, 1).steps == 0


def test_blend_is_the_convex_combination():
    mine, start = build(VIT, seed=1), build(VIT, seed=2)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    blend_back(mine, start, 0.25)
    for name, theirs in start.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], 0.75 * before[name] + 0.25 * theirs)
    assert all(parameter.grad_fn is None for parameter in mine.parameters())
    blend_back(mine, start, 1.0)
    assert all(torch.equal(value, mine.state_dict()[name]) for name, value in start.state_dict().items())


def _blended():
    step = pretrain()
    shard(step, StepSpeed(), torch.device("cpu"), "fp32")
    for role in (step.student, step.average):
        blend_back(role.backbone, build(VIT, seed=2), 0.25)
    return {name: dist.whole(value).detach().numpy() for name, value in step.student.backbone.named_parameters()}


def test_two_ranks_blend_as_one():
    alone, *both = on_ranks(1, _blended) + on_ranks(2, _blended)
    name = "blocks.0.attn.qkv.weight"
    assert not (alone[name] == pretrain().student.backbone.state_dict()[name].numpy()).any()
    for found in both:
        assert all((value == found[name]).all() for name, value in alone.items())


class Watched:
    """A retention whose measurements are given, over 100 steps with a look at every tenth."""

    def __init__(self, tmp_path, *, memory=None, first=0.9, labels=True, warmup=0.1, **settings):
        self.value, self.labels, self.blended, self.told = first, labels, [], []
        self.first, self.mends = first, False
        self.guard, self.diary = Guard(), Diary(tmp_path / "events.jsonl")
        config = ContinueConfig(warmup=warmup, retention=RetentionConfig(source="x", every=0.1, **settings))
        self.watch = Retention(
            config, self.diary, measure=self._scores, blend=self._blend, guard=self.guard, record=self.told.append,
            steps=100, memory=memory,
        )  # fmt: skip

    def _blend(self, weight):
        self.blended.append(weight)
        self.value += self.mends * weight * (self.first - self.value)

    def _scores(self):
        return {KNN: self.value, DRIFT: 0.9 - self.value} if self.labels else {DRIFT: 0.9 - self.value}

    def run(self, steps, value):
        self.value, facts = value, {}
        for step in steps:
            done = Done(step=step, losses={}, norms={}, at=Scheduled(1, 1, 0, 0, 1), skipped=torch.tensor(0.0))
            self.watch(done)
            facts |= {step: dict(done.facts)} if done.facts else {}
        return facts

    @property
    def said(self):
        return [(act.step, act.kind) for act in self.diary.acts]


def test_skill_that_stays_is_left_alone(tmp_path):
    watched = Watched(tmp_path)
    facts = watched.run(range(1, 101), 0.871)  # 2.9 points below, 3 are allowed
    assert list(facts) == list(range(20, 101, 10))  # not while it stands still
    assert facts[20] == {KNN: 0.871, DRIFT: pytest.approx(0.029), LOST: 0.0}
    assert (watched.said, watched.guard.rate, watched.blended) == ([], 1.0, [])


def test_acts_in_their_order_within_their_budgets(tmp_path):
    watched = Watched(tmp_path, slowdowns=2, rate_factor=0.1, blends=3, blend=0.3)
    facts = watched.run(range(1, 21), 0.8)
    assert facts[20][LOST] == 1
    assert watched.diary.acts[0].sentence == (
        "Step 20, forgetting: k-NN on the old images fell from 90.0% to 80.0%, by 10.0 points where 3 are allowed. On at 0.1 "
        "of the planned learning rate."
    )
    watched.run(range(21, 31), 0.9)  # well again: nothing
    assert watched.said == [(20, "slow")]
    watched.run(range(31, 71), 0.8)
    assert watched.said == [(20, "slow"), (40, "slow"), (50, "blend"), (60, "blend"), (70, "blend")]
    assert watched.guard.rate == pytest.approx(0.01)
    left = [math.prod(1 - weight for weight in watched.blended[act : act + 4]) for act in (0, 4, 8)]
    assert left == pytest.approx([0.7] * 3)  # nothing less would do, so each act goes all the way
    assert "goes 30% of the way back to the one it began from" in watched.diary.acts[-1].sentence
    with pytest.raises(
        SentinelStop, match=r"^Stopped at step 80, forgetting: .* lowered 2 times, the backbone moved back 3"
    ):
        watched.run(range(71, 100), 0.8)
    assert [done.step for done in watched.told] == [80]
    assert watched.said[-1] == (80, "stop")


def test_it_goes_back_no_further_than_is_needed(tmp_path):
    """3.5 points are lost and a blend gives its share of them back: an eighth of the half is too little, a half of it enough."""
    watched = Watched(tmp_path, slowdowns=0)
    watched.mends = True
    watched.run([20], 0.865)
    assert math.prod(1 - weight for weight in watched.blended) == pytest.approx(0.75)
    assert watched.value == pytest.approx(0.9 - 0.035 * 0.75)
    assert "goes 25% of the way back" in watched.diary.acts[-1].sentence
    assert watched.watch.scores()[LOST] == 0


def test_after_the_last_step_no_rate_is_lowered(tmp_path):
    watched = Watched(tmp_path)
    watched.run([100], 0.5)
    assert watched.said == [(100, "blend")]


def test_a_resumed_watch_does_as_one_that_never_stopped(tmp_path):
    """Slowed at 20, blended at 30, taken up again: blended at 40 and stopped at 50."""
    found = []
    for name, cut in (("whole", 51), ("cut", 31)):
        (tmp_path / name).mkdir()
        watched = Watched(tmp_path / name, slowdowns=1, blends=2)
        with pytest.raises(SentinelStop) if cut == 51 else contextlib.nullcontext():
            watched.run(range(1, cut), 0.5)
        if cut < 51:  # what the start could do is remembered, not measured again
            watched = Watched(tmp_path / name, slowdowns=1, blends=2, memory=watched.watch.memory(), first=0.1)
            assert watched.guard.rate == 0.5
            with pytest.raises(SentinelStop):
                watched.run(range(cut, 51), 0.5)
        found.append((watched.said, watched.diary.sentences(), watched.guard.rate))
    assert found[0] == found[1]
    assert found[0][0] == [(20, "slow"), (30, "blend"), (40, "blend"), (50, "stop")]


def test_without_labels_drift_decides(tmp_path):
    watched = Watched(tmp_path, labels=False, drift=0.2, slowdowns=0, blends=0, stop=False)
    watched.run(range(1, 21), 0.71)
    assert watched.said == []
    watched.run(range(21, 41), 0.69)
    assert [act.sentence for act in watched.diary.acts] == [
        "Step 30, forgetting: features of the old images drifted by 0.210 where 0.2 is allowed, and all that may be done about "
        "it is spent. The run goes on."
    ]  # fmt: skip


def test_what_was_measured_is_not_measured_again_until_it_changed(tmp_path):
    watched = Watched(tmp_path, slowdowns=0, blends=1)
    watched.run([20], 0.9)
    watched.value = 0.1
    assert watched.watch.scores()[KNN] == 0.9  # of the same step
    watched.run([21], 0.5)
    assert watched.watch.scores() == {KNN: 0.5, DRIFT: 0.4, LOST: 1.0}
    watched.mends = True
    watched.run([30], 0.5)  # is blended
    assert watched.watch.scores()[KNN] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blends": 0, "blend": 0.3}, "retention.blend=0.3 has no effect with continuation.retention.blends=0"),
        ({"slowdowns": 0, "rate_factor": 0.3}, "rate_factor=0.3 has no effect with continuation.retention.slowdowns=0"),
        ({"points": None, "stop": False}, "stop=False has no effect without continuation.retention.points or"),
        ({"points": math.inf}, "points"),
    ],
)
def test_settings_without_effect_are_errors(settings, message):
    words = {
        f"continuation.retention.{name}": value for name, value in ({"source": "toy://species"} | settings).items()
    }
    with pytest.raises(ConfigError, match=message) as caught:
        with_settings(recipe("vit_micro.continue"), words)
    assert "\n" not in str(caught.value)
    for words, told in (
        (
            {"continuation.warmup": 0.6, "continuation.unfreeze": 0.4},
            "must be below 1, else the lowest layers never learn",
        ),
        ({"distil.teacher": "x"}, "continuation and distil exclude each other"),
        ({"continuation.warmup": 1}, "continuation.unfreeze has no effect with continuation.warmup=1, .* set it to 0"),
        (
            {"continuation": {"warmup": 1, "unfreeze": 0, "retention": {"source": "x"}}},
            "continuation.retention has no effect with continuation.warmup=1, .* set it to null",
        ),
    ):
        with pytest.raises(ConfigError, match=told):
            with_settings(recipe("vit_micro.continue"), words)
