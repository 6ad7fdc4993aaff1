"""The verb ``export``: what is refused, in one line, before and after anything is read."""

import json
from pathlib import Path

import pytest

import dinoforge
from dinoforge.base.errors import ConfigError
from dinoforge.cli import execute
from dinoforge.export import target
from dinoforge.export.table import EXPORTS
from dinoforge.model.table import build
from dinoforge.model.toy import ToyConfig
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone
from perturbed import perturbed

SIZE = {"position_offset": 0.0, "position_antialias": True}
TABLE = VitConfig(width=64, depth=1, heads=1, patch=8, pixels=32, registers=2, **SIZE)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    status = execute(["export", *words, "--json"])
    shown = capsys.readouterr()
    return status, json.loads(shown.out.strip().splitlines()[-1]), shown.err


def everything():
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(Path().rglob("*"))}


def refused(capsys, *words):
    """The one line of a refusal; nothing is written or changed by it."""
    before = everything()
    status, facts, err = run(capsys, *words)
    assert status == 2, err
    assert "Traceback" not in err
    assert everything() == before
    assert "\n" not in facts["error"]
    assert err.strip().splitlines()[-1] == f"dinoforge: {facts['error']}"
    return facts["error"]


def saved(name, config=TABLE, **preprocessing):
    save_backbone(Path(name), perturbed(config, **preprocessing))


@pytest.fixture
def ready():
    """Targets of which everything that writing needs is installed."""
    for name, one in EXPORTS.items():
        for module in one.needs:
            pytest.importorskip(module, reason=f"to={name}: {one.install}")


def test_words_that_are_wrong_are_told_before_anything_is_read(here, capsys):
    assert refused(capsys, "backbone=none", "to=onx", "out=x") == (
        "Unknown target 'onx'. Did you mean 'onnx'? Known: huggingface, onnx, program, timm."
    )
    assert "names a file; every export is a folder, such as m." in refused(
        capsys, "backbone=none", "to=program", "out=m.pt2"
    )
    (here / "f").write_text("mine")
    assert refused(capsys, "backbone=none", "to=timm", "out=f") == "out=f is a file; give a new folder."
    (here / "d").mkdir()
    (here / "d" / "mine.txt").write_text("mine")
    told = refused(capsys, "backbone=none", "to=timm", "out=d")
    assert told == "out=d exists and is no earlier export; give a new folder."
    assert "licence takes one line" in refused(capsys, "backbone=none", "to=timm", "out=x", "licence= ")
    assert "backbone none does not exist" in refused(capsys, "backbone=none", "to=timm", "out=x")
    assert "Unknown setting 'license'. Did you mean 'licence'?" in refused(
        capsys, "backbone=none", "to=timm", "out=x", "license=mit"
    )
    assert "to= is required" in refused(capsys, "backbone=none", "out=x")


def test_a_missing_extra_is_one_line(here, capsys, monkeypatch):
    saved("b")
    monkeypatch.setattr(target, "installed", lambda module: module != "onnxscript")
    assert refused(capsys, "backbone=b", "to=onnx", "out=x") == (
        "to=onnx needs onnxscript, not installed here: pip install 'dinoforge[onnx]'"
    )
    monkeypatch.setattr(target, "installed", lambda module: module != "transformers")
    assert 'pip install "dinoforge[interop]"' in refused(capsys, "backbone=b", "to=huggingface", "out=x")


def test_what_is_installed_is_known_without_importing_it():
    assert target.installed("json")
    assert not target.installed("no_such_module_anywhere")
    assert not target.installed("json.no_such_part")


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("name", EXPORTS)
def test_a_backbone_that_is_no_transformer(name, here, capsys):
    config = ToyConfig()
    save_backbone(Path("toy"), Backbone(build(config, seed=0).eval(), config, Preprocessing()))
    told = refused(capsys, "backbone=toy", f"to={name}", "out=x")
    assert told == f"to={name} takes vision transformers of dinoforge; this backbone is a toy."


@pytest.mark.usefixtures("ready")
def test_what_a_layout_cannot_express(here, capsys):
    saved("five", TABLE.model_copy(update={"channels": 5}))
    told = refused(capsys, "backbone=five", "to=huggingface", "out=x")
    assert (
        "AutoImageProcessor reads pictures of 1 or 3 channels, this backbone takes 5; to=onnx and to=program take any"
        in told
    )
    saved("ranged", range=[(0, 4000)])
    for name in ("huggingface", "timm"):
        assert "has no form for pictures read with range" in refused(capsys, "backbone=ranged", f"to={name}", "out=x")
    saved("bare", TABLE.model_copy(update={"ffn_bias": False}))
    assert "no form for backbone.ffn_bias" in refused(capsys, "backbone=bare", "to=huggingface", "out=x")
    saved("frozen")
    told = refused(capsys, "backbone=hf:frozen", "to=program", "out=x")
    assert "can be used frozen only" in told


