"""The report: one page of HTML that needs nothing else, made from what a run's folder says.

Names, labels and reasons come from files of anyone's making: the template escapes all of them, pictures are decoded and
encoded again, and the page forbids itself scripts and every request.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from dinoforge.base.log import clock
from dinoforge.data.manifest import is_manifest
from dinoforge.report.account import BASELINES, Account, number
from dinoforge.report.curves import Chart, Line, svg
from dinoforge.report.film import Cast, Frame, read_film
from dinoforge.report.strip import neighbours, strip
from dinoforge.report.tiles import png
from dinoforge.report.verdict import verdict

_SHOWN = 24
"""Pictures of a kind, and set-aside files, that are shown at most."""
_THUMBNAIL = 96
_LONGEST_TEXT = 200_000
"""Characters of the configuration that are shown at most."""
_BASELINE_NAMES = {"knn_pixels": "pixels", "knn_histogram": "colour histogram", "knn_untrained": "untrained"}
_WORDS = {
    "dino_local": "DINO, local views", "dino_global": "DINO, global views", "ibot": "iBOT, masked patches",
    "koleo": "KoLeo, spread", "total": "total",
}  # fmt: skip


def page(account: Account) -> str:
    """The HTML of a run's report."""
    film = read_film(account.folder / "film")
    return rendered(
        "page.html", name=account.folder.resolve().name, verdict=verdict(account), state=account.state, facts=_facts(account),
        quality=_quality(account), carded="uniformity" in account.series, scores=_scores(account),
        film=None if film is None else _film(*film), probed=account.setting("probe.source") is not None,
        intake=_intake(account), plan=_cost(account),
        warnings=_texts(account.plan.get("warnings")), curves=_curves(account), events=account.events,
        lineage=_lineage(account), config=account.config[:_LONGEST_TEXT], explore=_explore(account),
    )  # fmt: skip


