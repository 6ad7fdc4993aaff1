"""Attention, fused against written out, forward and backward: what decides ``model.attention.attend``. One JSON line.

python bench/attention.py [rounds]
"""

import json
import sys
import time

import torch

from dinoforge.base.allocator import keep_freed_memory
from dinoforge.base.hardware import cpu_flags, cpu_has_bf16, versions
from dinoforge.model.attention import attend

SHAPES = ((128, 4, 65, 32), (256, 4, 17, 32), (32, 6, 50, 64), (8, 6, 257, 64), (1, 6, 1370, 64))
KINDS = ("fused", "written_out")


def seconds(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[float, float]:
    """Forward and backward of one call, laid out as the backbone lays it out."""
    rows, heads, tokens, channels = shape
    x = torch.randn(rows, tokens, 3, heads, channels, dtype=dtype, requires_grad=True)
    towards = torch.randn(rows, tokens, heads * channels, dtype=dtype)
    began = time.perf_counter()
    out = attend(x, kind)
    middle = time.perf_counter()
    out.backward(towards)
    return middle - began, time.perf_counter() - middle


def main(rounds: int) -> None:
    keep_freed_memory()  # as the product does
    dtypes = [torch.float32, *([torch.bfloat16] if cpu_has_bf16(cpu_flags()) else [])]
    rows = []
    for shape in SHAPES:
        for dtype in dtypes:
            best = {kind: (float("inf"),) * 2 for kind in KINDS}
            for _ in range(rounds):  # alternated, for this machine's speed drifts
                for kind in KINDS:
                    best[kind] = min(best[kind], seconds(kind, shape, dtype), key=sum)
            rows.append(
                {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
                | {f"{kind}_ms": [round(1e3 * part, 2) for part in best[kind]] for kind in KINDS}
                | {"fused_over_written_out": round(sum(best["fused"]) / sum(best["written_out"]), 2)}
            )
    print(json.dumps({"bench": "attention", "threads": torch.get_num_threads(), **versions(), "rows": rows}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
