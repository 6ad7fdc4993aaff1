"""The page of a curation: how many went at each stage and why, with pictures; needs nothing else, like a run's report.

Axes: Y by X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dinoforge.base.log import clock
from dinoforge.report.page import jpeg, rendered, whole


def curation_page(summary: Mapping[str, Any], examples: Mapping[str, Any], *, name: str) -> str:
    """The HTML of a curation's report.

    Args:
        summary: As in ``summary.json``.
        examples: ``dropped`` (by stage), ``seeds``, ``clusters``, with pictures as ``[Y X 3]`` arrays or None.
        name: Of the folder.
    """
    stages = [_stage(row, summary["pool"], examples["dropped"].get(row["name"], [])) for row in summary["stages"]]
    unsafe = summary["safety"] == "not safety-filtered"
    return rendered(
        "curation.html", name=name, level="unsure" if unsafe else "good", sentence=_sentence(summary),
        facts=_facts(summary), stages=stages, reasons=list(summary["dropped"].items()),
        embedder=summary["embedder"], seeds=[_set(one) for one in examples["seeds"]],
        clusters=[{**one, "images": _drawn(one["images"])} for one in examples["clusters"]],
        evenness=summary["evenness"] or {"before": None, "after": None}, made=_made(summary),
    )  # fmt: skip


def _sentence(summary: Mapping[str, Any]) -> str:
    kept, pool = summary["kept"], summary["pool"]
    text = f"{whole(kept)} of {whole(pool)} images are in."
    return f"{text} They are {summary['safety']}." if summary["safety"] else text


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("pool", whole(summary["pool"])), ("kept", whole(summary["kept"]))]
    found += [("dropped", whole(sum(summary["dropped"].values())))]
    if summary["seeds"]:
        found.append(("seeds added", whole(summary["seeds"])))
    return [*found, ("time", clock(summary["seconds"]))]


def _stage(row: Mapping[str, Any], pool: int, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    gone = row["before"] - row["after"]
    shown = _drawn(examples)
    return {
        "name": row["name"], "about": row["about"], "before": row["before"], "gone": gone, "after": row["after"],
        "width": round(100 * gone / max(pool, 1), 1), "examples": shown,
        "couples": any(one.get("other") for one in shown),
    }  # fmt: skip


def _drawn(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_one(example) for example in examples]


def _one(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with its picture as a data address, and that of what stands against it."""
    pixels = example["picture"]
    near = example.get("similarity")
    other = example.get("other")
    return {
        "id": example["id"], "reason": example.get("reason", ""),
        "src": "" if pixels is None else jpeg(Image.fromarray(np.ascontiguousarray(pixels))),
        "similarity": "" if near is None or math.isnan(near) else f"{near:.3f}",
        "other": None if other is None else _one(other),
    }  # fmt: skip


def _set(one: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{"seed": _one(row["seed"]), "near": _drawn(row["near"])} for row in one["rows"]]
    return {**one, "rows": rows}


def _made(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    files = [
        f"{one['name']}: {file['name']}, sha256 {file['sha256']}, licence {file['licence'] or 'not given'}"
        for one in summary["safety_filters"] for file in one["files"]
    ]  # fmt: skip
    found = {
        "pool": summary["settings"]["pool"],
        "seeds": ", ".join(summary["settings"]["seeds"]),
        "kept out": summary["settings"]["keep_out"],
        "near copies by": summary["descriptor"],
        "embedded by": summary["embedder"],
        "safety": summary["safety"],
        "safety's files": "; ".join(files),
        "fingerprint": summary["fingerprint"],
    }
    return [(label, str(value)) for label, value in found.items() if value]
