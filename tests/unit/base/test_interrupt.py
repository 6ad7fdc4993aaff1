"""A request to stop reaches whoever asked for the work, wherever it comes: nothing takes it for a damaged picture or a lost shard."""

import codecs
import os
import signal
import sys
import types

import pytest

import dinoforge.data.decode as decoding
from dinoforge.base.errors import Interrupted
from dinoforge.base.interrupt import interruptible
from dinoforge.curate.executors.inline import INLINE, Inline
from dinoforge.curate.executors.ray import _started
from dinoforge.curate.executors.run import Shard, Shards
from dinoforge.curate.executors.seam import Opened, Wanted
from dinoforge.data.decode import decode


def stop(*_args, **_words):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("nobody was told")


def stopped(job, _processes):
    stop()


def while_decoding(monkeypatch, folder):
    monkeypatch.setattr(decoding, "_open", stop)
    decode(b"picture")


def while_at_a_shard(monkeypatch, folder):
    engine = Shards(INLINE, Opened(executor=Inline(), at_once=1), folder)
    list(engine.each(stopped, [Shard("one", 10, 1)], title="try", total=10))


def while_ray_begins(monkeypatch, folder):
    driver = types.ModuleType("ray._private.worker")
    private, ray = types.ModuleType("ray._private"), types.ModuleType("ray")
    ray.is_initialized, ray.init = lambda: False, stop
    for module in (ray, private, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(private, "worker", driver, raising=False)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "0")
    _started(Wanted(folder=folder))


def while_a_codec_is_at_work(monkeypatch, folder):
    """Many of Python's are written in Python; to what is raised in one it adds the codec's name, if it can."""
    name = "stopped"

    def found(asked):
        return codecs.CodecInfo(encode=stop, decode=stop, name=name) if asked == name else None

    codecs.register(found)
    try:
        b"name".decode(name)
    finally:
        codecs.unregister(found)


@pytest.mark.parametrize("work", [while_decoding, while_at_a_shard, while_ray_begins, while_a_codec_is_at_work])
def test_a_request_to_stop_is_no_fault_of_what_is_at_work(work, monkeypatch, tmp_path):
    with pytest.raises(Interrupted, match=r"^SIGTERM received; all is kept"), interruptible("all is kept"):
        work(monkeypatch, tmp_path)
