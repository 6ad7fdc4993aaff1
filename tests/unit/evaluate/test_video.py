"""``video``: features of clips from those of their frames, by hand, and what the heads then say."""

import numpy as np
import pytest
import torch

from dinoforge.base.config import with_settings
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.film import evenly
from dinoforge.data.sources.clips import Stills
from dinoforge.data.sources.table import open_clips
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.linear import LINEAR, LinearConfig
from dinoforge.evaluate.neighbours import KNN, VoteConfig
from dinoforge.evaluate.video import VIDEO, ClipEyes, VideoConfig, joined
from dinoforge.features.extract import Extraction
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import longest
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing
from dinoforge.verbs.opening import told
from dinoforge.verbs.sides import Named, opened_sides
from given import GivenEyes, Listed, Made, noise

CLASSES, FRAMES = 6, 5


def filmed(clips, seed, name="train"):
    """Clips whose class is in their frames; frames of all clips are mixed."""
    labels = np.arange(clips) % CLASSES
    values = noise(CLASSES, 1, 5, 8, seed=9)[labels] + noise(clips, FRAMES, 5, 8, seed=seed) * 2
    order = np.random.default_rng(seed).permutation(clips * FRAMES)
    clip, frame = order // FRAMES, order % FRAMES
    rows = Listed(name, len(order), label=labels[clip], clip=clip.astype(np.str_), frame=frame)
    return Stills(rows), values, {f"{name}/{row}": values[clip[row], frame[row]] for row in range(len(order))}


class FrameEyes(GivenEyes):
    """See of every frame what is written down for it; some are broken."""

    def __init__(self, *tables, gone=()):
        super().__init__()
        self.known, self.gone = {name: value for table in tables for name, value in table.items()}, set(gone)

    def look(self, source, kind="image", *, view=None, remember=True):
        names = [name.partition("#")[0] for name in source.columns["id"].tolist()]
        rows = np.asarray([row for row, name in enumerate(names) if name not in self.gone], np.int64)
        values = torch.stack([self.known[names[row]] for row in rows])
        return Look(values if kind == "blocks" else values[:, -2], rows, source)


def test_joined_by_hand():
    x = torch.arange(24.0).view(2, 3, 4)  # 2 clips, 3 frames, 4 channels
    assert joined(x, "average").tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert joined(x, "concatenate").tolist() == [[*range(12)], [*range(12, 24)]]
    x = noise(2, 3, 5, 4)
    for clip in range(2):
        for token in range(5):
            assert torch.equal(joined(x, "concatenate")[clip, token], torch.cat([x[clip, k, token] for k in range(3)]))
            mean = (x[clip, 0, token] + x[clip, 1, token] + x[clip, 2, token]) / 3
            torch.testing.assert_close(joined(x, "average")[clip, token], mean)


@pytest.mark.parametrize("count", [1, 3, 5, 8])
@pytest.mark.parametrize("join", ["average", "concatenate"])
def test_features_of_clips_are_those_of_their_frames(count, join):
    source, values, table = filmed(20, 0)
    seen = ClipEyes(FrameEyes(table), frames=count, join=join).look(source, "blocks")
    for row, name in enumerate(source.columns["id"].tolist()):
        want = [values[int(name), frame] for frame in evenly(count, FRAMES)]
        want = torch.stack(want).mean(0) if join == "average" else torch.cat(want, dim=-1)
        torch.testing.assert_close(seen.values[row], want)
    assert seen.rows.tolist() == [*range(20)]


@pytest.mark.parametrize("join", ["average", "concatenate"])
def test_scores_are_those_of_linear_and_knn_on_clips(join):
    (known, inside, one), (asked, outside, other) = filmed(90, 0), filmed(60, 1, "test")
    eyes, both = FrameEyes(one, other), Sides(known, asked)

    def plain(source, values):
        order = [int(name) for name in source.columns["id"].tolist()]
        blocks = values[order][:, evenly(3, FRAMES)]
        blocks = blocks.mean(1) if join == "average" else torch.cat([*blocks.unbind(1)], dim=-1)
        return Made(source.columns["label"], source.address, blocks=blocks, image=blocks[:, -2])

    by_hand = Sides(plain(known, inside), plain(asked, outside))
    for head, task, config in (
        ("linear", LINEAR, LinearConfig(iterations=50, learning_rates=[1e-3, 0.1])),
        ("knn", KNN, VoteConfig()),
    ):
        settings = {"iterations": 50, "learning_rates": [1e-3, 0.1]} if head == "linear" else {}
        mine = VIDEO.measure(eyes, both, VideoConfig(frames=3, join=join, head=head, **settings))
        theirs = task.measure(GivenEyes(), by_hand, config)
        assert [(a.name, a.value, a.interval, a.n) for a in mine] == [
            (b.name, b.value, b.interval, b.n) for b in theirs
        ]
        assert {score.task for score in mine} == {"video"}
        how = "averaged" if join == "average" else "one after the other"
        assert mine[0].protocol == f"3 evenly spaced frames of a clip, {how}; {theirs[0].protocol}"
    assert [score.name for score in mine][:3] == ["accuracy", "top5", "mean_class_accuracy"]


