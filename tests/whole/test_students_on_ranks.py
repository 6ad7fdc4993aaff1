"""Several students of one teacher on several ranks: each is the run that it would be in one process."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import dinoforge
from dinoforge import runs
from dinoforge.base import dist
from dinoforge.base.errors import ConfigError, Interrupted
from dinoforge.base.files import read_lines
from dinoforge.base.hardware import Choice
from dinoforge.recipes import cost
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.distil import Distil
from dinoforge.verbs.students import teams
from ranks import Ranks, on_ranks

pytestmark = pytest.mark.dist

TINY = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 8, "plan.images": 32, "plan.checkpoint_images": 8, "plan.checkpoints": 8, "plan.probe_images": 32,
    "plan.learning_rate.warmup": 0, "plan.last_layer_frozen": 0, "probe.rank_rows": 8, "data.augment.local_views": 1,
    "precision": "fp32", "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip
HEADLESS = {
    "recipe": "vit_small.matched", "backbone.patch": 8, "backbone.pixels": 48, "data.augment.global_pixels": 48,
    "data.augment.local_views": 0,
} | {name: value for name, value in TINY.items() if ".head." not in name and name not in {
    "recipe", "plan.last_layer_frozen", "data.augment.local_views"}}  # fmt: skip
WORDS = {"heads": TINY, "drawn": TINY | {"distil.patches": "drawn"}, "matching": HEADLESS}
STUDENTS = {"small": {"backbone.width": 16}, "deep": {"backbone.depth": 2, "plan.learning_rate.peak": 0.01}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("students") / "teacher"
    dinoforge.pretrain(out=out, **TINY)
    return out


def taught(out, teacher, words, students=STUDENTS):
    return dinoforge.distil(out=out, teacher=str(teacher), students=students, **words)


@pytest.fixture(scope="module")
def alone(teacher, tmp_path_factory):
    """The same students in one process, by the words for them."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("alone") / kind
            taught(made[kind], teacher, WORDS[kind])
        return made[kind]

    return get


