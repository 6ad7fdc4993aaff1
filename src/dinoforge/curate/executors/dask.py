"""Shards as tasks of Dask on a cluster that is there: extra ``dask``.

Dask gives to another worker what a worker that died had, and answers that lay in its memory are made again. Here a call leaves
a note on the disk when it begins and another with its answer. So whatever Dask tries again is answered from the disk, or is
told to have died, or to have been on a machine that is gone: then who gave the shard decides what is tried again, and knows
which shard it was.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import secrets
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dinoforge.base.errors import ConfigError, RunError, UserError
from dinoforge.base.files import explained
from dinoforge.base.log import say
from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted, beyond_here, need, reached, whole
from dinoforge.curate.executors.task import same_everywhere

PORT = 8786
_HINT = "Start one there with: dask scheduler --host HOST --port 8786 --no-dashboard"
_TLS = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"))
_ANSWERS = 10
"""Seconds in which a scheduler that listens has answered."""
_EARLIER = 600.0
"""That an earlier start's shards, which workers go on with, are waited for."""
_LOOKS = 1.0
_BACK = 10.0
"""Seconds in which a machine that lost a worker has one again, or is taken for lost itself."""
_NONE = 300.0
"""Seconds without any worker until the run ends."""
_LOST = {"FutureCancelledError", "CommClosedError", "ClosedClientError"}

_under_way = Counter[str]()
"""In a worker: calls that it is at, by the folder of who asked for them."""


T = TypeVar("T")


class BegunBeforeError(Exception):
    """A call was begun by a worker that is gone, on the machine that is named, and has no answer."""


class NodeGoneError(Exception):
    """The same, and that machine has no worker any more."""