def test_a_clip_with_a_broken_frame_is_left_out(capsys):
    source, values, table = filmed(20, 0)
    frames = source.frames(3)
    gone = [frames.columns["id"][row].partition("#")[0] for row in (4, 5, 9)]  # of the clips 1 and 3
    seen = ClipEyes(FrameEyes(table, gone=gone), frames=3, join="average").look(source, "blocks")
    assert seen.rows.tolist() == [0, 2, *range(4, 20)]
    assert seen.source.columns["id"].tolist() == np.delete(source.columns["id"], [1, 3]).tolist()
    for row, name in enumerate(seen.source.columns["id"].tolist()):
        torch.testing.assert_close(seen.values[row], values[int(name), evenly(3, FRAMES)].mean(0))
    assert "2 of 20 clips are left out" in capsys.readouterr().err
    every = [name.partition("#")[0] for name in frames.columns["id"][::3].tolist()]
    with pytest.raises(DataError, match="has no clip of which all 3 frames can be used"):
        ClipEyes(FrameEyes(table, gone=every), frames=3, join="average").look(source, "blocks")


def test_settings_that_exclude_each_other():
    for settings, reason in (
        ({"head": "knn", "batch": 16}, "head=knn excludes batch, which is of linear heads"),
        ({"augment": "crops"}, "augment=crops would cut every frame of a clip elsewhere"),
        ({"frames": 0}, "frames must be"),
        ({"join": "sum"}, "join must be"),
    ):
        with pytest.raises(ConfigError, match=reason):
            with_settings(VideoConfig(), settings)


def micro(seed=0):
    config = VitConfig(width=32, depth=2, heads=2, patch=8, pixels=32)
    backbone = Backbone(build(config, seed=seed), config, Preprocessing(short_side=32, side=32))
    return Eyes(backbone, Extraction(torch.device("cpu")), folder=None, on_broken=lambda *_: None)


def test_frames_that_were_seen_for_something_else_are_not_seen_again(monkeypatch):
    """Some clips of a source whose clips were looked at, as where leaks are spared."""
    clips, eyes = open_clips("toy://clips?clips=10&frames=4&size=32"), micro()
    whole = ClipEyes(eyes, frames=2, join="concatenate").look(clips)
    monkeypatch.setattr(eyes.backbone.module, "forward", None)
    some = ClipEyes(eyes, frames=2, join="concatenate").look(clips.select(np.asarray([7, 2])))
    assert torch.equal(some.values, whole.values[[7, 2]])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_the_direction_of_a_motion_needs_the_order_of_frames(seed):
    """Left and right, rise and fall, grow and shrink have the same frames, in the other order: an average cannot tell them."""
    sides, eyes = opened_sides(Named(data=f"toy://clips?clips=1000&size=32&seed={seed}"), "clips"), micro(seed)
    config = VideoConfig(select="holdout", iterations=2000)
    average, ordered = (
        VIDEO.measure(eyes, sides, config.model_copy(update={"join": join}))[0] for join in ("average", "concatenate")
    )
    print(seed, average.value, average.interval, ordered.value, ordered.interval)
    assert ordered.value > average.value + 0.05
    assert ordered.interval[0] > 0.1  # chance


def test_eyes_of_clips_tell_and_look_anew_where_something_else_is_seen(capsys):
    source, _, table = filmed(20, 0)
    frames = FrameEyes(table)
    eyes = ClipEyes(frames, frames=3, join="average")
    assert eyes.on_broken is frames.on_broken
    once, again = eyes.look(source, "blocks"), eyes.look(source, "blocks")
    assert once is again
    assert eyes.look(source, "blocks", view=longest(28, patch=14)) is not once


def test_a_broken_video_is_told_of_whichever_frame_is_asked_for(capsys):
    for name in ("clips/x.avi#3of8", "clips/x.avi#5of8", "y.png", "y.png", "clips/z.avi#0of8", "clips/z.avi#1of8"):
        told(name, "damaged")
    said = [line for line in capsys.readouterr().err.splitlines() if "Set aside" in line]
    assert [line.partition("Set aside ")[2] for line in said] == [
        "clips/x.avi: damaged", "y.png: damaged", "y.png: damaged", "clips/z.avi: damaged",
    ]  # fmt: skip
