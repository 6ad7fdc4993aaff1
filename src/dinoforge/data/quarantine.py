"""Images set aside in a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dinoforge.base import dist
from dinoforge.base.errors import RunError
from dinoforge.base.files import append_line, read_lines


class Quarantine:
    """Images set aside: one JSON line each, with the reason; told of once, and written down by the first rank."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = {str(row["id"]) for row in read_lines(path)}
        self._news: list[tuple[str, str]] = []
        self._unwritten: list[dict[str, str]] = []

    def __call__(self, name: str, reason: str) -> None:
        """Note one; again is no news. What a full disk refuses is written with the next one."""
        if name in self.seen:
            return
        self.seen.add(name)
        if dist.rank():
            self._news.append((name, reason))
            return
        self._unwritten.append({"id": name, "reason": reason})
        with suppress(RunError):
            while self._unwritten:
                append_line(self.path, self._unwritten[0])
                self._unwritten.pop(0)

    def news(self) -> list[tuple[str, str]]:
        """What the first rank does not know yet; it is handed over and not kept."""
        news, self._news = self._news, []
        return news
