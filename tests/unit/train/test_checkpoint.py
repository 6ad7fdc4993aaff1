"""Checkpoints: what is saved comes back bit for bit on any number of ranks, and whatever goes wrong, the one before stays."""

import json
import os
import pickle
import re
import resource
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dinoforge.base import dist
from dinoforge.base.errors import RankLost, RunError
from dinoforge.base.files import clear_leftovers, write_json, write_tensors
from dinoforge.base.schedule import Cosine
from dinoforge.model.heads import HeadConfig
from dinoforge.train import checkpoint, shards
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.gram import GramConfig
from dinoforge.train.loop import fit
from dinoforge.train.optim import named_state, optimizer
from dinoforge.train.parallel import StepSpeed, shard
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import CentringConfig
from ranks import Ranks, on_ranks
from tiny import SMALL, VIT, batch, pretrain

CPU = torch.device("cpu")
PLAN = PlanConfig(images=64, batch=8, learning_rate=Cosine(peak=0.3, end=0.1), last_layer_frozen=0)
TWO_HEADS = {"patch_head": HeadConfig(prototypes=40, hidden=12, bottleneck=6), "targets": CentringConfig()}
WORLDS = (1, 2, 4)
several = pytest.mark.dist


def fresh(**objective):
    """Networks spread over the ranks, and their optimiser, which has not seen a step; weights unlike those of a run's start."""
    step = pretrain(**{**TWO_HEADS, **objective})
    with torch.no_grad():
        for parameter in step.parameters():
            parameter += 1
    shard(step, StepSpeed(), CPU, "fp32")
    return step, optimizer(step.student, PLAN, fused=True)


def train(step, adamw, first, last):
    """Steps on data that is this rank's own."""
    batches = (batch(images=4, seed=10 * number + dist.rank()) for number in range(first, last))
    fit(step, adamw, batches, plan=PLAN, steps=last, first=first)


def trained(steps=2, **objective):
    """The same after a few steps."""
    step, adamw = fresh(**objective)
    train(step, adamw, 0, steps)
    return step, adamw


def whole(step, adamw):
    """Everything that belongs into a checkpoint, put together from all ranks."""
    state = dict(step.state_dict()) | dict(named_state(adamw, step.named_parameters()))
    return {name: dist.whole(value).clone() for name, value in state.items()}


def assert_same(found, want):
    assert found.keys() == want.keys()
    for name, value in found.items():
        assert value.dtype == want[name].dtype, name
        assert torch.equal(value, want[name]), name