def rendered(template: str, **values: Any) -> str:
    """The HTML of a page: our template and style, everything else escaped."""
    texts = resources.files("dinoforge")
    loader = FunctionLoader(lambda name: texts.joinpath("report", name).read_text("utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"whole": whole, "share": share, "figure": figure}
    style = Markup("".join(texts.joinpath(name).read_text("utf-8") for name in ("base/look.css", "report/style.css")))
    html = environment.get_template(template).render(style=style, **values)
    # A file name that is no UTF-8 reaches us as lone surrogates, which UTF-8 cannot hold.
    return html.encode("utf-8", "replace").decode("utf-8")


def whole(value: Any) -> str:
    """``50000`` -> ``50,000``; a dash where there is no number."""
    amount = number(value)
    return "–" if math.isnan(amount) else f"{amount:,.0f}"


def share(value: Any) -> str:
    """A fraction to three places; a dash where there is none."""
    amount = number(value)
    return "–" if math.isnan(amount) else f"{amount:.3f}"


def figure(value: Any) -> str:
    """A number to three significant digits; a dash where there is none."""
    amount = number(value)
    return "–" if math.isnan(amount) else f"{amount:,.0f}" if abs(amount) >= 1000 else f"{amount:.3g}"


def _duration(value: Any) -> str:
    seconds = number(value)
    return "–" if math.isnan(seconds) else clock(seconds)


def _size(value: Any) -> str:
    """Bytes in MiB or GiB."""
    amount = number(value)
    if math.isnan(amount):
        return "–"
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"


def _last(account: Account, name: str) -> float:
    values = account.points(name)[1]
    return float(values[-1]) if len(values) else math.nan


def _facts(account: Account) -> list[tuple[str, str]]:
    """The figures under the verdict."""
    found = [("step", f"{account.step:,}" + (f" of {account.steps:,}" if account.steps else ""))]
    if math.isfinite(account.images):
        found.append(("images seen", whole(account.images)))
    knn = account.compared("knn")[1]
    if len(knn):
        found.append(("k-NN accuracy", f"{knn[0]:.3f} → {knn[-1]:.3f}" if len(knn) > 1 else f"{knn[0]:.3f}"))
    rank = account.compared("rank")[1]
    if len(rank):
        found.append(("effective rank", f"{rank[0]:.1f} → {rank[-1]:.1f}" if len(rank) > 1 else f"{rank[0]:.1f}"))
    return [*found, ("time", _duration(account.seconds))]


def _chart(account: Account, title: str, columns: Mapping[str, str], **options: Any) -> Chart | None:
    """A chart of those columns that have values; None where none has."""
    lines = [Line(name, *account.points(column)) for column, name in columns.items()]
    lines = [line for line in lines if len(line.values)]
    phase = account.phase
    begins = phase if phase is not None and phase < account.step else None
    return Chart(title, lines, begins=begins, **options) if lines else None


def _drawn(charts: Sequence[Chart | None], prefix: str) -> list[dict[str, Any]]:
    there = [chart for chart in charts if chart is not None]
    return [{"title": chart.title, "svg": svg(chart, f"{prefix}{place}")} for place, chart in enumerate(there)]


def _quality(account: Account) -> list[dict[str, Any]]:
    levels = {_BASELINE_NAMES[name]: value for name, value in account.baselines.items()}
    charts = [
        _chart(account, "k-NN accuracy", {"knn": "k-NN"}, levels=levels, dots=True, wide=True),
        _chart(account, "Effective rank", {"rank": "rank"}, dots=True, wide=True),
        _chart(account, "Uniformity", {"uniformity": "uniformity"}, dots=True, wide=True),
        _chart(account, "Smoothness of patches", {"smoothness": "smoothness"}, dots=True, wide=True),
        _chart(account, "Neighbours kept", {"stability": "neighbours kept"}, dots=True, wide=True),
    ]
    return _drawn(charts, "quality")


def _curves(account: Account) -> list[dict[str, Any]]:
    terms = [name.removeprefix("losses.") for name in account.series if name.startswith("losses.")]
    norms = [name for name in account.series if name.startswith("gradient_norms.")]
    terms.sort(key=lambda name: name != "total")
    charts = [_chart(account, f"Loss: {_WORDS.get(term, term)}", {f"losses.{term}": term}) for term in terms[:12]]
    charts += [
        _chart(account, "Learning rate", {"learning_rate": "learning rate"}),
        _chart(
            account, "Gradient norms before clipping",
            {name: name.removeprefix("gradient_norms.") for name in norms[:6]}, logarithmic=True,
        ),
        _chart(
            account, "Targets of the teacher",
            {"vitals.teacher_entropy": "entropy", "vitals.target_information": "information",
             "vitals.prototype_use": "prototypes", "vitals.target_spread": "spread"},
        ),
        _chart(account, "Distance of teacher and student", {"vitals.teacher_distance": "distance"}),
        _chart(account, "Teacher temperature", {"teacher_temperature": "temperature"}),
        _chart(account, "Images per second", {"images_per_second": "images per second"}),
    ]  # fmt: skip
    return _drawn(charts, "curve")


def _scores(account: Account) -> list[dict[str, Any]]:
    """k-NN of the backbone beside what it has to beat."""
    steps, knn = account.compared("knn")
    rows = [{"name": _BASELINE_NAMES[name], "value": account.baselines[name], "own": False}
            for name in BASELINES if name in account.baselines]  # fmt: skip
    if (steps > 0).any():
        rows += [{"name": "trained, best", "value": float(knn[steps > 0].max()), "own": True},
                 {"name": "trained, last", "value": float(knn[-1]), "own": True}]  # fmt: skip
    return rows


def _film(cast: Cast, frames: list[Frame]) -> dict[str, Any]:
    """Pictures of the film strip as data addresses."""
    made = strip(frames)
    first, last = frames[0], frames[-1]
    thumbnails: dict[int, str] = {}

    def thumbnail(row: int) -> str:
        if row not in thumbnails:
            thumbnails[row] = jpeg(Image.fromarray(cast.thumbnails[row]))
        return thumbnails[row]

    def seen(frame: Frame) -> list[list[dict[str, Any]]]:
        return [
            [{"src": thumbnail(n.row), "same": n.same, "label": str(cast.labels[n.row])} for n in row]
            for row in neighbours(cast, frame.nearest)
        ]

    before, after = seen(first), seen(last)
    rows = [
        {
            "id": str(cast.ids[query]), "label": str(cast.labels[query]), "src": thumbnail(query),
            "parts": [_map(picture[query]) for picture in made.parts],
            "attention": [_map(picture[query]) for picture in made.attention],
            "before": before[query], "after": after[query],
        }
        for query in range(cast.queries)
    ]  # fmt: skip
    sample = [{"src": thumbnail(row), "label": str(cast.labels[row])} for row in range(min(_SHOWN, len(cast.ids)))]
    labelled = any(str(label) for label in cast.labels[: cast.queries])
    agreement = [_agreement(part) for part in (before, after)]
    return {"steps": made.steps, "rows": rows, "sample": sample, "gallery": len(cast.ids), "labelled": labelled,
            "agreement": agreement, "neighbours": first.nearest.shape[1]}  # fmt: skip


def _agreement(rows: list[list[dict[str, Any]]]) -> str:
    """``12 of 40``: neighbours of the query's own class."""
    every = [one["same"] for row in rows for one in row if one["same"] is not None]
    return f"{sum(every)} of {len(every)}"


def _map(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(picture))).decode()


def jpeg(picture: Image.Image) -> str:
    """A small picture as a data address."""
    picture = picture.convert("RGB")
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _intake(account: Account) -> dict[str, Any]:
    """What went in and what was dropped, with reasons."""
    curation = account.curation
    dropped = curation.get("dropped")
    reasons = {str(name): number(count) for name, count in dropped.items()} if isinstance(dropped, dict) else {}
    most = max((count for count in reasons.values() if math.isfinite(count)), default=0)
    examples = curation.get("examples")
    aside = Counter(row["reason"] for row in account.quarantine)
    return {
        "images": account.run.get("images"), "pool": curation.get("pool"), "kept": curation.get("kept"),
        "dropped": [{"reason": name, "count": count, "width": _percent(count, most)} for name, count in reasons.items()],
        "examples": _examples(examples if isinstance(examples, list) else []),
        "aside": len(account.quarantine), "reasons": aside.most_common(_SHOWN), "files": account.quarantine[:_SHOWN],
    }  # fmt: skip


def _percent(count: float, most: float) -> float:
    return round(100 * count / most, 1) if most > 0 and math.isfinite(count) else 0.0


def _examples(rows: Sequence[Any]) -> list[dict[str, str]]:
    """Dropped images with a picture where there is a sound one."""
    return [
        {"id": str(row.get("id", "")), "reason": str(row.get("reason", "")), "against": str(row.get("against") or ""),
         "src": _sound(row.get("thumbnail"))}
        for row in islice((row for row in rows if isinstance(row, dict)), _SHOWN)
    ]  # fmt: skip


def _sound(encoded: Any) -> str:
    """A picture from a file of unknown origin, decoded and encoded again; empty if it is none, or larger than it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            data = base64.b64decode(str(encoded).rpartition(",")[2], validate=True)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                return jpeg(picture) if max(picture.size) <= 2048 else ""
    except (
        OSError,
        ValueError,
        SyntaxError,
        binascii.Error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        return ""


def _texts(value: Any) -> list[str]:
    return [str(part) for part in value] if isinstance(value, list) else []


def _cost(account: Account) -> list[tuple[str, str, str]]:
    """What was planned and what it came to."""
    plan, summary = account.plan, account.summary
    batch, data = number(account.setting("plan.batch")), number(account.run.get("images"))
    seen = account.images
    seconds = account.seconds
    planned = number(account.steps)
    steps = plan.get("steps", account.steps)
    passes = plan.get("passes", planned * batch / data if data > 0 else None)
    rate = seen / seconds if seconds else math.nan
    rows = [
        ("steps", whole(steps), whole(account.step)),
        ("images seen", whole(plan.get("images", number(steps) * batch)), whole(seen)),
        ("passes over the data", figure(passes), figure(seen / data if data > 0 else None)),
        ("images a step", whole(plan.get("batch", batch)), whole(batch)),
        ("time", _duration(plan.get("seconds")), _duration(seconds)),
        ("images per second", figure(plan.get("images_per_second")), figure(rate)),
        ("peak memory", _size(plan.get("memory_bytes")), _size(summary.get("peak_memory_bytes"))),
    ]
    return [row for row in rows if row[1:] != ("–", "–")]


def _lineage(account: Account) -> list[tuple[str, str]]:
    """Where everything came from."""
    lineage = account.backbone.get("lineage")
    versions = account.run.get("versions")
    found = {
        "run": account.run.get("fingerprint"), "recipe": account.setting("recipe"), "seed": account.setting("seed"),
        "data": account.setting("data.source"), "data fingerprint": account.run.get("data"),
        "probe": account.setting("probe.source"), "started from": account.setting("init"),
        "backbone": account.backbone.get("fingerprint"),
        "kept at step": lineage.get("step") if isinstance(lineage, dict) else None,
        "parameters": whole(account.backbone["parameters"]) if "parameters" in account.backbone else None,
    }  # fmt: skip
    rows = [(name, str(value)) for name, value in found.items() if value is not None]
    return rows + [(str(k), str(v)) for k, v in (versions.items() if isinstance(versions, dict) else ())]


def _explore(account: Account) -> str | None:
    """The command that shows the backbone and its data in a browser; None where there is no backbone."""
    data = account.setting("data.source")
    if not isinstance(data, str) or not account.backbone:
        return None
    words = [f"backbone={account.folder}", f"data={data}"]
    if data.endswith(".parquet") and "\0" not in data and is_manifest(Path(data)):
        words.append(f"manifest={account.folder}")
    return shlex.join(["dinoforge", "explore", *words])
