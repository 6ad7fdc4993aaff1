"""``export``: a backbone for other runtimes, opened again there and compared before it is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dinoforge import __version__
from dinoforge.base.errors import ConfigError, UserError, WeightsError, unknown
from dinoforge.base.files import new_folder, write_json, write_text
from dinoforge.base.hardware import Precision, cpu_flags, cpu_has_bf16
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.export.card import card, origin
from dinoforge.export.compare import COSINE, Checked, Seen, compared, judge, sizes, worst
from dinoforge.export.table import EXPORTS
from dinoforge.export.target import Reopened, Target, Written, able
from dinoforge.model.features import Features
from dinoforge.model.weights import Backbone, load_backbone
from dinoforge.verbs.places import refuse_others

MARK = "export.json"
"""What an export is known by."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported."""

    path: str
    to: str
    compared: bool
    """Whether the target's own runtime computed the features."""
    runtime: str
    """What computed them, or why the target's own did not."""
    max_error: float | None
    """Greatest difference of two features in float32; null where nothing was compared with the target's own runtime."""
    relative: float | None
    """Greatest difference as a share of the greatest feature, of all sizes, in float32."""
    cosine: float | None
    """Smallest between a token here and there, in float32."""
    bound: dict[str, float]
    """What ``relative`` may be at most and ``cosine`` at least, in float32."""
    precisions: dict[str, dict[str, float]]
    """``max_error``, ``relative`` and ``cosine`` by the precision of the target, ours being float32; bf16 where this processor
    has it. Empty where nothing was compared."""
    sizes: list[dict[str, Any]]
    """The same for every size; where nothing was compared, of the file as dinoforge reads it back."""
    differs: list[str]
    """What the target does otherwise."""
    dropped: list[str]
    """What it has no place for."""
    fingerprint: str


def export(*, backbone: str, to: str, out: str, licence: str | None = None) -> Exported:
    """Write a backbone for another runtime, open it again there, compare the features, and keep it only if they agree.

    Args:
        backbone: A backbone folder, a run, or weights in any layout that convert reads.
        to: huggingface, timm, onnx or program (torch.export).
        out: Folder to write; an earlier export is replaced. With a model card (README.md) in it.
        licence: Of the weights, for the model card, such as apache-2.0; unknown if not given.
    """
    target, place = _judged(to, out, licence)
    found = load_backbone(backbone)
    say(f"{backbone}: {found.loaded}")
    target.refuse(found)
    known = origin(backbone, found)
    with new_folder(place) as folder:
        try:
            checked = _fill(folder, to, found)
        except UserError as error:
            raise type(error)(str(error).replace(str(folder), out)) from None
        done = _facts(to, out, found, checked)
        _describe(
            folder, done, card(target, found, known, checked, licence=licence, version=__version__), found, licence
        )
    return done


def _judged(to: str, out: str, licence: str | None) -> tuple[Target, Path]:
    """The target and the place, before anything is read.

    Raises:
        ConfigError: No such target, something else at the place, or a library that is absent.
    """
    if to not in EXPORTS:
        raise unknown("target", to, EXPORTS)
    place = at_home(out)
    if place.suffix in {".onnx", ".pt2", ".pth", ".pt", ".safetensors"}:
        raise ConfigError(f"out={out} names a file; every export is a folder, such as {place.with_suffix('')}.")
    if place.is_dir():
        if any(place.iterdir()) and not (place / MARK).exists():
            raise ConfigError(f"out={out} exists and is no earlier export; give a new folder.")
        refuse_others(place, _written(place))
    elif place.exists():
        raise ConfigError(f"out={out} is a file; give a new folder.")
    if licence is not None and (not licence.strip() or "\n" in licence):
        raise ConfigError(f"licence takes one line, such as apache-2.0; got {licence!r}.")
    able(to, EXPORTS[to])
    return EXPORTS[to], place


