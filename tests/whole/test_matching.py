"""Distilling from what has no heads, by its features: whole runs, interrupted ones, and what cannot be matched."""

import json

import pytest
import torch
from killed import killed_after
from safetensors.torch import load_file

import dinoforge
from dinoforge.base.errors import ConfigError, WeightsError
from dinoforge.base.files import read_lines
from ranks import on_ranks

TINY = {
    "recipe": "vit_small.matched", "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "backbone.patch": 8,
    "backbone.pixels": 32, "data.augment.global_pixels": 32, "objective.group": 4, "plan.batch": 4, "plan.images": 16,
    "plan.checkpoint_images": 4, "plan.checkpoints": 8, "plan.probe_images": 16, "plan.learning_rate.warmup": 0,
    "probe.rank_rows": 8, "precision": "fp32", "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip
TEACHER = {
    "recipe": "vit_micro.toy", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2, "backbone.patch": 4,
    "backbone.pixels": 32, "data.augment.global_pixels": 32, "data.augment.local_pixels": 16, "plan.batch": 32,
    "plan.images": 32, "probe.rank_rows": 8, "precision": "fp32", "data": "toy://species?images=12&size=32", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """With other patches than its student."""
    out = tmp_path_factory.mktemp("matching") / "teacher"
    dinoforge.pretrain(out=out, **TEACHER)
    return out


def train(out, teacher, **settings):
    return dinoforge.distil(out=out, teacher=str(teacher), **TINY | settings)


def losses(out):
    return [row["losses"] for row in read_lines(out / "metrics.jsonl")]


def test_killed_and_resumed_it_is_the_same(teacher, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    train(whole, teacher)
    killed_after(2, monkeypatch, lambda: train(out, teacher))
    assert train(out, teacher).resumed_from == 2
    assert losses(out) == losses(whole)
    assert set(losses(out)[-1]) == {"match_image", "match_patches", "total"}
    (file,) = (whole / "checkpoints" / "step_000000004").glob("*.safetensors")
    state, kept = load_file(file), load_file(whole / "backbone" / "backbone.safetensors")
    assert not any(name.startswith("teacher.") for name in state)
    assert all(torch.equal(value, state[f"spare.backbone.{name}"]) for name, value in kept.items())
    assert not any("map" in name for name in kept)
    # What is handed on is a backbone like any other.
    assert dinoforge.load(whole / "backbone")(torch.zeros(1, 3, 32, 32)).image.shape == (1, 16)


@pytest.mark.long
def test_the_weights_of_the_teacher_count_not_its_heads_or_place(teacher, tmp_path):
    train(tmp_path / "run", teacher)
    train(tmp_path / "backbone", teacher / "backbone")
    assert losses(tmp_path / "run") == losses(tmp_path / "backbone")
    assert train(tmp_path / "run", teacher / "backbone").resumed_from == 4  # the same run


@pytest.mark.long
def test_students_at_once_are_each_as_alone(teacher, tmp_path):
    students = {"small": {}, "deep": {"backbone.depth": 2}}
    dinoforge.distil(out=tmp_path / "both", teacher=str(teacher), students=students, **TINY)
    for name, own in students.items():
        train(tmp_path / name, teacher, **own)
        assert losses(tmp_path / "both" / name) == losses(tmp_path / name)


@pytest.mark.long
def test_larger_views_at_the_end(teacher, tmp_path):
    phase = {"high_resolution.images": 8, "high_resolution.global_pixels": 48}
    assert train(tmp_path / "out", teacher, **phase).steps == 6


def foreign(folder, **settings):
    """A model of Hugging Face's that takes pictures of one size alone."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    torch.manual_seed(0)
    wide = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPVisionConfig(**wide, **{"image_size": 32, "patch_size": 8} | settings)
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    read = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(read))
    return f"hf:{folder}"


COLOURS = {"data.augment.colour.mean": [0.5] * 3, "data.augment.colour.std": [0.5] * 3}


def test_a_model_of_another_library_teaches(tmp_path, monkeypatch):
    address, whole, out = foreign(tmp_path / "clip"), tmp_path / "whole", tmp_path / "killed"
    train(whole, address, **COLOURS)
    killed_after(2, monkeypatch, lambda: train(out, address, **COLOURS))
    assert train(out, address, **COLOURS).resumed_from == 2
    assert losses(out) == losses(whole)
    with pytest.raises(ConfigError, match=r"sees pictures with data.augment.colour.mean=\[0.5, 0.5, 0.5\]; set it"):
        train(tmp_path / "other", address)
    with pytest.raises(ConfigError, match=r"has no heads; .* or match its features \(recipe=vit_small.matched\)"):
        dinoforge.distil(out=tmp_path / "heads", teacher=address, **TEACHER)


@pytest.mark.long
@pytest.mark.dist
def test_a_model_of_another_library_teaches_on_ranks(tmp_path):
    """Spread over two ranks, the teacher too: losses as on one."""
    address, words = foreign(tmp_path / "clip"), COLOURS | {"plan.batch": 8, "plan.images": 32}
    train(tmp_path / "one", address, **words)
    on_ranks(2, lambda: train(tmp_path / "two", address, **words).steps)
    mine, want = (torch.tensor([list(row.values()) for row in losses(tmp_path / name)[1:]]) for name in ("two", "one"))
    torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective.head.prototypes": 48}, "objective.head has no effect with distil.matching, which knows no heads"),
        ({"objective.koleo_weight": 0.2}, "objective.koleo_weight has no effect with distil.matching"),
        ({"objective.gram": "{backbone: x}"}, "objective.gram has no effect with distil.matching"),
        ({"plan.last_layer_frozen": 0.5}, "plan.last_layer_frozen has no effect with distil.matching"),
        ({"distil.patches": "drawn"}, "distil.patches has no effect with distil.matching"),
        ({"data.augment.local_views": 2}, "data.augment.local_views=2 are of no use to distil.matching"),
        ({"data.masks.probability": 0.1}, "data.masks has no effect with distil.patches=all"),
        ({"backbone.drop_path": 0.1}, "a student that is distilled drops nothing"),
        ({"backbone.channels": 1, "data.augment.colour": "{mean: [0.4], std: [0.2], saturation: 0, hue: 0, grey: 0}"},
         "has channels=3, the student backbone.channels=1"),
        ({"data.augment.colour.mean": [0.5, 0.5, 0.5]}, r"sees pictures with data.augment.colour.mean=\[0.485, "),
        ({"teacher": "null"}, "teacher= is required: .* where features are matched .*, any backbone"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_one_line(teacher, tmp_path, settings, message):
    given = {"teacher": str(teacher), **settings}
    with pytest.raises(ConfigError, match=message) as caught:
        dinoforge.distil(out=tmp_path / "out", **TINY | given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_convolutional_teacher(tmp_path):
    """Its map has cells of 16 pixels, the student patches of 8: views of 64 pixels give it as many."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `interop`")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24], depths=[1, 1, 1], num_stages=3)
    transformers.ConvNextModel(config).save_pretrained(tmp_path / "convnext")
    assert train(tmp_path / "out", f"hf:{tmp_path / 'convnext'}").steps == 4
    assert 0 < losses(tmp_path / "out")[-1]["match_patches"] < 1


