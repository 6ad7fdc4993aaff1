"""The settings of a curation: one group a stage, and which stages run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from dinoforge.base.config import Config, Count, merged
from dinoforge.base.errors import ConfigError, unknown
from dinoforge.curate.table import CURATIONS


class ShardsConfig(Config):
    """Tars of the images that are in."""

    images: Count | None = Field(default=None, ge=1)
    """Images a tar in out/shards, which training and WebDataset's readers read; null leaves the images where they lie."""


class Curation(Config):
    """What is curated, and how."""

    pool: str
    """Images to choose from, all rows of the source; ?split=train behind the address leaves others out."""
    seeds: tuple[str, ...] = ()
    """Images that the chosen ones shall be like: one source, or several joined by commas. Where one has splits, its train."""
    keep_out: str | None = None
    """Images that none shall be a copy of: evaluation sets, all splits."""
    include_seeds: bool = False
    """Whether the seeds are rows of the manifest too."""
    stages: tuple[str, ...] | None = None
    """Only these stages, joined by commas, and what they need; null takes all that have something to do."""
    shards: ShardsConfig = ShardsConfig()
    """What of the images themselves is written."""
    backbone: str | None = None
    """What embeds images for retrieval and balance; null takes a descriptor that needs no weights."""
    descriptor: str | None = None
    """What finds near copies: a file of SSCD's weights, or a backbone; null takes a descriptor that needs no weights."""
    trust_sha256: str | None = None
    """SHA-256 of the file in ``descriptor`` where it is TorchScript, a program that is run then."""
    background: str | None = None
    """Images that are copies of nothing: learnt similarities are told relative to them (score normalisation)."""


def _groups() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, stage in CURATIONS.items():
        if any(field.is_required() for field in stage.config.model_fields.values()):
            found[name] = (stage.config | None, None)
        elif stage.config.model_fields:
            found[name] = (stage.config, stage.config())
    return found


if TYPE_CHECKING:
    CurateConfig = Curation
else:
    CurateConfig = create_model("CurateConfig", __base__=Curation, __doc__=Curation.__doc__, **_groups())


def settle(words: Mapping[str, Any]) -> tuple[Curation, set[str]]:
    """The settings from what was typed, and the paths that were set. ``retrieve`` is short for ``retrieval.method``.

    A key that is None was not typed; a setting of a stage may be null.

    Raises:
        ConfigError: An unknown setting, or a wrong value.
    """
    given = {name: value for name, value in words.items() if value is not None or "." in name}
    for short, path in SHORT.items():
        if short in given and path in given:
            raise ConfigError(f"{short} and {path} are the same setting; give it once.")
        if short in given:
            given[path] = given.pop(short)
    for name in ("seeds", "stages"):
        if isinstance(given.get(name), str):
            given[name] = [part.strip() for part in given[name].split(",") if part.strip()]
            if not given[name]:
                raise ConfigError(
                    f"{name}= is empty; leave it out, or name {'images' if name == 'seeds' else 'stages'}."
                )
    return merged(CurateConfig, {"pool": ""}, given), set(given)


SHORT = {"retrieve": "retrieval.method"}
"""Settings that have a short name of their own."""


def group(settings: Curation, name: str) -> Config:
    """The settings of a stage."""
    found = getattr(settings, name, None)
    return CURATIONS[name].config() if found is None else found


def chosen_stages(settings: Curation) -> list[str]:
    """The stages that run, in their order.

    Raises:
        ConfigError: No such stage, or one that has nothing to do.
    """
    needed = {name for stage in CURATIONS.values() for name in stage.needs}
    if settings.stages is None:
        names = [name for name, stage in CURATIONS.items() if name not in needed and stage.absent(settings) is None]
    else:
        names = list(settings.stages)
        for name in names:
            if name not in CURATIONS:
                raise unknown("stage", name, CURATIONS)
            absent = CURATIONS[name].absent(settings)
            if absent is not None:
                raise ConfigError(f"stages= has {name}, but {absent}.")
    wanted = {*names, *(needs for name in names for needs in CURATIONS[name].needs)}
    if not wanted:
        raise ConfigError(f"stages= names no stage; known: {', '.join(CURATIONS)}.")
    return [name for name in CURATIONS if name in wanted]


