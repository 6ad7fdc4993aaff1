"""Settings: frozen pydantic models, changed only by ``path=value``, with one-line messages and a fingerprint.

A *path* is a dotted name such as ``plan.images``. What may change a run's results is Science and is covered by the
fingerprint; fields named in ``not_science`` are left out of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, TypeVar, Union

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from dinoforge.base.errors import ConfigError, closest

_SUFFIXES = {"k": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}


def _count(value: object) -> object:
    """``5M`` -> 5000000, ``1.5k`` -> 1500; anything else is left for pydantic to judge."""
    if isinstance(value, str) and value[-1:] in _SUFFIXES:
        try:
            number = Decimal(value[:-1]) * _SUFFIXES[value[-1]]
            if abs(number) < 2**63 and number == number.to_integral_value():
                return int(number)
        except InvalidOperation:  # no number, or none that compares
            return value
    return value


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number that may be written with a suffix: 500k, 5M, 1.2B."""


def _pairs(value: object) -> object:
    """One pair as a list of one pair."""
    flat = isinstance(value, list | tuple) and len(value) == 2 and not isinstance(value[0], list | tuple)
    return [value] if flat else value


def _rising(pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    odd = next((pair for pair in pairs if not pair[0] < pair[1]), None)
    if odd is not None or not pairs:
        given = list(odd) if odd is not None else []
        raise ValueError(f"a range takes low < high, such as [0, 10000], or one such pair a channel; got {given}.")
    return pairs


Ranges = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_pairs), AfterValidator(_rising)]
"""Lowest and highest number, one pair for all channels or one a channel: [0, 10000], [[0, 1], [-5, 5]]."""


class Config(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, defaults checked, one docstring a field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    not_science: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that cannot change a result (paths, speed, how often something is saved)."""
    exclusive: ClassVar[frozenset[str]] = frozenset()
    """Names of fields of which only one is given: setting one puts the others back to null."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that came after runs had been made: at its default, such a field is left out of the fingerprint, so
    that a run from before it is the run that it was."""

    @classmethod
    def build(cls, values: Mapping[str, Any] | None = None, *, prefix: str = "") -> Any:
        """Validated settings.

        Raises:
            ConfigError: One line that names the first wrong setting as ``prefix`` + path, its value and what fits.
        """
        try:
            return cls.model_validate(dict(values or {}))
        except ValidationError as error:
            raise ConfigError(_one_line(error, prefix)) from None


C = TypeVar("C", bound=Config)


def paths(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (path, value), depth first; nested settings are walked, not yielded."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def with_settings(config: C, settings: Mapping[str, Any]) -> C:
    """A copy of ``config`` with the given paths changed; strings are read as the command line reads them.

    Raises:
        ConfigError: An unknown path (with the nearest known one), a wrong type, or a value out of range.
    """
    return merged(type(config), config.model_dump(), settings)


def merged(model: type[C], values: Mapping[str, Any], settings: Mapping[str, Any]) -> C:
    """Settings from nested values, as a file holds them, and paths that are changed; only the whole is judged.

    A group that is null is made of the settings that are given inside it.

    Raises:
        ConfigError: As ``with_settings``; or something that neither gives.
    """
    found = dict(values)
    # Groups come before what is inside them, and `kind`, which decides which other settings exist, before its neighbours.
    for path in sorted(settings, key=lambda path: (path.count("."), not path.endswith(".kind"))):
        _put(model, found, path, settings)
    return typing.cast(C, model.build(found))


def value_at(model: type[Config], values: Mapping[str, Any], path: str) -> Any:
    """What nested values hold at a path, else its default, that of a group that is null too; None where there is nothing."""
    name, _, rest = path.partition(".")
    value = values[name] if name in values else _default(model, name)
    inside = _inside(model, name, value)
    if not rest or inside is None:
        return None if rest else value
    return value_at(inside, value if isinstance(value, Mapping) else {}, rest)


def _put(model: type[Config], values: dict[str, Any], path: str, settings: Mapping[str, Any]) -> None:
    """Set one dotted path of ``settings`` in nested values; what is no mapping, or of no known kind, is left to be refused."""
    top, whole = values, model
    *folders, leaf = path.split(".")
    for depth, folder in enumerate(folders, start=1):
        groups, outer = groups_of(model, folder), ".".join(folders[:depth])
        if not groups:
            raise _unknown_path(path, whole, top)
        value = values[folder] if folder in values else _default(model, folder)
        if value is None and outer in settings:
            raise ConfigError(f"{outer}=null and {path} exclude each other: the one leaves out what the other sets.")
        if len(groups) > 1 and path == f"{outer}.kind":
            if not isinstance(value, Mapping) or value.get("kind") != settings[path]:
                values[folder] = {"kind": settings[path]}  # another kind begins with its own defaults
            return
        inside = _inside(model, folder, value)
        if inside is None or not isinstance(value, Mapping | None):
            return
        values[folder] = dict(value or {})
        model, values = inside, values[folder]
    if leaf not in model.model_fields:
        raise _unknown_path(path, whole, top)
    values[leaf] = _read(model, leaf, path, settings[path])
    values |= {
        other: None
        for other in (model.exclusive - {leaf} if leaf in model.exclusive else ())
        if ".".join([*folders, other]) not in settings
    }


def _read(model: type[Config], name: str, path: str, value: Any) -> Any:
    """A value for a field, which may be a whole group.

    Raises:
        ConfigError: Something else for a group.
    """
    annotation, groups = model.model_fields[name].annotation, groups_of(model, name)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    new = read_value(value, text=_is_text(annotation)) if isinstance(value, str) else value
    fits = isinstance(new, Mapping | Config) or (new is None and type(None) in typing.get_args(annotation))
    if groups and not fits:
        kind = _inside(model, name, _default(model, name)) or groups[0]
        inside = ", ".join(f"{path}.{field}" for field in kind.model_fields)
        raise ConfigError(f"{path} is a group of settings, not a value; got {value!r}. Set one of: {inside}.")
    return new


def groups_of(model: type[Config], name: str) -> list[type[Config]]:
    """The groups of settings that a field may hold: none, one, or one a kind."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    if typing.get_origin(annotation) in {tuple, list}:
        return []  # a list of groups is one value
    parts = typing.get_args(annotation) or (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, Config)]


