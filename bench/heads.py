"""The loss on prototypes in peak memory and milliseconds, beside the plain form; one JSON line.

``python bench/heads.py [ROUNDS]``. A pass is Sinkhorn-Knopp on the teacher's scores, the cross-entropy of masked patches (iBOT)
and its gradient towards the student's bottleneck vectors and the prototypes, which both kinds must agree on. The plain form is
what one writes first: all scores at once, log-softmax, and autograd. Each kind lives in a process of its own and they take
turns; ``peak_bytes`` is what it held at most beyond what it held before its first pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.hardware import processor, versions
from dinoforge.base.memory import peak_bytes, resident_bytes
from dinoforge.loss.ibot import IbotConfig, ibot_loss
from dinoforge.loss.scores import Scores
from dinoforge.loss.targets import sinkhorn

PROTOTYPES, ROWS, PRECISIONS = (65_536, 131_072), (512, 2048), ("fp32", "bf16")
KINDS = ("ours", "plain")
BOTTLENECK, TEACHER, STUDENT = 256, 0.05, 0.1


def made(prototypes: int, rows: int, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's and student's vectors and the prototypes, all of length 1, the student's parts with a gradient."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    teacher, student, directions = (
        F.normalize(torch.randn(count, BOTTLENECK), dim=-1).to(dtype) for count in (rows, rows, prototypes)
    )
    return teacher, student.requires_grad_(), directions.requires_grad_()


def ours(teacher: Tensor, student: Tensor, prototypes: Tensor) -> Tensor:
    target = sinkhorn(Scores(teacher, prototypes.detach()), temperature=TEACHER)
    weight = torch.ones(len(student))
    return ibot_loss(
        Scores(student, prototypes), target, weight, views=len(student), config=IbotConfig(student_temperature=STUDENT)
    )


def plain(teacher: Tensor, student: Tensor, prototypes: Tensor) -> Tensor:
    with torch.no_grad():
        q = (F.linear(teacher, prototypes).float() / TEACHER).exp().T
        for _ in range(3):
            q /= q.sum(1, keepdim=True)
            q /= q.sum(0, keepdim=True)
    log_p = (F.linear(student, prototypes).float() / STUDENT).log_softmax(-1)
    return -(q.T * log_p).sum(-1).mean()


class Child:
    """One kind on one size in a process of its own, which makes a pass whenever it is told to."""

    def __init__(self, *what: str) -> None:
        command = [sys.executable, __file__, "--serve", *what]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once(self) -> tuple[float, float, float, int]:
        """Seconds, loss, length of the gradient, and bytes held at most."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("pass\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(1)  # it has said why
        seconds, loss, slope, held = json.loads(answer)
        return seconds, loss, slope, held


def serve(kind: str, prototypes: str, rows: str, precision: str) -> None:
    """What a child does."""
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor] = ours if kind == "ours" else plain
    if kind == "ours":
        keep_freed_memory()  # as the product does
    tensors = made(int(prototypes), int(rows), precision)
    before = resident_bytes()
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = loss_of(*tensors)
        slopes = torch.autograd.grad(loss, tensors[1:])
        seconds = time.perf_counter() - began
        held = peak_bytes(torch.device("cpu")) - before
        print(json.dumps([seconds, loss.item(), slopes[1].float().norm().item(), held]), flush=True)


def measured(prototypes: int, rows: int, precision: str, rounds: int) -> dict[str, object]:
    """Both kinds on one size."""
    children = {kind: Child(kind, str(prototypes), str(rows), precision) for kind in KINDS}
    first = {kind: child.once() for kind, child in children.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    held = {}
    for _ in range(rounds):
        for kind, child in children.items():
            seconds, _, _, held[kind] = child.once()
            taken[kind].append(seconds)
    for child in children.values():
        child.process.communicate()
    return {
        "prototypes": prototypes, "rows": rows, "precision": precision,
        "milliseconds": {kind: round(1e3 * median(found)) for kind, found in taken.items()},
        "peak_bytes": held,
        "loss": {kind: round(loss, 4) for kind, (_, loss, _, _) in first.items()},
        "gradient": {kind: round(slope, 6) for kind, (_, _, slope, _) in first.items()},
    }  # fmt: skip


def main(rounds: int) -> None:
    """Measure and print."""
    results = [measured(*size, rounds) for size in product(PROTOTYPES, ROWS, PRECISIONS)]
    machine = {"threads": torch.get_num_threads(), "device": processor(), **versions()}
    print(json.dumps({"bench": "heads", "rounds": rounds, "results": results, **machine}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
