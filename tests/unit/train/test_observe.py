"""What watches a run: when things are due, what counts as best, what happens where the disk is full."""

import json
import math
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from dinoforge.base import files
from dinoforge.base.errors import Interrupted, RunError
from dinoforge.base.files import read_lines
from dinoforge.train import observe
from dinoforge.train.checkpoint import Checkpoints
from dinoforge.train.loop import Done
from dinoforge.train.observe import Checkpointing, Metrics, Probe, Stop, comparable, cut_metrics, due, is_best
from dinoforge.train.plan import Scheduled


def made(step, total, *, ibot=0.5, norm=2.0):
    losses = {"ibot": torch.tensor(ibot), "total": torch.tensor(total)}
    return Done(step=step, losses=losses, norms={"backbone": torch.tensor(norm)}, at=Scheduled(0.1, 0.1, 0.2, 0.3, 0.4),
                skipped=torch.tensor(0.0))  # fmt: skip


def test_due_at_its_times_and_at_the_end_but_not_twice_in_a_row():
    assert [step for step in range(1, 101) if due(step, every=30, steps=100)] == [30, 60, 100]
    assert [step for step in range(1, 101) if due(step, every=25, steps=100)] == [25, 50, 75, 100]
    assert [step for step in range(1, 11) if due(step, every=50, steps=10)] == [10]


def test_the_best_is_kept_and_the_untrained_never():
    kept, values = [], iter([0.9, 0.3, 0.2, 0.3, 0.5])
    probe = Probe(
        lambda: {"knn": next(values), "rank": 3.0},
        lambda step, _: kept.append(step),
        every=1,
        steps=9,
        history=[],
        protocol="a",
        failed=print,
    )
    for step in range(5):
        probe.look(step)
    assert kept == [1, 4]
    assert [row["knn"] for row in probe.history] == [0.9, 0.3, 0.2, 0.3, 0.5]


def test_another_probe_is_not_compared_with(tmp_path):
    """An easier probe's 0.9 must not keep the harder one's 0.3 from being the best; nor rows of unknown protocol."""
    kept, values = [], iter([0.3, 0.2, 0.4])
    history = [{"step": 1, "knn": 0.9, "protocol": "easy"}, {"step": 2, "knn": 0.8}, {"step": 2, "rank": 3.0}]
    probe = Probe(
        lambda: {"knn": next(values)},
        lambda step, _: kept.append(step),
        every=1,
        steps=9,
        history=history,
        protocol="hard",
        failed=print,
    )
    for step in (3, 4, 5):
        probe.look(step)
    assert kept == [3, 5]
    assert [row["knn"] for row in comparable(history, "hard")] == [0.3, 0.2, 0.4]
    assert [row["knn"] for row in comparable(history, "easy")] == [0.9]


def test_without_labels_the_newest_is_kept():
    kept = []
    probe = Probe(
        lambda: {"rank": 3.0},
        lambda step, _: kept.append(step),
        every=1,
        steps=9,
        history=[],
        protocol="a",
        failed=print,
    )
    for step in range(3):
        probe.look(step)
    assert kept == [1, 2]


def test_a_frame_of_the_film_at_every_look():
    frames = []
    probe = Probe(
        lambda: {"rank": 3.0},
        lambda *_: None,
        every=2,
        steps=4,
        history=[],
        protocol="a",
        failed=print,
        film=frames.append,
    )
    probe.look(0)
    for step in range(1, 5):
        probe(made(step, 1.0))
    assert frames == [0, 2, 4]


@pytest.mark.parametrize("waits", [False, True])
def test_a_row_a_step(tmp_path, waits):
    ticks = []
    metrics = Metrics(
        tmp_path / "m.jsonl",
        images=lambda step: 8 * step,
        tick=lambda count, note="": ticks.append((count, note)),
        waits=waits,
    )
    for step in (1, 2, 3):
        one = made(step, step / 2)
        if step == 3:
            one.facts["knn"] = 0.5
        metrics(one)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images"], row["losses"]["total"]) for row in rows] == [
        (1, 8, 0.5),
        (2, 16, 1.0),
        (3, 24, 1.5),
    ]
    assert rows[2]["knn"] == 0.5
    assert rows[0]["gradient_norms"] == {"backbone": 2.0}
    assert ticks[-1] == (24, "loss 1.500  knn 0.500")


def test_rows_that_the_disk_refuses_wait(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path / "m.jsonl", images=lambda step: 8 * step, tick=lambda *_: None, waits=False)
    whole = files.append_line

    def full(*_):
        raise RunError("no space left")

    monkeypatch.setattr(files, "append_line", full)
    for step in (1, 2):
        metrics(made(step, 1.0))
    with pytest.raises(RunError, match="no space left"):
        metrics.flush()
    monkeypatch.setattr(files, "append_line", whole)
    metrics(made(3, 1.0))
    assert [row["step"] for row in read_lines(tmp_path / "m.jsonl")] == [1, 2, 3]


class Disk(Checkpoints):
    """Checkpoints on a disk that is full at some steps."""

    def __init__(self, full):
        super().__init__(Path("nowhere"), keep=1)
        self.full, self.saved = full, []

    def save(self, module, optimizer, facts):
        if facts["step"] in self.full:
            raise RunError("Cannot write c: no space left.")
        self.saved.append(facts["step"])
        return self.folder

    def wait(self):
        pass


def checkpointing(disk, told, *, asked=False):
    stop, layer = Stop(), torch.nn.Linear(1, 1)
    stop.asked = asked
    return Checkpointing(
        disk, (layer, torch.optim.SGD(layer.parameters())), facts=lambda step: {"step": step}, settle=lambda: None, failed=lambda *words: told.append(words),
        stop=stop, due=lambda step: step % 10 == 0, retry=3, end=40, steps=40,
    )  # fmt: skip


