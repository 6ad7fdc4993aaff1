"""Settings: frozen pydantic models, changed only by ``path=value``, with one-line messages and a fingerprint.

A *path* is a dotted name such as ``plan.images``. What may change a run's results is Science and is covered by the
fingerprint; fields named in ``not_science`` are left out of it.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar, Union

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dinoforge.base.errors import ConfigError, closest

_SUFFIXES = {"k": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}


def _count(value: object) -> object:
    """``5M`` -> 5000000, ``1.5k`` -> 1500; anything else is left for pydantic to judge."""
    if isinstance(value, str) and value[-1:] in _SUFFIXES:
        try:
            number = float(value[:-1]) * _SUFFIXES[value[-1]]
        except ValueError:
            return value
        return int(number) if number == int(number) else value
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
    # `kind` decides which other settings exist, so it is settled first; only the whole is judged.
    for path in [path for path in settings if path.endswith(".kind")]:
        config = _with_kind(config, path.split("."), settings[path], path)
    values = config.model_dump()
    for path, value in settings.items():
        _put(config, values, path, value, given=settings.keys())
    return type(config).build(values)


def _with_kind(config: C, folders: list[str], kind: Any, path: str) -> C:
    """A copy in which one group of settings is of another kind, with that kind's defaults; not yet checked as a whole."""
    name, *rest = folders
    field = type(config).model_fields.get(name)
    if field is None or not isinstance(getattr(config, name), Config):
        raise _unknown_path(path, config)
    here = getattr(config, name)
    if rest != ["kind"]:
        return config.model_copy(update={name: _with_kind(here, rest, kind, path)})
    if "kind" not in type(here).model_fields:
        raise _unknown_path(path, config)
    if here.kind == kind:
        return config
    union: Any = Annotated[field.annotation, Field(discriminator=field.discriminator)]
    try:
        return config.model_copy(update={name: TypeAdapter(union).validate_python({"kind": kind})})
    except ValidationError as error:
        raise ConfigError(_one_line(error, path.removesuffix(".kind"))) from None


def _put(config: Config, values: dict[str, Any], path: str, value: Any, *, given: Collection[str]) -> None:
    """Set one dotted path in the nested dictionary ``values`` that was dumped from ``config``."""
    here: Any = config
    *folders, leaf = path.split(".")
    for folder in folders:
        field = type(here).model_fields.get(folder) if isinstance(here, Config) else None
        if field is None:
            raise _unknown_path(path, config)
        here, values = getattr(here, folder), values[folder]
    if not isinstance(here, Config) or leaf not in type(here).model_fields:
        raise _unknown_path(path, config)
    annotation = type(here).model_fields[leaf].annotation
    new = read_value(value, text=_is_text(annotation)) if isinstance(value, str) else value
    fits = isinstance(new, Mapping) or (new is None and type(None) in typing.get_args(annotation))
    if isinstance(getattr(here, leaf), Config) and not fits:
        inside = ", ".join(f"{path}.{name}" for name in type(getattr(here, leaf)).model_fields)
        raise ConfigError(f"{path} is a group of settings, not a value; got {value!r}. Set one of: {inside}.")
    for other in here.exclusive - {leaf} if leaf in here.exclusive else ():
        if ".".join([*folders, other]) not in given:
            values[other] = None
    values[leaf] = new


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


def _unknown_path(path: str, config: Config) -> ConfigError:
    known = [name for name, _ in paths(config)]
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
        return f"{path} must be {bounds[kind]} {limit:g}; got {got}."
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