def _inside(model: type[Config], name: str, value: Any) -> type[Config] | None:
    """The group of settings that a field holds with this value, or would hold; None for a value or an unknown kind."""
    groups = groups_of(model, name)
    if len(groups) < 2:
        return groups[0] if groups else None
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return next((group for group in groups if group.model_fields["kind"].default == kind), None)


def _default(model: type[Config], name: str) -> Any:
    """A field's default, groups as nested values; None where it has none."""
    field = model.model_fields.get(name)
    value = None if field is None or field.is_required() else field.get_default(call_default_factory=True)
    return value.model_dump() if isinstance(value, Config) else value


def _known(model: type[Config], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every path that can be set, those inside of groups that are null too."""
    for name in model.model_fields:
        value = values[name] if name in values else _default(model, name)
        inside = _inside(model, name, value)
        if inside is None:
            yield prefix + name
        else:
            yield from _known(inside, value if isinstance(value, Mapping) else {}, f"{prefix}{name}.")


def read_value(text_value: str, *, text: bool = False) -> Any:
    """A value as typed on a command line: ``[1, 2]``, ``null``, ``true``, ``0.5``; ``text`` keeps it as it is."""
    if text or not text_value.startswith(("[", "{", '"', "'")):
        return None if text_value in {"null", "None", "~"} else text_value
    try:
        return yaml.safe_load(text_value)
    except yaml.YAMLError:
        return text_value


def _is_text(annotation: Any) -> bool:
    """Whether a field holds text: ``str`` or ``str | None``."""
    if typing.get_origin(annotation) in {Union, types.UnionType}:
        return all(_is_text(part) or part is type(None) for part in typing.get_args(annotation))
    return annotation is str


def _unknown_path(path: str, model: type[Config], values: Mapping[str, Any]) -> ConfigError:
    known = list(_known(model, values))
    leaf = path.rsplit(".", 1)[-1]
    # A leaf typed without its group is the commonest slip: plan.images for images.
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    hint = f" Did you mean {same_leaf[0]!r}?" if same_leaf else closest(path, known)
    near = ", ".join(name for name in known if name.split(".")[0] == path.split(".", maxsplit=1)[0]) or ", ".join(known)
    return ConfigError(f"Unknown setting {path!r}.{hint} Known: {near}.")


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "none": "null",
}


def _one_line(error: ValidationError, prefix: str) -> str:
    """The first complaint of pydantic in our words: what, value, what would be right."""
    first = error.errors()[0]
    # A union's branch appears in the location as the tag of the branch; it is no name of a setting.
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    path = prefix + place
    kind, context, got = first["type"], first.get("ctx", {}), first.get("input")
    if kind == "extra_forbidden":
        return f"Unknown setting {path!r}."
    if kind == "missing":
        return f"{path} is required and was not given."
    if kind == "value_error":
        message = str(context.get("error", first["msg"]))
        return message if not path or message.startswith(path) else f"{path}: {message}"
    bounds = {
        "greater_than": "above",
        "greater_than_equal": "at least",
        "less_than": "below",
        "less_than_equal": "at most",
    }
    if kind in bounds:
        limit = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
        return f"{path} must be {bounds[kind]} {limit:.15g}; got {got}."
    if kind in {"literal_error", "enum", "union_tag_invalid"}:
        expected = context.get("expected") or context.get("expected_tags")
        if kind == "union_tag_invalid":
            path, got = f"{path}.kind", context.get("tag")
        return f"{path} must be one of {expected}; got {got!r}."
    wanted = _WANTED.get(kind.split("_")[0])
    if wanted:
        return f"{path} takes {wanted}; got {got!r}."
    return f"{path}: {first['msg'][:1].lower()}{first['msg'][1:]}; got {got!r}."


def science(config: Config) -> dict[str, Any]:
    """The settings that may change results, nested, without every field named in ``not_science``."""
    kept: dict[str, Any] = {}
    for name in type(config).model_fields:
        if name in config.not_science:
            continue
        value = getattr(config, name)
        if name in config.later and value == type(config).model_fields[name].default:
            continue
        kept[name] = science(value) if isinstance(value, Config) else value
    return typing.cast(dict[str, Any], json.loads(json.dumps(kept, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a setting of type {type(value).__name__} has no JSON form")


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that change with any value inside ``value`` (a JSON-like structure)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines ``path  old -> new`` for every setting in which two nested dictionaries differ."""
    lines: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, "(absent)"), after.get(name, "(absent)")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}  {old} -> {new}")
    return lines
