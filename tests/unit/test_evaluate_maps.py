"""Evaluations of maps as a user runs them: which images are learnt from, heads that are kept, and what is one line."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import dinoforge
from dinoforge.base.errors import ConfigError, DataError, RunError
from dinoforge.model.head_files import read_any_head
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import load_backbone, save_backbone
from dinoforge.verbs.sides import Named, opened_sides
from perturbed import perturbed

SIZE = (24, 32)


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def table(path, count, *, seed, split=None, classes=3, masked=True):
    """Noise whose upper half is darker; the mask tells the halves, and a corner of a third class."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        pixels, mask = rng.integers(100, 256, (*SIZE, 3), dtype=np.uint8), np.zeros(SIZE, np.uint8)
        pixels[:12] //= 2
        mask[12:], mask[18:, 24:] = 1, classes - 1
        row = {"id": f"{path.stem}-{number}", "image": png(pixels), "mask": png(mask) if masked else None}
        rows.append(row | ({"split": split} if split else {}))
    schema = {"id": pa.string(), "image": pa.binary(), "mask": pa.binary()} | ({"split": pa.string()} if split else {})
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(schema)), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("maps")
    config = VitConfig(width=16, depth=2, heads=2, patch=8, pixels=16)
    save_backbone(place / "b", perturbed(config, short_side=16, side=16))
    (place / "data").mkdir()
    for number, (name, count) in enumerate((("train", 6), ("val", 2), ("test", 3))):
        table(place / "data" / f"{name}.parquet", count, seed=number)
    (place / "data" / "classes.json").write_text(json.dumps({"classes": ["up", "down", "corner"], "ignore_index": 9}))
    return place


def sides(address):
    found = opened_sides(Named(str(address)), "masks")
    return [[name.partition("-")[0] for name in side.columns["id"].tolist()] for side in (found.known, found.asked)]


def test_val_joins_train_where_test_has_masks(place, tmp_path):
    assert sides(place / "data") == [["train"] * 6 + ["val"] * 2, ["test"] * 3] or sides(place / "data") == [
        ["val"] * 2 + ["train"] * 6, ["test"] * 3,
    ]  # fmt: skip
    table(tmp_path / "train.parquet", 4, seed=0)
    table(tmp_path / "val.parquet", 2, seed=1)
    assert sides(tmp_path) == [["train"] * 4, ["val"] * 2]
    table(tmp_path / "test.parquet", 2, seed=1, masked=False)  # kept back, as published sets do
    assert sides(tmp_path) == [["train"] * 4, ["val"] * 2]


def test_without_splits_every_fifth_is_asked(tmp_path):
    table(tmp_path / "all.parquet", 10, seed=0)
    known, asked = sides(tmp_path / "all.parquet")
    assert (len(known), len(asked)) == (8, 2)
    table(tmp_path / "few.parquet", 3, seed=0)
    with pytest.raises(DataError, match="too few images"):
        sides(tmp_path / "few.parquet")
    table(tmp_path / "none.parquet", 10, seed=0, masked=False)
    with pytest.raises(DataError, match="has no mask for its images"):
        sides(tmp_path / "none.parquet")


def test_without_splits_clips_are_asked_whole(tmp_path):
    table(tmp_path / "all.parquet", 10, seed=0)
    held = pq.read_table(tmp_path / "all.parquet")
    pq.write_table(held.append_column("clip", pa.array(list("aabcddeeef"))), tmp_path / "all.parquet")
    found = opened_sides(Named(str(tmp_path / "all.parquet")), "masks")
    assert found.asked.columns["clip"].tolist() == ["e"] * 3
    assert "e" not in found.known.columns["clip"]


def run(place, tasks="segmentation", data=None, **words):
    words = {f"{task}.iterations": 5 for task in tasks.split(",") if "knn" not in task} | words
    return dinoforge.evaluate(
        backbone=str(place / "b"), tasks=tasks, data=str(data or place / "data"), precision="fp32", **words
    )  # fmt: skip


