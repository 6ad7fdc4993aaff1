"""Errors under corruption and on other sets: by hand, by slow loops, at their ends, and once on real pixels."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.corruptions.table import BENCHMARK
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate import robustness
from dinoforge.evaluate.corruption_error import (
    ALEXNET,
    Reference,
    alexnet,
    mean_corruption_error,
    relative_corruption_error,
)
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.robustness import ROBUSTNESS, RobustnessConfig, among
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes, Look
from dinoforge.model.vit import VitConfig
from given import GivenEyes, Made
from perturbed import perturbed

CLASSES, IMAGES = 4, 40
QUICK = {"iterations": 60, "learning_rates": "[0.1]", "layers": "[1]"}


def config(**settings):
    return with_settings(RobustnessConfig(), QUICK | settings)


def blocks(labels):
    """Perfect features: every class has a direction of its own."""
    return torch.eye(CLASSES)[torch.as_tensor(labels)][:, None].repeat(1, 2, 1) * 4


class Weather(GivenEyes):
    """Mistake every image for one of the next class, of the first so many tenths as the severity says."""

    def look(self, source, kind="image", *, view=None, remember=True):
        found = super().look(source, kind, view=view, remember=remember)
        if view is None:
            return found
        assert not remember  # 75 tables of features would fill the memory
        severity = int(view.name.split(", ")[1].split()[-1])
        first = severity * IMAGES // 10
        values = found.values.clone()
        values[:first] = values[:first].roll(1, dims=-1)
        return Look(values, found.rows, source)


def sides(names=None):
    labels = np.arange(IMAGES) % CLASSES
    return Sides(*(Made(labels, address, names, blocks=blocks(labels)) for address in ("known", "asked")))


def values(scores):
    return {score.name: score.value for score in scores}


def test_errors_are_counted_for_every_corruption_and_severity():
    """A tenth of the images is mistaken a severity: errors 0.1, 0.3 and 0.5, mean 0.3, whatever the corruption."""
    found = ROBUSTNESS.measure(Weather(), sides(), config(corruptions="fog,frost", severities="1,3,5"))
    assert values(found) == pytest.approx(
        {"error_clean": 0}
        | {f"error_{name}_{severity}": severity / 10 for name in ("fog", "frost") for severity in (1, 3, 5)}
        | {"error_fog": 0.3, "error_frost": 0.3, "mean_corruption_error": 0.3, "mean_error_increase": 0.3}
    )
    assert all(not score.higher_is_better and score.n == IMAGES and score.unit == "fraction" for score in found)
    overall = next(score for score in found if score.name == "mean_corruption_error")
    assert overall.interval[0] < 0.3 < overall.interval[1]
    assert "JPEG of quality 85" in overall.protocol
    drawn = [score.name for score in found if "drawn" in score.protocol]
    assert drawn == ["error_frost", "error_frost_1", "error_frost_3", "error_frost_5"]


def test_the_default_is_the_whole_benchmark():
    eyes = Weather()
    found = ROBUSTNESS.measure(eyes, sides(), config())
    assert len([name for _, _, name in eyes.views if "corrupted" in name]) == 75
    assert values(found)["mean_corruption_error"] == pytest.approx(0.3)
    assert "mce" not in values(found)  # four classes are not ImageNet's


def test_a_constant_backbone_scores_chance():
    labels = np.arange(IMAGES) % CLASSES
    same = [Made(labels, address, blocks=torch.ones(IMAGES, 2, 3)) for address in ("known", "asked")]
    found = values(ROBUSTNESS.measure(GivenEyes(), Sides(*same), config(corruptions="fog")))
    assert {found["error_clean"], found["error_fog"]} == {0.75}
    assert found["mean_error_increase"] == 0


def test_mean_corruption_error_by_hand():
    """Two corruptions of two severities: (0.2 + 0.4) / 1.2 = 0.5 and (0.3 + 0.6) / 1.0 = 0.9, mean 0.7.

    Less what clean pictures cost, 0.1 and 0.3: (0.6 - 0.2) / (1.2 - 0.6) = 2/3 and (0.9 - 0.2) / (1.0 - 0.6) = 7/4.
    """
    errors, reference = np.asarray([[0.2, 0.4], [0.3, 0.6]]), Reference("x", 0.3, np.asarray([1.2, 1.0]))
    assert mean_corruption_error(errors, reference) == pytest.approx(0.7)
    assert relative_corruption_error(errors, 0.1, reference) == pytest.approx((2 / 3 + 7 / 4) / 2)


def test_alexnet_is_the_reference_of_the_whole_benchmark_on_imagenet_alone():
    """Its own errors, as published with the benchmark, make 1."""
    names = ["n01440764", *(f"n{number:08}" for number in range(2000000, 2000998)), "n15075141"]
    reference = alexnet(names, list(BENCHMARK), range(1, 6))
    errors = np.repeat([[ALEXNET[name]] for name in BENCHMARK], 5, axis=1)
    assert mean_corruption_error(errors, reference) == pytest.approx(1)
    assert relative_corruption_error(errors, 0.435, reference) == pytest.approx(1)
    assert (ALEXNET["gaussian_noise"], ALEXNET["brightness"], ALEXNET["jpeg_compression"]) == (
        0.886428,
        0.564592,
        0.6065,
    )
    assert alexnet(names, list(BENCHMARK)[1:], range(1, 6)) is None
    assert alexnet(names, list(BENCHMARK), range(1, 5)) is None
    assert alexnet(names[:-1], list(BENCHMARK), range(1, 6)) is None
    assert alexnet([*names[:-2], "tench", "n15075141"], list(BENCHMARK), range(1, 6)) is None


def written(path, two, scores, **changed):
    data = f"{two.known.fingerprint} {two.asked.fingerprint}"
    rows = [{"task": s.task, "name": s.name, "value": s.value, "protocol": s.protocol, "data": data} for s in scores]
    path.write_text("".join(json.dumps(row | changed) + "\n" for row in rows))
    return str(path)


def test_another_backbone_is_the_reference(tmp_path):
    """One that errs twice as often: the ratio is a half; clean pictures cost neither anything, so the relative one too."""
    two, asked = sides(), {"corruptions": "fog,snow", "severities": "1,3,5"}
    first = ROBUSTNESS.measure(Weather(), two, config(**asked))
    double = [SimpleNamespace(**{name: getattr(s, name) for name in ("task", "name", "protocol")}, value=2 * s.value)
              for s in first]  # fmt: skip
    path = written(tmp_path / "scores.jsonl", two, double)
    found = ROBUSTNESS.measure(Weather(), two, config(**asked, reference=path))
    assert values(found)["mce"] == pytest.approx(0.5)
    assert values(found)["relative_mce"] == pytest.approx(0.5)
    mce = next(score for score in found if score.name == "mce")
    assert mce.unit == "ratio"
    assert mce.interval[0] < 0.5 < mce.interval[1]
    assert path in mce.protocol


def test_a_reference_must_be_of_the_same_measurement(tmp_path):
    two, asked = sides(), {"corruptions": "fog", "severities": "1,3"}
    scores = ROBUSTNESS.measure(Weather(), two, config(**asked))
    fitting = written(tmp_path / "a.jsonl", two, scores)
    for path, settings, lacks in [
        (written(tmp_path / "b.jsonl", two, scores, data="other images"), {}, "error_clean"),
        (fitting, {"severities": "1,2"}, "error_fog_2"),
        (fitting, {"seed": "1"}, "error_fog_1"),
        (fitting, {"jpeg_quality": "null"}, "error_fog_1"),
        (fitting, {"jpeg_quality": "8"}, "error_fog_1"),
    ]:
        with pytest.raises(DataError, match=lacks):
            ROBUSTNESS.measure(Weather(), two, config(**asked | settings, reference=path))
    with pytest.raises(DataError, match="is no file"):
        ROBUSTNESS.measure(Weather(), two, config(**asked, reference=str(tmp_path / "none")))
    flawless = written(tmp_path / "c.jsonl", two, scores, value=0.0)
    with pytest.raises(DataError, match="no error under fog"):
        ROBUSTNESS.measure(Weather(), two, config(**asked, reference=flawless))


def test_a_reference_that_clean_pictures_cost_as_much_gives_no_relative_one(tmp_path):
    two, asked = sides(), {"corruptions": "fog", "severities": "1,3"}
    scores = ROBUSTNESS.measure(Weather(), two, config(**asked))
    path = written(tmp_path / "a.jsonl", two, scores, value=0.5)
    found = values(ROBUSTNESS.measure(Weather(), two, config(**asked, reference=path)))
    assert found["mce"] == pytest.approx(0.4 / 1.0)
    assert "relative_mce" not in found


def test_other_sets_are_asked_among_the_classes_that_they_have():
    """Against a slow loop over the images."""
    draws = torch.Generator().manual_seed(0)
    names, own = tuple("abcdefg"), [str(name) for name in np.random.default_rng(0).choice(list("bdf"), 50)]
    logits = torch.randn(50, 7, generator=draws)
    want = []
    for row, name in zip(logits.tolist(), own, strict=True):
        score = dict(zip(names, row, strict=True))
        want.append(sum(score[other] > score[name] for other in ("b", "d", "f")))
    assert among(logits, own, names).tolist() == want
    assert {*want} == {0, 1, 2}


def test_other_sets_by_name_whatever_their_numbers(monkeypatch):
    """Classes c and a, numbered anew; half of the images of a look like b, which they cannot be, and then a little like c."""
    other = Made([0, 0, 1, 1], "other", ["c", "c", "a", "a"], blocks=blocks([2, 2, 0, 1]))
    other.features["blocks"][3] += blocks([2])[0] / 4
    monkeypatch.setattr(robustness, "open_source", lambda address: {"x": other}[address])
    two = sides(np.asarray(list("abcd"))[np.arange(IMAGES) % CLASSES])
    found = ROBUSTNESS.measure(Weather(), two, config(corruptions="fog", severities="1", also="x"))
    (score,) = [score for score in found if "other" in score.name]
    assert (score.name, score.value, score.n, score.higher_is_better) == ("accuracy other", 0.75, 4, True)
    assert "among the 2 of 4 classes" in score.protocol


def test_other_sets_of_other_classes_are_refused(monkeypatch):
    strangers = Made([0, 1, 2], "other", ["a", "y", "z"], blocks=blocks([0, 1, 2]))
    monkeypatch.setattr(robustness, "open_source", lambda address: strangers)
    two = sides(np.asarray(list("abcd"))[np.arange(IMAGES) % CLASSES])
    with pytest.raises(
        DataError, match=r"^other has 2 classes that known lacks, such as y, z; they are matched by name\.$"
    ):
        ROBUSTNESS.measure(Weather(), two, config(also="x"))
    strangers.columns["label"][0] = -1
    with pytest.raises(DataError, match="no labels"):
        ROBUSTNESS.measure(Weather(), two, config(also="x"))


def test_settings_are_judged():
    assert config(severities="2").severities == (2,)
    assert config(corruptions="[fog, spatter]").corruptions == ("fog", "spatter")
    for settings, message in [
        ({"corruptions": "fogg"}, "Did you mean 'fog'"),
        ({"corruptions": "fog,fog"}, "once"),
        ({"severities": "0"}, "severities"),
        ({"severities": "6"}, "severities"),
        ({"severities": ""}, "severities"),
        ({"jpeg_quality": "96"}, "jpeg_quality"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config(**settings)
    eyes = Weather()
    eyes.backbone.preprocessing = eyes.backbone.preprocessing.model_copy(update={"channels": 1})
    with pytest.raises(DataError, match="1 channels"):
        ROBUSTNESS.measure(eyes, sides(), config())


def test_on_pixels(capsys):
    """A network that was never trained is measured on drawn pictures; kept by no name, so the eyes' memory stays small."""
    backbone = perturbed(VitConfig(width=16, depth=2, heads=2, patch=8, pixels=32), short_side=36, side=32)
    eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
    known, asked = (open_source(f"toy://species?images={count}&size=48&seed={count}") for count in (80, 20))
    other = "toy://species?images=16&size=48&seed=9"
    found = values(ROBUSTNESS.measure(eyes, Sides(known, asked), config(
        corruptions="pixelate,impulse_noise", severities="1,5", also=other
    )))  # fmt: skip
    assert "2 corruptions x 2 severities of 20 images: 80 images" in capsys.readouterr().err
    assert all(0 <= value <= 1 for name, value in found.items() if name != "mean_error_increase")
    assert f"accuracy {other}" in found
    assert len(eyes._seen) == 3  # known, asked and the other set, none of the corrupted
    with pytest.raises(DataError, match="matched by name"):
        ROBUSTNESS.measure(eyes, Sides(known, asked), config(also="toy://minerals?images=8&size=48"))


def test_other_sets_are_not_matched_by_a_name_of_several_classes(monkeypatch):
    other = Made([0, 1], "other", ["a", "b"], blocks=blocks([0, 1]))
    monkeypatch.setattr(robustness, "open_source", lambda address: other)
    two = sides(np.asarray(list("aabc"))[np.arange(IMAGES) % CLASSES])
    with pytest.raises(DataError, match="known has several classes of the name 'a'"):
        ROBUSTNESS.measure(Weather(), two, config(also="x"))
