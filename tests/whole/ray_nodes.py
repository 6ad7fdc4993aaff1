"""Two nodes of Ray on this machine, of one core each: prints their address, then kills what it is told and says so.

``worker`` is one that has a task, ``node`` the second as soon as it has one, ``head`` the first. With ``$FULL`` the object store
is full, and nothing of it goes to the disk.
"""

import os
import signal
import sys
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray._private import services
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
FULL = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.001}
_ask = services.get_node


def patient(*words):
    """Ray gives a node 30 seconds to begin, a busy machine may need more."""
    end = time.monotonic() + 400
    while True:
        try:
            return _ask(*words)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def calling(parent):
    """The processes of a node that run a task."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            of = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and (place / "cmdline").read_bytes().startswith(b"ray::_called"):
                found.append(int(place.name))
        except (OSError, ValueError):
            continue
    return found


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


def busy(*nodes):
    """The tasks of some nodes, as soon as there is one."""
    end = time.monotonic() + 400
    while not (found := [pid for node in nodes for pid in calling(raylet(node))]):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def kill(which, head, second):
    """Processes of a node, and what its tasks run in; or one of the latter."""
    if which == "worker":
        pids = busy(head, second)[:1]
    else:
        tasks = busy(second) if which == "node" else calling(raylet(head))
        node = second if which == "node" else head
        pids = [one.process.pid for some in node.all_processes.values() for one in some] + tasks
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def fill(address):
    """Hold as much as there is room for."""
    ray.init(address, log_to_driver=False)
    held = []
    try:
        while len(held) < 30:
            held.append(ray.put(bytes(10_000_000)))
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
        return held
    raise RuntimeError("it takes more than was said")


if __name__ == "__main__":
    services.get_node = patient
    config = {"_system_config": FULL} if "FULL" in os.environ else {}
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE, **config})
    second = cluster.add_node(wait=False, **NODE)
    cluster.wait_for_nodes(timeout=400)
    held = fill(cluster.address) if config else []
    print(cluster.address, flush=True)
    for line in sys.stdin:
        kill(line.strip(), cluster.head_node, second)
        print(line.strip(), flush=True)
    ray.shutdown()
    cluster.shutdown()
