"""``demo``: the whole path in minutes, from a polluted pool to better features, and a page that shows it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.base.files import write_json
from dinoforge.base.log import say
from dinoforge.data.augment import centre
from dinoforge.data.decode import Broken
from dinoforge.data.picture import damage
from dinoforge.data.sources.options import scheme_of, shown
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.baseline import BASELINES
from dinoforge.evaluate.knn import KnnConfig, knn_scores
from dinoforge.features.kept import files_of
from dinoforge.recipes.opened import labelled
from dinoforge.recipes.recipe import ProbeConfig
from dinoforge.recipes.settle import settle
from dinoforge.runs import pretrain
from dinoforge.verbs.curate import Curated, curate
from dinoforge.verbs.looking import whole
from dinoforge.verbs.plan import pretraining
from dinoforge.verbs.report import report

POOL = "toy://species?images=4000&seed={seed}&copies=0.08&junk=0.06&leaks=0.02"
"""What the demo starts from: creatures to learn, exact and near copies of them and of test pictures, noise, broken files."""
CURATED = "curated"
"""Folder of the curation, with its own report."""
_FACTS = "curation.json"
"""What the run's report shows of it."""
RECIPE = "vit_micro.toy"
SECONDS = 140
"""Training time by the plan's estimate, which knows nothing of probes; a slower machine sees fewer images in that time."""
_EXAMPLES = 12
"""Dropped images that the report shows, of every reason in turn."""
_FEW = "exact,copies"
"""Stages for pictures of one's own: few and wanted, none goes for how it looks."""


def demo(*, images: str | None = None, out: str = "demo-out", seed: str | int = 0, **settings: Any) -> dict[str, Any]:
    """The whole path in minutes, offline: curate (copies, leaks and junk go), plan, pretrain, k-NN before and after, report.

    Any setting of `pretrain` may be added, such as precision=fp32 or plan.images=100k.

    Args:
        images: A folder of pictures (or any source) instead of the toy world; class folders, if any, are only for the k-NN.
        out: Folder for everything that is made; open report.html in it.
        seed: Of the pictures and of the training.
    """
    folder, number = Path(out), whole("seed", seed)
    for word in ("data", "probe", "data.source", "probe.source", "config", "init"):
        if word in settings:
            raise ConfigError(
                f"demo takes no {word}=; images= names the pictures, and the demo makes the rest of them."
            )
    if images == "":
        raise ConfigError("images= is empty; name a folder of pictures, or leave it out for the toy world.")
    pool = images or POOL.format(seed=number)
    settle({"recipe": RECIPE, **settings, "data": pool})  # a typo is told before anything is read or written
    say(f"1/4 curate {shown(pool)}: copies, leaks and junk go")
    curated = _curate(folder, pool)
    say(", ".join(f"{count} times {reason}" for reason, count in curated["dropped"].items()) or "nothing to drop")

    probe = _probe(pool)
    words = {"recipe": RECIPE, **settings, "data": str(folder / CURATED / "manifest.parquet"), "seed": number}
    if probe is not None:
        words["probe"] = pool
    say("2/4 plan")
    begun = _images_of(folder / "run" / "config.yaml")
    own_length = bool({"plan", "plan.images", "plan.passes"} & words.keys())
    if begun is not None and not own_length:
        words["plan.images"] = begun  # what an earlier start settled on: the same command goes on
    planned = pretraining(words)
    if planned.images_per_second and begun is None and not own_length:
        words["plan.images"] = min(planned.images, max(planned.batch, int(planned.images_per_second * SECONDS)))
        planned = pretraining(words)
    say("3/4 pretrain")
    done = pretrain(out=folder / "run", **words)
    write_json(folder / "run" / "plan.json", asdict(planned))
    baselines = {} if probe is None else _baselines(*probe, settle(words).recipe.probe)
    write_json(folder / "run" / "baselines.json", baselines)
    say("4/4 report")
    page = report(run=str(folder / "run"), out=str(folder / "report.html"))
    knn = done.knn or {}
    facts = {
        "curate": {name: curated[name] for name in ("pool", "kept", "dropped")},
        **baselines,
        "knn_untrained": knn.get("first"),
        "knn_trained": knn.get("last"),
        "rank": done.rank,
        "seconds": done.seconds,
        "peak_memory_bytes": done.peak_memory_bytes,
        "backbone": done.backbone,
        "report": page.path,
    }
    write_json(folder / "demo.json", facts)
    return facts


