"""Jobs of SLURM, as far as a queue that says what it is told can show: which are waited for, which are lost, which are held."""

import subprocess
import types

import pytest

import shard_works as works
from dinoforge.curate.executors import slurm
from dinoforge.curate.executors.run import Lost


def test_a_job_that_cannot_be_asked_about_is_an_error_of_its_own():
    class Job:
        def done(self):
            raise OSError("sacct")

    class Jobs:
        def submit(self, *_args, **_words):
            return Job()

    pool = slurm.Slurm(Jobs())
    assert isinstance(pool.submit(works.double, 1, 1).exception(timeout=20), OSError)
    pool.shutdown()


class Gone:
    """A job that is preempted, after a while that it ran."""

    job_id = "7"

    def __init__(self, *states):
        self.states, self.cancelled = list(states), False

    def done(self):
        return False

    @property
    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel(self, check=True):
        self.cancelled = True


@pytest.fixture
def asked(monkeypatch):
    """What SLURM says of the queue, and what it was asked."""
    words = []

    def run(given, **_words):
        words.append(given)
        return subprocess.CompletedProcess(given, run.code, f"{run.state}\n", run.error)

    run.words, run.state, run.code, run.error = words, "", 0, ""
    monkeypatch.setattr(slurm, "_LOOKS_UP", 0.01)
    monkeypatch.setattr(slurm, "_GONE", 0.05)
    monkeypatch.setattr(slurm.subprocess, "run", run)
    return run


def of_jobs(job):
    return slurm.Slurm(types.SimpleNamespace(submit=lambda *_args, **_words: job))


@pytest.mark.parametrize(("code", "error"), [(1, "slurm_load_jobs error: Unable to contact slurm controller"), (1, "")])
def test_a_queue_that_does_not_answer_says_nothing_of_a_job(code, error, asked):
    asked.code, asked.error = code, error
    job = Gone("UNKNOWN")
    pool = of_jobs(job)
    future = pool.submit(works.double, 1, 1)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.3)
    assert len(asked.words) > 1
    asked.error = "slurm_load_jobs error: Invalid job id specified"
    assert isinstance(future.exception(timeout=20), slurm.JobGoneError)
    assert job.cancelled
    pool.shutdown()


@pytest.mark.parametrize("state", ["PREEMPTED", "UNKNOWN", "COMPLETING"])
def test_a_job_that_is_not_queued_again_is_lost(state, asked):
    job = Gone("RUNNING", state)
    pool = of_jobs(job)
    error = pool.submit(works.double, 1, 1).exception(timeout=20)
    assert asked.words == [["squeue", "--noheader", "--jobs", "7", "--format", "%T"]]
    assert job.cancelled
    why = f"its job was neither queued nor running for 0 minutes ({state})"
    assert slurm.explain(error) == Lost(why, blame=False)
    pool.shutdown()


@pytest.mark.parametrize(
    ("job", "queue"),
    [
        (Gone("PENDING"), ""),
        (Gone("SUSPENDED"), ""),
        (Gone("PREEMPTED"), "PENDING"),
        (Gone("UNKNOWN"), "RUNNING"),  # no accounting
    ],
)
def test_a_job_that_is_queued_or_runs_is_waited_for(job, queue, asked):
    asked.state = queue
    pool = of_jobs(job)
    with pytest.raises(TimeoutError):
        pool.submit(works.double, 1, 1).result(timeout=0.4)
    assert len(asked.words) >= 2 if queue else not asked.words
    assert not job.cancelled
    pool.shutdown()


def test_a_job_that_somebody_holds_is_told_once_and_waited_for(asked, capsys):
    job = Gone("RUNNING", "REQUEUE_HOLD", "REQUEUE_HOLD", "PENDING", "RUNNING", "SUSPENDED")
    pool = of_jobs(job)
    with pytest.raises(TimeoutError):
        pool.submit(works.double, 1, 1).result(timeout=0.4)
    assert not job.cancelled
    pool.shutdown()
    assert capsys.readouterr().err.splitlines() == [
        "engine=slurm: job 7 is held (REQUEUE_HOLD) and waited for; scontrol release 7 lets it go on.",
        "engine=slurm: job 7 is held (SUSPENDED) and waited for; scontrol resume 7 lets it go on.",
    ]


def test_a_queued_job_that_somebody_holds_is_told_once(asked, capsys, monkeypatch):
    """Its state is that of any queued job; the queue is asked now and then, for the reason."""
    monkeypatch.setattr(slurm, "_ASKS", 0.02)
    asked.state = "7 JobHeldUser\n8 Priority"
    pool = of_jobs(Gone("PENDING"))
    with pytest.raises(TimeoutError):
        pool.submit(works.double, 1, 1).result(timeout=0.4)
    pool.shutdown()
    assert asked.words.count(["squeue", "--noheader", "--jobs", "7", "--format", "%i %r"]) == len(asked.words) > 1
    assert capsys.readouterr().err.splitlines() == [
        "engine=slurm: job 7 is held (JobHeldUser) and waited for; scontrol release 7 lets it go on."
    ]


@pytest.mark.parametrize(("said", "code"), [("", 1), ("7 (Priority)", 0), ("7", 0), ("slurm_load_jobs error: x y", 1)])
def test_a_queue_that_says_nothing_of_holds_tells_nothing(said, code, asked, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "_ASKS", 0.02)
    asked.state, asked.code = said, code
    pool = of_jobs(Gone("PENDING"))
    with pytest.raises(TimeoutError):
        pool.submit(works.double, 1, 1).result(timeout=0.2)
    pool.shutdown()
    assert asked.words
    assert not capsys.readouterr().err
