"""The page of ``predict``: what a head says of many pictures at a glance, and each picture beside its map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from dinoforge.report.page import figure, rendered, whole

SHOWN = 500
"""Pictures on the page at most; the folder holds all."""


def predictions_page(
    legend: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, name: str, quarantined: int
) -> str:
    """The HTML beside the predictions of a folder; pictures are shown from there.

    Args:
        legend: As in ``predict.json``.
        rows: As in ``predictions.jsonl``.
        name: Of what was predicted.
        quarantined: Pictures that could not be used.
    """
    kind = legend["kind"]
    facts = [("pictures", whole(len(rows))), ("kind", kind), ("could not be used", whole(quarantined))]
    shown = sorted(rows, key=lambda row: row["probability"]) if kind == "classification" else rows
    return rendered(
        "predictions.html", name=name, kind=kind, facts=facts, classes=_classes(legend, rows), pictures=len(rows),
        shown=[_one(kind, row, legend.get("unit") or "") for row in shown[:SHOWN]],
    )  # fmt: skip


def _classes(legend: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every class that was seen, largest first: its share of all pixels, each picture counting alike, or of all pictures."""
    found = Counter[str]()
    for row in rows:
        found.update(row.get("classes") or ({row["name"]: 1.0} if "name" in row else {}))
    colours = {one["name"]: one["colour"] for one in legend.get("classes", ())}
    return [
        {"name": one, "share": amount / len(rows), "colour": "#{:02x}{:02x}{:02x}".format(*colours[one])}
        for one, amount in sorted(found.items(), key=lambda pair: -pair[1])
    ]


def _one(kind: str, row: Mapping[str, Any], unit: str) -> dict[str, str]:
    """A picture, where its files are, and what is said of it."""
    if kind == "classification":
        said = f"{row['name']} ({row['probability']:.3f})"
    elif kind == "segmentation":
        said = ", ".join(f"{name} {share:.0%}" for name, share in list(row["classes"].items())[:3])
    else:
        said = f"{figure(row['least'])} to {figure(row['largest'])} {unit}, median {figure(row['median'])}"
    files = row.get("files", {})
    return {"id": row["id"], "said": said, "picture": quote(files["picture"]) if files else ""}
