"""Weights & Biases: files in ``RUN/wandb``, offline unless WANDB_MODE says otherwise; send them with ``wandb sync``."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dinoforge.train.trackers.tracker import Opening, library


class Wandb:
    """One run of W&B for all starts: they share its id, and a later start leaves out the steps that were handed over."""

    def __init__(self, opening: Opening) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else crashes of its own are reported over the network
        wandb = library("wandb")
        self.written = opening.written
        self.run = wandb.init(
            project="dinoforge",
            id=opening.run,
            name=opening.name,
            dir=str(opening.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",  # beside one that is open already: of another student, or of the caller
            resume="allow" if os.environ.get("WANDB_MODE") == "online" else None,
            # Only the run's own numbers: nothing about the machine, the code or the packages.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_code=True, disable_git=True, disable_job_creation=True,
                x_disable_stats=True, x_disable_meta=True,
            ),
        )  # fmt: skip

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row of W&B's history."""
        if step > self.written:
            self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Wait until the file is whole."""
        self.run.finish()
