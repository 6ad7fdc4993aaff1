"""The model card of an export: what is known of a backbone, and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinoforge.base.home import at_home
from dinoforge.export.compare import COSINE, HALF_COSINE, HALF_RELATIVE, Checked
from dinoforge.export.target import Target
from dinoforge.model.weights import Backbone, Preprocessing

NO_LICENCE = "unknown: state it with licence="
_SHOWN = ("width", "depth", "heads", "patch", "pixels", "channels", "registers", "ffn", "positions")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*")
"""A licence's identifier, as the head of a card holds one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What lies beside a backbone that tells where it is from."""

    scores: dict[str, float] = field(default_factory=dict)
    """Of the backbone, as its folder gives them."""
    run: dict[str, Any] = field(default_factory=dict)
    """``run.json`` of the run that it is from; empty where that is not beside it."""
    summary: dict[str, Any] = field(default_factory=dict)
    """``summary.json`` of that run."""


def origin(address: str, backbone: Backbone) -> Origin:
    """What the folder of a backbone, and of the run it is part of, tell. Files that are absent or damaged tell nothing."""
    place = at_home(address)
    if not place.is_dir():
        return Origin()
    folder = place / "backbone" if (place / "backbone" / "backbone.json").exists() else place
    scores = _read(folder / "backbone.json").get("scores")
    run = _read(folder.parent / "run.json")
    if not run or run.get("fingerprint") != backbone.lineage.get("run"):
        return Origin(_numbers(scores))  # another run's: a copy of the folder may lie anywhere
    return Origin(_numbers(scores), run, _read(folder.parent / "summary.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(scores: Any) -> dict[str, float]:
    if not isinstance(scores, dict):
        return {}
    return {str(name): float(value) for name, value in scores.items() if isinstance(value, (int, float))}


def card(
    target: Target, backbone: Backbone, found: Origin, checked: Checked, *, licence: str | None, version: str
) -> str:
    """The card as Markdown.

    Args:
        licence: Of the weights, as the user states it.
        version: Of dinoforge.
    """
    config = backbone.config
    head = ["---", f"library_name: {target.library}", "pipeline_tag: image-feature-extraction"]
    head += [f"license: {licence.lower()}"] if licence and _PLAIN.fullmatch(licence) else []
    parameters = sum(tensor.numel() for tensor in backbone.module.state_dict().values())
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# Backbone {backbone.fingerprint} for {target.title}",
            "",
            "A vision transformer that gives self-supervised features of pictures, frozen: one vector an image, one a patch. "
            f"Written by dinoforge {version}.",
            "",
            f"- Architecture: {', '.join(f'{name} {getattr(config, name)}' for name in _SHOWN)}",
            f"- Parameters: {parameters:,}, float32",
            f"- Licence of the weights: {licence or NO_LICENCE}",
            "",
            "## Where it comes from",
            "",
            *_lineage(backbone, found),
            "",
            "## Scores",
            "",
            *_scores(found),
            "",
            "## How pictures are prepared",
            "",
            *_preparing(backbone.preprocessing, config.patch),
            "",
            "## Checked",
            "",
            *_checked(checked),
            "",
            "## How to open it",
            "",
            "```python",
            target.usage.replace("1 + REGISTERS", str(1 + config.registers)),
            "```",
            "",
        ]
    )


def _lineage(backbone: Backbone, found: Origin) -> list[str]:
    lineage, summary = backbone.lineage, found.summary
    lines = [f"- Fingerprint of architecture and weights: {backbone.fingerprint}"]
    lines += [f"- Recipe: {lineage.get('recipe') or 'unknown'}"]
    lines += [f"- {name}: {_value(value)}" for name, value in lineage.items() if name not in {"recipe", "data", "run"}]
    lines += [f"- Run: {lineage.get('run', 'unknown')}"]
    if summary:
        lines += [
            f"- The run took {summary.get('steps', '?')} steps and saw {summary.get('images', '?')} images in all"
        ]
    else:
        lines += ["- Steps and images of the whole run: unknown (no summary.json beside the backbone)"]
    many = found.run.get("images")
    told = f"fingerprint {lineage['data']}" if "data" in lineage else "unknown"
    lines += [f"- Training data: {told}{f', {many:,} images' if isinstance(many, int) else ', their number unknown'}"]
    return lines


def _value(value: Any) -> str:
    """A folder's or file's last name, for where it lies on the writer's machine is nobody's business."""
    text = str(value)
    return Path(text).name if "/" in text and "://" not in text else text


def _scores(found: Origin) -> list[str]:
    knn = found.summary.get("knn")
    rows = [f"| {name} | {value:.4f} |" for name, value in found.scores.items()]
    if isinstance(knn, Mapping) and isinstance(knn.get("best"), (int, float)):
        rows.append(f"| best k-NN accuracy of the run | {knn['best']:.4f} |")
    if not rows:
        return ["None known."]
    return ["As the run that made it measured them.", "", "| score | value |", "|---|---|", *rows]


def _preparing(how: Preprocessing, patch: int) -> list[str]:
    named = {1: "grey", 3: "RGB"}.get(how.channels, f"{how.channels} channels")
    scaled = (
        "brought to 0 to 1" if how.range is None else f"brought to 0 to 1 from {[list(pair) for pair in how.range]}"
    )
    return [
        f"- {named}; short side resized to {how.short_side} pixels, bicubic and antialiased; the middle "
        f"{how.side} x {how.side} pixels cut out",
        f"- numbers {scaled}, minus {list(how.mean)}, divided by {list(how.std)}",
        f"- other heights and widths are taken too: multiples of {patch} pixels, at least {2 * patch}",
    ]


def _checked(checked: Checked) -> list[str]:
    if checked.compared:
        said = f"Opened again by {checked.runtime}; its features compared with the backbone's in float32, on noise"
    else:
        said = f"NOT compared with its own library: {checked.runtime}. Features of what was read back, on noise"
    if checked.differs:
        said += ", away from the native size with positions resampled by the target's own rule (below)"
    rows = [
        f"| {one.precision} | {one.images} x {one.height} x {one.width} "
        f"| {one.max_error:.2g} | {one.relative:.2g} | {one.cosine:.7f} |"
        for one in checked.seen
    ]
    notes = [*checked.differs, *checked.notes, *(f"left out: {line}" for line in checked.dropped)]
    return [
        f"{said}:",
        "",
        "| precision there | images x rows x columns | greatest difference | share of the greatest feature | smallest cosine |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"The bounds are {checked.bound:g} of the greatest feature and a cosine of {COSINE} in fp32, {HALF_RELATIVE:g} and "
        f"{HALF_COSINE} in bf16.",
        *(["", *(f"- {note}" for note in notes)] if notes else []),
    ]
