"""The model card says what is known, and that the rest is not."""

import json

import pytest

from dinoforge.export.card import Origin, card, origin
from dinoforge.export.compare import Checked, Seen
from dinoforge.export.table import EXPORTS
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, save_backbone
from perturbed import perturbed

CHECKED = Checked("X 1", True, 1e-5, [Seen(2, 32, 24, 1.24e-6, 3e-7, 0.99999988)], [], ("said",), ["mask_token (why)"])
TINY = VitConfig(width=8, depth=1, heads=1, patch=8, pixels=32)


def written(backbone, found=None, *, to="program", checked=CHECKED, **more):
    more = {"licence": None, "version": "9.9", **more}
    return card(EXPORTS[to], backbone, found or Origin(), checked, **more)


def of(lineage):
    plain = perturbed(TINY)
    return Backbone(plain.module, plain.config, plain.preprocessing, lineage)


def test_of_nothing_known_nothing_is_said():
    text = written(of({}))
    for part in (
        "Licence of the weights: unknown: state it with licence=", "Recipe: unknown", "Run: unknown", "None known.",
        "Training data: unknown, their number unknown", "Steps and images of the whole run: unknown",
    ):  # fmt: skip
        assert part in text, part
    assert "license:" not in text
    assert "|  |" not in text


def test_of_a_run_everything_is_said(tmp_path):
    lineage = {"run": "r1", "data": "d1", "step": 40, "recipe": "vit_micro.toy"}
    save_backbone(tmp_path / "run" / "backbone", of(lineage), scores={"knn": 0.625})
    (tmp_path / "run" / "run.json").write_text(json.dumps({"fingerprint": "r1", "images": 12345}))
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"steps": 50, "images": 1600, "knn": {"best": 0.75}}))
    for address in (tmp_path / "run", tmp_path / "run" / "backbone"):
        text = written(of(lineage), origin(str(address), of(lineage)), licence="Apache-2.0")
        for part in (
            "Recipe: vit_micro.toy", "step: 40", "Run: r1", "The run took 50 steps and saw 1600 images in all",
            "Training data: fingerprint d1, 12,345 images", "| knn | 0.6250 |", "| best k-NN accuracy of the run | 0.7500 |",
            "license: apache-2.0\n", "Licence of the weights: Apache-2.0",
        ):  # fmt: skip
            assert part in text, part


def test_the_run_beside_it_is_asked_only_if_it_is_of_it(tmp_path):
    """A backbone that was copied beside another run's files has nothing to do with them."""
    lineage = {"run": "r1", "data": "d1"}
    save_backbone(tmp_path / "backbone", of(lineage), scores={"rank": 3.0})
    (tmp_path / "run.json").write_text(json.dumps({"fingerprint": "another", "images": 12345}))
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 50, "images": 1600}))
    found = origin(str(tmp_path / "backbone"), of(lineage))
    assert found == Origin({"rank": 3.0})
    assert "12,345" not in written(of(lineage), found)


@pytest.mark.parametrize("damage", ["", "[1]", '{"scores": 3}', '{"fingerprint": "r1"'])
def test_damaged_files_tell_nothing(tmp_path, damage):
    save_backbone(tmp_path / "b", of({"run": "r1"}))
    for path in (tmp_path / "run.json", tmp_path / "b" / "backbone.json"):
        path.write_text(damage)
    assert origin(str(tmp_path / "b"), of({"run": "r1"})) == Origin()
    assert origin(str(tmp_path / "nowhere"), of({})) == Origin()


def test_where_files_lay_is_not_told():
    text = written(of({"weights": "/home/somebody/secret/model.pth", "source": "timm:vit_x/y"}))
    assert "weights: model.pth" in text
    assert "secret" not in text


def test_numbers_are_those_that_were_measured():
    text = written(of({}))
    assert "| 2 x 32 x 24 | 1.2e-06 | 3e-07 | 0.9999999 |" in text
    assert "- said\n- left out: mask_token (why)" in text
    assert "NOT compared" not in text
    other = Checked("it is absent", False, 1e-5, CHECKED.seen, ["resampled otherwise"], (), [])
    text = written(of({}), checked=other)
    assert "NOT compared with its own library: it is absent" in text
    assert "with positions resampled by the target's own rule" in text


def test_a_licence_in_words_is_no_identifier():
    text = written(of({}), licence="ours: ask first")
    assert "Licence of the weights: ours: ask first" in text
    assert "license:" not in text


@pytest.mark.parametrize("to", EXPORTS)
def test_it_opens_in_five_lines(to):
    text = written(of({}), to=to)
    code = text.split("```python\n")[1].split("\n```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    assert compile(code, to, "exec")
