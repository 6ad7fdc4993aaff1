"""Runs the shards of a stage on an engine: shows how far they are, tries once more what lost its process, then gives it up."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dinoforge.base.errors import RunError, UserError
from dinoforge.base.files import clear_leftovers, explained, write_atomic
from dinoforge.base.log import Ticker, progress, say
from dinoforge.curate.executors.inline import INLINE, Inline
from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted
from dinoforge.curate.executors.task import Kept, Outcome, Stored, done, installed

T = TypeVar("T")

TRIES = 2
"""Failures of a shard until it is given up: its process may have been killed for a neighbour's memory."""
PATIENCE = 8
"""Times in a row that shards fail, none done in between, before the run gives up."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of a stage's work that knows whether it is done: by the file that it writes."""

    name: str
    """For the person at the terminal: which images, or pairs."""
    size: int
    """Of them."""
    job: Any
    """What the work takes: small, for it travels."""
    file: Path | None = None
    """What the work writes."""


Work = Callable[[Any, int], Any]
"""(job, processes that it may start) to a small answer. A function of a module, so that it can be found elsewhere."""


@dataclass(frozen=True, slots=True)
class Shards:
    """An engine that is open, and where this run puts what is sent to all."""

    engine: Engine
    opened: Opened
    folder: Path

    def each(
        self, work: Work, shards: Sequence[Shard], *, title: str, total: int, unit: str = "images",
        network: bool = False, here: bool = False,
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        """The answers of all shards with their places, as they come; ``Lost`` for one that failed twice by its own fault.

        Args:
            total: Images, or what ``Shard.size`` counts, of those shards too that are done already.
            network: Whether it runs a network, for which an engine may give a GPU.
            here: Whether this process must do it.

        Raises:
            RunError: Shard after shard is lost, one twice by no fault of its own, or the engine itself.
            UserError: What the work raises.
        """
        if not shards:
            return
        for folder in {shard.file.parent for shard in shards if shard.file is not None}:
            clear_leftovers(folder, "*.npz", "*.tar")
        before = total - sum(shard.size for shard in shards)
        # What is a single shard in all begins no process for it. One that is left over does: it may be the one that kills it.
        here = here or self.opened.here or (self.opened.local and len(shards) == 1 and before == 0)
        with progress(title, total, unit=unit, start=before) as tick:
            answers = self._here(work, shards) if here else self._sent(work, shards, title, network)
            yield from _ticked(answers, shards, before, tick)

    def _here(self, work: Work, shards: Sequence[Shard]) -> Iterator[tuple[int, Any]]:
        """In this process; a fault in it ends the run."""
        for place, shard in enumerate(shards):
            yield place, Inline().submit(work, shard.job, self.opened.processes).result()

    def _sent(self, work: Work, shards: Sequence[Shard], title: str, network: bool) -> Iterator[tuple[int, Any]]:
        opened = self.opened
        executor, room = opened.executor, opened.at_once
        if network and opened.networks is not None:
            executor, room = opened.networks, opened.networks_at_once or room
        crew = _Crew(self.engine, executor, title, shards, work, max(1, opened.processes // min(room, len(shards))))
        yield from crew.run(room)

    def kept(self, value: T) -> Kept[T]:
        """Something that all shards need and that can be pickled, a source for one."""
        return Kept(value, lambda: self._stored(value))

    def _stored(self, value: Any) -> Stored:
        held = pickle.dumps(value)
        digest = hashlib.sha256(held).hexdigest()
        path = self.folder.absolute() / f"{digest[:16]}.pickle"
        if not path.exists():
            write_atomic(path, lambda file: file.write(held))
        return Stored(path, digest)


def _ticked(
    answers: Iterator[tuple[int, Any]], shards: Sequence[Shard], before: int, tick: Ticker
) -> Iterator[tuple[int, Any]]:
    ready = before
    for count, (place, answer) in enumerate(answers, start=1):
        yield place, answer
        ready += shards[place].size
        tick(ready, f"shard {count:,} of {len(shards):,}")


class _Crew:
    """Shards that wait, are under way, and failed once."""

    def __init__(
        self, engine: Engine, executor: Executor, title: str, shards: Sequence[Shard], work: Work, processes: int
    ) -> None:
        self.engine, self.executor, self.title, self.shards = engine, executor, title, shards
        self.work, self.processes = work, processes
        self.waiting = deque(range(len(shards)))
        self.again: deque[int] = deque()
        self.alone: deque[int] = deque()
        self.flying: dict[Future[Outcome], int] = {}
        self.failed, self.starved, self.row = Counter[int](), Counter[int](), 0

    def run(self, room: int) -> Iterator[tuple[int, Any]]:
        """Answers, as they come."""
        while self.waiting or self.flying or self.again or self.alone:
            while self.waiting and len(self.flying) < room:
                self._begin(self.waiting.popleft())
            while self.again and not self.waiting and len(self.flying) < room:
                self._begin(self.again.popleft())
            if self.alone and not self.flying:
                self._begin(self.alone.popleft())
            yield from self._finished(wait(self.flying, return_when=FIRST_COMPLETED).done)

    def _begin(self, place: int) -> None:
        payload = pickle.dumps((self.work, self.shards[place].job, self.processes))
        try:
            future = self.executor.submit(done, installed(), os.getcwd(), payload)  # noqa: PTH109
        except UserError:
            raise
        except Exception as error:  # whatever an engine raises where it can take nothing more
            future = Future()
            future.set_exception(error)
        self.flying[future] = place

    def _finished(self, futures: set[Future[Outcome]]) -> Iterator[tuple[int, Any]]:
        lost: list[Lost] = []
        answered = False
        for future in futures:
            place = self.flying.pop(future)
            found = self._told(future)
            if isinstance(found, UserError):
                raise found
            if not isinstance(found, Lost):
                answered = True
                yield place, found["answer"]
                continue
            lost.append(found)
            if self._failed(place, found):
                yield place, found
        self._patient(lost, answered)

    def _told(self, future: Future[Outcome]) -> Outcome | Lost | UserError:
        try:
            error = future.exception()
        except CancelledError as cancelled:  # by the engine; nobody here does
            error = cancelled
        if error is not None:
            return self.engine.explain(error)
        outcome = future.result()
        for line in outcome["said"]:
            say(line)
        if outcome["error"] is not None:
            return outcome["error"]
        return outcome if outcome["fault"] is None else Lost(outcome["fault"], outcome["blame"])

    def _failed(self, place: int, lost: Lost) -> bool:
        """Say that a shard failed; whether it is given up.

        Raises:
            RunError: It failed alone, again by no fault of its own.
        """
        tries = self.failed if lost.blame else self.starved
        tries[place] += 1
        name, over = self.shards[place].name, tries[place] == TRIES
        if over and not lost.blame:
            raise RunError(
                f"{self.title}: shard {name} failed twice, the second time with nothing beside it: {lost.why}. The "
                "same command goes on."
            )
        then = (
            "given up"
            if over
            else "it is tried once more"
            if lost.blame
            else "it is tried once more, alone, in the end"
        )
        say(f"{self.title}: shard {name} failed, {lost.why}; {then}.")
        if not over:
            (self.again if lost.blame else self.alone).append(place)
        return over

    def _patient(self, lost: Sequence[Lost], answered: bool) -> None:
        """Count the times that all that came was failures, those of one moment as one; a node may take many along.

        Raises:
            RunError: Nothing else comes.
        """
        if answered:
            self.row = 0
        elif any(not one.node for one in lost):
            self.row += 1
        if self.row >= PATIENCE:
            raise RunError(
                f"{self.title}: {self.row} times in a row shards failed and none was done, the last: {lost[-1].why}. Is there "
                "memory left? Take fewer workers."
            )


def here(workers: int = 1) -> Shards:
    """This process itself; so many processes help it to read and compare images."""
    opened = Opened(executor=Inline(), at_once=1, processes=workers, here=True, local=True)
    return Shards(INLINE, opened, Path())


@contextmanager
def running(engine: Engine, wanted: Wanted) -> Iterator[Shards]:
    """An engine while it is needed. What was sent is removed in the end.

    Raises:
        UserError: It cannot be had.
    """
    shutil.rmtree(wanted.folder, ignore_errors=True)
    with explained(wanted.folder):
        wanted.folder.mkdir(mode=0o700, parents=True)  # what is unpickled from it could run any code
    try:
        with engine.open(wanted) as opened:
            yield Shards(engine, opened, wanted.folder)
    finally:
        shutil.rmtree(wanted.folder, ignore_errors=True)
