"""What an address says besides the place: options after the question mark, and what must not be shown to anyone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, unknown
from dinoforge.base.home import at_home

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
WEB = ("http", "https")
"""Schemes whose question mark may belong to the server."""


class Options(Config):
    """What may stand after the question mark of an address of files."""

    split: str | None = None
    """Keep only the rows of this split."""
    label: str | None = None
    """Column with the labels; null takes ``label``."""
    group: str | None = None
    """Column with the groups; null takes ``group``."""
    id: str | None = None
    """Column with the names of the rows; null takes ``id`` where it names each row once."""
    image: str | None = None
    """Column with the images, or in a tar the ending of their members; null takes the usual names."""
    mask: str | None = None
    """Column or ending of the masks; null takes ``mask`` (in a tar ``mask.png`` or ``seg.png`` and the like)."""
    depth: str | None = None
    """Column or ending of the depth maps; null takes ``depth``."""
    depth_unit: str | None = None
    """What the numbers of the depth maps are: metres, centimetres, millimetres, disparity, or how many metres one is."""
    config: str | None = None
    """Which configuration of a Hugging Face data set that has several."""
    layout: str | None = None
    """Read a folder in the published form of this set, or ``none``; null takes the form that the folder has."""
    frames: int | None = Field(default=None, ge=1)
    """Take so many evenly spaced frames of every video as images."""
    fold: int | None = Field(default=None, ge=1)
    """Which of the splits that UCF-101 is published with; null takes the first."""
    allow_private: bool = False
    """Let http addresses lead to private, loopback and link-local machines."""
    anonymous: bool = False
    """Ask object storage without credentials (public buckets)."""

    @property
    def truths(self) -> dict[str, str | None]:
        """Which columns were asked for, by ground truth."""
        return {"mask": self.mask, "depth": self.depth}

    def only(self, *names: str, of: str) -> None:
        """Refuse the options that would be ignored; ``split`` is for every source.

        Raises:
            ConfigError: Another option was given than ``names``.
        """
        odd = sorted(self.model_fields_set - {*names, "split"})
        if odd:
            fit = ", ".join(sorted({*names, "split"}))
            raise ConfigError(f"Option {odd[0]!r} has no effect on {of}; what has: {fit}.")


COLUMNS = ("label", "group", "id", "image", "mask", "depth", "depth_unit")
"""Options that name a column, or say what is in one."""
ACCESS = ("allow_private", "anonymous")
"""Options on how a place on the network is read."""


def options_of(values: Mapping[str, str]) -> Options:
    """The options given as texts.

    Raises:
        ConfigError: An unknown one, or a value that does not fit.
    """
    odd = next((name for name in values if name not in Options.model_fields), None)
    if odd is not None:
        raise unknown("option of a source", odd, Options.model_fields)
    return Options.build(values, prefix="?")


def split_address(address: str) -> tuple[str, dict[str, str]]:
    """An address's place and options. On the web, what is no option of ours stays with the place: it is the server's.

    Raises:
        ConfigError: An option is given twice, or a part of a web address's query looks like a misspelt one.
    """
    place, mark, query = address.partition("?")
    if scheme_of(place) not in WEB:
        return place, _once(place, query)
    place, query = place.partition("#")[0], query.partition("#")[0]
    ours, theirs = list[str](), list[str]()
    for part in query.split("&") if mark else []:
        name = part.partition("=")[0]
        if name in Options.model_fields:
            ours.append(part)
        else:
            theirs.append(part)
            if difflib.get_close_matches(name, Options.model_fields, cutoff=0.8):  # 0.6 would refuse Azure's sip
                raise unknown("option of a source", name, Options.model_fields)
    return f"{place}?{'&'.join(theirs)}" if theirs else place, _once(place, "&".join(ours))


def _once(place: str, query: str) -> dict[str, str]:
    """The options in a query.

    Raises:
        ConfigError: One is given twice.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in found:
            raise ConfigError(f"{shown(place)} has option {name!r} twice, {found[name]!r} and {value!r}; it takes one.")
        found[name] = value
    return found


def scheme_of(address: str) -> str:
    """``s3`` of ``s3://bucket``, in lower case; empty for a path."""
    found = _SCHEME.match(address)
    return found.group(1).lower() if found else ""


def shown(address: str) -> str:
    """An address as it may be shown and written down: without user and password, of a web address's query only our options."""
    if not scheme_of(address):
        return address
    web = scheme_of(address) in WEB
    place, mark, query = (address.partition("#")[0] if web else address).partition("?")
    scheme, _, rest = place.partition("://")
    authority, slash, path = rest.partition("/")
    if web:
        ours = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] in Options.model_fields]
        query = urlencode(ours)
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}" + (f"{mark}{query}" if query else "")


def placed(address: str) -> str:
    """An address that means the same from any working directory: a path of this machine without links, any other as it is."""
    scheme = scheme_of(address)
    if scheme not in {"", "hf"}:
        return address
    place, mark, query = (address.partition("://")[2] if scheme else address).partition("?")
    try:
        path = at_home(place)
        if scheme and not path.exists():
            return address  # a data set of the hub
        found = str(path.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links is a RuntimeError
        return address
    return (f"{scheme}://" if scheme else "") + found + mark + query


def credentials(address: str) -> tuple[str, str | None]:
    """A web address without user and password, and these two as ``user:password``, None where it has none."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, host, parts.path, parts.query, "")), user if at else None