def _written(place: Path) -> list[str]:
    """What an earlier export wrote, as it says; of one that does not say so, whatever is there."""
    try:
        return [str(name) for name in json.loads((place / MARK).read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return [one.name for one in place.iterdir()]


def _fill(folder: Path, to: str, backbone: Backbone) -> Checked:
    """Write, open again, compare.

    Raises:
        WeightsError: It cannot be expressed or opened, or features differ.
    """
    target = EXPORTS[to]
    written = target.write(folder, backbone)
    for line in (*(f"Left out: {line}" for line in written.dropped), *written.differs):
        say(line)
    where = sizes(backbone.config.pixels, backbone.config.patch)
    try:
        reopened = target.reopen(folder, written)
        seen = [
            one
            for precision in _precisions(reopened)
            for one in compared(
                _reference(backbone, written),
                reopened.features,
                where,
                channels=backbone.config.channels,
                precision=precision,
            )
        ]
    except WeightsError as error:
        raise WeightsError(f"to={to}: {error} Nothing is kept.") from None
    checked = Checked(
        reopened.runtime, reopened.compared, target.bound, seen, notes=reopened.notes, dropped=written.dropped,
        differs=[*written.differs, *_by_its_rules(backbone, written)],
    )  # fmt: skip
    for line in checked.lines():
        say(line)
    judge(seen, target.bound, name=f"to={to}")
    return checked


def _precisions(reopened: Reopened) -> list[Precision]:
    """Those in which a runtime is compared: float32, and bfloat16 where it can be had and this processor has it."""
    return ["fp32", "bf16"] if reopened.half and cpu_has_bf16(cpu_flags()) else ["fp32"]


def _reference(backbone: Backbone, written: Written) -> Callable[[Tensor], Features]:
    """The backbone itself; where the target resamples positions otherwise, away from the native size by its rule."""
    native = (backbone.config.pixels, backbone.config.pixels)

    def features(images: Tensor) -> Features:
        by_rule = bool(written.differs) and images.shape[-2:] != native
        found: Features = (written.backbone if by_rule else backbone).module(images)
        return found

    return features


def _by_its_rules(backbone: Backbone, written: Written) -> list[str]:
    """How much what the target does otherwise changes, away from the native size."""
    if not written.differs:
        return []
    config = backbone.config
    where = sizes(config.pixels, config.patch)
    seen = compared(backbone.module, written.backbone.module, where, channels=config.channels)
    most = worst(seen)
    return [
        f"by that rule alone features differ from the backbone's by up to {most.relative:.2g} of their greatest at "
        f"{most.height}x{most.width} pixels, with cosines from {min(one.cosine for one in seen):.6f} on"
    ]


def _facts(to: str, out: str, backbone: Backbone, checked: Checked) -> Exported:
    each = _by_precision(checked.seen) if checked.compared else {}
    full = each.get("fp32", {})
    return Exported(
        path=out, to=to, compared=checked.compared, runtime=checked.runtime, max_error=full.get("max_error"),
        relative=full.get("relative"), cosine=full.get("cosine"), bound={"relative": checked.bound, "cosine": COSINE},
        precisions=each, sizes=[dataclasses.asdict(one) for one in checked.seen],
        differs=[*checked.differs, *checked.notes], dropped=checked.dropped, fingerprint=backbone.fingerprint,
    )  # fmt: skip


def _by_precision(seen: list[Seen]) -> dict[str, dict[str, float]]:
    """The furthest apart of all sizes, precision by precision."""
    found = dict[str, dict[str, float]]()
    for precision in dict.fromkeys(one.precision for one in seen):
        some = [one for one in seen if one.precision == precision]
        found[precision] = {
            "max_error": max(one.max_error for one in some), "relative": worst(some).relative,
            "cosine": min(one.cosine for one in some),
        }  # fmt: skip
    return found


def _describe(folder: Path, done: Exported, text: str, backbone: Backbone, licence: str | None) -> None:
    """The model card, and the facts for a program."""
    write_text(folder / "README.md", text)
    facts = dataclasses.asdict(done)
    del facts["path"]
    how = backbone.preprocessing.model_dump(mode="json")
    files = sorted({MARK, *(one.name for one in folder.iterdir())})
    write_json(folder / MARK, {"format": 1, **facts, "licence": licence, "preprocessing": how, "files": files})
