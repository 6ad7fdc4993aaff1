"""``linear``: what is learnt from, which head is chosen and on what, and what is said of it."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.heads import HeadGrid
from dinoforge.evaluate.linear import LINEAR, LinearConfig, fit_linear
from dinoforge.features import views
from dinoforge.features.extract import Extraction, computed
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import cropped
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.weights import Backbone, Preprocessing
from given import GivenEyes, Made

CLASSES, CHANNELS = 6, 8
QUICK = {"learning_rates": (1e-3, 0.1), "batch": 32}


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(count, seed, tokens=5, noise=1.0, name="test"):
    labels = torch.arange(count) % CLASSES
    blocks = made(CLASSES, tokens, CHANNELS, seed=9)[labels] + made(count, tokens, CHANNELS, seed=seed) * noise
    return Made(labels.numpy(), name, blocks=blocks)


def sides(tokens=5, **options):
    return Sides(table(180, 0, tokens, name="train", **options), table(90, 1, tokens, **options))


def named(scores):
    return {score.name: score for score in scores}


def test_scores_are_those_of_the_head():
    both = sides(noise=2.0)
    config = LinearConfig(**QUICK)
    head = fit_linear(GivenEyes(), both, config)
    answers = head.logits(both.asked.features["blocks"]).argmax(1).numpy()
    scores = named(LINEAR.measure(GivenEyes(), both, config))
    right = answers == both.asked.columns["label"]
    assert list(scores) == ["accuracy", "top5", "mean_class_accuracy"]
    assert 0.5 < scores["accuracy"].value == right.mean() < 1
    assert scores["mean_class_accuracy"].value == pytest.approx(
        np.mean([right[both.asked.columns["label"] == c].mean() for c in range(CLASSES)])
    )
    assert scores["accuracy"].protocol == head.protocol
    assert head.classes.labels.tolist() == list(range(CLASSES))


def test_logits_by_hand():
    head = fit_linear(GivenEyes(), sides(), LinearConfig(**QUICK, layers=[1], pool=[True]))
    x = made(3, 5, CHANNELS, seed=4)
    for row in range(3):
        want = head.weight @ torch.cat([x[row, 3], x[row, 4]]) + head.bias
        torch.testing.assert_close(head.logits(x)[row], want)


def test_the_best_head_is_right_most_often_of_all(monkeypatch):
    """Every head of the grid alone, on the test images."""
    both, found = sides(noise=2.0), {}
    rates = (1e-4, 1e-2, 0.3)
    for rate in rates:
        for layers in (1, 4):
            for pool in (False, True):
                config = LinearConfig(learning_rates=[rate], layers=[layers], pool=[pool], batch=32)
                found[rate, layers, pool] = named(LINEAR.measure(GivenEyes(), both, config))["accuracy"].value
    assert len({*found.values()}) > 3
    score = named(LINEAR.measure(GivenEyes(), both, LinearConfig(learning_rates=rates, batch=32)))["accuracy"]
    assert score.value == max(found.values())
    (rate, layers, pool), *_ = [key for key, value in found.items() if value == score.value]
    assert score.protocol.startswith("best of 12 heads on the test images: learning rate ")
    assert f"{rate:g}, class tokens of the last {layers}{', mean patch' * pool}; 50 updates of 32" in score.protocol


def test_a_held_out_tenth_chooses_without_the_test_images():
    """Test images with the labels of other classes, which a head that has learnt nothing answers best."""
    both = sides()
    config = LinearConfig(learning_rates=(1e-6, 0.1), batch=32, select="holdout")
    head = fit_linear(GivenEyes(), both, config)
    wrong = Made((both.asked.columns["label"] + 1) % CLASSES, "test", blocks=both.asked.features["blocks"])
    same = fit_linear(GivenEyes(), Sides(both.known, wrong), config)
    assert torch.equal(head.weight, same.weight)
    assert "learning rate 0.1," in same.protocol
    misled = fit_linear(GivenEyes(), Sides(both.known, wrong), config.model_copy(update={"select": "test"}))
    assert "learning rate 1e-06," in misled.protocol
    assert "on a tenth of the train rows, then trained on all" in head.protocol
    # It is that head of a grid on all images.
    rate = float(head.protocol.split("learning rate ")[1].split(",")[0])
    alone = LinearConfig(learning_rates=[rate], layers=[head.inputs.layers], pool=[head.inputs.pool], batch=32)
    torch.testing.assert_close(fit_linear(GivenEyes(), both, alone).weight, head.weight)


def test_what_is_held_out_is_not_learnt_from(monkeypatch):
    step, seen = HeadGrid.step, []

    def noted(self, blocks, labels, *, factor):
        seen.append((len(self.rates), {*blocks[:, 0, 0].tolist()}))
        step(self, blocks, labels, factor=factor)

    monkeypatch.setattr(HeadGrid, "step", noted)
    fit_linear(GivenEyes(), sides(), LinearConfig(**QUICK, select="holdout"))
    tried, final = (set.union(*(rows for heads, rows in seen if heads == count)) for count in (2, 1))
    assert (len(tried), len(final), len(final - tried)) == (162, 180, 18)


def test_a_backbone_that_shows_fewer_blocks():
    for tokens, heads, layers in ((2, 26, {1}), (3, 52, {1, 2}), (5, 52, {1, 4})):
        config = LinearConfig(iterations=2, batch=16)
        head = fit_linear(GivenEyes(), sides(tokens), config)
        assert f"best of {heads} heads" in head.protocol
        assert head.inputs.layers in layers
    with pytest.raises(ConfigError, match=r"^linear.layers must be at most 1, the blocks .* shows; got \[1, 2\]\.$"):
        fit_linear(GivenEyes(), sides(2), LinearConfig(layers=[1, 2]))


def test_perfect_features_are_right_and_constant_ones_are_chance():
    labels = torch.arange(120) % CLASSES
    one = torch.eye(CLASSES)[labels][:, None].expand(-1, 5, -1) * 5
    for blocks, want in ((one, 1.0), (torch.ones(120, 5, CHANNELS), 1 / CLASSES)):
        source = Made(labels.numpy(), blocks=blocks)
        scores = named(LINEAR.measure(GivenEyes(), Sides(source, source), LinearConfig()))
        assert scores["accuracy"].value == scores["mean_class_accuracy"].value == pytest.approx(want)


@pytest.mark.filterwarnings("error")
def test_heads_that_diverge_are_not_chosen():
    both = sides()
    far = both.known.features["blocks"] * 1e18
    known = Made(both.known.columns["label"], "train", blocks=far)
    asked = Made(both.asked.columns["label"], "test", blocks=both.asked.features["blocks"] * 1e18)
    score = named(
        LINEAR.measure(GivenEyes(), Sides(known, asked), LinearConfig(learning_rates=(1e-37, 1e30), batch=32))
    )
    assert "learning rate 1e-37" in score["accuracy"].protocol


class PassEyes(GivenEyes):
    """See other features in every view."""

    def look(self, source, kind="image", *, view=None, remember=True):
        found = super().look(source, kind, view=view)
        shift = 0 if view is None else 100 * (1 + int(view.name.rpartition(" ")[2]))
        return Look(found.values + shift, found.rows, found.source)


def test_every_pass_learns_from_its_own_crops(monkeypatch):
    seen = []
    monkeypatch.setattr(HeadGrid, "step", lambda self, blocks, labels, *, factor: seen.append(blocks.mean().item()))
    both, eyes = sides(), PassEyes()
    config = LinearConfig(batch=60, iterations=7, augment="crops", seed=3)
    assert "random crops" in fit_linear(eyes, both, config).protocol
    assert [round(mean / 100) for mean in seen] == [1, 1, 1, 2, 2, 2, 3]
    crops = [name for address, kind, name in eyes.views if address == "train"]
    assert crops == [f"crops to 224, seed 3, pass {number}" for number in range(3)]  # each once
    assert {name for address, _, name in eyes.views if address == "test"} == {"short side 256, middle 224"}


def test_crops_are_a_function_of_seed_pass_and_row():
    how, pixels = Preprocessing(side=16), np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    one = cropped(how, seed=1, number=2)
    assert torch.equal(one.of(pixels, 5), cropped(how, seed=1, number=2).of(pixels, 5))
    assert one.of(pixels, 5).shape == (3, 16, 16)
    for seed, number, row in ((2, 2, 5), (1, 3, 5), (1, 2, 6)):
        assert not torch.equal(one.of(pixels, 5), cropped(how, seed=seed, number=number).of(pixels, row))
    assert len({one.name, cropped(how, seed=2, number=2).name, cropped(how, seed=1, number=3).name}) == 3


def test_crops_show_their_share_and_half_are_mirrored():
    """A ramp across: what of it is seen tells width and mirror; one down, the height."""
    across, down = np.meshgrid(np.arange(200), np.arange(100))
    pixels = np.stack([across, down, down], axis=-1).astype(np.uint8)
    views = [cropped(Preprocessing(side=20), seed=0, number=0).of(pixels, row).float() for row in range(400)]
    left, right, top, bottom = (
        torch.stack([view[plane][edge].mean() for view in views])
        for plane, edge in ((0, np.s_[:, 0]), (0, np.s_[:, -1]), (1, np.s_[0]), (1, np.s_[-1]))
    )
    assert (right < left).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (top < bottom).all()
    share = (right - left).abs() * (bottom - top) * (20 / 19) ** 2 / 20_000  # from the middles of pixels to their edges
    assert 0.06 < share.min() < 0.12
    assert share.max() > 0.6
    ratio = (right - left).abs() / (bottom - top)
    assert 0.65 < ratio.min() < ratio.max() < 1.45  # 3/4 to 4/3, and grey levels are whole numbers


def test_a_crop_is_pillows_bicubic(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    monkeypatch.setattr(views, "crop_box", lambda *_, **__: (10, 5, 60, 45))
    want = np.asarray(Image.fromarray(pixels).crop((5, 10, 50, 70)).resize((16, 16), Image.Resampling.BICUBIC))
    seen = [
        cropped(Preprocessing(side=16), seed=0, number=0).of(pixels, row).permute(1, 2, 0).numpy() for row in range(9)
    ]
    mirrored = [abs(one.astype(int) - want[:, ::-1]).max() <= 1 for one in seen]
    plain = [abs(one.astype(int) - want).max() <= 1 for one in seen]
    assert [a or b for a, b in zip(mirrored, plain, strict=True)] == [True] * 9
    assert any(mirrored)
    assert any(plain)


def test_real_eyes_learn_the_same_twice(monkeypatch):
    known, asked = (open_source("toy://species?images=30&size=24", split) for split in ("train", "test"))
    backbone = Backbone(build(ToyConfig(), seed=0), ToyConfig(), Preprocessing(short_side=24, side=24))
    config = LinearConfig(augment="crops", iterations=4, batch=8)

    def fit(config=config):
        eyes = Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)
        return fit_linear(eyes, Sides(known, asked), config)

    first, second = fit(), fit()
    assert torch.equal(first.weight, second.weight)
    assert first.protocol == second.protocol
    assert "class tokens of the last 1" in first.protocol  # a toy shows one
    looked = []
    monkeypatch.setattr(
        "dinoforge.features.eyes.computed",
        lambda module, source, *a, **b: looked.append(len(source)) or computed(module, source, *a, **b),
    )
    assert "on a tenth of the train rows" in fit(config.model_copy(update={"select": "holdout"})).protocol
    assert looked == [24, 6, 24, 2]


def test_what_cannot_be():
    with pytest.raises(ConfigError, match=r"^linear.batch must be at most 180, the images to learn from; got 181\.$"):
        fit_linear(GivenEyes(), sides(), LinearConfig(batch=181))
    with pytest.raises(DataError, match="train has one class, 0"):
        fit_linear(GivenEyes(), Sides(Made([0] * 20, "train", blocks=made(20, 5, 2)), sides().asked), LinearConfig())
    for name, value in (
        ("learning_rates", []),
        ("learning_rates", [0.1, 0.1]),
        ("layers", [5]),
        ("layers", [0]),
        ("pool", []),
    ):
        with pytest.raises(ConfigError, match=f"^{name}"):
            LinearConfig.build({name: value})


def test_lists_are_written_with_commas_or_as_lists():
    for written in ("0.1,0.2", [0.1, 0.2], "[0.1, 0.2]"):
        assert with_settings(LinearConfig(), {"learning_rates": written}).learning_rates == (0.1, 0.2)
    assert with_settings(LinearConfig(), {"layers": "1", "pool": "true"}).layers == (1,)
    with pytest.raises(ConfigError, match="each value once"):
        with_settings(LinearConfig(), {"layers": "1,1"})
    with pytest.raises(ConfigError, match="learning_rates"):
        with_settings(LinearConfig(), {"learning_rates": "[]"})