def test_weights_that_are_damaged(here, capsys):
    saved("b")
    path = here / "b" / "backbone.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "is no readable weights file" in refused(capsys, "backbone=b", "to=timm", "out=x")


@pytest.mark.usefixtures("unchecked")
def test_an_earlier_export_is_replaced_and_an_empty_folder_is_filled(here, capsys):
    saved("b")
    (here / "x").mkdir()
    assert run(capsys, "backbone=b", "to=timm", "out=x")[0] == 0
    assert {path.name for path in (here / "x").iterdir()} == {
        "README.md", "config.json", "export.json", "model.safetensors"
    }  # fmt: skip
    status, facts, err = run(capsys, "backbone=b", "to=program", "out=x", "licence=mit")
    assert status == 0, err
    assert {path.name for path in (here / "x").iterdir()} == {"README.md", "export.json", "model.pt2"}
    assert sorted(path.name for path in here.iterdir()) == ["b", "x"]
    assert "Compared with torch.export" in err
    assert err.count("fp32, ") == len(facts["sizes"]) >= 3
    assert "smallest cosine 1.0000000" in err


@pytest.mark.usefixtures("unchecked")
def test_what_is_not_its_own_is_not_replaced(here, capsys):
    saved("b")
    assert run(capsys, "backbone=b", "to=timm", "out=x")[0] == 0
    (here / "x" / "notes.txt").write_text("mine")
    assert execute(["export", "backbone=b", "to=timm", "out=x"]) == 2
    assert "out=x holds notes.txt besides what is to be replaced; give a new folder." in capsys.readouterr().err
    assert (here / "x" / "notes.txt").exists()


@pytest.mark.parametrize("rule", [SIZE, {"position_offset": 0.1, "position_antialias": True}], ids=["same", "another"])
def test_without_factors_on_branches(here, capsys, rule):
    """Hugging Face's classes have no form for none; factors of one are none. Its rule for positions may be another."""
    pytest.importorskip("transformers", reason="needs the extra `interop`")
    saved("b", TABLE.model_copy(update={"layerscale": None, **rule}))
    status, facts, err = run(capsys, "backbone=b", "to=huggingface", "out=x")
    assert status == 0, err
    assert facts["relative"] <= 1e-5
    assert facts["compared"]


def test_grey_pictures(here, capsys):
    """AutoImageProcessor reads them too."""
    pytest.importorskip("transformers", reason="needs the extra `interop`")
    saved("b", TABLE.model_copy(update={"channels": 1}), short_side=40, side=32, mean=(0.4,), std=(0.3,))
    status, facts, err = run(capsys, "backbone=b", "to=huggingface", "out=x")
    assert status == 0, err
    assert any("reads a test picture as it is done here to within" in line for line in facts["differs"])


def test_a_processor_that_reads_otherwise_is_refused(here, capsys, monkeypatch):
    """Another mean, another size, another rounding: its pictures are compared, not believed."""
    pytest.importorskip("transformers", reason="needs the extra `interop`")
    from dinoforge.export import huggingface

    saved("b", short_side=40, side=32)
    right = huggingface.written_processor
    for change, message in (
        ({"image_mean": [0.5, 0.5, 0.5]}, "grey levels"),
        ({"size": {"shortest_edge": 44}}, "grey levels"),
        ({"crop_size": {"height": 24, "width": 24}}, r"\[1, 3, 24, 24\] of a picture"),
    ):
        changed = change
        monkeypatch.setattr(huggingface, "written_processor", lambda how, c=changed: right(how) | c)
        told = refused(capsys, "backbone=b", "to=huggingface", "out=x")
        assert told.startswith("to=huggingface: AutoImageProcessor")
        assert message.strip("\\").replace("\\", "") in told


def test_python_has_it_too(here):
    with pytest.raises(ConfigError, match="Unknown target 'tensorrt'"):
        dinoforge.export(backbone="b", to="tensorrt", out="x")
    import dinoforge.export.compare as rules

    assert rules.COSINE == 0.9999
