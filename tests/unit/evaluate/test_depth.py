"""``depth``: heads, what they learn from, where they are judged, and what is refused."""

import math

import numpy as np
import pytest
import torch

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.evaluate import depth as module
from dinoforge.evaluate.dense.lessons import Lesson
from dinoforge.evaluate.dense.ranged import DepthRange, measured_sides
from dinoforge.evaluate.depth import DEPTH, DepthConfig, first_head, head_loss, trunk_for
from dinoforge.evaluate.depth_metrics import ALIGNED, MEASURES, errors
from dinoforge.evaluate.evaluation import Sides
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes
from dinoforge.loss.depth import gradient_loss, scale_invariant_loss
from dinoforge.model.features import Features
from dinoforge.model.head_files import read_any_head
from dinoforge.model.released_heads import DptDepth, LinearDepth, read_head
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from given import Deep, noise, painted_eyes

NEAR = DepthRange(0.001, 10.0, "metres", middle=2.0, counted=10.0)
GREYS = np.asarray([20, 60, 100, 140, 180, 220])
FAST = {"iterations": 12, "batch": 4, "window": 8}


def told(name, reason):
    raise AssertionError(f"{name}: {reason}")


def eyes(depth=5, width=16, broken=told):
    config = VitConfig(width=width, depth=depth, heads=2, patch=4, pixels=16)
    how = Preprocessing(channels=3, short_side=16, side=16)
    return Eyes(
        Backbone(build(config, seed=0), config, how), Extraction(torch.device("cpu")), folder=None, on_broken=broken
    )


def foreign():
    """Sees which of the greys a patch is nearest to."""
    greys = torch.from_numpy(GREYS)
    return painted_eyes(lambda grey: torch.eye(6)[(grey[..., None] - greys).abs().argmin(-1)], 6)


def scenes(name, of=lambda grey: 10 * grey, shape=(16, 20), count=6, kind=np.uint16):
    """Pictures of one grey, whose depth that grey tells: 0.2 to 2.2 metres."""
    rng = np.random.default_rng(len(name))
    greys = [np.full(shape, GREYS[number % 6]) + rng.integers(-3, 4, shape) for number in range(count)]
    return Deep(greys, [of(np.full(shape, GREYS[number % 6])).astype(kind) for number in range(count)], name)


def both(**more):
    return Sides(scenes("train", **more), scenes("test", **more))


def scores(sides, config, by=None, save=None):
    found = DEPTH.measure(by or foreign(), sides, DepthConfig(**config), save=save)
    return {score.name: score for score in found}


@pytest.mark.parametrize(("head", "depth", "wanted"), [
    ("linear", 5, (4,)), ("linear", 2, (1,)), ("linear4", 4, (0, 1, 2, 3)), ("dpt", 12, (2, 5, 8, 11)),
])  # fmt: skip
def test_blocks_of_a_head(head, depth, wanted):
    trunk = trunk_for(eyes(depth=depth), DepthConfig(head=head, norm=False))
    assert trunk.numbers == wanted
    assert not trunk.norm
    assert trunk_for(eyes(depth=depth), DepthConfig(head=head)).norm


@pytest.mark.parametrize("head", ["linear4", "dpt"])
def test_too_few_blocks_are_one_line(head):
    with pytest.raises(ConfigError, match=rf"depth.head={head} takes four blocks; the backbone has 3\."):
        trunk_for(eyes(depth=3), DepthConfig(head=head))
    with pytest.raises(ConfigError, match=rf"depth.head={head} needs what blocks give; a backbone of another library"):
        trunk_for(foreign(), DepthConfig(head=head))
    with pytest.raises(ConfigError, match=r"depth.head=linear depth.norm=false needs what blocks give"):
        trunk_for(foreign(), DepthConfig(norm=False))
    assert trunk_for(foreign(), DepthConfig()).numbers == ()


