"""What takes longer than a page should: computed once, one after another, while pages say how far it is."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from dinoforge.base.errors import RunError, UserError
from dinoforge.base.log import say

T = TypeVar("T")

_AT_ONCE = 0.4
"""Seconds that a page waits for a result before it says that it is being computed."""
_AGAIN = 1.0
"""Seconds after which what failed is tried again, if somebody asks."""
_ENDS = 10.0
"""Seconds that what is being computed may take to end."""


@dataclass(slots=True)
class Job:
    """One thing that is computed."""

    title: str
    """What, for a person: ``The map of the collection``."""
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    done: int = 0
    total: int = 0
    """0 while it is not known."""
    now: str = ""
    """What of it is being done."""
    began: float = 0.0
    since: float = 0.0
    """When what is being done now was told of first."""
    first: int = 0
    """How much of it was finished then, perhaps by an earlier start."""
    ended: float = 0.0
    error: Exception | None = None
    result: Any = None
    over: threading.Event = field(default_factory=threading.Event)
    told: threading.Event = field(default_factory=threading.Event)
    """Set once it has said how far it is, or is over."""
    stopped: bool = False

    @property
    def seconds(self) -> float:
        """Since it began, or that it took."""
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at the speed so far; None while nothing can be said."""
        if self.state != "running" or self.done <= self.first or self.done > self.total:
            return None
        return (time.monotonic() - self.since) * (self.total - self.done) / (self.done - self.first)

    def tick(self, done: int, total: int, now: str) -> None:
        """So much of it is finished; what comes first may end before the next begins to count.

        Raises:
            Stopped: Nobody wants it any more.
        """
        if self.stopped:
            raise Stopped
        if now != self.now:
            self.since, self.first = time.monotonic(), done
        self.done, self.total, self.now = done, total, now
        self.told.set()


class Stopped(Exception):
    """A job was ended before it was done."""


class Computing(Exception):
    """The answer is not there yet."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"{job.title} is being computed")
        self.job = job


class Jobs:
    """Everything that was asked for, by name; a single thread computes it, in the order of asking."""

    def __init__(self) -> None:
        self._jobs, self._waiting = dict[str, Job](), queue.SimpleQueue[tuple[Job, Callable[[Job], Any]] | None]()
        self._closed = False
        self._lock, self._thread = threading.Lock(), threading.Thread(target=self._work, name="explore", daemon=True)

    def need(self, name: str, title: str, compute: Callable[[Job], T]) -> T:
        """The result of that name, computed if nobody asked for it before.

        Args:
            compute: Is given the job, to say how far it is.

        Raises:
            Computing: It is not there yet.
            UserError: What went wrong when it was computed, a second ago at most: then it is tried again.
        """
        job = self._begun(name, title, compute)
        job.over.wait(_AT_ONCE)
        if job.error is not None:
            raise job.error
        if job.state != "done":
            raise Computing(job)
        found: T = job.result
        return found

    def all(self) -> list[Job]:
        """Every job, the first asked for first."""
        with self._lock:
            return list(self._jobs.values())

    def begun(self, name: str) -> Job | None:
        """The job of that name, if anybody asked for it."""
        with self._lock:
            return self._jobs.get(name)

    def close(self) -> None:
        """End what is computed, where it next says how far it is, and compute nothing more."""
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                job.stopped = True
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(_ENDS)

    def _begun(self, name: str, title: str, compute: Callable[[Job], Any]) -> Job:
        with self._lock:
            if self._closed:
                raise RunError("the explorer is being closed.")
            held = self._jobs.get(name)
            if held is None or (held.state == "failed" and time.monotonic() - held.ended > _AGAIN):
                self._jobs[name] = Job(title)
                self._waiting.put((self._jobs[name], compute))
            if not self._thread.is_alive():
                self._thread.start()
            return self._jobs[name]

    def _work(self) -> None:
        while True:
            waiting = self._waiting.get()
            if waiting is None or self._closed:
                return
            job, compute = waiting
            job.began, job.state = time.monotonic(), "running"
            try:
                job.result = compute(job)
            except Exception as error:  # told to whoever asks for the result
                job.error = RunError("the explorer is being closed.") if isinstance(error, Stopped) else error
                if not isinstance(error, UserError | Stopped):
                    say(f"{job.title} failed: {type(error).__name__}: {error}")
            job.ended = time.monotonic()
            job.state = "done" if job.error is None else "failed"
            job.told.set()
            job.over.set()
