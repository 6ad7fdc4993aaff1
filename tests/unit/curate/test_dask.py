"""Calls by Dask begin once, and what goes wrong with it is one line; without a cluster."""

import shutil
import threading
import types
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

import shard_works as works
from dinoforge.base.errors import ConfigError, RunError
from dinoforge.curate.executors import dask
from dinoforge.curate.executors.run import Lost
from shard_works import named


def test_a_call_of_dask_begins_once(tmp_path):
    """Tried again by Dask it is answered from the disk; one that has no answer died."""
    note, made = tmp_path / "call", []
    assert [dask._called(note, made.append, (7,), {}) for _ in range(2)] == [None, None]
    assert made == [7]
    note.with_suffix(".answer").unlink()
    with pytest.raises(dask.BegunBeforeError) as error:
        dask._called(note, made.append, (7,), {})
    assert made == [7]
    assert dask.explain(error.value) == Lost("its process died")
    assert [path.name for path in tmp_path.iterdir()] == ["call"]
    assert dask._calls_of(str(tmp_path.parent)) == 0


def test_a_worker_of_dask_sees_the_folder_or_is_named(tmp_path):
    with pytest.raises(RunError, match=r"^A worker on .* cannot write /nowhere/calls: .*; out= must lie where all"):
        dask._called(Path("/nowhere/calls/one"), works.double, (1, 1), {})


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (named("KilledWorker", text="attempted"), Lost, "the workers that were to do it died"),
        (named("FutureCancelledError"), RunError, "the scheduler is lost"),
        (CancelledError(), RunError, "the scheduler is lost"),
        (named("CommClosedError", text="in <TCP>"), RunError, "the scheduler is lost"),
        (
            ModuleNotFoundError("No module\nnamed 'dinoforge'"),
            ConfigError,
            "has no dinoforge like this one (No module named",
        ),
        (RuntimeError("Error during deserialization of the task graph"), ConfigError, "install the same"),
        (RunError("A worker on x"), RunError, "A worker on x"),
        (ValueError("a bug"), Lost, "ValueError: a bug"),
        (OSError(5, "Input/output error"), Lost, "OSError: [Errno 5] Input/output error"),
    ],
)
def test_errors_of_dask_are_one_line_each(error, kind, words):
    found = dask.explain(error)
    assert isinstance(found, kind)
    text = found.why if isinstance(found, Lost) else str(found)
    assert words in text
    assert "\n" not in text
    assert not isinstance(found, Lost) or found.blame == (found.why == "ValueError: a bug")


def test_workers_of_dask_run_one_task_each():
    class Client:
        def __init__(self, *threads):
            self.threads = threads

        def scheduler_info(self, **_words):
            return {"workers": {number: {"nthreads": count} for number, count in enumerate(self.threads)}}

    assert dask._workers(Client(1, 1), "a:1") == 2
    with pytest.raises(ConfigError, match=r"^address=a:1: a worker there runs 4 tasks in one process.* --nthreads 1"):
        dask._workers(Client(1, 4), "a:1")
    with pytest.raises(ConfigError, match=r"^address=a:1: this scheduler of Dask has no worker\.$"):
        dask._workers(Client(), "a:1")


def test_shards_of_an_earlier_start_are_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(dask, "_EARLIER", 0.1)

    class Client:
        def __init__(self, *counts):
            self.counts = list(counts)

        def run(self, work, run, on_error):
            assert (work, run, on_error) == (dask._calls_of, "out", "return")
            return {"one": self.counts.pop(0) if len(self.counts) > 1 else self.counts[0], "ended": OSError("closed")}

    dask._await_earlier(Client(2, 1, 0), "out")
    assert capsys.readouterr().err.count("waiting for 2 shards of an earlier start") == 1
    with pytest.raises(RunError, match="workers are at 1 shards of an earlier start for 0 seconds; start them anew"):
        dask._await_earlier(Client(1), "out")
    with pytest.raises(ConfigError, match="has no dinoforge like this one"):
        dask._await_earlier(Client(ModuleNotFoundError("No module named 'dinoforge'")), "out")


def test_a_worker_that_is_silent_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(dask, "_EARLIER", 0.05)
    over = threading.Event()
    client = types.SimpleNamespace(run=lambda *_args, **_words: over.wait(10))
    with pytest.raises(RunError, match=r"a worker is silent for 0 seconds; start the workers anew\.$"):
        dask._await_earlier(client, "out")
    over.set()


class Theirs:
    """A future of Dask's."""

    def __init__(self, found=7):
        self.found = found

    def add_done_callback(self, call):
        self.call = call

    def result(self):
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


class Client:
    """Gives one future, and knows workers."""

    def __init__(self, theirs, *hosts):
        self.theirs, self.hosts = theirs, hosts

    def submit(self, _called, note, *_args, pure, retries):
        assert (pure, retries) == (False, 0)
        self.note = note
        return self.theirs

    def scheduler_info(self, **_words):
        return {"workers": {f"tcp://{host}:7": {} for host in self.hosts}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dask, "_LOOKS", 0.01)
    monkeypatch.setattr(dask, "_BACK", 0.05)
    monkeypatch.setattr(dask, "_here", lambda: ("1.2.3.4", 1))  # asks Dask


@pytest.mark.parametrize("error", [None, OSError("closed while the answer came"), CancelledError()])
def test_every_call_is_answered(error, tmp_path):
    """Also where the client cannot fetch what was answered; and then neither it nor the disk need keep it."""
    theirs = Theirs(error or 7)
    with dask.Dask(client := Client(theirs, "here"), tmp_path) as executor:
        future = executor.submit(works.double, 1, 1)
        client.note.with_suffix(".answer").touch()
        assert not future.done()
        theirs.call(theirs)
        assert (future.exception(5) or future.result()) == (error or 7)
        assert not executor._waited
    executor._aside.shutdown(wait=True)
    assert not [*tmp_path.rglob("*.answer")]


@pytest.mark.parametrize(
    ("hosts", "lost"),
    [
        (("1.2.3.4", "1.2.3.5"), Lost("its process died")),
        (("1.2.3.5",), Lost("1.2.3.4 has no worker any more", blame=False, node=True)),
    ],
    ids=["a process", "its machine"],
)
def test_what_died_with_a_call(hosts, lost, tmp_path):
    """A shard is blamed where its machine has workers; one whose machine is gone is not."""
    theirs = Theirs(dask.BegunBeforeError("1.2.3.4"))
    with dask.Dask(Client(theirs, *hosts), tmp_path) as executor:
        future = executor.submit(works.double, 1, 1)
        theirs.call(theirs)
        assert dask.explain(future.exception(5)) == lost


def test_without_any_worker_it_does_not_wait_for_ever(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dask, "_NONE", 0.1)
    with dask.Dask(Client(Theirs()), tmp_path) as executor:
        error = executor.submit(works.double, 1, 1).exception(5)
    assert isinstance(error, RunError)
    assert "no worker is left; once there is one, the same command goes on." in str(error)
    assert capsys.readouterr().err.count("no worker is left; waiting") == 1


def test_a_worker_of_several_threads_that_came_later_takes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(dask, "_here", lambda: ("a", 4))
    with pytest.raises(ConfigError, match=r"^A worker on \S+ runs 4 tasks in one process.* --nthreads 1"):
        dask._called(tmp_path / "call", works.double, (1, 1), {})
    assert not [*tmp_path.iterdir()]


def test_an_answer_is_dropped_where_the_run_is_over(tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    assert dask._called(folder / "call", shutil.rmtree, (folder,), {}) is None
    assert not folder.exists()
