"""Shards as jobs of SLURM, given by submitit: extra ``slurm``."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

from dinoforge.base.errors import ConfigError, RunError, UserError
from dinoforge.base.log import say
from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted, need

_JOBS = 32
"""In the queue at once where nothing is said."""
_MINUTES = 120
"""That a job may take; a shard takes some."""
_LOOKS_UP = 1.0
_ANSWERS = 10.0
"""Seconds in which SLURM answers."""
_ASKS = 60.0
"""Seconds between two questions why jobs are queued."""
_GONE = 1800.0
"""Seconds for which a job is neither queued nor running until it is lost; what is known of it may be ten minutes old."""
_WAITED_FOR = {
    "READY",
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SUSPENDED",
    "SPECIAL_EXIT",
    "STOPPED",
}
"""States of a job that SLURM still has. PREEMPTED need not be one: whether it is queued again is up to the cluster."""
_HELD = {"REQUEUE_HOLD": "release", "SPECIAL_EXIT": "release", "SUSPENDED": "resume"}
"""States in which a job stays until somebody says so to ``scontrol``, and that word."""
_NOT_ITS_FAULT = ("OUT_OF_MEMORY", "TIMEOUT", "DEADLINE", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "CANCELLED", "REVOKED")
"""States of a job of SLURM that say nothing of the shard."""


class JobGoneError(Exception):
    """A job that left no answer is neither queued nor running any more."""


class Slurm(Executor):
    """Every call is a job; whether one has ended is asked every second, which the library answers from files."""

    def __init__(self, jobs: Any) -> None:
        self._jobs, self._waited = jobs, dict[Future[Any], Any]()
        self._missed = dict[Future[Any], float]()
        self._states = dict[Future[Any], str]()
        self._told, self._asked = set[str](), time.monotonic()
        self._over = Event()
        self._watch = Thread(target=self._look, daemon=True)
        self._watch.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        """Queue a job that calls."""
        future: Future[Any] = Future()
        self._waited[future] = self._jobs.submit(fn, *args, **words)
        return future

    def _look(self) -> None:
        while not self._over.wait(_LOOKS_UP):
            for future, job in list(self._waited.items()):
                try:
                    if not job.done():
                        self._expected(future, job)
                        continue
                    answer = job.result()
                except Exception as error:  # of the job, or of who was asked about it
                    future.set_exception(error)
                else:
                    future.set_result(answer)
                del self._waited[future]
                self._missed.pop(future, None)
                self._states.pop(future, None)
            self._tell_of_holds()

    def _expected(self, future: Future[Any], job: Any) -> None:
        """See that a job without an answer is still to come.

        Raises:
            JobGoneError: It has not been for some time; it is cancelled, so that it does not come beside its successor.
        """
        state = str(job.state).upper()
        word = state.partition(" ")[0]
        if word in _HELD and self._states.get(future) != word:
            _tell_held(job.job_id, word, _HELD[word])
        self._states[future] = word
        if word in _WAITED_FOR:
            self._missed.pop(future, None)
        elif time.monotonic() - self._missed.setdefault(future, time.monotonic()) > _GONE:
            del self._missed[future]
            if not _known(job.job_id):
                with suppress(Exception):
                    job.cancel(check=False)
                raise JobGoneError(state)

    def _tell_of_holds(self) -> None:
        """Ask now and then whether a job is queued for somebody holds it, which its state does not tell; told once a job."""
        queued = [job.job_id for future, job in self._waited.items() if self._states.get(future) == "PENDING"]
        if not queued or time.monotonic() - self._asked < _ASKS:
            return
        self._asked = time.monotonic()
        for job_id, why in _reasons(queued).items():
            if why.startswith("JobHeld") and job_id not in self._told:
                self._told.add(job_id)
                _tell_held(job_id, why, "release")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what has not ended: shards are whole or absent."""
        self._over.set()
        self._watch.join()
        for job in self._waited.values():
            with suppress(Exception):
                job.cancel(check=False)


