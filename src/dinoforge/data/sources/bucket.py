"""Files in object storage, by fsspec: ``s3://``, ``gs://``, ``az://``. Credentials and endpoint come from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoforge.base.errors import ConfigError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.options import scheme_of
from dinoforge.data.sources.storage import Found, Storage, retried

# one try of the client itself: ours are counted, theirs would multiply them
_CLIENT: dict[str, dict[str, Any]] = {
    "s3": {
        "config_kwargs": {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}},
        "max_concurrency": 1,
    }
}
_ANONYMOUS: dict[str, dict[str, Any]] = {"s3": {"anon": True}, "gs": {"token": "anon"}, "az": {"anon": True}}
_TAGS = ("ETag", "etag", "LastModified", "updated", "last_modified")
EXTRAS = {"s3": "remote", "gs": "gcs", "az": "azure"}
"""Which extra brings a scheme's library."""


@dataclass(frozen=True, slots=True)
class Bucket(Storage):
    """One kind of object storage. The client is made when a process first reads: it does not survive a fork."""

    scheme: str
    anonymous: bool = False

    def _client(self) -> Any:
        """This process's client; fsspec keeps one for the same settings, and forgets it in a forked process."""
        try:
            import fsspec

            options = _CLIENT.get(self.scheme, {}) | (_ANONYMOUS[self.scheme] if self.anonymous else {})
            return fsspec.filesystem(self.scheme, use_listings_cache=False, **options)
        except ImportError:
            extra = EXTRAS[self.scheme]
            raise ConfigError(
                f"{self.scheme}:// needs the extra {extra!r}: pip install 'dinoforge[{extra}]'."
            ) from None

    def read(self, address: str) -> bytes:
        """See ``Storage``."""
        client = self._client()
        return retried(lambda: bytes(client.cat_file(address)))

    def part(self, address: str, start: int, size: int) -> bytes:
        """See ``Storage``."""
        client = self._client()
        return retried(lambda: bytes(client.cat_file(address, start=start, end=start + size)))

    def stamp(self, address: str) -> tuple[int, str]:
        """Size, and the tag or date that the storage gives."""
        client = self._client()
        facts = retried(lambda: client.info(address))
        return int(facts["size"]), _tag(facts)

    def kind(self, address: str) -> str:
        """See ``Storage``."""
        client = self._client()

        def look() -> str:
            try:
                facts = client.info(address)
            except FileNotFoundError:
                return ""
            return "folder" if facts["type"] == "directory" else "file"

        return retried(look)

    def files(self, address: str) -> Found:
        """See ``Storage``; a folder is what the names have before a slash."""
        client = self._client()
        root = client._strip_protocol(address).rstrip("/")  # the names that find gives have neither scheme nor user
        facts = retried(lambda: client.find(root, detail=True))
        found = Found()
        for path in sorted(facts, key=lambda path: path.split("/")):
            name = path.removeprefix(root).lstrip("/")
            if not name or any(part.startswith(".") for part in name.split("/")):
                continue
            if facts[path].get("type") == "directory" or name.endswith("/"):
                continue
            found.names.append(name)
            if tag := _tag(facts[path]):
                found.stamps[name] = f"{facts[path]['size']}:{tag}"
        found.names.sort(key=lambda name: (name.split("/")[:-1], name))
        return found


def _tag(facts: Mapping[str, Any]) -> str:
    """What a storage says of an object that changes with its content; empty where it says nothing."""
    return next((str(facts[name]) for name in _TAGS if facts.get(name)), "")


def bucket(address: str, *, anonymous: bool) -> Bucket:
    """The storage of an address.

    Raises:
        Broken: No storage of that scheme is known.
        ConfigError: The address holds a user or password.
    """
    scheme = scheme_of(address)
    if scheme not in EXTRAS:
        raise Broken(f"{scheme}:// is no storage known here")
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ConfigError(f"{scheme}:// addresses take no user or password; credentials come from the environment.")
    return Bucket(scheme, anonymous)