def files_of(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By the number of ranks that wrote it: the folder of checkpoints, and what was saved."""
    found = {}
    for world in WORLDS:
        folder = tmp_path_factory.mktemp(f"by{world}")

        def write(folder=folder):
            step, adamw = trained()
            path = Checkpoints(folder, keep=2).save(step, adamw, {"step": 2, "seen": {"images": 16}})
            return path, whole(step, adamw)

        answers = on_ranks(world, write)
        assert {path for path, _ in answers} == {folder / "step_000000002"}
        found[world] = folder, answers[0][1]
    return found


def test_everything_is_in_it(saved):
    """Student, teacher, a head each for images and patches, centres, moments and their number of steps."""
    for world, (folder, state) in saved.items():
        path = folder / "step_000000002"
        names = [f"shard-{rank:05d}-of-{world:05d}.safetensors" for rank in range(1, world + 1)]
        assert sorted(file.name for file in path.iterdir()) == [*names, "state.json"]
        facts = json.loads((path / "state.json").read_text())
        assert facts["files"] == {name: (path / name).stat().st_size for name in names}
        for part in (
            "student.backbone",
            "student.dino_head",
            "student.ibot_head",
            "teacher.backbone",
            "teacher.ibot_head",
            "centres",
        ):
            assert any(name.startswith(f"{part}.") for name in state), part
        kinds = {name.rpartition("/")[2] for name in state if "/" in name}
        assert kinds == {"exp_avg", "exp_avg_sq", "step"}
        assert all(value == 2 for name, value in state.items() if name.endswith("/step"))
        assert all(value.any() for name, value in state.items() if name.endswith("/exp_avg")), (
            "a moment that is all zero"
        )


@several
@pytest.mark.parametrize("world", WORLDS)
def test_it_comes_back_bit_for_bit_on_any_number_of_ranks(saved, world):
    def read():
        found = {}
        for writers, (folder, _) in saved.items():
            step, adamw = fresh()
            checkpoints = Checkpoints(folder, keep=2)
            latest = checkpoints.latest()
            checkpoints.load(latest, step, adamw)
            found[writers] = whole(step, adamw), latest.step, latest.facts["seen"]
        return found

    for answers in on_ranks(world, read):
        for writers, (state, step, seen) in answers.items():
            assert_same(state, saved[writers][1])
            assert (step, seen) == (2, {"images": 16})


@several
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_training_goes_on_as_without_the_interruption(tmp_path, world, background):
    def work():
        straight = trained(2)
        checkpoints = Checkpoints(tmp_path, keep=1, background=background)
        checkpoints.save(*straight, {"step": 2})
        train(*straight, 2, 4)
        checkpoints.wait()
        again = fresh()
        Checkpoints(tmp_path, keep=1).load(checkpoints.latest(), *again)
        train(*again, 2, 4)
        return whole(*straight), whole(*again)

    for straight, again in on_ranks(world, work):
        assert_same(again, straight)


def test_without_any_step_there_are_weights_alone(tmp_path):
    step, adamw = fresh()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(step, adamw, {"step": 0})
    other = trained()[0]
    other = other, optimizer(other.student, PLAN)
    checkpoints.load(checkpoints.latest(), *other)
    assert_same(whole(*other), whole(step, adamw))


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_few_are_kept(tmp_path, background):
    state = trained(1)
    checkpoints = Checkpoints(tmp_path, keep=2, background=background)
    assert checkpoints.latest() is None
    for step in (1, 2, 30, 4):
        checkpoints.save(*state, {"step": step})
    checkpoints.wait()
    assert [saved.step for saved in checkpoints.all()] == [4, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000004", "step_000000030"]
    assert checkpoints.latest().step == 30


def test_a_checkpoint_that_was_not_whole_is_replaced(tmp_path):
    state = trained(1)
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = checkpoints.save(*state, {"step": 1})
    (path / "state.json").unlink()
    (path / "stray").touch()
    assert checkpoints.save(*state, {"step": 1}) == path
    assert sorted(file.name for file in path.iterdir()) == ["shard-00001-of-00001.safetensors", "state.json"]
    assert checkpoints.latest().step == 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def say_instead(text):
    return lambda path: (path / "state.json").write_bytes(text)


BROKEN = {
    "no state.json": (lambda path: (path / "state.json").unlink(), "state.json"),
    "a missing shard": (lambda path: (path / files_of(path)[-1]).unlink(), "shard-00002-of-00002.safetensors"),
    "a shard cut short": (lambda path: cut(path / files_of(path)[0]), "shard-00001-of-00002.safetensors"),
    "no JSON": (say_instead(b'{"files": {'), "state.json"),
    "no text": (say_instead(b"\xff\xfe"), "state.json"),
    "a list": (say_instead(b"[]"), "state.json"),
    "nothing said": (say_instead(b"{}"), "state.json"),
    "a number for files": (say_instead(b'{"step": 9, "files": 3}'), "state.json"),
    "a list for files": (say_instead(b'{"step": 9, "files": []}'), "state.json"),
    "a null for files": (say_instead(b'{"step": 9, "files": null}'), "state.json"),
    "no step": (say_instead(b'{"files": {}}'), "state.json"),
    "a word for step": (say_instead(b'{"step": "nine", "files": {}}'), "state.json"),
}  # fmt: skip


@pytest.fixture
def two(tmp_path, saved):
    """A run's folder with a checkpoint, and a later one, both by two ranks."""
    for step in (2, 9):
        path = tmp_path / f"step_{step:09d}"
        path.mkdir()
        for file in (saved[2][0] / "step_000000002").iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        write_json(path / "state.json", json.loads((path / "state.json").read_text()) | {"step": step})
    return tmp_path


@pytest.mark.parametrize("broken", BROKEN)
def test_one_that_is_not_whole_is_passed_over(two, capsys, broken):
    breaking, named = BROKEN[broken]
    checkpoints = Checkpoints(two, keep=2)
    assert [saved.step for saved in checkpoints.all()] == [2, 9]
    assert capsys.readouterr().err == ""
    path = two / "step_000000009"
    breaking(path)
    assert [saved.step for saved in checkpoints.all()] == [2]
    printed = capsys.readouterr()
    assert " ".join(printed.err.split()) == f"Passing over checkpoint {path}: it is not whole ({named})."
    assert printed.out == ""
    assert checkpoints.latest().step == 2


def test_a_file_in_place_of_a_checkpoint_is_passed_over(two, capsys):
    (two / "step_000000010").touch()
    assert Checkpoints(two, keep=2).latest().step == 9
    assert "step_000000010" in capsys.readouterr().err


@several
def test_all_ranks_go_on_from_the_same(two, tmp_path_factory):
    """From what the first finds, even if another does not see it (yet)."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def work():
        return Checkpoints(elsewhere if dist.rank() else two, keep=2).latest()

    assert [saved.folder for saved in on_ranks(2, work)] == [two / "step_000000009"] * 2


def refusal(checkpoints, step, adamw):
    """The one line with which the newest checkpoint is refused; what is wrong with it, nothing on the way to it."""
    with pytest.raises(RunError) as error:
        checkpoints.load(checkpoints.latest(), step, adamw)
    assert "\n" not in str(error.value)
    return str(error.value)


@several
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("place", ["length", "words"])
def test_a_damaged_header_is_refused(two, world, place):
    path = two / "step_000000009" / "shard-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[slice(0, 8) if place == "length" else slice(8, 40)] = b"\xff" * (8 if place == "length" else 32)
    path.write_bytes(content)

    def work():
        checkpoints = Checkpoints(two, keep=2)
        said = refusal(checkpoints, *fresh())
        path = checkpoints.all()[0]
        checkpoints.load(path, *fresh())  # the one before is still there
        return said

    for said in on_ranks(world, work):
        assert re.match(
            rf"Checkpoint {two}/step_000000009 cannot be read \(.*\)\. Remove it to go on from the one before\.$", said
        )


@several
@pytest.mark.parametrize("world", [1, 2])
def test_damage_that_only_reading_finds_is_refused(two, world):
    """A tensor of another type, and so of other bytes than there are."""
    path = two / "step_000000009" / "shard-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F64"', 1))

    def work():
        return refusal(Checkpoints(two, keep=2), *fresh())

    for said in on_ranks(world, work):
        assert said.startswith(f"Checkpoint {two}/step_000000009 cannot be read (")


@several
def test_a_rank_that_dies_while_reading_is_not_the_fault_of_the_checkpoint(two, monkeypatch):
    real = shards.HuggingFaceStorageReader.read_data

    def read(*args):
        if dist.rank() == 1:
            os._exit(1)
        return real(*args)

    monkeypatch.setattr(shards.HuggingFaceStorageReader, "read_data", read)

    def work():
        with pytest.raises(RankLost), dist.joined():
            checkpoints = Checkpoints(two, keep=2)
            checkpoints.load(checkpoints.latest(), *fresh())
        return "lost"

    assert Ranks(2, work).answers(patience=60) == ["lost", None]


@several
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"backbone": VIT.model_copy(update={"width": 32})}, r"student\.backbone\.\w+ is \[.*16\], not \[.*32\]"),
        ({"head": SMALL.model_copy(update={"prototypes": 28})}, r"student\.dino_head\.\S+ is \[24, 8\], not \[28, 8\]"),
        ({"backbone": VIT.model_copy(update={"depth": 3})}, r"student\.backbone\.blocks\.2\.\S+ is missing"),
        ({"patch_head": None}, r"student\.ibot_head\.\S+ is unknown"),
    ],
    ids=["wider", "more prototypes", "deeper", "no patch head"],
)  # fmt: skip
def test_other_networks_are_refused(two, world, other, difference):
    def work():
        step, adamw = fresh(**other)
        before = whole(step, adamw)
        said = refusal(Checkpoints(two, keep=2), step, adamw)
        assert_same(whole(step, adamw), before)
        return said

    for said in on_ranks(world, work):
        assert said.startswith(f"Checkpoint {two / 'step_000000009'} belongs to other networks: ")
        assert re.search(difference, said)
        assert len(said) < 800  # a few of hundreds of differences


GRAM = {**TWO_HEADS, "gram": GramConfig(from_share=0.0)}
LARGER = VIT.model_copy(update={"pixels": 24})


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=several)])
def test_a_stage_at_another_size_begins_with_the_same_networks(tmp_path, world):
    """All of them, read by any number of ranks: at the new size features are what they were, heads and centres untouched."""
    step, adamw = trained(**GRAM)
    folder = Checkpoints(tmp_path, keep=3)
    folder.save(step, adamw, {"step": 2})
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    def begun():
        later = pretrain(backbone=LARGER, **GRAM)
        folder.begin_from(folder.latest(), later, later.fitted)
        with torch.no_grad():
            seen = [backbone(x).patches for backbone in backbones(later)]
        state = {name: tensor.clone() for name, tensor in later.state_dict().items()}
        shard(later, StepSpeed(), CPU, "fp32")  # as the run does then
        return seen, state

    def backbones(one):
        return [role.backbone.eval() for role in (one.student, one.teacher, one.gram)]

    with torch.no_grad():
        want = [backbone(x).patches for backbone in backbones(step)]
    assert not torch.equal(want[0], want[1])
    for seen, state in [begun()] if world == 1 else on_ranks(world, begun):
        for mine, theirs in zip(seen, want, strict=True):
            assert torch.equal(mine, theirs)
        for name, tensor in step.state_dict().items():
            assert name.endswith("pos_embed") or torch.equal(state[name], tensor), name


def test_a_stage_does_not_begin_with_other_networks(tmp_path):
    step, adamw = trained()
    folder = Checkpoints(tmp_path, keep=3)
    folder.save(step, adamw, {"step": 2})
    other = pretrain(backbone=LARGER, targets=CentringConfig())
    with pytest.raises(RunError, match=r"belongs to other networks: student\.ibot_head\.\S+ is unknown"):
        folder.begin_from(folder.latest(), other, other.fitted)
    wider = pretrain(backbone=LARGER, **TWO_HEADS | {"patch_head": HeadConfig(prototypes=41, hidden=12, bottleneck=6)})
    with pytest.raises(RunError, match=r"belongs to other networks: student\.ibot_head\.\S+ is \[40\S*.*, not \[41"):
        folder.begin_from(folder.latest(), wider, wider.fitted)


@pytest.mark.parametrize(
    ("keep", "sound", "there"),
    [
        (2, (0, 0, 0, 0, 0), [4, 5]),  # none is old enough
        (2, (1, 1, 1, 1, 1), [1, 4, 5]),
        (2, (1, 2, 2, 3, 3), [3, 4, 5]),
        (1, (1, 1, 2, 3, 4), [4, 5]),
        (2, (1, 1, 1, 4, 4), [4, 5]),
        (1, (None,) * 5, [5]),
    ],
)
def test_one_that_a_run_may_go_back_to_stays(tmp_path, keep, sound, there):
    """Besides the newest, and never more than one."""
    checkpoints, state = Checkpoints(tmp_path, keep=keep), trained(1)
    for step, before in enumerate(sound, 1):
        checkpoints.save(*state, {"step": step} | ({} if before is None else {"sound": before}))
        assert len(checkpoints.all()) <= keep + 1
    assert [saved.step for saved in checkpoints.all()] == there


def test_a_patch_head_that_is_not_in_it_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(*trained(1, patch_head=None), {"step": 1})
    assert re.search(r"student\.ibot_head\.\S+ is missing", refusal(checkpoints, *fresh()))


class Pair(nn.Module):
    """Two tensors, of which the second is learnt or not."""

    def __init__(self, learnt):
        super().__init__()
        self.first, second = nn.Parameter(torch.ones(3)), torch.ones(2)
        if learnt:
            self.second = nn.Parameter(second)
        else:
            self.register_buffer("second", second)


def test_moments_of_unknown_parameters_are_refused(tmp_path):
    both, one = Pair(True), Pair(False)
    adamw = torch.optim.AdamW(both.parameters())
    (both.first.sum() + both.second.sum()).backward()
    adamw.step()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(both, adamw, {"step": 1})
    said = refusal(checkpoints, one, torch.optim.AdamW(one.parameters()))
    assert said.endswith(
        "holds optimiser state for unknown parameters: second/exp_avg, second/exp_avg_sq, second/step."
    )
    assert torch.equal(one.first, torch.ones(3))


class Gate:
    """Writes only once it is opened."""

    def __init__(self, monkeypatch):
        self.opened = threading.Event()
        monkeypatch.setattr(shards, "write_tensors", self._write)

    def _write(self, *args, **kwargs):
        assert self.opened.wait(60)
        write_tensors(*args, **kwargs)


@several
@pytest.mark.parametrize("world", [1, 2])
def test_in_the_background_the_state_at_the_call_is_written(tmp_path, monkeypatch, world):
    gate = Gate(monkeypatch)

    def work():
        step, adamw = trained()
        want = whole(step, adamw)
        checkpoints = Checkpoints(tmp_path, keep=2, background=True)
        path = checkpoints.save(step, adamw, {"step": 2})
        with torch.no_grad():
            for _, value in [*step.state_dict().items(), *named_state(adamw, step.named_parameters())]:
                dist.local(value).zero_()
        there = path.exists()
        gate.opened.set()
        checkpoints.wait()
        visible = path.exists()
        again = fresh()
        checkpoints.load(checkpoints.latest(), *again)
        return there, visible, want, whole(*again)

    for there, visible, want, found in on_ranks(world, work):
        assert (there, visible) == (False, True)
        assert_same(found, want)


@several
@pytest.mark.parametrize("world", [1, 2])
def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch, world):
    gate = Gate(monkeypatch)

    def work():
        state = trained(1)
        checkpoints = Checkpoints(tmp_path, keep=2, background=True)
        first = checkpoints.save(*state, {"step": 1})
        threading.Timer(0.3, gate.opened.set).start()
        waited = not first.exists()
        checkpoints.save(*state, {"step": 2})
        there = first.exists()
        checkpoints.wait()
        return waited, there, [saved.step for saved in checkpoints.all()]

    assert on_ranks(world, work) == [(True, True, [1, 2])] * world


class Full:
    """A disk that takes no tensors (``what="tensors"``), or not what is said of them, of one rank."""

    def __init__(self, monkeypatch, rank, what="tensors"):
        self.rank, self.now = rank, False
        real = {"tensors": write_tensors, "json": write_json}[what]

        def write(path, *args, **kwargs):
            if self.now and dist.rank() == self.rank:
                path.write_bytes(b"half")
                raise RunError(f"Cannot write {path}: no space left. Free some and run again.")
            real(path, *args, **kwargs)

        monkeypatch.setattr(shards if what == "tensors" else checkpoint, f"write_{what}", write)


@several
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("world", "rank", "what"), [(1, 0, "tensors"), (2, 1, "tensors"), (2, 0, "json")])
def test_a_full_disk_is_told_to_all_and_harms_nothing(tmp_path, monkeypatch, world, rank, what, background):
    full = Full(monkeypatch, rank, what)

    def work():
        state = trained(1)
        checkpoints = Checkpoints(tmp_path, keep=1, background=background)
        checkpoints.save(*state, {"step": 1})
        checkpoints.wait()
        want = whole(*state)
        train(*state, 1, 2)
        full.now = True
        with pytest.raises(RunError, match=r"^Cannot write .*: no space left\.") as error:
            checkpoints.save(*state, {"step": 2})
            # In the background the next that is asked for says so.
            checkpoints.wait() if rank else checkpoints.save(*state, {"step": 3})
        checkpoints.wait()  # once is enough
        visible = [saved.step for saved in checkpoints.all()], len(list(tmp_path.glob("step_*")))
        again = fresh()
        checkpoints.load(checkpoints.latest(), *again)
        assert_same(whole(*again), want)
        full.now = False
        dist.counts(0)
        checkpoints.save(*state, {"step": 2})
        checkpoints.wait()
        return error.value.rank, visible, [saved.step for saved in checkpoints.all()]

    blamed = rank if world > 1 else None
    assert on_ranks(world, work) == [(blamed, ([1], 1), [2])] * world
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000002"]


@several
@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_is_really_full(tmp_path, background):
    """No file may grow beyond 4 KiB on the second rank: the operating system refuses, as it does where no space is left."""

    def work():
        state = trained(1)
        checkpoints = Checkpoints(tmp_path, keep=1, background=background)
        checkpoints.save(*state, {"step": 1})
        checkpoints.wait()
        if dist.rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(RunError) as error:
            checkpoints.save(*state, {"step": 2})
            checkpoints.wait()
        return str(error.value), error.value.rank, [saved.step for saved in checkpoints.all()]

    unfinished = tmp_path / ".step_000000002.new"
    for said, rank, there in on_ranks(2, work):
        assert said == (
            f"Cannot write {unfinished}/shard-00002-of-00002.safetensors: no space left. Free some and run again."
        )
        assert (rank, there) == (1, [1])
    assert sorted(tmp_path.iterdir()) == [unfinished, tmp_path / "step_000000001"]


@several
@pytest.mark.parametrize("world", [1, 2])
def test_a_folder_that_cannot_be_made_is_told_to_all(tmp_path, world):
    (tmp_path / "run").touch()

    def work():
        with pytest.raises(RunError, match=r"^Cannot write .*: a file stands where a folder is needed") as error:
            Checkpoints(tmp_path / "run" / "checkpoints", keep=1).save(*fresh(), {"step": 0})
        return error.value.rank

    assert on_ranks(world, work) == [None if world == 1 else 0] * world


class Planted:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@several
@pytest.mark.parametrize("world", [1, 2])
def test_no_pickle_is_written_or_loaded(two, saved, tmp_path_factory, world):
    """torch's own reader would take ``.metadata`` for the list of tensors."""
    trap = tmp_path_factory.mktemp("trap") / "sprung"
    poison = pickle.dumps(Planted(trap))
    pickle.loads(poison)
    assert trap.exists()  # it would
    trap.unlink()
    path = two / "step_000000009"
    for name in (".metadata", "__0_0.distcp", "state.pt"):
        (path / name).write_bytes(poison)

    def work():
        checkpoints, state = Checkpoints(two, keep=2), fresh()
        checkpoints.load(checkpoints.latest(), *state)
        assert_same(whole(*state), saved[2][1])
        written = checkpoints.save(*state, {"step": 10})
        return {file.suffix for file in written.iterdir()}

    assert on_ranks(world, work) == [{".safetensors", ".json"}] * world
    assert not trap.exists()


@several
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("killed", [(1,), (0, 1)])
def test_a_killed_save_leaves_the_one_before(tmp_path, monkeypatch, killed, background):
    folder = tmp_path / "checkpoints"

    def slow(path, *args, **kwargs):
        if "step_000000002" in str(path) and dist.rank() == 1:
            path.write_bytes(b"half")
            (tmp_path / "writing").touch()
            time.sleep(60)
        write_tensors(path, *args, **kwargs)

    monkeypatch.setattr(shards, "write_tensors", slow)

    def work():
        try:
            with dist.joined():
                state = trained(1)
                checkpoints = Checkpoints(folder, keep=1, background=background)
                checkpoints.save(*state, {"step": 1})
                checkpoints.wait()
                checkpoints.save(*state, {"step": 2})
                checkpoints.wait()
        except RankLost as error:
            return str(error)

    ranks = Ranks(2, work)
    until = time.monotonic() + 60
    while not (tmp_path / "writing").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)
    ranks.kill(ranks=killed)
    first, second = ranks.answers(patience=30)
    assert second is None
    assert first is None if 0 in killed else first.startswith("another rank ended")
    unfinished = folder / ".step_000000002.new"
    assert sorted(folder.iterdir()) == [unfinished, folder / "step_000000001"]
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest().step == 1
    checkpoints.load(checkpoints.latest(), *fresh())
    assert clear_leftovers(folder, "step_*") == [unfinished]
    assert list(folder.iterdir()) == [folder / "step_000000001"]
