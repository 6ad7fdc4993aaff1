"""``distil``: a student learns from a trained run, or from any backbone."""

from __future__ import annotations

from typing import Any

from dinoforge.base.errors import ConfigError
from dinoforge.recipes.outcome import Pretrained
from dinoforge.recipes.settle import settle
from dinoforge.recipes.teacher import REQUIRED
from dinoforge.runs import pretrain
from dinoforge.verbs.students import taught


def distil(*, students: Any = None, **settings: Any) -> Pretrained | dict[str, Pretrained]:
    """Train a student on images to predict what a frozen teacher sees. The same command again goes on where it stopped.

    The teacher is a run of ours with its heads, of which the student has its own with as many prototypes. The student sees
    every patch and drops nothing; its moving average, which takes no part in the loss, is what is probed and kept. The loss
    is that of `pretrain`.

    With recipe=vit_small.matched (distil.matching={}) the teacher is any backbone and needs no heads: a run, official weights,
    a model of another library (hf:FOLDER, timm:NAME). The student's class and patch tokens, mapped linearly, are to come to
    the teacher's; the maps are dropped in the end. Patches of another size are no matter: the teacher sees every view at the
    size that gives it the student's grid.

    Several students learn at once from one look of the teacher: students="{small: {backbone.width: 384}, tiny: {…}}" makes a
    run of each, in a folder of its name inside out=, the same as without the others. On several ranks (torchrun) each has a
    team of them, or each rank some students.

    Args:
        students: Settings of each student by its name, besides those that all of them share.
        teacher: Folder of the run that trained the teacher; its last checkpoint counts. To match features: any backbone.
        data: Images: a folder, a Parquet file, toy://species. Where it has splits, only train is read.
        out: Folder of the run: config.yaml, metrics.jsonl, checkpoints/, backbone/ (the best), summary.json.
        recipe: Where to start from, such as vit_small.distilled, see `dinoforge recipes`.
        config: A YAML file with a whole recipe, such as config.yaml of another run, instead of a recipe.
        probe: Labelled images whose k-NN accuracy is measured during the run.
        init: A backbone to start the student from; its architecture is taken too.
    """
    if settle({name: value for name, value in settings.items() if name != "out"}).recipe.distil is None:
        raise ConfigError(REQUIRED)
    return pretrain(**settings) if students is None else taught(students, settings)