def same(out, want, names=STUDENTS):
    """Losses of every step to 1e-5, as promised for any split; weights as close as some steps of Adam leave them."""
    for name in names:
        mine, theirs = (
            [[value for _, value in sorted(row["losses"].items())] for row in read_lines(run / name / "metrics.jsonl")]
            for run in (out, want)
        )
        assert len(mine) == 5
        torch.testing.assert_close(torch.tensor(mine[1:]), torch.tensor(theirs[1:]), rtol=1e-5, atol=1e-6)
        ours, others = (load_file(run / name / "backbone" / "backbone.safetensors") for run in (out, want))
        for key, value in ours.items():
            torch.testing.assert_close(value, others[key], rtol=1e-4, atol=1e-5, msg=key)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("world", "kind"),
    [
        (2, "heads"), pytest.param(2, "drawn", marks=LONG), pytest.param(2, "matching", marks=LONG),
        pytest.param(4, "heads", marks=LONG), pytest.param(4, "matching", marks=LONG),
    ],
)  # fmt: skip
def test_they_are_as_in_one_process(teacher, alone, tmp_path, world, kind):
    """On two ranks each trains one; on four each has a team of two."""
    how = {"speed.checkpoints": "background" if world == 4 else "at_once"}
    found = on_ranks(world, lambda: taught(tmp_path / "out", teacher, WORDS[kind] | how))
    same(tmp_path / "out", alone(kind))
    assert all(list(one) == list(STUDENTS) for one in found)
    assert all(facts.steps == 4 for one in found for facts in one.values())
    shards = (tmp_path / "out" / "deep" / "checkpoints" / "step_000000004").glob("*.safetensors")
    assert sorted(path.name[:20] for path in shards) == [
        f"shard-{n + 1:05d}-of-{world // 2:05d}" for n in range(world // 2)
    ]


@LONG
def test_more_students_than_ranks(teacher, alone, tmp_path):
    students = STUDENTS | {"again": {"backbone.width": 16}, "wide": {}}
    on_ranks(2, lambda: taught(tmp_path / "out", teacher, TINY, students))
    same(tmp_path / "out", alone("heads"))
    again, small = (read_lines(tmp_path / "out" / name / "metrics.jsonl") for name in ("again", "small"))
    assert [row["losses"] for row in again] == [row["losses"] for row in small]


def killed(out, teacher, words):
    """The first student's rank ends without a word after its third step: the other's cannot go on without it."""
    save = Checkpoints.save

    def once(self, module, optimizer, facts):
        path = save(self, module, optimizer, facts)
        if facts["step"] == 3 and "small" in str(self.folder):
            os._exit(9)
        return path

    def work():
        Checkpoints.save = once
        try:
            taught(out, teacher, words)
        except Exception as error:
            return type(error).__name__, str(error)

    return Ranks(2, work).answers()


@LONG
@pytest.mark.parametrize("after", [1, 2])
def test_killed_they_go_on_on_any_number_of_ranks(teacher, alone, tmp_path, after):
    """Wherever each of them was: who is ahead waits for the other."""
    out = tmp_path / "out"
    first, second = killed(out, teacher, TINY)
    assert first is None
    assert second[0] == "RankLost"
    for newest in ("step_000000003", "step_000000004"):  # as if it had come less far
        folder = out / "deep" / "checkpoints" / newest
        for file in folder.glob("*") if folder.exists() else ():
            file.unlink()
    found = on_ranks(after, lambda: taught(out, teacher, TINY))
    assert {name: one.resumed_from for name, one in found[0].items()} == {"small": 3, "deep": 2}
    same(out, alone("heads"))


@LONG
def test_a_stop_of_one_is_a_stop_of_all(teacher, alone, tmp_path):
    """Only the second rank is asked to; both end after a checkpoint, and go on together."""
    out, save = tmp_path / "out", Checkpoints.save

    def once(self, module, optimizer, facts):
        path = save(self, module, optimizer, facts)
        if facts["step"] == 1 and "deep" in str(self.folder):
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    def work():
        Checkpoints.save = once
        with pytest.raises(Interrupted) as caught:
            taught(out, teacher, TINY)
        return str(caught.value)

    first, second = on_ranks(2, work)
    assert first == second
    assert all(f"{name}: " in first for name in STUDENTS)
    found = on_ranks(2, lambda: taught(out, teacher, TINY))
    assert all(0 < one.resumed_from < 4 for one in found[0].values())
    same(out, alone("heads"))


@LONG
def test_who_has_ended_holds_up_nobody(teacher, alone, tmp_path):
    """One is at its end already; the other's rank has the teacher look for itself alone."""
    out = tmp_path / "out"
    dinoforge.distil(out=out / "small", teacher=str(teacher), **TINY | STUDENTS["small"])
    found = on_ranks(2, lambda: taught(out, teacher, TINY))
    assert {name: one.resumed_from for name, one in found[1].items()} == {"small": 4, "deep": 0}
    same(out, alone("heads"))


@LONG
@pytest.mark.parametrize("world", [1, 2])
def test_all_compute_as_many_images_at_once_as_the_largest_has_room_for(teacher, tmp_path, monkeypatch, world):
    """In other parts each would have the teacher look for itself."""
    budget = cost.memory_budget
    monkeypatch.setattr(cost, "memory_budget", lambda made, *at: 0 if made.backbone.depth == 2 else budget(made, *at))
    shared, looks = [], Distil.made

    def noted(self, parts, *rest):
        if self.shared is not None:  # no forecast
            shared.append([part.groups for part in parts])
        return looks(self, parts, *rest)

    monkeypatch.setattr(Distil, "made", noted)

    def work():
        taught(tmp_path / "out", teacher, TINY)
        return shared

    wanted = [[(2 * step,), (2 * step + 1,)] for step in range(4)]  # two parts of a group each
    assert on_ranks(world, work) == [wanted] * world


@pytest.mark.parametrize("world", [pytest.param(1, marks=LONG), 2])
def test_all_compute_in_the_precision_of_the_first(teacher, tmp_path, monkeypatch, world):
    """The timing that auto rests on may come out otherwise for each; so may that of an earlier start."""
    out, words = tmp_path / "out", TINY | {"precision": "auto", "plan.images": 8}
    kept = {name: out / name / "checkpoints" / "step_000000001" / "state.json" for name in STUDENTS}
    measured = []

    def measure(*_):
        measured.append(Choice("bf16" if measured or dist.rank_of_all() else "fp32", "measured"))
        return measured[-1]

    monkeypatch.setattr(runs, "choose_precision", measure)
    on_ranks(world, lambda: taught(out, teacher, words))
    assert [json.loads(path.read_text())["precision"] for path in kept.values()] == ["fp32", "fp32"]
    kept["deep"].write_text(kept["deep"].read_text().replace('"precision": "fp32"', '"precision": "bf16"'))

    def again():
        with pytest.raises(ConfigError, match="small and deep were trained in fp32 and bf16 until now") as caught:
            taught(out, teacher, words)
        return str(caught.value)

    assert len(set(on_ranks(world, again))) == 1


@pytest.mark.parametrize(
    ("world", "students", "words", "message"),
    [
        (3, STUDENTS, {}, r"students= names 2, which do not divide among 3 ranks; 2 or 4 ranks would do"),
        (2, {"a": {}, "b": {"seed": 1}}, {}, "students a and b differ in seed"),
        (2, {"a": {}, "b": {"speed.micro_batch": 4}}, {}, "students a and b differ in speed.micro_batch"),
        (4, STUDENTS, {"plan.batch": 4}, "is 1 groups of objective.group=4 images, which do not divide among 2 ranks"),
        (2, {"a": {}, "b": {"objective.head.prototypes": 48}}, {}, "has 32 prototypes, the student 48"),
    ],
)
def test_what_cannot_be_divided_is_one_line_on_every_rank(teacher, tmp_path, world, students, words, message):
    def work():
        with pytest.raises(ConfigError, match=message) as caught:
            taught(tmp_path / "out", teacher, TINY | words, students)
        return str(caught.value)

    told = on_ranks(world, work)
    assert len(set(told)) == 1
    assert "\n" not in told[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("students", "ranks", "want"), [(2, 1, 1), (2, 2, 2), (2, 6, 2), (6, 3, 3), (3, 3, 3)])
def test_how_many_teams(students, ranks, want):
    assert teams(students, ranks) == want


@pytest.mark.parametrize(
    ("students", "ranks", "near"), [(3, 2, "1 or 3"), (4, 3, "2 or 4"), (2, 5, "4 or 6"), (2, 9, "8 or 10")]
)
def test_numbers_that_would_do(students, ranks, near):
    with pytest.raises(ConfigError, match=f"; {near} ranks would do"):
        teams(students, ranks)
