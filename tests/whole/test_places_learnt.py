"""What training gains where places in a picture count: points of drawn creatures, and creatures followed through clips."""

import pytest
import torch

from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes
from dinoforge.model.foreign import open_backbone
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, load_backbone

ASKED = {
    "PCK of one creature": ("correspondence", "toy://species?images=800&split=test", "PCK_at_0.2", {"longest": 64}),
    "PCK of one species": ("correspondence", "toy://species?images=800&split=test", "PCK_at_0.2",
                           {"longest": 64, "by": "label"}),
    "J&F": ("tracking", "toy://clips?clips=120&frames=6&split=test", "J&F", {"shortest": 64}),
}  # fmt: skip


def measured(backbone, what, seed):
    task, data, name, settings = ASKED[what]
    eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
    source = open_source(f"{data}&seed={seed + 100}")
    evaluation = EVALUATIONS[task]
    scores = evaluation.measure(eyes, Sides(source, source, itself=True), evaluation.config(**settings))
    return next(score.value for score in scores if score.name == name)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_helps(seed, toy_run, unchecked):
    """The recipe of the demo, as long as it is; points are printed alone, for they gain little."""
    trained = load_backbone(toy_run(seed))
    untrained = Backbone(
        build(VitConfig(**trained.config.model_dump()), seed=seed), trained.config, trained.preprocessing
    )
    found = {}
    for what in ASKED:
        found[what] = [measured(backbone, what, seed) for backbone in (trained, untrained, open_backbone("pixels:8"))]
        print(
            f"seed {seed}, {what}: trained {found[what][0]:.3f}, untrained {found[what][1]:.3f}, pixels {found[what][2]:.3f}"
        )
    assert found["J&F"][0] > max(found["J&F"][1:])
