"""What the explorer answers with: frozen facts that turn into JSON.

Places in a picture are shares of its width and height, from 0 at the left and the top to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeAlias

from dinoforge.base.files import finite

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in shares of the picture's width and height."""
Asked: TypeAlias = int | bytes
"""A picture that is asked about: a row of the collection, or the bytes of an image file."""
Tell: TypeAlias = Callable[[int, int, str], None]
"""Is told how many of how many are done, and what is being done."""


def untold(done: int, total: int, what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known of a picture."""

    row: int | None
    """In the collection; null for one that was brought along."""
    id: str
    uri: str
    """Where it comes from, as the source says, without credentials; the id where the source says no more."""
    label: int | None
    label_name: str | None
    reason: str | None
    """Why it is in the manifest, where the source is one that says so."""


def as_json(answer: Any) -> Any:
    """An answer, or several, as what ``json.dumps`` takes; numbers that are not finite become null."""
    if isinstance(answer, list | tuple):
        return [as_json(one) for one in answer]
    return finite(asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else answer)