@pytest.mark.parametrize("name", ["linear", "linear4", "dpt"])
class TestEveryHead:
    def test_first_weights_are_a_function_of_the_seed(self, name):
        trunk = trunk_for(eyes(), DepthConfig(head=name))
        heads = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(heads))
            heads.append(first_head(trunk, DepthConfig(head=name, seed=seed), NEAR).state_dict())
        assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
        assert not all(torch.equal(heads[0][key], heads[2][key]) for key in heads[0])

    def test_it_begins_within_the_range_with_a_slope_for_every_weight(self, name):
        config = DepthConfig(head=name)
        trunk = trunk_for(eyes(width=64), config)
        head = first_head(trunk, config, NEAR)
        layers = [Features(noise(2, 64), noise(2, 0, 64), noise(2, 4, 4, 64, seed=seed)) for seed in range(trunk.count)]
        cells = head(layers)
        middle = 2.0 if name == "dpt" else 5.0
        assert cells.detach().numpy() == pytest.approx(np.full(cells.shape, middle), rel=0.3)
        truth = noise(2, 16, 16).abs() + 0.1
        head_loss(trunk, head, Lesson(999, layers, truth), config=config, limits=NEAR).backward()
        assert all(weight.grad.isfinite().all() for weight in head.parameters())
        assert all(weight.grad.abs().max() > 0 for weight in head.parameters())

    def test_the_loss_is_that_of_the_enlarged_map(self, name):
        config = DepthConfig(head=name, iterations=2000)
        trunk = trunk_for(eyes(), config)
        head = first_head(trunk, config, NEAR)
        layers = [Features(noise(2, 16), noise(2, 0, 16), noise(2, 4, 4, 16, seed=seed)) for seed in range(trunk.count)]
        truth = noise(2, 14, 16).abs() * 8
        truth[truth < 1] = 0
        assert (truth > 10).any()
        valid = ((truth > 0) & (truth <= 10))[:, None]
        cells = head(layers)
        whole = torch.nn.functional.interpolate(cells, (16, 16), mode="bilinear", align_corners=False)[:, :, 1:15]
        for step, warming in ((0, True), (99, True), (100, False), (1999, False)):
            found = head_loss(trunk, head, Lesson(step, layers, truth), config=config, limits=NEAR)
            want = scale_invariant_loss(whole, truth[:, None], valid, warming=warming)
            assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
        more = config.model_copy(update={"gradient_weight": 0.5})
        found = head_loss(trunk, head, Lesson(500, layers, truth), config=more, limits=NEAR)
        want = want + 0.5 * gradient_loss(whole, truth[:, None], valid)
        assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-5)

    def test_what_is_saved_is_the_head_and_in_the_released_form_a_released_one(self, name, tmp_path):
        backbone, config = eyes(), {"iterations": 2, "batch": 2, "window": 8, "flip": False, "head": name}
        scores(coloured(), config | {"scales": (0.5, 1.0)}, by=backbone, save=tmp_path / "s")
        facts = read_any_head(tmp_path / "s", backbone.backbone).facts
        assert (facts.flip, facts.scales) == (False, (0.5, 1.0))
        found = scores(coloured(), config, by=backbone, save=tmp_path / "h")
        assert [*found] == [*MEASURES]
        assert all(math.isfinite(score.value) for score in found.values())
        head = read_any_head(tmp_path / "h", backbone.backbone)
        assert head.facts.range == (0.001, 10.0)
        assert head.facts.blocks == ((4,) if name == "linear" else (0, 1, 3, 4))
        assert isinstance(head.module, DptDepth if name == "dpt" else LinearDepth)
        state = {f"decode_head.{key}": value for key, value in head.module.state_dict().items()}
        torch.save({"meta": {}, "state_dict": state}, tmp_path / "released.pth")
        released = read_head(tmp_path / "released.pth", width=16)
        asked = coloured().asked
        image = torch.from_numpy(asked.pixels(0)).permute(2, 0, 1)[None]
        cells = released(trunk_for(backbone, DepthConfig(head=name))(image), nearest=0.001, farthest=10.0)
        told = torch.nn.functional.interpolate(cells, (16, 20), mode="bilinear", align_corners=False)[0, 0]
        truth = asked.extra(0, "depth") / 1000
        own = errors(told.detach().numpy(), truth, truth > 0)
        alone = scores(Sides(coloured().known, asked.select(np.asarray([0]))), config, by=backbone)
        assert own == pytest.approx({key: score.value for key, score in alone.items()}, rel=1e-4, abs=1e-6)


def coloured():
    return Sides(*(Deep([np.stack([one] * 3, -1) for one in source.pictures], source.masks, source.address)
                   for source in (scenes("train"), scenes("test"))))  # fmt: skip


