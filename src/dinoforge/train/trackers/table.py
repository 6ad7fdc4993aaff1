"""Every tracker by its name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from dinoforge.base.errors import unknown
from dinoforge.train.trackers.mlflow import Mlflow
from dinoforge.train.trackers.tensorboard import TensorBoard
from dinoforge.train.trackers.tracker import Opening, Tracker
from dinoforge.train.trackers.wandb import Wandb

TRACKERS: dict[str, Callable[[Opening], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def known_trackers(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names as typed (``tensorboard,wandb``) or listed; none twice.

    Raises:
        ConfigError: No such tracker.
    """
    listed = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    for name in listed:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
    return tuple(dict.fromkeys(listed))


@contextmanager
def tracking(names: Sequence[str], opening: Opening) -> Iterator[list[Tracker]]:
    """The trackers of these names, closed in the end.

    Raises:
        ConfigError: A library is not installed.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            tracker = TRACKERS[name](opening)
            stack.callback(tracker.close)
            trackers.append(tracker)
        yield trackers
