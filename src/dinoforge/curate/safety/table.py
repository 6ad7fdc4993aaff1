"""Every kind of filter for safety by its name: ours, and those that installed packages bring. A new one is a line here."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

from dinoforge.base.log import say
from dinoforge.curate.safety.faces import FACES
from dinoforge.curate.safety.filter import Kind
from dinoforge.curate.safety.lists import DOMAINS, HASHES
from dinoforge.curate.safety.model import MODEL
from dinoforge.curate.safety.trained import TRAINED

GROUP = "dinoforge.safety"
"""The group of entry points in which other packages name theirs."""
_OURS: dict[str, Kind] = {
    "domains": DOMAINS,
    "hashes": HASHES,
    "model": MODEL,
    "faces": FACES,
    "trained": TRAINED,
}


def _with_others() -> dict[str, Kind]:
    """Ours and theirs. One that cannot be loaded is told of and left out; asking for it then is an unknown setting."""
    found = dict(_OURS)
    for point in entry_points(group=GROUP):
        try:
            kind = point.load()
        except Exception as error:  # whatever somebody else's module raises
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if point.name not in found and re.fullmatch(r"[a-z][a-z0-9_]*", point.name) and isinstance(kind, Kind):
                found[point.name] = kind
                continue
            taken = point.name in found
            why = "the name is taken" if taken else "it takes a lower-case name and a Kind of dinoforge.curate.safety"
        say(f"The safety filter {point.name} ({point.value}) is left out: {why}.")
    return found


SAFETY: dict[str, Kind] = _with_others()