def test_names_and_what_is_ignored_come_from_beside_the_images(place):
    both = run(place, "segmentation,segmentation_knn").scores
    for task in ("segmentation", "segmentation_knn"):
        found = {score.name: score for score in both if score.task == task}
        assert {"iou_up", "iou_down", "iou_corner", "miou"} <= found.keys()
        assert "those that are 9" in found["miou"].protocol
    assert found["iou_up"].value > 0.5  # what is dark


def test_heads_are_kept_and_scores_taken_over(place, tmp_path):
    words = {"save_heads": str(tmp_path / "heads"), "out": str(tmp_path / "s.jsonl")}
    both = "segmentation,segmentation_ms"
    first = run(place, both, **words, **{"segmentation_ms.scales": "1"})
    facts = read_any_head(tmp_path / "heads" / "segmentation", load_backbone(place / "b")).facts
    assert (facts.classes, facts.ignore, facts.blocks) == (("up", "down", "corner"), 9, (1,))
    assert read_any_head(tmp_path / "heads" / "segmentation_ms", load_backbone(place / "b")).facts.blocks == (0, 1)
    again = run(place, both, **words, **{"segmentation_ms.scales": "1"})
    assert again.reused == both.split(",")
    assert again.scores == first.scores
    anew = run(place, **words | {"save_heads": str(tmp_path / "others")})
    assert anew.reused == []  # its head is asked for where none is
    assert (tmp_path / "others" / "segmentation" / "head.json").exists()


def test_a_folder_for_heads_is_of_use_or_refused(place, tmp_path):
    with pytest.raises(ConfigError, match=r"save_heads=.* has no effect: none of segmentation_knn trains a head"):
        run(place, "segmentation_knn", save_heads=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        run(place, save_heads=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"segmentation.crop": 0}, "segmentation.crop"),
        ({"segmentation.mirror": 0.2}, "mirror=0.2 has no effect with augment=none"),
        ({"segmentation.classes": 2}, "has the class 2; there are 2"),
        ({"segmentation.scales": "1,1"}, "each value once"),
        ({"segmentation.inference": "half"}, "segmentation.inference"),
        ({"segmentation.layer": 2}, "segmentation.layer"),
    ],
)
def test_what_cannot_be_is_one_line(place, words, told):
    with pytest.raises((ConfigError, DataError)) as error:
        run(place, **words)
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_one_picture_and_one_side_named_by_hand(place, tmp_path):
    table(tmp_path / "one.parquet", 1, seed=5)
    found = dinoforge.evaluate(
        backbone=str(place / "b"), tasks="segmentation", train=str(place / "data" / "train.parquet"),
        test=str(tmp_path / "one.parquet"), precision="fp32", **{"segmentation.iterations": 2},
    )  # fmt: skip
    assert found.scores[0].n == 1


def test_pictures_that_break_off_are_told_of(place, tmp_path, capsys):
    """Their sizes can be read, their pixels not."""
    for name, count in (("train", 4), ("test", 3)):
        table(tmp_path / f"{name}.parquet", count, seed=3)
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        rows[1]["image"] = rows[1]["image"][:900]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    found = run(place, "segmentation_knn", tmp_path)
    assert found.scores[0].n == 2
    said = capsys.readouterr().err
    assert said.count("Set aside train-1:") == said.count("Set aside test-1:") == 1


def test_of_several_seeds_the_first_head_is_kept(place, tmp_path):
    several = run(place, save_heads=str(tmp_path / "several"), seeds=2)
    one = run(place, save_heads=str(tmp_path / "one"))
    backbone = load_backbone(place / "b")
    heads = [read_any_head(tmp_path / name / "segmentation", backbone).module for name in ("several", "one")]
    assert all(torch.equal(a, b) for a, b in zip(*(head.state_dict().values() for head in heads), strict=True))
    assert several.scores[0].spread is not None
    assert one.scores[0].spread is None


