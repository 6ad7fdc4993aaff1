"""``curate``: a pool of images becomes a manifest of those worth learning from, with the reason of each."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoforge.base.config import paths
from dinoforge.base.errors import ConfigError
from dinoforge.base.files import resolved, write_text
from dinoforge.base.interrupt import interruptible
from dinoforge.base.lock import locked
from dinoforge.base.log import say
from dinoforge.curate.embeddings import LAYOUT
from dinoforge.curate.examples import cluster_examples, dropped_examples, seed_examples
from dinoforge.curate.pipeline import FILES, SENT, Opened, curated, finish
from dinoforge.curate.retrieval import RetrievalConfig, method_for
from dinoforge.curate.settings import (
    SHORT,
    CurateConfig,
    Curation,
    chosen_stages,
    group,
    refuse_ignored,
    refuse_other_methods,
    settle,
)
from dinoforge.curate.shards import FOLDER, free
from dinoforge.curate.table import CURATIONS
from dinoforge.data.decode import Broken
from dinoforge.data.sources.options import shown, split_address
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.table import open_source
from dinoforge.recipes.opened import training_rows
from dinoforge.recipes.settle import lines_of
from dinoforge.report.curation import curation_page
from dinoforge.verbs.describing import describer
from dinoforge.verbs.embedding import embedder
from dinoforge.verbs.places import place_of, refuse_within
from dinoforge.verbs.settings import Settings
from dinoforge.verbs.sharing import engine_for
from dinoforge.verbs.train_filter import KEYS, TrainedFilter, refuse_other
from dinoforge.verbs.train_filter import train_filter as trained

_SHARING = ("workers", "engine", "address", "gpus_per_task")
"""Keys that say where shards run, and so are in no manifest."""


@dataclass(frozen=True, slots=True)
class Curated:
    """What a curation came to."""

    pool: int
    """Images that it began with."""
    kept: int
    """Images of the pool that are in the manifest."""
    seeds: int
    """Seeds that are rows of the manifest too."""
    dropped: dict[str, int]
    """Images of the pool that are not in, by reason; with ``kept`` they come to ``pool``."""
    retrieved: dict[str, int]
    """Images that each seed set brought; one may be brought by several."""
    safety: str
    """``not safety-filtered``, or by which filters it was."""
    embedder: str | None
    """What retrieval and balance went by."""
    shards: int
    """Tars that the images were copied into; 0 where none were asked for."""
    seconds: float
    out: str


def curate(  # noqa: PLR0913 - the keys of the verb
    *, out: str, pool: str | None = None, seeds: str | Sequence[str] | None = None, keep_out: str | None = None,
    retrieve: str | None = None, include_seeds: str | bool = False, stages: str | Sequence[str] | None = None,
    backbone: str | None = None, precision: str = "auto", workers: str | int | None = None,
    train_filter: str | None = None, engine: str = "processes", address: str | None = None,
    gpus_per_task: str | float | None = None, **settings: Any,
) -> Curated | TrainedFilter:  # fmt: skip
    """Choose from a pool what is worth learning from, and write down why each image is in or out.

    In order: filters, safety, exact copies, near-exact copies by hash, near copies, copies of evaluation images, retrieval
    by likeness to seeds, balance. What each finds is kept in out/stages and taken over where all that it depends on is the
    same; interrupted, the same command goes on. Gives manifest.parquet (data= of pretrain), dropped.parquet, summary.json,
    report.html; with shards.images=10k also the images themselves, in tars that training reads.

    Safety filters run where their settings (safety.…, below) are given: lists of domains and of files, a model of yours, a
    filter that you trained (train_filter=), faces (noted, blurred whenever the manifest's images are read, or dropped). Where
    none is given, manifest and summary say "not safety-filtered".

    Args:
        out: Folder of all that is made.
        pool: Images to choose from, any source; all its rows. ?split=train behind the address leaves others out.
        seeds: Images that the chosen ones shall be like; several sources joined by commas. Where one has splits, its train.
        keep_out: Evaluation images, of which none is to be copied; all splits.
        retrieve: auto, samples (nearest of each seed), clusters (that hold seeds), all (keep every image) [auto].
        include_seeds: true puts the seeds into the manifest too.
        stages: Only these, joined by commas; with what they need.
        backbone: What embeds images for retrieval, balance and trained filters: as in embed. Without one, a descriptor that
            needs no weights.
        precision: Of backbone and descriptor: auto, fp32 or bf16.
        workers: Shards under way at once: processes on this machine, all cores by default; of a cluster, all that it has.
            Results do not depend on it.
        train_filter: In place of pool: train a filter for safety of your own. A folder with two folders in it, keep and drop,
            of some dozens of images each, gives one in out= that drops what is like those in drop, and says how well images
            that were held out are told apart. Takes out, backbone, precision and workers alone. Then: curate pool= …
            safety.trained.folder=, with the same backbone.
        engine: What runs the shards: processes (of this machine), inline (this process), ray, dask or slurm. Results do not
            depend on it.
        address: Of a cluster that is there, HOST:PORT: of Ray (without one, ray uses this machine) or of Dask's scheduler;
            local tries slurm without SLURM.
        gpus_per_task: GPUs of each task that runs backbone or descriptor, for ray and slurm: 1, or a share, 0.5 (ray).
    """
    if train_filter is not None:
        others: dict[str, object] = {
            "pool": pool, "seeds": seeds, "keep_out": keep_out, "retrieve": retrieve, "stages": stages, "address": address,
            "engine": None if engine == "processes" else engine, "gpus_per_task": gpus_per_task,
        }  # fmt: skip
        given_too = [name for name, value in others.items() if value is not None]
        refuse_other([*given_too, *(["include_seeds"] if include_seeds is not False else []), *settings])
        return trained(train_filter, out, backbone=backbone, precision=precision, workers=workers)
    return _curated(
        {"pool": pool, "seeds": seeds, "keep_out": keep_out, "retrieve": retrieve, "stages": stages, "backbone": backbone,
         "include_seeds": None if include_seeds is False else include_seeds, **settings},
        out, precision, {"engine": engine, "workers": workers, "address": address, "gpus_per_task": gpus_per_task},
    )  # fmt: skip


def _curated(words: Mapping[str, Any], out: str, precision: str, sharing: Mapping[str, Any]) -> Curated:
    """What the settings in ``words`` ask for."""
    began = time.monotonic()
    config, given = settle(words)
    names = _stages(config, given)
    folder = Path(out)
    networks = config.backbone is not None or config.descriptor is not None
    engine = engine_for(folder=folder / "stages" / SENT, networks=networks, **sharing)
    _free(folder, config)
    if config.shards.images is not None:
        free(folder / FOLDER)
    sources = _opened(config)
    _refuse_same(config, sources)
    retrieval = group(config, "retrieval")
    if "retrieval" in names and isinstance(retrieval, RetrievalConfig):
        refuse_other_methods(given, [method_for(len(source), retrieval) for source in sources.seeds])
    # With descriptor= alone, the precision is its.
    how = embedder(config.backbone, precision if config.backbone or not config.descriptor else "auto")
    finds = None
    if config.descriptor is not None:
        finds = describer(config.descriptor, precision, trust_sha256=config.trust_sha256)
    if "embedding" in names and how is LAYOUT:
        say(
            "Without backbone= images are embedded by colours and edges: near copies are near, kinds of things are not."
        )
    with interruptible("what was curated so far is kept"), locked(folder), engine as crew:
        found = curated(sources, config, names, embedder=how, out=folder, crew=crew, describer=finds)
        summary = {**found.summary, "seconds": time.monotonic() - began}
        examples = {
            "dropped": dropped_examples(found.state, found.done),
            "seeds": seed_examples(found.state),
            "clusters": cluster_examples(found.state),
        }
        write_text(folder / "report.html", curation_page(summary, examples, name=folder.resolve().name))
        finish(folder, summary)
    return Curated(**{name: summary[name] for name in Curated.__slots__ if name != "out"}, out=out)


def _stages(config: Curation, given: Iterable[str]) -> list[str]:
    """The stages that run, once it is clear that nothing that was said is ignored."""
    if "pool" not in given:
        raise ConfigError("pool= is required: images to choose from; or train_filter=, images to train a filter on.")
    if not config.pool:
        raise ConfigError("pool= is empty; name the images to choose from.")
    retrieval = group(config, "retrieval")
    everything = isinstance(retrieval, RetrievalConfig) and retrieval.method == "all"
    if not config.seeds and config.stages is None and not everything:
        raise ConfigError(
            "seeds= is required: images that the chosen ones shall be like; retrieve=all keeps every image."
        )
    names = chosen_stages(config)
    unneeded = {"retrieval.method"} if everything and not config.seeds else set()
    refuse_ignored(config, set(given) - unneeded, names)
    return names


def _free(folder: Path, config: Curation) -> None:
    """See that nothing of others is written over, and nothing that is read; nor will be read as an image.

    Raises:
        ConfigError: The folder holds something else, or an image source lies in it, or it lies in one.
    """
    others = [("keep_out", config.keep_out), ("background", config.background)]
    named = [("pool", config.pool), *(("seeds", one) for one in config.seeds)]
    for name, address in named + [(name, one) for name, one in others if one]:
        place = place_of(address)
        if place is not None and place.is_relative_to(resolved(folder)):
            raise ConfigError(f"out={folder} holds {split_address(address)[0]}, which is read; give another folder.")
        refuse_within(folder, address, name=name)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder} is a file; give a folder.")
    if folder.is_dir():
        strange = [path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in FILES]
        if strange:
            raise ConfigError(f"out={folder} holds other files ({sorted(strange)[0]}); give a new folder.")


def _opened(config: Curation) -> Opened:
    pool = open_source(config.pool)
    if "split" in pool.columns and len(set(pool.columns["split"].tolist())) > 1:
        say(f"{pool.address} has splits; all its {len(pool):,} images are the pool. ?split=train leaves others out.")
    seeds = [training_rows(address) for address in config.seeds]
    others = [None if address is None else open_source(address) for address in (config.keep_out, config.background)]
    return Opened(pool, seeds, *others)


def _refuse_same(config: Curation, sources: Opened) -> None:
    """Refuse a pool that is a seed set, or the evaluation set.

    Raises:
        ConfigError: It is.
    """
    named = [("seeds", shown(address), source) for address, source in zip(config.seeds, sources.seeds, strict=True)]
    if sources.keep_out is not None:
        named.append(("keep_out", shown(str(config.keep_out)), sources.keep_out))
    if sources.background is not None:
        named.append(("background", shown(str(config.background)), sources.background))
    for word, address, source in named:
        if _same(source, sources.pool):
            raise ConfigError(f"{word}={address} holds the same images as pool={shown(config.pool)}; name other ones.")
    first = [address for number, address in enumerate(config.seeds) if address in config.seeds[:number]]
    if first:
        raise ConfigError(f"seeds= names {shown(first[0])} twice.")


def _same(one: Source, other: Source) -> bool:
    """Whether two sources are of the same images: the same ids, and the same bytes where these may be of other folders."""
    ids, others = one.columns["id"], other.columns["id"]
    if len(ids) != len(others) or not np.array_equal(np.sort(ids), np.sort(others)):
        return False
    some = [0, len(ids) // 2, -1]
    rows = zip(np.argsort(ids)[some].tolist(), np.argsort(others)[some].tolist(), strict=True)
    return one.address == other.address or all(_bytes(one, mine) == _bytes(other, theirs) for mine, theirs in rows)


def _bytes(source: Source, row: int) -> bytes | str:
    try:
        return source.encoded(row)
    except Broken as error:
        return str(error)


def _described(words: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    if "train_filter" in words:
        refuse_other(words)
        defaults = {name: parameter.default for name, parameter in inspect.signature(curate).parameters.items()}
        return {
            name: (words.get(name, defaults[name]), "command line" if name in words else "default") for name in KEYS
        }
    own = {name: parameter.default for name, parameter in inspect.signature(curate).parameters.items()}
    plain = {name: own[name] for name in ("precision", *_SHARING)} | {"out": None}
    config, given = settle({name: value for name, value in words.items() if name not in plain})
    _stages(config, given)
    found = {path: (value, "command line" if path in given else "default") for path, value in paths(config)}
    for name, default in plain.items():
        found[name] = (words.get(name, default), "command line" if name in words else "default")
    found["pool"] = (shown(config.pool), "command line")
    return found


def _lines() -> Iterator[str]:
    """Of those that are no key: keys have their own lines."""
    short = {path: name for name, path in SHORT.items()}
    keys = inspect.signature(curate).parameters
    for line in lines_of(CurateConfig(pool="")):
        name = line.split()[0]
        if name not in keys and name not in short and name not in CURATIONS:
            yield line


SETTINGS = Settings(_described, _lines)