def test_a_head_learns_what_patches_tell_and_not_what_they_do_not():
    config = {"iterations": 100, "batch": 6, "learning_rate": 0.2, "farthest": 3.0, "window": 8}
    knows = scores(both(), config)
    constant = scores(both(), config, by=painted_eyes(lambda grey: torch.ones(*grey.shape, 6), 6))
    assert knows["abs_rel"].value < 0.25
    assert constant["abs_rel"].value > 0.4
    assert knows["delta2"].value > 0.9
    assert constant["delta2"].value < 0.6


def test_scores_are_means_over_images(tmp_path):
    """Against each image by itself: the head is trained on the same images, so it is the same."""
    config = {**FAST, "iterations": 40, "learning_rate": 0.1}
    sides = both()
    whole = scores(sides, config)
    each = [scores(Sides(sides.known, sides.asked.select(np.asarray([row]))), config) for row in range(6)]
    for name, score in whole.items():
        assert score.value == pytest.approx(np.mean([one[name].value for one in each]), rel=1e-6), name
        assert (score.n, score.unit, score.higher_is_better) == (6, *MEASURES[name])
    assert whole["rmse"].value > 0.01


def test_pixels_without_a_reading_and_beyond_the_range_do_not_count():
    config = {**FAST, "farthest": 5.0}
    holes = both()
    for place, depth in ((0, 0), (1, 60_000)):
        for source in (holes.known, holes.asked):
            for one in source.masks:
                one[:, place] = depth
    plain = both()
    for source in (plain.known, plain.asked):
        for one in source.masks:
            one[:, :2] = 0
    found, want = scores(holes, config), scores(plain, config)
    assert {name: score.value for name, score in found.items()} == {name: score.value for name, score in want.items()}
    filled = scores(both(), config)
    assert filled["rmse"].value != want["rmse"].value


class Wild(LinearDepth):
    """A head that tells 20 of pictures of the first grey, and 0.01 of all others."""

    def __init__(self):
        super().__init__(6, 1, 2)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, layers, *, nearest, farthest):
        return self.scale * (layers[-1].patches[..., :1] * 19.99 + 0.01).permute(0, 3, 1, 2)


def test_what_is_told_stays_in_the_range(monkeypatch):
    seen = []

    def recorded(told, truth, valid):
        seen.append((float(told.min()), float(told.max())))
        return errors(told, truth, valid)

    monkeypatch.setattr(module, "first_head", lambda *_: Wild())
    monkeypatch.setattr(module, "errors", recorded)
    scores(both(), {**FAST, "iterations": 1, "nearest": 0.5, "farthest": 3.0})
    assert seen == [(3.0, 3.0)] + [(0.5, 0.5)] * 5


def test_a_picture_without_a_reading_is_left_out_with_a_word(capsys):
    sides = both()
    sides.asked.masks[2] = np.zeros_like(sides.asked.masks[2])
    sides.asked.masks[3] = None
    found = scores(sides, FAST)
    assert found["rmse"].n == 4
    said = capsys.readouterr().err
    assert "test: 1 test pictures have no reading from 0.001 to 10 metres and are left out" in said
    assert "1 of 6 images have no depth" in said
    assert said.count("16-bit depth is taken as millimetres, 0 as no reading") == 2


@pytest.mark.parametrize(("factor", "farthest"), [(10, 10.0), (200, 80.0)])
def test_the_range_is_that_of_rooms_or_of_streets(factor, farthest):
    _, limits = measured_sides(
        both(of=lambda grey: factor * grey), unit=None, nearest=0.001, farthest=None, on_broken=told
    )
    assert (limits.farthest, limits.unit) == (farthest, "metres")
    assert limits.middle == pytest.approx(np.exp(np.log(factor * GREYS / 1000).mean()), rel=1e-5)


def test_disparity_is_judged_up_to_scale_and_shift():
    sides = both(of=lambda grey: 255 - grey, kind=np.uint8)
    found = scores(sides, {**FAST, "unit": "disparity"})
    assert found.keys() == ALIGNED.keys()
    assert "0.001 to 235 disparity" in found["silog"].protocol


