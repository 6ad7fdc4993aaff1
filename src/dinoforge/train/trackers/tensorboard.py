"""TensorBoard: event files in ``RUN/tensorboard``; look with ``tensorboard --logdir RUN``."""

from __future__ import annotations

from collections.abc import Mapping

from dinoforge.train.trackers.tracker import Opening, library


class TensorBoard:
    """Event files, one a start; steps that a killed start wrote beyond its checkpoint are marked as void."""

    def __init__(self, opening: Opening) -> None:
        library("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(opening.folder / "tensorboard"), purge_step=opening.first + 1)

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """A scalar a number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()
