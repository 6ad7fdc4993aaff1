"""Look at every image of a source once: is it whole, how large is it, was it seen before?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dinoforge.data.decode import Broken, decode
from dinoforge.data.sources.source import Source


@dataclass(frozen=True, slots=True)
class Seen:
    """One image: its manifest row, or why it has none."""

    name: str
    row: dict[str, Any] | None
    reason: str = ""


def scan(source: Source) -> Iterator[Seen]:
    """Every image in the source's order; exact copies are kept, their ``reason`` names the first of their kind."""
    first: dict[str, str] = {}
    columns = source.columns
    for number in range(len(source)):
        name = str(columns["id"][number])
        try:
            encoded = source.encoded(number)
            height, width, channels = decode(encoded).shape
        except Broken as error:
            yield Seen(name, None, str(error))
            continue
        digest = hashlib.sha256(encoded).hexdigest()
        earlier = first.setdefault(digest, name)
        row: dict[str, Any] = {
            "id": name, "sha256": digest, "uri": name, "source": source.address,
            "width": width, "height": height, "channels": channels, "bytes": len(encoded),
            "reason": "" if earlier == name else f"exact copy of {earlier}",
        }  # fmt: skip
        row |= {key: columns[key][number].item() for key in ("label", "label_name", "split") if key in columns}
        yield Seen(name, row)
