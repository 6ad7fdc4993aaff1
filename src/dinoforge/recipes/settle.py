"""From what was typed to a complete recipe, with where every value came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from dinoforge.base.config import Config, groups_of, merged, paths, value_at
from dinoforge.base.errors import ConfigError
from dinoforge.base.log import say
from dinoforge.data.sources.options import shown
from dinoforge.recipes.official import is_official, translated
from dinoforge.recipes.recipe import Recipe, Speed
from dinoforge.recipes.table import recipe
from dinoforge.train.plan import PlanConfig

SHORT = (
    {"data": "data.source", "probe": "probe.source", "teacher": "distil.teacher"}
    | {"retention": "continuation.retention.source"}
    | {name: f"speed.{name}" for name in Speed.model_fields}
)
"""Settings that have a short name of their own."""

_ADDRESSES = frozenset({"data.source", "probe.source", "continuation.retention.source"})
"""Settings that may hold a password or a signature."""

DEFAULT_RECIPE = "vit_small.small_data"


@dataclass(frozen=True, slots=True)
class Settled:
    """A recipe and where each of its values came from: default, recipe, file, command line or derived."""

    recipe: Recipe
    origins: dict[str, str]

    def values(self) -> dict[str, tuple[Any, str]]:
        """Every setting's value and origin."""
        return {
            path: (shown(value) if value and path in _ADDRESSES else value, self.origins[path])
            for path, value in paths(self.recipe)
        }


def settle(settings: Mapping[str, Any]) -> Settled:
    """The recipe named by ``recipe=`` or read from ``config=``, changed by every other setting.

    Raises:
        ConfigError: An unknown recipe or setting, a wrong value, or settings that contradict one another.
    """
    rest = dict(settings)
    file, name = rest.pop("config", None), rest.pop("recipe", None)
    if file is not None and name is not None:
        raise ConfigError(f"config={file} and recipe={name} exclude each other: a config file is a whole recipe.")
    given: dict[str, Any] = {}
    for key, value in rest.items():
        path = SHORT.get(key, key)
        if path in given:
            raise ConfigError(f"{key} and {path} are the same setting; give it once.")
        given[path] = value
    named = str(name or DEFAULT_RECIPE)
    values = recipe(named).model_dump() if file is None else _read(Path(str(file)), batch=given.get("plan.batch"))
    derived = {}
    side = "data.augment.global_pixels"
    for path in ("backbone.pixels", "data.resize") if side in given else ():
        # The position table is made for the global views, and features are taken at their size: what equals it goes with it.
        if path not in given and value_at(Recipe, values, path) == value_at(Recipe, values, side):
            given[path] = given[side]
            derived[path] = f"derived from {side}"
    settled = merged(Recipe, values, given)
    origins = _origins(settled, "file" if file is not None else "recipe")
    origins |= dict.fromkeys(given, "command line") | derived
    return Settled(settled, {path: origins.get(path, "default") for path, _ in paths(settled)})


def _read(path: Path, *, batch: Any) -> dict[str, Any]:
    """A recipe's values from YAML, of our form or of the official one, whose translation is told."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config={path} does not exist.") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config={path} holds no settings.")
    if is_official(values):
        total = PlanConfig.build({"images": 1, "batch": batch}, prefix="plan.").batch if batch is not None else None
        translation = translated(values, batch=total)
        for line in translation.lines:
            say(line)
        return translation.recipe.model_dump()
    return values


def _origins(settled: Recipe, origin: str) -> dict[str, str]:
    """Which values a recipe or file has changed."""
    return {path: "default" if value_at(Recipe, {}, path) == value else origin for path, value in paths(settled)}


def to_yaml(settled: Recipe) -> str:
    """The recipe as YAML that ``config=`` reads back; passwords and signatures of addresses are left out."""
    values = settled.model_dump(mode="json")
    kept = (values["continuation"] or {}).get("retention")
    for part in (values["data"], values["probe"], *([kept] if kept else [])):
        part["source"] = part["source"] and shown(part["source"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def setting_lines() -> Iterator[str]:
    """Every setting of a recipe with its default and the first sentence of its meaning, for ``--help``."""
    yield from lines_of(Recipe(plan=PlanConfig(images=1)))


def lines_of(config: Config, prefix: str = "") -> Iterator[str]:
    """The same of any settings."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from lines_of(value, f"{prefix}{name}.")
            continue
        yield _line(prefix + name, field, "" if prefix + name == "plan.images" else _plain(value))
        if value is None:
            for group in groups_of(type(config), name):
                yield from _lines_of_none(group, f"{prefix}{name}.")


def _lines_of_none(group: type[Config], prefix: str) -> Iterator[str]:
    """What may be set inside of a group that is null."""
    for name, field in group.model_fields.items():
        yield _line(prefix + name, field, "" if field.is_required() else _plain(field.default))


def _line(path: str, field: FieldInfo, default: str) -> str:
    meaning = " ".join((field.description or "").split())
    return f"  {path}{f' [{default}]' if default else ''}  {meaning}"


def _plain(value: Any) -> str:
    return "null" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
