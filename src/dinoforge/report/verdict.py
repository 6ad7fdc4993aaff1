"""One sentence on how a run went, and whether its features look healthy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dinoforge.report.account import Account, number

_COLLAPSED = 0.02
"""Effective rank as a share of the channels (and at least 2) under which features are called collapsed."""
_FELL = 0.5
"""Share of its best under which the last effective rank is a warning."""
_BACK = 0.03
"""Loss of k-NN accuracy against its best that is a warning."""

Level = Literal["good", "unsure", "bad"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of a run."""

    level: Level
    sentence: str


def verdict(account: Account) -> Verdict:
    """Judge a run by its last figures."""
    bad, doubts = _bad(account), _doubts(account)
    level: Level = "bad" if bad else "unsure" if doubts else "good"
    known = any((account.points(name)[0] > 0).any() for name in ("rank", "knn"))
    if bad or doubts:
        health = f"{'not healthy' if bad else 'look closer'}: {'; '.join(bad + doubts)}"
    else:
        health = "healthy" if known else "health has not been measured since training began"
        level = level if known else "unsure"
    parts = [part for part in (_progress(account), _knn(account), _rank(account)) if part]
    return Verdict(level, f"{', '.join(parts)}; {health}.")


def _progress(account: Account) -> str:
    of = f" of {account.steps:,}" if account.steps else ""
    how = {
        "finished": f"Finished after step {account.step:,}{of}",
        "running": f"Still running, at step {account.step:,}{of}",
        "interrupted": f"Interrupted after step {account.step:,}{of} with a checkpoint (the same command goes on)",
        "stopped": f"Stopped by the sentinel after step {account.step:,}{of}",
        "crashed": f"Broken off after step {account.step:,}{of} without a summary",
        "not started": "Stopped before the first step",
    }
    return how[account.state]


def _knn(account: Account) -> str:
    steps, values = account.compared("knn")
    if len(values) < 2:
        when = "before the first step" if len(values) and steps[0] == 0 else "at the only look so far"
        return f"k-NN accuracy {values[0]:.3f} {when}" if len(values) else ""
    best = int(values.argmax())
    at_best = f" (best {values[best]:.3f} at step {int(steps[best]):,})" if values[best] > values[-1] else ""
    return f"k-NN accuracy from {values[0]:.3f} to {values[-1]:.3f}{at_best}"


def _rank(account: Account) -> str:
    _, values = account.compared("rank")
    if not len(values):
        return ""
    width = number(account.setting("backbone.width"))
    return f"effective rank {values[-1]:.1f}{f' of {int(width):,} channels' if math.isfinite(width) else ''}"


def _bad(account: Account) -> list[str]:
    """What is wrong beyond doubt."""
    found = ["it was stopped, the last event says why"] if account.state == "stopped" else []
    total = account.series.get("losses.total")
    trained = account.series["step"] > 0
    if total is not None and trained.any() and not math.isfinite(total[trained][-1]):
        found.append("the last loss is not finite")
    _, ranks = account.compared("rank")
    width = number(account.setting("backbone.width"))
    floor = max(2.0, _COLLAPSED * width) if math.isfinite(width) else 2.0
    if len(ranks) > 1 and ranks[-1] < floor:
        found.append(f"an effective rank below {floor:.0f} says that the features have collapsed")
    steps, knn = account.compared("knn")
    if len(knn) > 1 and steps[0] == 0 and knn[-1] < knn[0]:
        found.append("k-NN accuracy is below that of the backbone before training")
    return found


def _doubts(account: Account) -> list[str]:
    """What deserves a look."""
    found = []
    _, ranks = account.compared("rank")
    if len(ranks) > 1 and ranks[-1] < _FELL * ranks.max():
        found.append(f"effective rank fell from {ranks.max():.1f}")
    steps, knn = account.compared("knn")
    if len(knn) > 1:
        if knn[-1] < knn.max() - _BACK:
            found.append(f"k-NN accuracy fell back from {knn.max():.3f}")
        if steps[0] == 0 and 0 <= knn[-1] - knn[0] < 0.01:
            found.append("k-NN accuracy has not risen yet")
        above = [name for name in ("knn_pixels", "knn_histogram") if account.baselines.get(name, 0.0) > knn[-1]]
        if above:
            found.append(f"k-NN on {' and '.join(name.removeprefix('knn_') for name in above)} alone is higher")
    if account.events:
        found.append(f"{len(account.events)} event{'s' if len(account.events) > 1 else ''} on the way, listed below")
    return found