class Dask(Executor):
    """Calls that begin once. Dask's own executor leaves them unanswered where the scheduler is lost while one arrives.

    Args:
        folder: Of this run, for the notes; readable wherever calls run.
    """

    def __init__(self, client: Any, folder: Path) -> None:
        self._client, self._waited = client, dict[Future[Any], Any]()
        # Of this start alone: what an earlier one left with the workers must not begin any more.
        self._calls = folder.absolute() / f"calls-{secrets.token_hex(8)}"
        with explained(self._calls):
            self._calls.mkdir()
        self._aside = ThreadPoolExecutor()
        self._over = Event()
        Thread(target=self._look, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        """Call on a worker."""
        note = self._calls / secrets.token_hex(8)
        future: Future[Any] = Future()
        theirs = self._waited[future] = self._client.submit(_called, note, fn, args, words, pure=False, retries=0)
        # Aside: Dask has one thread for all answers.
        theirs.add_done_callback(lambda theirs: self._aside.submit(self._answered, future, theirs, _answer_of(note)))
        return future

    def _answered(self, future: Future[Any], theirs: Any, answer_file: Path) -> None:
        found = _outcome(theirs.result)
        if isinstance(found, BegunBeforeError) and not self._has_worker(str(found)):
            found = NodeGoneError(str(found))
        if self._waited.pop(future, None) is not None:  # Dask keeps an answer as long as anybody may ask for it
            _settle(future, found)
        with suppress(OSError):
            answer_file.unlink()

    def _has_worker(self, host: str) -> bool:
        """Whether a machine has a worker, or soon has one again."""
        end = time.monotonic() + _BACK
        while time.monotonic() < end and not self._over.is_set():
            if host in _hosts(self._client):
                return True
            time.sleep(_LOOKS)
        return False

    def _look(self) -> None:
        """End what is waited for where no worker is left; Dask would wait for ever."""
        since: float | None = None
        while not self._over.wait(_LOOKS):
            with suppress(Exception):  # of the scheduler's; whoever waits for an answer is told
                there = _hosts(self._client)
                if there or not self._waited:
                    since = None
                elif since is None:
                    since = time.monotonic()
                    say(f"engine=dask: no worker is left; waiting {_NONE / 60:.0f} minutes for one.")
                elif time.monotonic() - since > _NONE:
                    for future in list(self._waited):
                        if self._waited.pop(future, None) is not None:
                            _settle(
                                future,
                                RunError(
                                    "engine=dask: no worker is left; once there is one, the same command goes on."
                                ),
                            )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Look no more."""
        self._over.set()
        self._aside.shutdown(wait=False, cancel_futures=True)


def _settle(future: Future[Any], found: Any) -> None:
    if isinstance(found, BaseException):
        future.set_exception(found)
    else:
        future.set_result(found)


def _outcome(call: Callable[[], T]) -> T | BaseException:
    try:
        return call()
    except BaseException as error:
        return error


def _hosts(client: Any) -> set[str]:
    """Machines that have workers."""
    return {urlsplit(address).hostname or "" for address in client.scheduler_info(n_workers=-1)["workers"]}


def _answer_of(note: Path) -> Path:
    return note.with_suffix(".answer")


def _called(note: Path, fn: Callable[..., Any], args: tuple[Any, ...], words: dict[str, Any]) -> Any:
    """Call once, whatever number of workers are asked to.

    Raises:
        BegunBeforeError: Another one began, and died of it.
        ConfigError: The worker runs several tasks in one process.
        RunError: The notes cannot be written here.
    """
    host, threads = _here()
    _check_threads(threads, f"A worker on {socket.gethostname()}")
    try:
        with note.open("x") as file:
            file.write(host)
    except FileExistsError:
        try:
            return pickle.loads(
                _answer_of(note).read_bytes()
            )  # a file of this run's own folder, which is its owner's alone
        except FileNotFoundError:
            raise BegunBeforeError(note.read_text()) from None
    except OSError as error:
        raise RunError(f"A worker on {socket.gethostname()} cannot write {note.parent}: {error.strerror}; out= must lie where "
                       "all machines see it.") from None  # fmt: skip
    run = str(note.parent.parent)
    multiprocessing.current_process()._config.pop("daemon", None)  # type: ignore[attr-defined]  # else it may start none
    _under_way[run] += 1
    try:
        answer = fn(*args, **words)
    finally:
        _under_way[run] -= 1
    _put_down(_answer_of(note), pickle.dumps(answer))
    return answer


def _put_down(path: Path, held: bytes) -> None:
    """Whole or not at all. Where its folder is gone the run is over, and nobody asks any more."""
    with suppress(FileNotFoundError):
        number, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(number, "wb") as file:
            file.write(held)
        Path(name).replace(path)


def _here() -> tuple[str, int]:
    """The machine of the worker that this is, as the scheduler names it, and how many tasks it runs in one process."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # none
        return "", 1
    return urlsplit(worker.address).hostname or "", worker.state.nthreads


def _check_threads(threads: int, who: str) -> None:
    if threads > 1:
        raise ConfigError(
            f"{who} runs {threads} tasks in one process, and a shard takes one to itself: start "
            "dask worker with --nthreads 1 --nworkers auto."
        )


def explain(error: BaseException) -> Lost | UserError:
    """What an error of Dask's means, by what the library calls it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())[:200]
    if isinstance(error, UserError):
        return error
    if isinstance(error, BegunBeforeError):
        return Lost("its process died")
    if isinstance(error, NodeGoneError):
        return Lost(f"{error} has no worker any more", blame=False, node=True)
    if "KilledWorker" in kinds:  # each time before it began
        return Lost("the workers that were to do it died", blame=False)
    if isinstance(error, ImportError | AttributeError) or "No module named" in text or "deserializ" in text:
        return ConfigError(
            f"engine=dask: the scheduler or a worker has no dinoforge like this one ({text}); install the same on all machines."
        )
    if isinstance(error, CancelledError) or kinds & _LOST:
        return RunError("engine=dask: the scheduler is lost; once there is one, the same command goes on.")
    return Lost(f"{type(error).__name__}: {text}", blame=not isinstance(error, OSError | MemoryError))


@contextmanager
def _opened(wanted: Wanted) -> Iterator[Opened]:
    need("distributed", "dask")
    if wanted.address is None:
        raise ConfigError("engine=dask needs the address of a scheduler: address=HOST:8786.")
    if beyond_here(wanted.address, port=PORT) and not wanted.address.startswith("tls://"):
        raise ConfigError(
            f"address={wanted.address} is open to other machines, and whoever reaches Dask may run anything there: start it "
            "with TLS, and give address=tls://HOST:PORT."
        )
    reached(wanted.address, port=PORT, hint=_HINT)
    with _client(whole(wanted.address, port=PORT)) as client:
        count = _workers(client, wanted.address)
        _await_earlier(client, str(wanted.folder.absolute()))
        executor = Dask(client, wanted.folder)
        same_everywhere(executor, explain, "dask")
        yield Opened(executor=executor, at_once=wanted.workers or count)


def _client(address: str) -> Any:
    import distributed

    words = distributed.Security().get_connection_args("client")
    if address.startswith("tls://") and words.get("ssl_context") is None:
        raise ConfigError(f"address={address} needs certificates in {_TLS}.")
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said in one line by who called
    try:
        with ThreadPoolExecutor(1) as aside:  # a notebook's own loop runs in this thread
            aside.submit(asyncio.run, _greeted(address, words)).result()
        return distributed.Client(address, timeout=_ANSWERS, set_as_default=False)
    except Exception as error:  # of many kinds, none of them documented
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(f"address={address} is no scheduler of Dask that can be used: {text}") from None


async def _greeted(address: str, words: dict[str, Any]) -> None:
    """See that a scheduler answers; the client would wait for ever for anything else that listens."""
    from distributed.comm import connect

    comm = await asyncio.wait_for(connect(address, timeout=_ANSWERS, **words), _ANSWERS)
    comm.abort()


def _workers(client: Any, address: str) -> int:
    """How many workers there are.

    Raises:
        ConfigError: None, or one that runs several tasks in one process.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError(f"address={address}: this scheduler of Dask has no worker.")
    _check_threads(max(worker["nthreads"] for worker in workers.values()), f"address={address}: a worker there")
    return len(workers)


def _await_earlier(client: Any, run: str) -> None:
    """Wait until no worker is at a shard of an earlier start: nobody can stop it, and it must not be done twice.

    Raises:
        RunError: That takes too long.
        ConfigError: A worker has no dinoforge like this one.
    """
    end, told = time.monotonic() + _EARLIER, False
    while left := _at(client, run):
        if time.monotonic() > end:
            raise RunError(
                f"engine=dask: workers are at {left} shards of an earlier start for {_EARLIER:.0f} seconds; start them anew."
            )
        if not told:
            say(f"engine=dask: waiting for {left} shards of an earlier start, which workers go on with.")
            told = True
        time.sleep(_LOOKS)


def _at(client: Any, run: str) -> int:
    """Calls of a run that workers are at. Those of a worker that ends meanwhile are not; one that is silent may be at some."""
    found: list[dict[str, Any]] = []
    asking = Thread(target=lambda: found.append(client.run(_calls_of, run, on_error="return")), daemon=True)
    asking.start()
    asking.join(_EARLIER)
    if not found:
        raise RunError(f"engine=dask: a worker is silent for {_EARLIER:.0f} seconds; start the workers anew.")
    for answer in found[0].values():
        if isinstance(answer, BaseException) and isinstance(told := explain(answer), ConfigError):
            raise told
    return sum(answer for answer in found[0].values() if isinstance(answer, int))


def _calls_of(run: str) -> int:
    return _under_way[run]


DASK = Engine(
    about="tasks of Dask, on the cluster at address=", open=_opened, explain=explain,
    takes=frozenset({"workers", "address"}),
)  # fmt: skip