def _images_of(config: Path) -> int | None:
    """The length of a run's plan, or None where there is no run."""
    return settle({"config": str(config)}).recipe.plan.images if config.exists() else None


def _curate(folder: Path, pool: str) -> dict[str, Any]:
    """Curate the images to train on into a folder of their own; write and give what the run's report shows of it.

    Of a pool with splits the test images are no candidates: they are what nothing may be a copy of.

    Raises:
        RunError: The run that is there was trained on other images; what it refers to stays.
    """
    source = open_source(pool)
    pictures = fingerprint([source.fingerprint, files_of(source)])
    if (folder / "run" / "config.yaml").exists() and _pictures_of(folder / _FACTS) not in {None, pictures}:
        raise RunError(f"out={folder} holds a run on other images than those of {shown(pool)} now; give a new folder.")
    drawn = scheme_of(pool) == "toy"
    words: dict[str, Any] = {"pool": pool, "stages": None if drawn else _FEW}
    test = next((name for name in ("test", "val") if has_split(source, name)), None)
    if has_split(source, "train") and test:
        of = f"{pool}{'&' if '?' in pool else '?'}split="
        words |= {"pool": f"{of}train", "keep_out": f"{of}{test}", "stages": None if drawn else f"{_FEW},leaks"}
    found = curate(out=str(folder / CURATED), retrieve="all", **words)
    assert isinstance(found, Curated)
    facts = {
        "pool": found.pool, "kept": found.kept, "dropped": found.dropped, "pictures": pictures,
        "examples": _examples(folder / CURATED / "dropped.parquet", source),
    }  # fmt: skip
    write_json(folder / _FACTS, facts)
    return facts


def _pictures_of(facts: Path) -> str | None:
    """The fingerprint of what an earlier start curated, or None where that is not known."""
    try:
        found: str | None = json.loads(facts.read_text(encoding="utf-8")).get("pictures")
    except (OSError, ValueError):
        return None
    return found


def _examples(dropped: Path, source: Source) -> list[dict[str, Any]]:
    """Some of what went, of every reason in turn."""
    rows = pq.read_table(dropped).to_pylist()
    turn: dict[str, int] = {}
    for row in rows:
        row["turn"] = turn[row["reason"]] = turn.get(row["reason"], -1) + 1
    chosen = sorted(rows, key=lambda row: row["turn"])[:_EXAMPLES]
    place = {str(name): row for row, name in enumerate(source.columns["id"])}
    return [
        {
            "id": row["id"], "reason": row["detail"] or row["reason"], "against": row["against"] or "",
            "thumbnail": _thumbnail(source, place.get(row["id"])),
        }
        for row in chosen
    ]  # fmt: skip


def _thumbnail(source: Source, row: int | None) -> str | None:
    """A small PNG in base64, or None where there is no picture."""
    if row is None:
        return None
    try:
        with damage():
            small = centre(source.pixels(row), short_side=64, side=64)
    except Broken:
        return None
    file = io.BytesIO()
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _probe(pool: str) -> tuple[Source, Source] | None:
    """The labelled rows that vote and that are asked, where the pool has labels enough for it."""
    try:
        return labelled(pool)
    except DataError:
        return None


def _baselines(train: Source, test: Source, config: ProbeConfig) -> dict[str, float]:
    """k-NN of what nobody learnt, by the same rows and the same vote as the run's probe."""
    found = {}
    for name, feature in BASELINES.items():
        tables = [*_table(feature, train, config.train_rows), *_table(feature, test, config.test_rows)]
        found[f"knn_{name}"] = knn_scores(*tables, config=KnnConfig(neighbours=config.neighbours))[0].value
    return found


def _table(
    feature: Callable[[np.ndarray], torch.Tensor], source: Source, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of the usable ones among so many rows."""
    features, labels = [], []
    source = first_rows(source, rows)
    for row in range(len(source)):
        try:
            with damage():
                pixels = source.pixels(row)
            features.append(feature(pixels))
        except Broken:
            continue
        labels.append(int(source.columns["label"][row]))
    if not features:
        raise DataError(f"No image of {source.address} could be used.")
    return torch.stack(features), torch.tensor(labels)
