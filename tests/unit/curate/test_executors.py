"""Shards on an engine: each answered once, one that kills its process twice given up alone, errors in one line."""

import pickle
import socket
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import shard_works as works
from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.curate.executors import head, processes, ray, run, seam, slurm, task
from dinoforge.curate.executors.inline import INLINE, Inline
from dinoforge.curate.executors.processes import PROCESSES
from dinoforge.curate.executors.run import Lost, Shard, Shards, here, running
from dinoforge.curate.executors.seam import Engine, Opened, Wanted
from dinoforge.curate.executors.table import EXECUTORS
from dinoforge.features.mapped import UnreadError
from dinoforge.verbs.curate import curate
from dinoforge.verbs.sharing import engine_for
from shard_works import named


class Deadly(Inline):
    """Runs at once what it is given, but for payloads whose job is negative: these end with an error."""

    def __init__(self, deaths=99, error=BrokenProcessPool("gone")):  # noqa: B008
        self.deaths, self.calls, self.error = deaths, [], error

    def submit(self, fn, /, *args, **words):
        job = pickle.loads(args[2])[1]
        self.calls.append(job)
        if isinstance(job, int) and job < 0 and self.calls.count(job) <= self.deaths:
            future = Future()
            future.set_exception(self.error)
            return future
        return super().submit(fn, *args, **words)


def crew(executor, folder):
    engine = Engine(about="a test", open=INLINE.open, explain=PROCESSES.explain)
    return Shards(engine, Opened(executor=executor, at_once=2), folder)


def shards(*jobs):
    return [Shard(f"number {job}", 10, job) for job in jobs]


def each(of, jobs, work=works.double, **words):
    return dict(of.each(work, shards(*jobs), title="try", total=10 * len(jobs), **words))


def test_every_shard_is_answered_once(tmp_path, capsys):
    executor = Deadly()
    assert each(crew(executor, tmp_path), range(9)) == {n: 2 * n for n in range(9)}
    assert sorted(executor.calls) == list(range(9))
    assert "try: 90/90 images" in capsys.readouterr().err


def test_what_dies_twice_is_given_up_and_the_others_are_done(tmp_path, capsys):
    executor = Deadly()
    found = each(crew(executor, tmp_path), [1, -5, 2, 3])
    assert found == {0: 2, 1: Lost("its process died"), 2: 4, 3: 6}
    assert executor.calls.count(-5) == 2
    failed = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert failed == [
        "try: shard number -5 failed, its process died; it is tried once more.",
        "try: shard number -5 failed, its process died; given up.",
    ]


def test_what_died_for_another_reason_is_tried_once_more(tmp_path):
    assert each(crew(Deadly(deaths=1), tmp_path), [-5, 1]) == {0: -10, 1: 2}


def test_when_all_fail_the_run_ends(tmp_path):
    with pytest.raises(
        RunError,
        match=r"8 times in a row shards failed and none was done, the last: its process died\. Is there memory",
    ):
        each(crew(Deadly(), tmp_path), range(-20, 0))


def losing(executor, folder, lost):
    engine = Engine(about="a test", open=INLINE.open, explain=lambda _error: lost)
    return Shards(engine, Opened(executor=executor, at_once=2), folder)


def test_what_a_machine_lost_is_tried_last_and_is_never_given_up(tmp_path, capsys):
    """No memory is no fault of the shard: it goes behind all others, and the run ends where it fails alone."""
    memory = Lost("its memory ran out", blame=False)
    executor = Deadly(deaths=1)
    assert each(losing(executor, tmp_path, memory), [-5, 1, 2, 3]) == {0: -10, 1: 2, 2: 4, 3: 6}
    assert executor.calls == [-5, 1, 2, 3, -5]
    assert "failed, its memory ran out; it is tried once more, alone, in the end." in capsys.readouterr().err
    with pytest.raises(RunError, match=r"number -5 failed twice, .* its memory ran out\. The same command goes on\."):
        each(losing(Deadly(), tmp_path, memory), [-5, 1, 2, 3])


def test_a_node_that_takes_many_shards_along_does_not_end_the_run(tmp_path):
    node = Lost("its node is gone", blame=False, node=True)
    jobs = list(range(-20, 0))
    assert each(losing(Deadly(deaths=1), tmp_path, node), jobs) == {at: 2 * job for at, job in enumerate(jobs)}


FAULTS = [(ValueError, True), (MemoryError, False), (OSError, False), (UnreadError, False)]


@pytest.mark.parametrize(("fault", "blame"), FAULTS)
def test_whose_fault_a_fault_is(fault, blame):
    outcome = task.done(task.installed(), str(Path.cwd()), pickle.dumps((works.raises, fault, 1)))
    assert outcome["fault"] is not None
    assert outcome["blame"] == blame