def refuse_ignored(settings: Curation, given: Iterable[str], stages: Iterable[str]) -> None:
    """Refuse settings that would change nothing.

    Args:
        given: Paths that the user set.

    Raises:
        ConfigError: One would.
    """
    running = set(stages)
    for path in sorted(given):
        name = path.partition(".")[0]
        if name in CURATIONS and name not in running:
            why = CURATIONS[name].absent(settings) or f"stages= leaves out {name}"
            raise ConfigError(f"{path} has no effect: {why}.")
    if settings.keep_out is not None and "leaks" not in running:
        raise ConfigError(f"keep_out={settings.keep_out} has no effect: stages= leaves out leaks.")
    if settings.seeds and "retrieval" not in running and not settings.include_seeds:
        raise ConfigError("seeds= has no effect: stages= leaves out retrieval, and include_seeds is false.")
    if settings.include_seeds and not settings.seeds:
        raise ConfigError("include_seeds=true has no effect: seeds= names no images.")
    _refuse_other_descriptors(settings, set(given), running)
    if settings.backbone is not None and not any(CURATIONS[name].embeds(settings) for name in running):
        raise ConfigError(f"backbone={settings.backbone} has no effect: no stage that runs needs embeddings.")


_LAYOUT_ALONE = ("pairs.mirror", "pairs.verify")
"""Settings of the descriptor that needs no weights."""


def _refuse_other_descriptors(settings: Curation, given: set[str], running: set[str]) -> None:
    """Refuse settings of the way of finding copies that is not taken.

    Raises:
        ConfigError: There is one, or a threshold that is missing or means nothing.
    """
    own = [name for name in ("trust_sha256", "background") if getattr(settings, name) is not None]
    own += ["pairs.whiten"] if "pairs.whiten" in given else []
    if settings.descriptor is None:
        if own:
            raise ConfigError(f"{own[0]} has no effect without descriptor=.")
        return
    if "pairs" not in running:
        raise ConfigError(f"descriptor={settings.descriptor} has no effect: no stage that runs looks for near copies.")
    for path in sorted(given):
        if path.startswith(_LAYOUT_ALONE):
            raise ConfigError(
                f"{path} has no effect with descriptor=: cosines of learnt descriptors are taken as they are."
            )
    least = group(settings, "pairs").candidate  # type: ignore[attr-defined]
    for name in sorted({"copies", "leaks"} & running):
        threshold = group(settings, name).threshold  # type: ignore[attr-defined]
        if settings.background is not None and threshold is None:
            raise ConfigError(
                f"{name}.threshold is required with background=: similarities relative to it have no published threshold."
            )
        if settings.background is None and threshold is not None and threshold < least:
            raise ConfigError(
                f"{name}.threshold={threshold:g} is below pairs.candidate={least:g}, so pairs would be missed."
            )


_BY_METHOD: Mapping[str, frozenset[str]] = {
    "samples": frozenset({"neighbours", "multiplicity", "search"}),
    "clusters": frozenset({"clusters", "more_than", "per_cluster", "cap", "kmeans", "seed"}),
    "all": frozenset({"search"}),
}


def refuse_other_methods(given: Iterable[str], methods: Iterable[str]) -> None:
    """Refuse settings of a way of retrieval that no seed set takes.

    Raises:
        ConfigError: There is one.
    """
    used = sorted(set(methods))
    effective = frozenset({"method"}).union(*(_BY_METHOD[method] for method in used))
    for path in sorted(given):
        stage, _, rest = path.partition(".")
        if used and stage == "retrieval" and rest and rest.partition(".")[0] not in effective:
            raise ConfigError(f"{path} has no effect: every seed set is retrieved for by {' or '.join(used)}.")
