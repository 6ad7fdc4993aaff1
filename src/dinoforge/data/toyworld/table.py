"""Every world by its name. A new one is a file and a line here."""

from __future__ import annotations

from dinoforge.data.toyworld import minerals, species
from dinoforge.data.toyworld.world import World

WORLDS: dict[str, World] = {
    "species": species.WORLD,
    "minerals": minerals.WORLD,
}
"""Worlds of still pictures; ``toy://NAME`` opens one."""