def test_errors_of_the_user_end_the_run_and_faults_of_a_shard_do_not(tmp_path, capsys):
    of = crew(Inline(), tmp_path)
    with pytest.raises(DataError, match=r"^[12] is no image\.$"):
        each(of, [1, 2], works.refuses)
    assert each(of, [1], works.fails) == {0: Lost("ValueError: a bug with 1")}
    assert "given up" in capsys.readouterr().err


def test_what_a_shard_says_is_said_here(tmp_path, capsys):
    each(crew(Inline(), tmp_path), [7], works.speaks)
    assert "Set aside 7\n" in capsys.readouterr().err


def test_in_this_process_a_fault_is_seen_as_it_is():
    assert each(here(), [3]) == {0: 6}
    with pytest.raises(ValueError, match="a bug"):
        each(here(), [1], works.fails)


def test_shared_things_are_written_once_and_not_opened_if_changed(tmp_path):
    of = crew(Inline(), tmp_path)
    vectors = np.arange(12.0).reshape(6, 2)
    kept = of.kept(vectors)
    jobs = [(kept, np.asarray([0, 1])), (kept, np.asarray([5]))]
    assert each(of, jobs, works.total) == {0: 6.0, 1: 21.0}
    assert [path.suffix for path in tmp_path.iterdir()] == [".pickle"]
    sent = pickle.dumps(of.kept(vectors + 1))
    stored = pickle.loads(sent).make
    stored.path.write_bytes(pickle.dumps("something else"))
    with pytest.raises(RunError, match="was changed while it was in use"):
        pickle.loads(sent).get()


def test_another_version_on_a_worker_is_one_line(tmp_path, monkeypatch):
    mine = task.installed()
    monkeypatch.setattr(run, "installed", lambda: {**mine, "dinoforge": "0123456789ab", "numpy": "1.0"})
    with pytest.raises(ConfigError) as error:
        each(crew(Inline(), tmp_path), [1])
    text = str(error.value)
    assert f"dinoforge {mine['dinoforge']} instead of 0123456789ab, numpy {mine['numpy']} instead of 1.0" in text
    assert "install the same on all machines" in text
    assert "\n" not in text


def test_a_folder_that_a_worker_cannot_enter_is_one_line():
    outcome = task.done(task.installed(), "/nowhere/at/all", b"")
    assert "cannot enter /nowhere/at/all" in str(outcome["error"])


@pytest.mark.long
@pytest.mark.dist
def test_processes_are_replaced_and_end_with_the_pool(tmp_path):
    """One of two processes dies twice over one shard; the other shards do not notice."""
    with running(PROCESSES, Wanted(tmp_path / "sent", workers=2)) as of:
        found = each(of, [1, -5, 2], works.dies)
        assert found == {0: 2, 1: Lost("its process died"), 2: 4}
        pid = each(of, [7, 8], works.speaks)[0]
        assert Path(f"/proc/{pid}").exists()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        works.sleeps(0.05, 1)
    else:
        raise AssertionError("the process outlives its pool")
    assert not (tmp_path / "sent").exists()


def test_a_process_that_cannot_be_started_leaves_its_place_free(tmp_path, monkeypatch):
    """Two tries, one place: the second one would wait for ever for it."""

    def full(*_args, **_words):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", full)
    pool = processes.Processes(1)
    for _ in range(2):
        with pytest.raises(OSError, match="temporarily"):
            pool.submit(works.double, 1, 1)
    pool.shutdown()
    message = r"^engine=processes: a process cannot be started: Resource temporarily unavailable\."
    with pytest.raises(RunError, match=message), running(PROCESSES, Wanted(tmp_path / "sent", workers=1)) as of:
        each(of, [1, 2])


def test_a_pool_that_breaks_is_not_shut_down_by_who_is_told_of_it(monkeypatch):
    """Its own thread tells of it, with the lock held that a shutdown takes."""
    pool, future = processes.Processes(1), Future()

    class Breaking(ProcessPoolExecutor):
        def __init__(self):
            """Nothing is started."""

        def submit(self, fn, /, *args, **words):
            return future

        def shutdown(self, **_words):
            raise AssertionError("takes the lock")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda *_args, **_words: Breaking())
    pool.submit(works.double, 1, 1)
    seen = []
    monkeypatch.setattr(Future, "_invoke_callbacks", lambda one: seen.extend(call(one) for call in one._done_callbacks))
    future.set_exception(BrokenProcessPool("gone"))
    assert seen == [None]
    assert pool._free.get_nowait() is None
    pool.shutdown()