def test_a_grid_that_does_not_fit_is_one_line(tmp_path, monkeypatch):
    """Of a model whose positions are for one size; what would be right is said, and is right."""
    monkeypatch.setattr("dinoforge.model.foreign._takes", lambda *_: False)
    address = foreign(tmp_path / "clip", patch_size=16)
    message = (
        "data.augment.global_pixels=32 is 4x4 patches of the student, for which teacher=.* has to see 64 pixels, and it takes "
        "no views of that size; data.augment.global_pixels=16 would be its own grid"
    )
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "out", address, **COLOURS)
    right = {"data.augment.global_pixels": 16, "backbone.pixels": 16}
    assert train(tmp_path / "out", address, **COLOURS | right).steps == 4


def test_the_address_of_another_library_is_no_folder_in_ours(tmp_path, monkeypatch):
    foreign(tmp_path / "clip")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert train(".", "hf:../clip", **COLOURS | {"plan.images": 4}).steps == 1


def test_its_own_run_and_nothing_are_no_teachers(teacher, tmp_path):
    for place in (teacher, teacher / "backbone"):
        with pytest.raises(ConfigError, match="is the folder of this very run, or in it"):
            train(teacher, place)
    with pytest.raises(WeightsError, match="nowhere does not exist"):
        train(tmp_path / "out", "nowhere")


def test_a_run_that_matched_features_has_no_heads_to_teach_by(teacher, tmp_path):
    """Said before anything is read of its checkpoint, and not as if that were damaged."""
    train(tmp_path / "matched", teacher, **{"plan.images": 4})
    words = TEACHER | {"backbone.patch": 8, "objective.head.prototypes": 65_536, "teacher": str(tmp_path / "matched")}
    with pytest.raises(ConfigError, match="has no heads, for it was trained to match features"):
        dinoforge.distil(out=tmp_path / "out", **words)


def test_students_of_other_patches_cannot_share_a_teacher(teacher, tmp_path):
    """It would have to look at views of another size for each; so too where init= says which patches they have."""
    words = TINY | {"teacher": str(teacher), "out": tmp_path / "out"}
    with pytest.raises(ConfigError, match=r"students a and b differ in backbone\.patch"):
        dinoforge.distil(students={"a": {"backbone.patch": 8}, "b": {"backbone.patch": 16}}, **words)
    other = tmp_path / "other"
    dinoforge.pretrain(out=other, **TEACHER | {"backbone.patch": 8})
    words = {name: value for name, value in words.items() if not name.startswith("backbone.")}
    words["data.augment.global_pixels"] = 56  # of whole patches of 8 and of the recipe's 14
    starts = {"a": {"init": str(teacher)}, "b": {"init": str(other)}}
    with pytest.raises(ConfigError, match="students start from backbones of patches a: 4, b: 8"):
        dinoforge.distil(students=starts, **words)
    assert not (tmp_path / "out").exists()
