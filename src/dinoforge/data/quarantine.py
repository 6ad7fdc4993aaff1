"""Images set aside in a run."""

from __future__ import annotations

from pathlib import Path

from dinoforge.base import dist
from dinoforge.base.files import Lines, read_lines


class Quarantine:
    """Images set aside: one JSON line each, with the reason; told of once, and written down by the first rank."""

    def __init__(self, path: Path) -> None:
        self.seen = {str(row["id"]) for row in read_lines(path)}
        self._news: list[tuple[str, str]] = []
        self._lines = Lines(path)

    def __call__(self, name: str, reason: str) -> None:
        """Note one; again is no news."""
        if name in self.seen:
            return
        self.seen.add(name)
        if dist.rank():
            self._news.append((name, reason))
            return
        self._lines.add({"id": name, "reason": reason})

    def flush(self) -> None:
        """Write what a full disk has refused.

        Raises:
            RunError: It is still full; the next call tries again.
        """
        self._lines.flush()

    def news(self) -> list[tuple[str, str]]:
        """What the first rank does not know yet; it is handed over and not kept."""
        news, self._news = self._news, []
        return news