def test_what_is_sent_is_readable_to_its_owner_alone(tmp_path):
    with running(INLINE, Wanted(tmp_path / "stages" / "sent")):
        assert (tmp_path / "stages" / "sent").stat().st_mode & 0o777 == 0o700


def test_one_shard_that_is_left_over_is_sent_too(tmp_path):
    """It may be the one that kills its process; what is one shard in all is done here."""
    local = Opened(executor=Deadly(), at_once=2, local=True)
    of = Shards(Engine(about="a test", open=INLINE.open, explain=PROCESSES.explain), local, tmp_path)
    assert dict(of.each(works.double, shards(-5), title="try", total=20)) == {0: Lost("its process died")}
    assert dict(of.each(works.double, shards(-5), title="try", total=10)) == {0: -10}


WRONG = [
    ({"engine": "rai"}, "Unknown engine 'rai'. Did you mean 'ray'? Known: dask, inline, processes, ray, slurm."),
    ({"address": "a:1"}, "address=a:1 has no effect with engine=processes; it is for ray, dask, slurm."),
    ({"gpus_per_task": 1}, "gpus_per_task=1 has no effect with engine=processes; it is for ray, slurm."),
    ({"engine": "inline", "workers": 2}, "workers=2 has no effect with engine=inline; it is for processes, ray, dask, slurm."),
    ({"engine": "ray", "gpus_per_task": "x"}, "gpus_per_task takes a number; got 'x'."),
    ({"engine": "ray", "gpus_per_task": 1.5}, "gpus_per_task must be a share of one GPU, or a whole number"),
    ({"engine": "ray", "gpus_per_task": 1, "networks": False}, "gpus_per_task=1 has no effect: neither backbone="),
    ({"workers": "0"}, "workers must be 1 to 1024; got 0."),
]  # fmt: skip


def test_the_help_of_curate_names_every_engine():
    about = curate.__doc__.partition("engine: ")[2].partition("gpus_per_task: ")[0]
    assert [name for name in EXECUTORS if name not in about] == []
    assert "Dask" in about.partition("address: ")[2]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_settings_that_would_be_ignored_are_refused(words, message, tmp_path):
    words = {"engine": "processes", "workers": None, "address": None, "gpus_per_task": None, "networks": True, **words}
    with pytest.raises(ConfigError) as error:
        engine_for(folder=tmp_path, **words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "address"), [("ray", None), ("dask", "127.0.0.1:1"), ("slurm", "local")])
def test_a_library_that_is_missing_is_named(name, address, tmp_path, monkeypatch):
    monkeypatch.setattr(seam, "find_spec", lambda _module: None)
    message = rf"engine={name} .* pip install 'dinoforge\[{name}\]'"
    wanted = Wanted(tmp_path / "sent", address=address)
    with pytest.raises(ConfigError, match=message), running(EXECUTORS[name], wanted):
        pass


BAD = [
    ("ray", "10.1.2.3:6379", "is open to other machines"),
    ("dask", "10.1.2.3", "is open to other machines"),
    ("dask", None, "engine=dask needs the address of a scheduler: address=HOST:8786."),
    ("dask", "127.0.0.1:1", "address=127.0.0.1:1 cannot be reached: Connection refused. Start one there with"),
    ("ray", "127.0.0.1:1", "address=127.0.0.1:1 cannot be reached: Connection refused. Start Ray there with"),
    ("ray", "127.0.0.1:many", "address takes HOST or HOST:PORT; got '127.0.0.1:many'."),
    ("slurm", "there", "address=there is nothing for engine=slurm"),
    ("slurm", None, "engine=slurm finds no srun here"),
]


@pytest.mark.parametrize(("name", "address", "message"), BAD)
def test_an_engine_that_cannot_be_had_is_one_line(name, address, message, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(seam, "find_spec", lambda _module: True)
    monkeypatch.setattr(slurm.shutil, "which", lambda _name: None)
    with pytest.raises((ConfigError, RunError)) as error, running(EXECUTORS[name], Wanted(tmp_path, address=address)):
        pass
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (named("ObjectStoreFullError", "RayError", text="put failed"), RunError, "the object store of Ray is full"),
        (named("OutOfDiskError", "RayError"), RunError, "the object store of Ray is full"),
        (named("RaySystemError", "RayError", text="lost\nthe head"), RunError, "RaySystemError: lost the head"),
        (named("WorkerCrashedError", "RayError", text="The worker died"), Lost, "its process died"),
        (named("OutOfMemoryError", "RayError", text="Task was killed"), Lost, "memory ran out"),
        (
            named("RayTaskError", "RayError", text="x " * 200 + "ModuleNotFoundError: No module named 'dinoforge'"),
            ConfigError,
            "No module named 'dinoforge'",
        ),
        (named("NodeDiedError", "RayError"), Lost, "its node is gone"),
        (
            named("RayTaskError", "RayError", text="ModuleNotFoundError: No module named"),
            ConfigError,
            "no dinoforge like",
        ),
    ],
)
def test_errors_of_ray_are_one_line_each(error, kind, words):
    found = ray.explain(error)
    assert isinstance(found, kind)
    text = found.why if isinstance(found, Lost) else str(found)
    assert words in text
    assert "\n" not in text
    assert not isinstance(found, Lost) or found.blame == (found.why == "its process died")