def test_scores_are_measured_anew_once_classes_mean_something_else(place, tmp_path):
    for name in ("train", "test"):
        table(tmp_path / f"{name}.parquet", 4, seed=3)
    words = {"out": str(tmp_path / "s.jsonl"), "data": tmp_path}
    for names in (["a", "b", "c"], ["up", "down", "corner"]):
        (tmp_path / "classes.json").write_text(json.dumps({"classes": names}))
        assert run(place, "segmentation_knn", **words).reused == []
        found = run(place, "segmentation_knn", **words)
        assert found.reused == ["segmentation_knn"]
        assert f"iou_{names[0]}" in {score.name for score in found.scores}


def masked_files(folder, count, *, value):
    """Pictures and masks in files of their own, told by a table."""
    (folder / "depth").mkdir(parents=True, exist_ok=True)
    lines = ["file,mask,split"]
    for number in range(count):
        Image.fromarray(np.full((*SIZE, 3), 40 * number % 256, np.uint8)).save(folder / f"{number}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[: 4 + value] = 1
        Image.fromarray(mask).save(folder / "depth" / f"{number}.png")
        lines.append(f"{number}.png,depth/{number}.png,{'test' if number > 3 else 'train'}")
    (folder / "s.csv").write_text("\n".join(lines))
    return folder / "s.csv"


def test_scores_are_measured_anew_once_a_mask_has_changed(place, tmp_path):
    """Masks lie in files of their own, beside pictures that stay as they are."""
    words = {"out": str(tmp_path / "s.jsonl"), "data": masked_files(tmp_path / "d", 6, value=2)}
    assert run(place, "segmentation_knn", **words).reused == []
    assert run(place, "segmentation_knn", **words).reused == ["segmentation_knn"]
    masked_files(tmp_path / "d", 6, value=9)
    assert run(place, "segmentation_knn", **words).reused == []


def test_nothing_is_lost_where_heads_are_written(place, tmp_path):
    """The folder of the ground truth is called as the task that goes by it."""
    data = masked_files(tmp_path / "d", 6, value=2)
    (tmp_path / "d" / "depth").rename(tmp_path / "d" / "segmentation")
    data.write_text(data.read_text().replace("depth/", "segmentation/"))
    with pytest.raises(ConfigError, match="segmentation exists and holds no head; give another folder"):
        run(place, "segmentation", data=data, save_heads=str(tmp_path / "d"), **{"segmentation.iterations": 2})
    assert len(list((tmp_path / "d" / "segmentation").glob("*.png"))) == 6


def test_the_head_of_another_run_is_not_taken_for_this_one(place, tmp_path):
    words = {"out": str(tmp_path / "s.jsonl"), "save_heads": str(tmp_path / "h"), "segmentation.iterations": 2}

    def head():
        return read_any_head(tmp_path / "h" / "segmentation", load_backbone(place / "b")).fingerprint

    first = run(place, "segmentation", **words, **{"segmentation.seed": 0}), head()
    assert run(place, "segmentation", **words, **{"segmentation.seed": 0}).reused == ["segmentation"]
    run(place, "segmentation", **words, **{"segmentation.seed": 1})
    assert head() != first[1]
    again = run(place, "segmentation", **words, **{"segmentation.seed": 0})
    assert (again.reused, head()) == ([], first[1])


def test_splits_are_never_mixed(tmp_path):
    """Of train the first rows alone have no mask; of a source whose train has none at all, test is not learnt from."""
    for name, masked in (("a", False), ("b", True)):
        table(tmp_path / f"train-{name}.parquet", 9, seed=1, split="train", masked=masked)
    table(tmp_path / "test.parquet", 3, seed=2, split="test")
    found = opened_sides(Named(str(tmp_path)), "masks")
    assert [set(side.columns["split"].tolist()) for side in (found.known, found.asked)] == [{"train"}, {"test"}]
    (tmp_path / "train-b.parquet").unlink()
    with pytest.raises(DataError, match="has masks for test of its splits train, test; it takes train and test"):
        opened_sides(Named(str(tmp_path)), "masks")
