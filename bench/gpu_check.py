"""What a machine with a CUDA device says in under 9 minutes: the tests marked ``gpu``, and how fast the step is.

``make gpu-check``, or without an installation ``PYTHONPATH=src python3 bench/gpu_check.py``. Writes ``gpu-check.json`` into the
current folder. The steps are those of ``bench/step.py`` in bf16, as they are and compiled, beside the plain step; ``mfu`` is
the share of the card's dense bf16 peak that goes into the backbones' matrix products; what the heads compute is not counted.

Exit status: 0 if all is well, 1 if a test or a bench failed (the file says why), 2 without a CUDA device.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from math import log2
from pathlib import Path
from typing import Any

import torch

from dinoforge.base.hardware import versions
from dinoforge.base.memory import memory_bytes

ROOT = Path(__file__).parents[1]
WHOLE, TESTS, BENCH = 500, 120, 120
"""Seconds at most: in all, for the tests, for one bench. What is running when its time is up is ended."""
ROUNDS = 10
BATCHES = {"vit_small": 128, "vit_base": 64, "vit_large": 32}
"""Images a step on a card of 80 GB; on a smaller one, the largest power of two in proportion."""
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
"""Operations a second of dense bf16 products with float32 sums (NVIDIA's data sheets), by the exact name that torch gives:
an L40S is no L4, and a part of a card (MIG) has a part of its peak."""


def share_of_peak(teraflops: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation; None where the card's peak is not known."""
    return None if peak is None else round(teraflops * 1e12 / peak, 4)


def batch_for(most: int, memory: int) -> int:
    """The batch that fits a card of 80 GB, or its share on a smaller one, at least 2."""
    return max(2, min(most, 2 ** int(log2(most * memory / 80e9))))


def run(command: list[str], seconds: float) -> tuple[str, str]:
    """What a process wrote to its output and to its errors; it and all that it started end when the time is up."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        return out, f"{errors}\nTimeoutError: ended after {seconds:.0f} s"


def last_error(text: str) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return ["", *lines, *named][-1][:500]


def counted(summary: str) -> dict[str, int]:
    """Tests that passed, failed and were skipped, from pytest's last lines; a file that cannot be read counts as failed."""
    found = {
        word.rstrip("s"): int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", summary)
    }
    return {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0) + found.get("error", 0),
        "skipped": found.get("skipped", 0),
    }


def gpu_tests(seconds: float) -> dict[str, Any]:
    """Run the tests marked ``gpu``. Only their files are read, so that nothing else needs to be installed."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-m", "gpu", "--continue-on-collection-errors", *files]
    out, errors = run([*command, "-p", "no:cacheprovider"], seconds)
    lines = out.strip().splitlines()
    found: dict[str, Any] = counted(lines[-1] if lines else "")
    found["failures"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if not any(counted(lines[-1] if lines else "").values()):
        found["error"] = last_error(errors) or last_error(out)
    return found


def bench(case: str, settings: dict[str, str], *, peak: float | None, seconds: float) -> dict[str, Any]:
    """One line of ``bench/step.py`` with its share of the peak, or why there is none."""
    asked = {"case": case, "settings": settings}
    if seconds <= 0:
        return asked | {"error": "no time was left"}
    words = [case, "bf16", str(ROUNDS), *(f"{key}={value}" for key, value in settings.items())]
    out, errors = run([sys.executable, str(ROOT / "bench" / "step.py"), *words], seconds)
    try:
        found: dict[str, Any] = json.loads(out)
    except json.JSONDecodeError:
        return asked | {"error": last_error(errors)}
    return found | {"mfu": {kind: share_of_peak(rate, peak) for kind, rate in found["backbone_tflops"].items()}}


def main() -> int:
    """Check, write, and say in a few lines what was found."""
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here; nothing was checked.", file=sys.stderr)
        return 2
    end = time.monotonic() + WHOLE
    device, name = torch.device("cuda"), torch.cuda.get_device_name()
    memory, peak = memory_bytes(device), PEAKS.get(name)
    tests = gpu_tests(TESTS)
    print(f"tests: {tests}", flush=True)
    benches = []
    for speed in ({}, {"compile": "true"}):
        for case, most in BATCHES.items():
            settings = {"batch": str(batch_for(most, memory)), **speed}
            benches.append(bench(case, settings, peak=peak, seconds=min(BENCH, end - time.monotonic())))
            kept = ("error", "images_per_second", "mfu", "peak_bytes")
            print(f"{case} {settings}: { {key: benches[-1][key] for key in kept if key in benches[-1]} }", flush=True)
    found = {
        "device": name, "memory_bytes": memory, "peak_bf16_flops": peak, "cuda": torch.version.cuda, "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "tests": tests, "benches": benches,
    }  # fmt: skip
    Path("gpu-check.json").write_text(json.dumps(found, indent=2) + "\n")
    bad = tests["failed"] or not tests["passed"] or any("error" in one for one in (tests, *benches))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