@pytest.mark.parametrize(
    ("state", "lost"),
    [
        ("FAILED", Lost("its process died")),
        ("INTERRUPTED", Lost("its process died")),
        ("OUT_OF_MEMORY", Lost("its job ended without an answer (OUT_OF_MEMORY)", blame=False)),
        ("TIMEOUT", Lost("its job ended without an answer (TIMEOUT)", blame=False)),
        ("NODE_FAIL", Lost("its job ended without an answer (NODE_FAIL)", blame=False, node=True)),
    ],
)
def test_only_a_job_that_died_by_itself_counts_against_its_shard(state, lost):
    error = named("UncompletedJobError", text=f"Job 7 (task: 0)\nhas not produced any output (state: {state})\nlog")
    assert slurm.explain(error) == lost


def test_what_is_waited_for_fails_when_the_head_is_lost(monkeypatch):
    """A listener that closes; what was answered before stays so."""
    monkeypatch.setattr(head, "_LOOKS", 0.01)
    monkeypatch.setattr(head, "_SILENT", 0.03)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        of = head.Head(*listener.getsockname())
        answered, waited, theirs = of.until_lost(done := Future()), of.until_lost(Future()), Future()
        done.set_result(7)
        with pytest.raises(TimeoutError):
            waited.exception(timeout=0.2)
    assert isinstance(waited.exception(timeout=30), head.HeadLostError)
    assert answered.result() == 7
    with pytest.raises(head.HeadLostError):
        of.until_lost(theirs)
    assert "the head of the cluster is lost" in str(ray.explain(head.HeadLostError()))


class FakeRay:
    """A cluster of two nodes that live and one that does not."""

    def nodes(self):
        return [{"Alive": alive, "Resources": {"CPU": 4.0, "GPU": gpus}} for alive, gpus in
                ((True, 2.0), (True, 1.0), (False, 8.0))]  # fmt: skip


def test_a_task_of_ray_gets_no_more_gpus_than_one_living_machine_has(tmp_path, monkeypatch):
    class Asks(Inline):
        def __init__(self, head, gpus=0):
            self.gpus = gpus

    monkeypatch.setattr(ray, "Ray", Asks)
    monkeypatch.setattr(ray, "same_everywhere", lambda *_args: None)
    of = head.Head("127.0.0.1", 1)
    of.leave()
    with pytest.raises(ConfigError, match=r"^gpus_per_task=3 is more than the 2 GPUs that Ray has on one machine\.$"):
        ray._room(FakeRay(), of, Wanted(tmp_path, gpus=3))
    opened = ray._room(FakeRay(), of, Wanted(tmp_path, gpus=0.5))
    assert (opened.at_once, opened.networks_at_once, opened.networks.gpus) == (8, 6, 0.5)
    assert ray._room(FakeRay(), of, Wanted(tmp_path, gpus=2)).networks_at_once == 1


@pytest.mark.parametrize(
    ("given", "full"),
    [("head", "head:6379"), ("head:7", "head:7"), ("tls://head", "tls://head:6379"), ("[::1]:7", "[::1]:7")],
)
def test_an_address_without_a_port_gets_the_one_that_was_asked(given, full):
    assert seam.whole(given, port=6379) == full


@pytest.mark.parametrize(
    ("address", "beyond"),
    [("127.0.0.1:6379", False), ("localhost", False), ("ray://127.0.0.1:10001", False), ("[::1]:6379", False),
     ("10.0.0.7:6379", True), ("head:6379", True), ("0.0.0.0:1", True)],
)  # fmt: skip
def test_which_addresses_others_reach(address, beyond):
    assert seam.beyond_here(address, port=6379) == beyond


def test_every_engine_is_explained():
    for name, engine in EXECUTORS.items():
        assert engine.about, name
        assert engine.takes <= {"workers", "address", "gpus_per_task"}
