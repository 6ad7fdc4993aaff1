"""Memory of this machine and of this process: what there is, what can be had, what is held."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

OWN = Path("/proc/self/cgroup")
"""The control groups of this process."""
CONTROL = Path("/sys/fs/cgroup")
"""Where they are shown."""
_FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_SECOND = "memory.max", "memory.current", "inactive_file"
"""Files with limit and use, and the name of what can be dropped."""


def memory_bytes(device: torch.device) -> int:
    """Memory in all: of the GPU, else of the machine, or what its control group leaves to this process of that."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([_whole(), *(limit for limit, _ in _groups())])


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the GPU, else of the machine (Linux: what can be given without swapping) and of the
    control groups that this process is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in info.read_text().splitlines()) if info.exists() else {}
    there = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else _whole()
    return max(0, min([there, *(limit - held for limit, held in _groups())]))


def _whole() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups() -> Iterator[tuple[int, int]]:
    """Limit of each control group that this process is in (a container, a job of SLURM), of version 1 or 2, and what is held of
    it: not what files were read of late and can be dropped."""
    for line in OWN.read_text(encoding="utf-8").splitlines() if OWN.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, kind = (CONTROL / "memory", _FIRST) if controllers else (CONTROL, _SECOND)
        here = root / path.strip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError, KeyError):  # "max", or one that is not to be seen from a container
                    limit, used = (int((folder / name).read_text(encoding="utf-8")) for name in kind[:2])
                    stat = dict(
                        row.split() for row in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
                    )
                    yield limit, used - int(stat[kind[2]])


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not tell (no /proc), the most it has held."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_bytes(torch.device("cpu"))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: on the GPU by torch's count, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # On Linux this one would count what the starting process held before it became this one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux kibibytes