def test_the_unit_of_the_source_counts_and_the_setting_before_it():
    sides = both()
    for source in (sides.known, sides.asked):
        source.columns["depth_unit"] = np.full(6, "centimetres")
    _, limits = measured_sides(sides, unit=None, nearest=0.001, farthest=None, on_broken=told)
    assert limits.middle == pytest.approx(np.exp(np.log(GREYS / 10).mean()), rel=1e-5)
    _, limits = measured_sides(sides, unit="0.0001", nearest=0.001, farthest=None, on_broken=told)
    assert limits.middle == pytest.approx(np.exp(np.log(GREYS / 1000).mean()), rel=1e-5)


def mixed():
    sides = both()
    sides.known.columns["depth_unit"] = np.asarray(["disparity", ""] * 3)
    return sides


def apart():
    sides = both()
    sides.asked.columns["depth_unit"] = np.full(6, "disparity")
    return sides


@pytest.mark.parametrize(("sides", "config", "why"), [
    (lambda: both(kind=np.uint8, of=lambda grey: grey), {}, "train/0 has depth as uint8 numbers without a unit"),
    (lambda: both(kind=np.float32), {}, "has depth as float32 numbers without a unit; 16-bit integers are millimetres"),
    (lambda: both(of=lambda grey: 0 * grey), {}, "train has no reading in its depth"),
    (lambda: Sides(scenes("train"), scenes("test", of=lambda grey: 0 * grey)), {}, "test has no reading in its depth"),
    (both, {"unit": "metres"}, "train has no depth from 0.001 to 80 metres; its readings go from 200 to 2200"),
    (both, {"nearest": 12.0}, "nearest=12 must be below the farthest depth, 10 metres by the readings to learn from; give"),
    (lambda: both(of=lambda grey: 255 - grey, kind=np.uint8), {"unit": "disparity", "nearest": 240.0},
     "nearest=240 must be below the farthest depth, 235 of disparity"),
    (both, {"nearest": 5.0, "farthest": 9.0}, "has no depth from 5 to 9 metres; its readings go from 0.2 to 2.2"),
    (lambda: Sides(Deep([GREYS[None]], [np.ones((2, 6), np.uint16)], "train"), scenes("test")), {},
     r"train/0: the depth has 6x2 pixels and the picture 6x1; they must agree"),
    (lambda: Sides(Deep([GREYS[None]], [None], "train"), scenes("test")), {}, "train has no depth that can be read"),
    (both, {"crop": "eigen"}, "depth.crop=eigen is for pictures like NYU Depth's of 640x480; a picture of test has 20x16"),
    (both, {"crop": "garg"}, "depth.crop=garg is for pictures like KITTI's"),
    (mixed, {}, "train has depth in disparity and in metres together"),
    (apart, {}, "test has depth in disparity and train in metres; both sides must agree"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(sides, config, why):
    with pytest.raises(DataError, match=why) as error:
        scores(sides(), {**FAST, **config})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("config", "why"), [
    ({"unit": "feet"}, "takes metres, centimetres"),
    ({"nearest": 5, "farthest": 5}, "nearest=5 must be below farthest=5"),
    ({"head": "dpt4"}, "head"),
    ({"most_of_one": 0.5}, "most_of_one"),
    ({"mirror": 0.2}, "has no effect with augment=none"),
    ({"gradient_weight": -1}, "gradient_weight"),
    ({"augment": "crops", "ratio": [1, 17]}, "enlarged at most 16 times"),
    ({"unit": True}, "unit"),
    ({"unit": -0.5}, "takes metres, centimetres"),
])  # fmt: skip
def test_settings_that_are_refused(config, why):
    with pytest.raises(ConfigError, match=why) as error:
        DepthConfig.build(config, prefix="depth.")
    assert len(str(error.value).splitlines()) == 1


def test_learns_from_crops_too():
    config = {"iterations": 100, "batch": 6, "learning_rate": 0.2, "farthest": 3.0, "window": 8, "augment": "crops",
              "distort": False}  # fmt: skip
    knows = scores(both(shape=(24, 32)), config)
    constant = scores(both(shape=(24, 32)), config, by=painted_eyes(lambda grey: torch.ones(*grey.shape, 6), 6))
    assert "100 updates of 6 random crops of 8 pixels" in knows["rmse"].protocol
    assert knows["abs_rel"].value < 0.25
    assert constant["abs_rel"].value > 0.4


def test_a_unit_is_a_number_too():
    found = [DepthConfig.build({"unit": unit}).unit for unit in (0.001, 1, "0.001", "disparity", None)]
    assert found == ["0.001", "1", "0.001", "disparity", None]
