"""``logistic``: logistic regression on frozen features (Oquab et al. 2023, sec. 7.3, for small sets of fine classes).

What is penalised how much is chosen on a tenth of the images to learn from, then all are learnt from.

Axes: N images, D channels, C classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinoforge.base.errors import ConfigError
from dinoforge.base.random import torch_generator
from dinoforge.evaluate.classes import classes_of
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.metrics import accuracy_scores, mean_class_accuracy, ranks
from dinoforge.evaluate.regression import HELD_OUT, Logistic, LogisticConfig, strengths
from dinoforge.evaluate.score import Score
from dinoforge.evaluate.several import several_scores, shows_several
from dinoforge.features.eyes import Eyes
from dinoforge.features.views import tight


def fitted(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, classes: int, config: LogisticConfig
) -> tuple[Logistic, float]:
    """A regression on all images, with the C that is best on a held-out tenth (``select``); of equal ones the smallest."""
    whole, c = Logistic(features, labels, classes=classes, config=config), strengths(config)[0]
    if len(strengths(config)) > 1:
        order = torch.randperm(len(labels), generator=torch_generator(config.seed, "logistic holdout"))
        held, rest = order.tensor_split([max(1, round(HELD_OUT * len(order)))])
        tried, most = Logistic(features[rest], labels[rest], classes=classes, config=config), -1.0
        own = labels[held].numpy()
        for one in strengths(config):
            tried.fit(one)
            right = (ranks(tried.scores(features[held]), labels[held].to(features.device)) == 0).cpu().numpy()
            good = mean_class_accuracy(right, own) if config.select == "mean_class_accuracy" else float(right.mean())
            if good > most:
                most, c, whole.weight = good, one, tried.weight
    whole.fit(c)
    return whole, c


def _measure(eyes: Eyes, sides: Sides, config: LogisticConfig) -> list[Score]:
    if shows_several(sides.known) and config.select != "accuracy":
        raise ConfigError(
            f"logistic.select={config.select} has no effect on {sides.known.address}, whose images show several classes: c is "
            "chosen by mAP."
        )
    view = tight(eyes.backbone.preprocessing)
    known, asked = eyes.look(sides.known, view=view), eyes.look(sides.asked, view=view)
    # Other accelerators than CUDA's know no float64.
    device = eyes.how.device if eyes.how.device.type == "cuda" else torch.device("cpu")
    if shows_several(known.source):
        return several_scores(known, asked, config=config, device=device, how=f"L-BFGS, {view.name}")
    classes = classes_of(known.source, asked.source)
    labels = classes.of(asked.source)
    found, c = fitted(known.values.to(device), classes.of(known.source), classes=len(classes), config=config)
    by = "" if config.select == "accuracy" else " by mean_class_accuracy"
    of = f" (best of {len(strengths(config))}{by} on a tenth of the train rows)" if len(strengths(config)) > 1 else ""
    protocol = f"C={c:.3g}{of}, L-BFGS, {view.name}, {len(known.rows)} train rows"
    place = ranks(found.scores(asked.values).cpu(), labels)
    return accuracy_scores("logistic", place, labels, classes=len(classes), protocol=protocol)


LOGISTIC = Evaluation(
    LogisticConfig, "classes", _measure, several=True, draws=lambda config: len(strengths(config)) > 1
)
