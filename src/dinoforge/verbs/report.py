"""``report``: one page on how a run went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dinoforge.base.errors import ConfigError
from dinoforge.base.files import write_text
from dinoforge.report.account import read_account
from dinoforge.report.page import page


@dataclass(frozen=True, slots=True)
class Reported:
    """The page that was written."""

    path: str
    bytes: int


def report(*, run: str, out: str | None = None) -> Reported:
    """Write one self-contained HTML page on a run, finished or not: what went in, what it cost, curves, quality, film strip.

    Args:
        run: Folder of a run: what pretrain was given as out.
        out: HTML file to write; report.html in that folder if not given.
    """
    account = read_account(Path(run))
    path = Path(run) / "report.html" if out is None else Path(out)
    if path.suffix.lower() not in {".html", ".htm"} or path.is_dir():
        raise ConfigError(f"out={out} must be the name of a .html file.")
    text = page(account)
    write_text(path, text)
    return Reported(path=str(path), bytes=len(text.encode()))