def _tell_held(job_id: str, why: str, word: str) -> None:
    say(f"engine=slurm: job {job_id} is held ({why}) and waited for; scontrol {word} {job_id} lets it go on.")


def _known(job_id: str) -> bool:
    """Whether SLURM itself has a job, whatever its accounting says, if there is one; yes where it does not answer."""
    found = _queue([job_id], "%T")
    if found is None:
        return True
    if found.returncode:
        return "Invalid job id" not in found.stderr
    return bool(_WAITED_FOR & set(found.stdout.split()))


def _reasons(job_ids: Sequence[str]) -> dict[str, str]:
    """Why jobs are queued, of those of which SLURM says so."""
    found = _queue(job_ids, "%i %r")
    lines = [] if found is None else [line.split() for line in found.stdout.splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def _queue(job_ids: Sequence[str], form: str) -> subprocess.CompletedProcess[str] | None:
    """What SLURM says of jobs; None where it does not answer."""
    words = ["squeue", "--noheader", "--jobs", ",".join(job_ids), "--format", form]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_ANSWERS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def explain(error: BaseException) -> Lost | UserError:
    """What an error of submitit's means."""
    text = str(error)
    if isinstance(error, JobGoneError):
        return Lost(f"its job was neither queued nor running for {_GONE / 60:.0f} minutes ({text})", blame=False)
    if isinstance(error, OSError) or type(error).__name__ == "FailedSubmissionError":
        return RunError(f"engine=slurm: a job cannot be queued: {' '.join(text.split())[:200]}")
    if type(error).__name__ == "UncompletedJobError":
        state = text.partition("(state: ")[2].partition(")")[0]
        if any(word in state for word in _NOT_ITS_FAULT):
            return Lost(
                f"its job ended without an answer ({state})", blame=False, node="NODE" in state or "BOOT" in state
            )
        if "No module named 'dinoforge" not in text:  # what a job wrote stands in it
            return Lost("its process died")
    if "No module named" in text or isinstance(error, ImportError):
        return ConfigError("engine=slurm: a job has no dinoforge like this one; install the same on all machines.")
    return Lost(f"{type(error).__name__}: {' '.join(text.split())[:200]}")


@contextmanager
def _opened(wanted: Wanted) -> Iterator[Opened]:
    need("submitit", "slurm")
    if wanted.address not in {None, "local"}:
        raise ConfigError(
            f"address={wanted.address} is nothing for engine=slurm: it takes local, to try it without SLURM, or none."
        )
    if wanted.address is None and shutil.which("srun") is None:
        raise ConfigError("engine=slurm finds no srun here: start it on a machine that can submit jobs.")
    plain = Slurm(_submitter(wanted, gpus=0))
    networks = Slurm(_submitter(wanted, gpus=int(wanted.gpus))) if wanted.gpus else None
    count = wanted.workers or _JOBS
    try:
        yield Opened(executor=plain, at_once=count, networks=networks)
    finally:
        for one in (plain, networks):
            if one is not None:
                one.shutdown()


def _submitter(wanted: Wanted, *, gpus: int) -> Any:
    import submitit

    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    if wanted.gpus is not None and wanted.gpus != int(wanted.gpus):
        raise ConfigError(f"gpus_per_task={wanted.gpus:g} is no whole number, and SLURM gives whole GPUs.")
    jobs = submitit.AutoExecutor(wanted.folder.absolute() / "jobs", cluster=wanted.address or "slurm")
    jobs.update_parameters(
        name="dinoforge-curate", timeout_min=_MINUTES, gpus_per_node=gpus, cpus_per_task=1, tasks_per_node=1
    )
    return jobs


SLURM = Engine(
    about="jobs of SLURM, one a shard", open=_opened, explain=explain, takes=frozenset({"workers", "address", "gpus_per_task"}),
)  # fmt: skip