def test_a_checkpoint_that_is_refused_is_tried_again():
    disk, told = Disk({10, 13, 30}), []
    observer = checkpointing(disk, told)
    for step in range(1, 41):
        observer(made(step, 1.0))
    assert disk.saved == [16, 20, 33, 40]
    assert [words[:2] + words[3:] for words in told] == [(10, 13, 1), (13, 16, 2), (30, 33, 1)]


@pytest.mark.parametrize(("step", "asked"), [(40, False), (7, True)])
def test_the_last_one_cannot_wait(step, asked):
    with pytest.raises(RunError, match="no space left"):
        checkpointing(Disk({step}), [], asked=asked)(made(step, 1.0))


@pytest.mark.parametrize(("step", "asked"), [(40, False), (7, True)])
def test_one_that_failed_in_the_background_does_not_cost_the_last_one(step, asked):
    disk = Disk(set())
    refused = iter([RunError("no space left")])

    def wait():
        for error in refused:
            raise error

    disk.wait = wait
    with pytest.raises(Interrupted) if asked else nullcontext():
        checkpointing(disk, [], asked=asked)(made(step, 1.0))
    assert disk.saved == [step]


def test_signals_at_once_are_one_request(monkeypatch, capsys):
    """As a rank gets them where Ctrl-C reaches it and its launcher, which passes on two; a later one means at once."""
    now = [100.0]
    monkeypatch.setattr(observe.time, "monotonic", lambda: now[0])
    with Stop() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signalled
        assert capsys.readouterr().err == "SIGINT received: finishing this step, then a checkpoint.\n"
        now[0] += 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_backbone_that_the_disk_refuses_is_not_the_one_to_beat():
    told, values, kept = [], iter([0.5, 0.4, 0.3]), []

    def keep(step, _):
        if step == 1:
            raise RunError("no space left")
        kept.append(step)

    probe = Probe(
        lambda: {"knn": next(values)}, keep, every=1, steps=9, history=[], protocol="a",
        failed=lambda *words: told.append(words),
    )  # fmt: skip
    for step in (1, 2, 3):
        probe(made(step, 1.0))
    assert kept == [2]
    assert told == [(1, "no space left")]


def test_rows_after_a_checkpoint_are_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(6)) + '{"step": 6, "lo')
    assert cut_metrics(path, 3) == 5
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert cut_metrics(path, None) == 3
    assert path.read_text() == ""
    assert cut_metrics(tmp_path / "none.jsonl", None) == 0
    assert not (tmp_path / "none.jsonl").exists()


def test_a_cut_that_is_killed_loses_no_row(tmp_path, monkeypatch):
    """At whatever moment it is cut off, the rows that stay are all there: the file is renamed into place as a whole."""
    path = tmp_path / "m.jsonl"
    before = "".join(json.dumps({"step": step}) + "\n" for step in range(6))
    path.write_text(before)

    def killed(*_):
        raise KeyboardInterrupt

    for place in ("json.dumps", "os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, killed)
            cut_metrics(path, 3)
        assert path.read_text() == before


def looked(ranks, *, steps, every=10, protocol="a", **more):
    """Steps at which the backbone was kept, of a run whose effective rank went like this."""
    kept, values = [], iter(ranks)
    probe = Probe(
        lambda: {"rank": next(values), **more}, lambda step, _: kept.append(step), every=every, steps=steps,
        history=[], protocol=protocol, failed=print,
    )  # fmt: skip
    for number in range(len(ranks)):
        probe.look(number * every)
    return kept


@pytest.mark.parametrize(
    ("ranks", "kept"),
    [
        ([5, 20, 21, 22, 23], [10, 20, 30, 40]),
        ([5, 20, 22, 3, 2], [10, 20]),  # late in the run it collapses: the backbone before stays
        ([5, 20, 14.1, 13.9, 15], [10, 20, 40]),  # 70 % of 20 is 14
        ([5, 20, 30, 20, 21.1], [10, 20, 40]),  # of the best so far, not of the last: 21
        ([90, 20, 21, 22, 23], [10, 20, 30, 40]),  # the untrained one is nothing to compare with
        ([5, math.nan, 20, math.inf, 19], [20, 40]),
        ([0, 0, 0, 0, 0], [10, 20, 30, 40]),  # collapsed from the first: nothing better is there
    ],
)
def test_without_labels_the_newest_that_has_not_collapsed(ranks, kept):
    assert looked([float(rank) for rank in ranks], steps=40) == kept


def test_in_the_first_tenth_every_rank_will_do():
    """Of 300 steps the first tenth ends at 30: the 90 at 20 is not compared with, the 30 at 30 is."""
    assert looked([1.0, 80.0, 90.0, 30.0, 22.0, 20.0, 21.0], steps=300) == [10, 20, 30, 40, 60]


def test_a_score_that_is_no_number_is_not_kept():
    assert looked([1.0, 8.0], steps=20, smoothness=math.nan) == []
    assert looked([1.0, math.nan], steps=20, knn=0.9) == []


def test_a_history_read_from_a_checkpoint_has_null():
    """A rank and an accuracy that were no numbers come back as None; and rows of another probe are not compared with."""
    row = {"step": 20, "rank": 8.0, "protocol": "a"}
    before = [{"step": 5, "rank": None, "protocol": "a"}, {"step": 10, "rank": 99.0, "protocol": "b"}]
    assert is_best([*before, row], steps=50)
    assert not is_best([*before, row | {"step": 15, "rank": 12.0}, row], steps=50)
    assert is_best([{"step": 5, "knn": None, "protocol": "a"}, row | {"knn": 0.1}], steps=50)
