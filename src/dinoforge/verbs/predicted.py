"""The folder of ``predict``: predictions.jsonl with a line a picture, maps and pictures beside it, finished ones kept.

Axes: K classes, Y by X pixels, C channels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from dinoforge.base.errors import ConfigError, RunError
from dinoforge.base.files import append_line, explained, read_lines, write_json, write_lines, write_text
from dinoforge.base.hardware import Precision
from dinoforge.base.lock import locked
from dinoforge.report.predictions import predictions_page
from dinoforge.verbs.places import refuse_different

LINES, ABOUT, ASIDE, PAGE = "predictions.jsonl", "predict.json", "quarantine.jsonl", "index.html"
_PARTS, _BYTES = 16, 200
"""Of a path that is taken as it is, at most."""


def noted(path: Path) -> Precision | None:
    """The precision of the predictions in a folder; None where there are none."""
    try:
        found = json.loads((path / ABOUT).read_text(encoding="utf-8"))["about"]["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((precision for precision in get_args(Precision) if precision == found), None)


class Folder:
    """Where predictions go; held for one process alone while it is open.

    Args:
        about: Everything that predictions depend on but the pictures themselves.
        legend: What maps mean, put down beside that.

    Raises:
        ConfigError: Something else is there, or predictions that were made otherwise.
        RunError: It is in use, or must not be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], legend: Mapping[str, Any]) -> None:
        self.path, self._about, self._legend = path, json.loads(json.dumps(about)), legend
        self._rows, self._content, self._held = dict[str, dict[str, Any]](), "", ExitStack()

    def __enter__(self) -> Folder:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={self.path} is a file; give a folder.")
        self._check()
        self._held.enter_context(locked(self.path))
        with explained(self.path):
            write_json(self.path / ABOUT, {"format": 1, "about": self._about, **self._legend})
        self._rows = {str(row["id"]): row for row in read_lines(self.path / LINES)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _check(self) -> None:
        file = self.path / ABOUT
        if not file.exists():
            if self.path.is_dir() and any(one.name != ".lock" for one in self.path.iterdir()):
                raise ConfigError(f"out={self.path} exists and holds no predictions; give a new folder.")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))["about"]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{file} cannot be read; give a new folder, or remove {self.path}.") from None
        refuse_different(self.path, "predictions", before, self._about)

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str, encoded: bytes) -> bool:
        """Whether an image of these bytes is finished; it is the one that ``add`` is of."""
        self._content = hashlib.sha256(encoded).hexdigest()[:16]
        row = self._rows.get(name)
        found = row is not None and row.get("content") == self._content
        return found and all((self.path / file).exists() for file in (row or {}).get("files", {}).values())

    def add(self, name: str, facts: Mapping[str, Any]) -> None:
        """Put down what is predicted of an image, whose files are there."""
        self._rows[name] = {"id": name, "content": self._content, **facts}
        append_line(self.path / LINES, self._rows[name])

    def place(self, kind: str, name: str, suffix: str) -> Path:
        """Where a file of an image goes, of the same name for the same image; its folder is there."""
        parts = name.split("/")
        if len(parts) > _PARTS or not all(map(_safe, parts)):
            mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
            parts = [f"{re.sub('[^0-9A-Za-z_-]+', '_', name)[:80]}-{mark}"]
        path = self.path.joinpath(kind, *parts[:-1], parts[-1] + suffix)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, names: Sequence[str], broken: Sequence[tuple[str, str]]) -> None:
        """Put lines into the order of the images, and show them; of images that are gone or broken there are none."""
        left = {name for name, _ in broken} | (self._rows.keys() - {*names})
        for name in left & self._rows.keys():
            for file in self._rows.pop(name).get("files", {}).values():
                (self.path / file).unlink(missing_ok=True)
        rows = [self._rows[name] for name in names if name in self._rows]
        write_lines(self.path / LINES, rows)
        write_lines(self.path / ASIDE, ({"id": name, "reason": reason} for name, reason in broken))
        page = predictions_page(self._legend, rows, name=self._about["images"], quarantined=len(broken))
        write_text(self.path / PAGE, page)


def _safe(part: str) -> bool:
    """Whether it may be the name of a file or a folder: not hidden, not above, without signs that nobody sees."""
    return part.isprintable() and not part.startswith(".") and 0 < len(part.encode()) <= _BYTES
