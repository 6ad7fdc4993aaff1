"""Lists of what must not be learned from: domains and addresses, and the SHA-256 of files.

A list is a text file in UTF-8 with an entry a line. Blank lines count for nothing, nor does what stands behind a ``#`` at the
beginning of a line or after a space.

Axes: n images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Bool, Shaped

from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.home import at_home
from dinoforge.curate.safety.filter import Asked, File, Filter, Judged, Kind, Need


class DomainsConfig(Config):
    """Addresses that nothing may come from."""

    file: str
    """A text file with a domain or an address a line, # begins a comment: bad.example stands for its subdomains too,
    bad.example/private for this page alone. Images from there are dropped; needs a pool whose ids or url column are
    addresses."""


class HashesConfig(Config):
    """Files that must not be learned from."""

    file: str
    """A text file with the SHA-256 of a file a line (64 hexadecimal digits, as sha256sum prints them; its file names may
    follow), # begins a comment. Images whose file has such a key are dropped: one changed byte is another key."""


_COMMENT = re.compile(r"(^|\s)#.*")
_KEY = re.compile(r"[0-9a-fA-F]{64}")
_PORT = re.compile(r":[^\]]*\Z")
_HOST = re.compile(r"[^\s/?#@]*[^\s/?#@.]+(\.[^\s/?#@.]+)+\.?|localhost|\[[0-9a-fA-F:.]+\]")


def entries(path: str, setting: str, entry: Callable[[str], str | None], wanted: str) -> frozenset[str]:
    """The entries of a list.

    Args:
        entry: An entry from a line without its comment; None for a line that is none.
        wanted: What a line holds, for the message.

    Raises:
        DataError: The file is no text, holds no entry, or a line that is none; the first such is named.
    """
    try:
        lines = at_home(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{setting}={path} is no UTF-8 text: byte {error.start:,} fits none.") from None
    except OSError as error:
        raise ConfigError(f"{setting}={path} cannot be read: {error.strerror}.") from None
    found = set()
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        one = entry(text)
        if one is None:
            raise DataError(
                f"{setting}={path} line {number} is {text[:60]!r}; a line holds {wanted}, # begins a comment."
            )
        found.add(one)
    if not found:
        raise DataError(f"{setting}={path} holds no entry; a line holds {wanted}.")
    return frozenset(found)


def plain_address(url: str) -> str:
    """``https://user@WWW.Example.org:8080/a/`` -> ``example.org/a``: what tells two addresses apart on a list."""
    text = url.strip()
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
    except ValueError:  # no address, such as http://[a
        return text.lower()
    host = _PORT.sub("", parts.netloc.rpartition("@")[2]).lower().rstrip(".").removeprefix("www.")
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{parts.path}{query}".rstrip("/")


def _domain(line: str) -> str | None:
    plain = plain_address(line.removeprefix("*.").removeprefix("."))  # *.bad.example, as other lists have it
    return plain if _HOST.fullmatch(plain.partition("/")[0].partition("?")[0]) and not re.search(r"\s", line) else None


def _key(line: str) -> str | None:
    key = line.split(maxsplit=1)[0]
    return key.lower() if _KEY.fullmatch(key) else None


def listed(urls: Shaped[np.ndarray, " n"], blocked: Collection[str]) -> Bool[np.ndarray, " n"]:
    """Which addresses are on a list. An entry is a domain, which stands for its subdomains too, or a whole address.

    Case, ``www.``, port, user name and a last slash do not count; an empty address is on no list. Of an address with a query
    that is not on the list, the one without it may be.
    """
    return np.asarray([_is_listed(str(url), blocked) for url in urls], dtype=bool)


def _is_listed(url: str, blocked: Collection[str]) -> bool:
    plain = plain_address(url)
    page = plain.partition("?")[0]
    labels = page.partition("/")[0].split(".")
    domains = (".".join(labels[at:]) for at in range(len(labels)))
    return bool(plain) and (plain in blocked or page in blocked or any(domain in blocked for domain in domains))


@dataclass(frozen=True, kw_only=True)
class Domains(Filter):
    """Drops what comes from an address on a list."""

    blocked: frozenset[str]
    needs: Need = "url"

    def judge(self, asked: Asked) -> Judged:
        """Judge by the addresses.

        Raises:
            ConfigError: Not one of these is an address.
        """
        if len(asked) and not (np.char.find(asked.url.astype(np.str_), "://") > 0).any():
            raise ConfigError(
                f"safety.domains.file={self.files[0].name} has no effect: no image of the pool has an address (an id or a "
                "column 'url' with ://)."
            )
        return Judged.of(~listed(asked.url, self.blocked), "address on a list")


@dataclass(frozen=True, kw_only=True)
class Hashes(Filter):
    """Drops files whose SHA-256 is on a list."""

    blocked: frozenset[str]
    needs: Need = "url"

    def judge(self, asked: Asked) -> Judged:
        """Judge by the hashes, which are known from the first look at the images."""
        return Judged.of(~np.isin(asked.sha256, list(self.blocked)), "hash on a list")


def _domains(config: DomainsConfig) -> Domains:
    file = File.read(config.file, "safety.domains.file")
    blocked = entries(config.file, "safety.domains.file", _domain, "a domain or an address")
    return Domains(blocked=blocked, files=(file,))


def _hashes(config: HashesConfig) -> Hashes:
    file = File.read(config.file, "safety.hashes.file")
    blocked = entries(config.file, "safety.hashes.file", _key, "a SHA-256 of 64 hexadecimal digits")
    return Hashes(blocked=blocked, files=(file,))


DOMAINS = Kind("images from domains and addresses on a list", DomainsConfig, _domains)
HASHES = Kind("files whose SHA-256 is on a list", HashesConfig, _hashes)
