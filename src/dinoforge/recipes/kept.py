"""The backbone that a run keeps: how it is written, and what stands in its place where the run goes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoforge.base import dist
from dinoforge.base.errors import RunError
from dinoforge.base.files import remove_folder
from dinoforge.model.table import empty
from dinoforge.model.weights import Backbone, save_backbone
from dinoforge.recipes.quality import preprocessing
from dinoforge.recipes.stages import Stage
from dinoforge.train.checkpoint import Checkpoints, Saved
from dinoforge.train.diary import Diary
from dinoforge.train.step import Pretrain


@dataclass(frozen=True, slots=True)
class Keep:
    """Writes ``backbone/`` of a run. All ranks together."""

    out: Path
    stage: Stage
    step: Pretrain
    diary: Diary
    run: str
    """Fingerprint of the run."""
    data: str
    """Fingerprint of its images."""
    init: str | None
    """Fingerprint of the backbone that it began from."""

    def __call__(self, done: int, scores: Mapping[str, float]) -> None:
        """Keep the backbone as it is after a step: put together from all ranks, written by the first.

        Raises:
            RunError: The folder cannot be written.
        """
        state = {}
        for name, tensor in self.step.average.backbone.state_dict().items():
            whole = dist.whole(tensor)  # one at a time: together they may be more than a device has room for
            if dist.rank() == 0:
                state[name] = whole.cpu()

        def write() -> None:
            config = self.stage.recipe.backbone
            module = empty(config)
            module.load_state_dict(state, assign=True)
            backbone = Backbone(module, config, preprocessing(self.stage), self._lineage(done))
            save_backbone(self.out / "backbone", backbone, scores=scores)

        dist.leading(write)

    def _lineage(self, done: int) -> dict[str, Any]:
        found = {"run": self.run, "data": self.data, "step": done, "recipe": self.stage.recipe.recipe}
        times = len(self.diary.rollbacks())  # tells it from one of the same step that was given up
        return found | ({} if self.init is None else {"init": self.init}) | ({"rollbacks": times} if times else {})

    def go_back(
        self, checkpoints: Checkpoints, latest: Saved | None, history: Sequence[dict[str, Any]], *, protocol: str
    ) -> None:
        """Where the backbone that is kept is from steps that were given up, keep that of the checkpoint gone back to.

        What was kept before it is gone, however good. So all rows of ``history`` but the checkpoint's own say from now on that
        their backbone is not kept, and the next look is compared with none of them; the checkpoint says it too, for whoever
        goes on from it.

        Args:
            latest: The checkpoint that the networks are from; None at the beginning, where nothing is kept.
            history: Rows of ``Probe`` up to there, changed in place.
            protocol: What is measured by now; scores of another one are not those of this backbone.
        """
        kept = dist.leading(lambda: _lineage_in(self.out / "backbone"))
        if kept.get("run") != self.run or self.diary.owns(kept.get("step", 0), kept.get("rollbacks", 0)):
            return
        for row in history:
            row["kept"] = False
        if latest is None:
            self._remove()
            return
        own = next((row for row in history if row["step"] == latest.step), {})
        lost = bool(own.get("retention_lost"))  # then it is never kept
        if not lost:
            own.pop("kept", None)
        scores = {name: value for name, value in own.items() if isinstance(value, float)}
        try:
            checkpoints.amend(latest, {"history": history})
            if lost:
                self._remove()
            else:
                self(latest.step, scores if own.get("protocol") == protocol else {})
        except RunError as error:
            own["kept"] = False
            self.diary.not_kept(latest.step, str(error))

    def _remove(self) -> None:
        dist.leading(lambda: remove_folder((self.out / "backbone").resolve()))


def _lineage_in(folder: Path) -> dict[str, Any]:
    """What a backbone says of where it comes from; nothing where none can be read."""
    try:
        found = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))["lineage"]
        return dict(found)
    except (OSError, ValueError, LookupError, TypeError):
        return {}
