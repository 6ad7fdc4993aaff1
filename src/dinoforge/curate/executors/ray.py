"""Shards as tasks of Ray, on a cluster or on this machine with its GPUs: extra ``ray``."""

from __future__ import annotations

import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from dinoforge.base.errors import ConfigError, RunError, UserError
from dinoforge.base.hardware import cores
from dinoforge.curate.executors.head import Head, HeadLostError
from dinoforge.curate.executors.seam import Engine, Lost, Opened, Wanted, beyond_here, need, place_of, reached, whole
from dinoforge.curate.executors.task import same_everywhere

PORT = 6379
_HINT = "Start Ray there with: ray start --head --node-ip-address=HOST --port=6379 --include-dashboard=false"
_ONCE = "RAY_gcs_server_port_wait_time_s"
"""How often Ray tries to reach a head; every try takes 40 seconds."""
_SET = ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AUTH_TOKEN", _ONCE)
"""In the environment of this process while Ray is in use."""
_STORE = 200_000_000
"""Bytes of the object store of a Ray that is started here: shards send little."""
_FULL = {"ObjectStoreFullError", "OutOfDiskError"}
_NODE = {"NodeDiedError", "LocalRayletDiedError", "OwnerDiedError"}


class Ray(Executor):
    """Every call is a stateless task of one core, tried once: who gave it decides what is tried again."""

    def __init__(self, head: Head, gpus: float = 0) -> None:
        import ray

        self._head = head
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_called)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **words: Any) -> Future[Any]:
        """Call somewhere in the cluster."""
        return self._head.until_lost(self._task.remote(fn, args, words).future())


def _called(fn: Callable[..., Any], args: tuple[Any, ...], words: dict[str, Any]) -> Any:
    return fn(*args, **words)


def explain(error: BaseException) -> Lost | UserError:
    """What an error of Ray's means, by what the library calls it."""
    if isinstance(error, HeadLostError):
        return RunError("engine=ray: the head of the cluster is lost; once there is one, the same command goes on.")
    cause = getattr(error, "cause", None) or error
    kinds = {kind.__name__ for kind in (*type(error).__mro__, *type(cause).__mro__)}
    said = " ".join(str(cause).split())
    text = said[:200]
    if "OutOfMemoryError" in kinds:
        return Lost("its process was ended by Ray, for memory ran out", blame=False)
    if kinds & _NODE:
        return Lost("its node is gone", blame=False, node=True)
    if "WorkerCrashedError" in kinds:
        return Lost("its process died")
    if kinds & _FULL or ("object store" in said and "full" in said):
        return RunError(
            "engine=ray: the object store of Ray is full. What shards send is small, so other work fills it: wait for that, "
            "or start Ray with a larger --object-store-memory."
        )
    if "ImportError" in kinds or "ModuleNotFoundError" in said:
        what = said[max(0, said.find("ModuleNotFoundError")) :][:200]
        return ConfigError(
            f"engine=ray: a worker has no dinoforge like this one ({what}); install the same on all machines."
        )
    if "RayError" in kinds and "RayTaskError" not in kinds:
        return RunError(f"engine=ray: {type(error).__name__}: {text}")
    return Lost(f"{type(cause).__name__}: {text}")


@contextmanager
def _opened(wanted: Wanted) -> Iterator[Opened]:
    need("ray", "ray")
    if wanted.address is not None:
        _refuse_open(wanted.address)
        reached(wanted.address, port=PORT, hint=_HINT)
    before = {name: os.environ.get(name) for name in _SET}
    try:
        ray = _started(wanted)
        head = Head(*place_of(ray.get_runtime_context().gcs_address, port=PORT))
        try:
            yield _room(ray, head, wanted)
        finally:
            head.leave()
            ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refuse_open(address: str) -> None:
    """Whoever reaches a cluster may run anything on it.

    Raises:
        ConfigError: Others may reach this one, and it takes no token.
    """
    if beyond_here(address, port=PORT) and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConfigError(
            f"address={address} is open to other machines, and whoever reaches Ray may run anything there: start it and this "
            "with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN_PATH."
        )


@cache
def _token() -> str:
    """Of the clusters that this process starts: Ray listens to all machines, and nobody else shall use it."""
    return secrets.token_hex(32)


def _started(wanted: Wanted) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing phones home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task that asks for no GPU sees none
    if wanted.address is not None:
        os.environ.setdefault(_ONCE, "1")
    elif not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = _token()  # and Ray asks for one, unless it is told not to
    import ray
    import ray._private.worker as driver

    # It would print to standard output what is said in one line of each shard that failed.
    driver.print_to_stdstream = lambda *_args, **_words: None
    if ray.is_initialized():
        raise RunError("Ray is in use by this process already; call ray.shutdown() before.")
    before = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if wanted.address is None:
            count = wanted.workers or cores()
            ray.init("local", num_cpus=count, include_dashboard=False, object_store_memory=_STORE, **quiet)
        else:
            ray.init(whole(wanted.address, port=PORT), **quiet)
    except Exception as error:  # of many kinds, none of them documented
        text = " ".join(str(error).split())[:300] or type(error).__name__
        where = "on this machine" if wanted.address is None else f"at address={wanted.address}"
        raise RunError(f"Ray {where} cannot be used: {text}") from None
    finally:
        with suppress(ValueError):  # not the main thread, which alone Ray takes the signal from
            signal.signal(signal.SIGTERM, before)
    return ray


def _room(ray: Any, head: Head, wanted: Wanted) -> Opened:
    """How much fits at once; also sees that a worker has the same package.

    Raises:
        ConfigError: The cluster has not what tasks ask for, or another version.
    """
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = sum(int(one.get("CPU", 0)) for one in has), [one.get("GPU", 0.0) for one in has]
    if not cpus:
        raise ConfigError(f"address={wanted.address}: this cluster of Ray has no core that takes tasks (--num-cpus).")
    if wanted.gpus is not None and wanted.gpus > max(gpus):
        raise ConfigError(
            f"gpus_per_task={wanted.gpus:g} is more than the {max(gpus):g} GPUs that Ray has on one machine."
        )
    plain = Ray(head)
    same_everywhere(plain, explain, "ray")
    count = wanted.workers or cpus
    networks = None if wanted.gpus is None else Ray(head, wanted.gpus)
    at_once = None if wanted.gpus is None else min(count, sum(int(one / wanted.gpus) for one in gpus))
    return Opened(executor=plain, at_once=count, networks=networks, networks_at_once=at_once)


RAY = Engine(
    about="tasks of Ray, on a cluster (address=) or this machine's cores and GPUs", open=_opened, explain=explain,
    takes=frozenset({"workers", "address", "gpus_per_task"}),
)  # fmt: skip
