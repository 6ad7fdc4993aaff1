"""The folder of a run before anything is written into it: whose it is, and what a start that was killed left there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoforge.base.config import differences, fingerprint
from dinoforge.base.errors import RunError
from dinoforge.base.files import clear_leftovers
from dinoforge.base.log import say


def refuse_strangers(out: Path, identity: Mapping[str, Any]) -> None:
    """Leave a folder alone that is not that run's.

    Args:
        identity: What makes it the run that it is; ``run.json`` holds it with its fingerprint.

    Raises:
        RunError: The folder is a file, holds something else, or another run.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"out={out} is a file; give a folder.")
    try:
        there = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        # Names that begin with a dot are the lock, what a killed writer left, or the desktop's.
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise RunError(f"out={out} holds other files and no run; give a new folder.") from None
        return
    except ValueError:
        raise RunError(f"{out / 'run.json'} is damaged; give a new folder.") from None
    if not isinstance(there, dict) or "fingerprint" not in there:
        raise RunError(f"{out / 'run.json'} was not written by dinoforge pretrain; give a new folder.")
    if there["fingerprint"] != fingerprint(identity):
        was = {name: there.get(name) for name in identity}
        lines = differences(was, json.loads(json.dumps(identity)))
        raise RunError(
            f"out={out} holds another run. It differs in: {'; '.join(lines[:6])}{' …' if len(lines) > 6 else ''}. "
            "Give a new folder, or the settings of that run."
        )


def clear(out: Path) -> None:
    """Remove what an earlier start was writing when it was killed; a backbone or checkpoint set aside is put back."""
    clear_leftovers(out, "run.json", "config.yaml", "plan.json", "metrics.jsonl", "summary.json", "backbone")
    clear_leftovers(out / "film", "*.npz")
    for path in clear_leftovers(out / "checkpoints", "step_*"):
        say(f"Removed {path}: a checkpoint that was not finished.")
