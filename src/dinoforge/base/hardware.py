"""What this machine is, and in which precision it is fast. Machines of one name differ by orders of magnitude."""

from __future__ import annotations

import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError

Precision = Literal["fp32", "bf16"]

LIBRARIES = {
    "numpy": "numpy",
    "pillow": "Pillow",
    "opencv": "opencv-python-headless",
    "pyarrow": "pyarrow",
    "faiss": "faiss-cpu",
}
"""Libraries whose versions are recorded, by the name of their package."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision and the evidence for it."""

    precision: Precision
    why: str


def device(wish: str = "auto") -> torch.device:
    """The device to compute on: CUDA, else Apple's MPS, else the CPU; or the one wished for. Each rank has a GPU of its own.

    Raises:
        ConfigError: No such device here, or not one for every rank.
    """
    if wish != "auto":
        try:
            found = torch.empty(0, device=wish).device
        except (RuntimeError, AssertionError):
            raise ConfigError(
                f"speed.device={wish} is not on this machine; auto, cpu, and where there are any cuda, cuda:1, mps are."
            ) from None
    elif torch.cuda.is_available():
        found = torch.device("cuda", torch.cuda.current_device())
    else:
        found = torch.device("mps" if torch.backends.mps.is_available() and not dist.launched() else "cpu")
    if dist.launched() and found.type != "cpu":
        return _own_gpu(wish, found)
    return found


def _own_gpu(wish: str, found: torch.device) -> torch.device:
    if found.type != "cuda" or (wish != "auto" and ":" in wish):
        raise ConfigError(f"speed.device={wish} is one device for several ranks; auto, cuda and cpu give each its own.")
    gpus = torch.cuda.device_count()
    if dist.local_world() > gpus:
        raise ConfigError(f"{dist.local_world()} ranks on a machine with {gpus} GPUs; start at most {gpus} there.")
    return found


def cpu_flags() -> frozenset[str]:
    """The processor's instruction sets, where the system tells (Linux)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def processor() -> str:
    """The processor's name, where the system tells; else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def cpu_has_bf16(flags: frozenset[str]) -> bool:
    """Whether a bf16 matrix product has instructions of its own; without them torch emulates it, hundreds of times slower."""
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def matmul_rate(dtype: torch.dtype, *, side: int, device: torch.device) -> float:
    """Measured floating-point operations a second of a square matrix product, best of three after one warm-up."""
    left = torch.full((side, side), 0.5, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        left @ left
        wait_for(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a processor has, always."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_precision(wish: str, device: torch.device) -> Choice:
    """``auto``: the fastest precision that is sound here. A wish is granted, with a warning where it will be slow."""
    if wish == "fp32":
        return Choice("fp32", "asked for")
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if wish == "bf16":
            return Choice("bf16", "asked for" if native else "asked for; warning: this GPU has no bf16 instructions")
        return Choice("bf16", "the GPU has bf16 instructions") if native else Choice("fp32", "the GPU has no bf16")
    if device.type != "cpu":
        return Choice("bf16", "asked for") if wish == "bf16" else Choice("fp32", f"the safe choice on {device.type}")
    return _choose_on_cpu(wish, device)


def resumed_precision(wish: str, here: Choice, before: Precision | None) -> Choice:
    """The precision of a run that goes on: ``auto`` stays with the one before, whatever is fastest now; a wish wins.

    Args:
        wish: ``auto`` or a precision.
        here: What ``choose_precision`` made of the wish.
        before: In which the run was trained until now; None if that is not known, or nothing was.
    """
    if before is None:
        return here
    if wish != "auto":
        return here if here.precision == before else Choice(here.precision, f"{here.why}; until now it was {before}")
    other = "" if here.precision == before else f"; a new run would take {here.precision}: {here.why}"
    return Choice(before, f"as until now{other}")


def _choose_on_cpu(wish: str, device: torch.device) -> Choice:
    """bf16 where the processor has instructions for it and a short measurement agrees."""
    kind = torch.backends.cpu.get_cpu_capability()
    if not cpu_has_bf16(cpu_flags()):
        if wish != "bf16":
            return Choice("fp32", f"this CPU ({kind}) has no bf16 instructions")
        # Small enough to be over in milliseconds even where it is emulated.
        slow, fast = (matmul_rate(t, side=64, device=device) for t in (torch.bfloat16, torch.float32))
        return Choice(
            "bf16",
            f"asked for; warning: this CPU ({kind}) has no bf16 instructions: {slow / 1e9:.2f} GFLOP/s in bf16 against "
            f"{fast / 1e9:.2f} in fp32 on a 64x64 product, and worse on larger ones",
        )
    half, full = (matmul_rate(t, side=512, device=device) for t in (torch.bfloat16, torch.float32))
    measured = f"{half / 1e9:.0f} GFLOP/s in bf16, {full / 1e9:.0f} in fp32 on a 512x512 product ({kind})"
    if wish == "bf16":
        return Choice("bf16", f"asked for; {measured}")
    return Choice("bf16" if half > full else "fp32", measured)


def compute_context(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which networks compute in that precision; master weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """What was run on what, for every record."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _version(package) for name, package in LIBRARIES.items()},
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # faiss may be a build of another name
        return "not installed"
