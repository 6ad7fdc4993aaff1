"""What holds for every evaluation: the best value for a backbone that knows all, chance for one that tells nothing apart."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinoforge.data.sources.clips import Stills
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.table import EVALUATIONS, SUITES
from dinoforge.features.eyes import Look
from dinoforge.features.kinds import KINDS
from given import Deep, GivenEyes, Made, Painted, painted_eyes
from marked import jumping, pointed

CLASSES, EACH = 8, 12
FAST = {
    "linear": {"iterations": 200},
    "video": {"iterations": 200, "frames": 3},
    "robustness": {"iterations": 200, "corruptions": ("fog", "contrast"), "severities": (1, 5)},
    "tracking": {"radius": None},
    "depth": {"iterations": 100, "batch": 8, "learning_rate": 0.1},
    "segmentation": {"iterations": 60, "learning_rate": 0.03},
    "segmentation_ms": {"iterations": 60, "learning_rate": 0.03, "scales": (1.0, 1.5)},
}
"""Settings without which a contract would take minutes; and objects that jump are looked for everywhere."""
ALLOWED = {"top5": 5, "delta1": 2, "delta2": 3, "delta3": 5}
"""Of how many of the classes one answer may be right."""
SHAPES = {"image": (), "tokens": (5,), "blocks": (3,), "patches": (2, 2), "norms": (), "gem": (2,)}


class Told(GivenEyes):
    """See what a function makes of every row, whatever is looked at."""

    def __init__(self, of):
        super().__init__()
        self.of = of
        self.backbone.module = SimpleNamespace(patch=1)

    def look(self, source, kind="image", *, view=None, remember=True):
        if source.extra(0, kind) is not None:  # it says where in the picture is what
            values = torch.from_numpy(np.stack([source.extra(row, kind) for row in range(len(source))]))
            return Look(values if self.of is knows else torch.ones_like(values), np.arange(len(source)), source)
        vectors = torch.stack([self.of(source, row) for row in range(len(source))])
        if kind == "norms":
            values = vectors.norm(dim=1)[:, None, None].expand(-1, 2, 2)
        elif kind == "gem":
            values = torch.cat([vectors, vectors], dim=1)
        else:
            shape = SHAPES[kind]
            values = vectors.reshape(len(vectors), *(1 for _ in shape), -1).expand(-1, *shape, -1)
        return Look(values.contiguous(), np.arange(len(source)), source)


def knows(source, row):
    """Its class, and a little of itself, so that no two images are the same."""
    vector = torch.zeros(CLASSES + 1)
    vector[source.columns["label"][row]] = 1
    vector[-1] = 0.01 * (row % EACH)
    return vector


def same(source, row):
    return torch.ones(CLASSES + 1)


def images(name):
    labels = np.arange(CLASSES * EACH) % CLASSES
    found = Made(labels, name)
    found.columns["group"] = labels
    return found


def clips(name):
    """Each of two frames."""
    labels = np.repeat(np.arange(CLASSES * EACH) % CLASSES, 2)
    found = Made(labels, name)
    found.columns["clip"] = (np.arange(len(labels)) // 2).astype(np.str_)
    return Stills(found)


ASKED = {"correspondence": pointed, "tracking": jumping}
"""What evaluations are asked of that look at the places of a picture."""


def painted(name):
    """A class a picture, which its grey tells."""
    greys = [np.full((16, 20), of_class) for of_class in np.arange(CLASSES * EACH) % CLASSES]
    return Painted(greys, greys, name)


def deep(name):
    """A depth a picture, which its grey tells: from 0.9 metres, each 1.35 times the last."""
    greys = [np.full((16, 20), of_depth) for of_depth in np.arange(CLASSES * EACH) % CLASSES]
    return Deep(greys, [(900 * 1.35**grey).astype(np.uint16) for grey in greys], name)


def tells(grey):
    return torch.nn.functional.one_hot(grey.round().long(), CLASSES + 1).float()


def tells_nothing(grey):
    return torch.ones(*grey.shape, CLASSES + 1)


MAPS = {"masks": (painted, tells, tells_nothing), "depths": (deep, tells, tells_nothing)}
"""Of what evaluations of maps need: the images, and what patches tell to one that knows all and to one that knows nothing."""


def of_maps(evaluation, config):
    make, *backbones = MAPS[evaluation.needs]
    sides = Sides(make("train"), make("test"))
    return [lambda of=of: evaluation.measure(painted_eyes(of, CLASSES + 1), sides, config) for of in backbones]


@pytest.fixture(params=list(EVALUATIONS), scope="module")
def measured(request):
    """Measures of both backbones by an evaluation, and what they say when first asked."""
    name, measures = request.param, measures_of(request.param)
    return name, measures, [measure() for measure in measures]


def measures_of(name):
    evaluation = EVALUATIONS[name]
    config = evaluation.config(**FAST.get(name, {}))
    if evaluation.needs in MAPS:
        return of_maps(evaluation, config)
    known, asked = map(clips if evaluation.needs == "clips" else images, ("train", "test"))
    if evaluation.needs == "asked":
        known = ASKED[name]()
    sides = Sides(known, known, itself=True) if evaluation.needs in {"images", "asked"} else Sides(known, asked)
    return [lambda of=of: evaluation.measure(Told(of), sides, config) for of in (knows, same)]


def test_the_best_for_one_that_knows_and_chance_for_one_that_tells_nothing_apart(measured):
    name, _, said = measured
    best, chance = ({score.name: score for score in scores} for scores in said)
    assert best.keys() == chance.keys()
    shares = [name for name, score in best.items() if score.unit == "fraction"]
    assert shares
    for each in shares:
        one, other = best[each], chance[each]
        assert one.higher_is_better == other.higher_is_better
        if name == "health" or "increase" in each:  # nothing is odd about either, and neither sees a corruption
            assert one.value == other.value == 0
            continue
        assert one.value == pytest.approx(1.0 if one.higher_is_better else 0.0, abs=1e-6), each
        right = other.value if one.higher_is_better else 1 - other.value
        assert right <= ALLOWED.get(each.partition("_")[0], 1.6) / CLASSES + 1e-6, each


def test_a_score_says_what_it_is(measured):
    name, measures, said = measured
    for measure, scores in zip(measures, said, strict=True):
        assert len({score.name for score in scores}) == len(scores) > 0
        for score in scores:
            assert (score.task, bool(score.protocol), bool(score.unit)) == (name, True, True)
            assert score.n > 0
            assert math.isfinite(score.value), score.name
            if score.interval is not None:
                low, high = score.interval
                assert low - 1e-9 <= score.value <= high + 1e-9, score.name
        json.dumps([dataclasses.asdict(score) for score in scores])
        assert [score.value for score in measure()] == [score.value for score in scores]  # and says it again


def test_suites_name_evaluations():
    for names in SUITES.values():
        assert len({*names}) == len(names) > 0
        assert {*names} <= EVALUATIONS.keys()
    assert not SUITES.keys() & EVALUATIONS.keys()


def test_what_is_said_of_settings_is_said_of_such_as_there_are():
    for evaluation in EVALUATIONS.values():
        assert {*evaluation.images, *evaluation.of_one_seed} <= evaluation.config.model_fields.keys()
    assert SHAPES.keys() == KINDS.keys()
