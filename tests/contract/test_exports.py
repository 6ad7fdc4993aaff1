"""What every target of ``export`` promises: opened again in its own runtime it gives the features, and damage is seen."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch

from dinoforge.base.errors import WeightsError
from dinoforge.base.hardware import cpu_flags, cpu_has_bf16
from dinoforge.cli import execute
from dinoforge.export.compare import compared, judge, sizes, worst
from dinoforge.export.table import EXPORTS
from dinoforge.export.target import Written, installed
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import load_backbone, save_backbone
from perturbed import perturbed

TINY = VitConfig(
    width=64, depth=1, heads=1, patch=8, pixels=32, registers=2, position_offset=0, position_antialias=True
)
KINDS = {
    "mlp, offset": VitConfig(width=64, depth=2, heads=1, patch=8, pixels=32),
    "swiglu, registers": TINY.model_copy(update={"ffn": "swiglu", "registers": 4, "depth": 2}),
    "rope": VitConfig(width=64, depth=2, heads=1, patch=8, registers=2, positions="rope", norm_eps=1e-5, pixels=32),
    "rope, swiglu, no registers": VitConfig(width=64, depth=1, heads=1, patch=8, positions="rope", ffn="swiglu",
                                            norm_eps=1e-5, pixels=32),
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("unchecked")


def export(*words):
    """Status and facts of the command line."""
    printed, wrote = [], sys.stdout.write
    sys.stdout.write = lambda text: printed.append(text) or wrote(text)
    try:
        status = execute(["export", *words, "--json"])
    finally:
        sys.stdout.write = wrote
    return status, json.loads("".join(printed).strip().splitlines()[-1])


def skip_without(name):
    absent = [module for module in EXPORTS[name].needs if not installed(module)]
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: {EXPORTS[name].install}")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "b"
    save_backbone(path, perturbed(TINY, short_side=40, side=32))
    return path


@pytest.fixture(scope="module", params=list(EXPORTS))
def done(request, backbone, tmp_path_factory):
    """Name of the target, folder and facts, exported once."""
    import jaxtyping

    skip_without(request.param)
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    out = tmp_path_factory.mktemp("exports") / request.param
    status, facts = export(f"backbone={backbone}", f"to={request.param}", f"out={out}", "licence=apache-2.0")
    jaxtyping.config.update("jaxtyping_disable", before)
    assert status == 0, facts
    return request.param, out, facts


def artefact(folder):
    """The file that holds the weights."""
    return max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


def again(name, folder, backbone):
    """Opened once more and compared, at least at three sizes."""
    found = load_backbone(backbone)
    target = EXPORTS[name]
    reopened = target.reopen(folder, Written(found))
    return compared(found.module, reopened.features, sizes(32, 8), channels=3), target.bound


class TestEveryExport:
    def test_features_are_the_backbones(self, done, backbone):
        """By what the verb says, and by opening the folder once more here."""
        name, out, facts = done
        seen, bound = again(name, out, backbone)
        judge(seen, bound, name=name)
        assert bound <= 1e-4
        assert len({(one["images"], one["height"], one["width"]) for one in facts["sizes"]}) >= 3
        assert facts["path"] == str(out)
        assert facts["fingerprint"] == load_backbone(backbone).fingerprint
        if facts["compared"]:
            assert 0 <= facts["max_error"] < 1e-4
            assert facts["relative"] <= facts["bound"]["relative"]
            assert facts["cosine"] >= facts["bound"]["cosine"] >= 0.9999
            assert facts["relative"] == pytest.approx(worst(seen).relative, abs=1e-6)
            half = cpu_has_bf16(cpu_flags()) and name not in {"onnx", "program"}
            assert facts["precisions"].keys() == ({"fp32", "bf16"} if half else {"fp32"})
            assert facts["precisions"]["fp32"] == {key: facts[key] for key in ("max_error", "relative", "cosine")}
            assert {one["precision"] for one in facts["sizes"]} == facts["precisions"].keys()
            if half:
                assert 100 * facts["relative"] < facts["precisions"]["bf16"]["relative"] <= 0.1
        else:
            assert facts["max_error"] is facts["cosine"] is facts["relative"] is None
            assert "not installed" in facts["runtime"]

    def test_only_a_target_whose_library_is_absent_goes_uncompared(self, done):
        name, _, facts = done
        assert facts["compared"] == (name != "timm" or installed("timm"))

    def test_weights_that_were_changed_are_seen(self, done, backbone, tmp_path):
        """Some kilobytes in the middle of the largest file."""
        name, out, _ = done
        shutil.copytree(out, tmp_path / "x")
        path = artefact(tmp_path / "x")
        data = bytearray(path.read_bytes())
        middle = len(data) // 2 // 4 * 4
        data[middle : middle + 4096] = torch.ones(1024).numpy().tobytes()
        path.write_bytes(data)
        with pytest.raises(WeightsError) as error:
            judge(*again(name, tmp_path / "x", backbone), name=name)
        assert "\n" not in str(error.value)

    def test_a_file_that_was_cut_off_is_seen(self, done, backbone, tmp_path):
        name, out, _ = done
        shutil.copytree(out, tmp_path / "x")
        path = artefact(tmp_path / "x")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(WeightsError) as error:
            judge(*again(name, tmp_path / "x", backbone), name=name)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("earlier", [False, True])
    def test_what_is_below_the_bound_leaves_nothing(self, done, backbone, tmp_path, monkeypatch, earlier):
        """Nothing new, and what an earlier export left stays to the byte."""
        name, out, _ = done

        def damaged(folder, found):
            shutil.copytree(out, folder, dirs_exist_ok=True)
            data = bytearray(artefact(folder).read_bytes())
            middle = len(data) // 2 // 4 * 4
            data[middle : middle + 4096] = torch.ones(1024).numpy().tobytes()
            artefact(folder).write_bytes(data)
            return Written(found)

        monkeypatch.setitem(EXPORTS, name, dataclasses.replace(EXPORTS[name], write=damaged))
        if earlier:
            shutil.copytree(out, tmp_path / "x")
        before = {path.name: path.read_bytes() for path in (tmp_path / "x").glob("*")}
        status, facts = export(f"backbone={backbone}", f"to={name}", f"out={tmp_path / 'x'}")
        assert status == 2
        assert facts["error"].startswith(f"to={name}: ")
        assert facts["error"].endswith("Nothing is kept.")
        assert "\n" not in facts["error"]
        assert str(tmp_path / ".x.") not in facts["error"]
        assert {path.name for path in tmp_path.iterdir()} == ({"x"} if earlier else set())
        assert {path.name: path.read_bytes() for path in (tmp_path / "x").glob("*")} == before

    def test_the_card_and_the_facts(self, done):
        name, out, facts = done
        text = (out / "README.md").read_text()
        assert "Licence of the weights: apache-2.0" in text
        assert f"# Backbone {facts['fingerprint']} for {EXPORTS[name].title}" in text
        assert ("NOT compared" in text) == (not facts["compared"])
        held = json.loads((out / "export.json").read_text())
        assert {key: held[key] for key in facts if key != "path"} == {k: v for k, v in facts.items() if k != "path"}
        assert held["preprocessing"]["short_side"] == 40
        assert str(out.parent) not in text + json.dumps(held)

    @pytest.mark.long
    def test_the_cards_five_lines_run_without_dinoforge(self, done, backbone):
        """In another process, in the folder; what they compute is what the backbone gives."""
        name, out, facts = done
        if not facts["compared"]:
            pytest.skip("its library is not installed")
        lines = (out / "README.md").read_text().split("```python\n")[1].split("\n```")[0].splitlines()
        if name == "huggingface":
            given = (
                "import numpy, PIL.Image\n"
                "picture = PIL.Image.fromarray(numpy.arange(40 * 40 * 3).reshape(40, 40, 3).astype('uint8'))"
            )
        else:
            array = "numpy.random.default_rng(0).normal(size=(2, 3, 40, 24)).astype('float32')"
            given = f"import numpy, torch\nimages = {array if name == 'onnx' else f'torch.from_numpy({array})'}"
        code = [
            "import sys; sys.modules['dinoforge'] = None",
            given,
            *lines[:-1],
            f"first, patches = {lines[-1].partition('#')[0]}",
            "to_numpy = lambda x: x.detach().numpy() if hasattr(x, 'detach') else x",
            "print(float(numpy.abs(to_numpy(first)).sum()), float(numpy.abs(to_numpy(patches)).sum()))",
        ]
        ran = subprocess.run(
            [sys.executable, "-c", "\n".join(code)], cwd=out, capture_output=True, text=True, check=False, timeout=300
        )
        assert ran.returncode == 0, ran.stderr
        got = [float(number) for number in ran.stdout.split()[-2:]]
        assert got == pytest.approx(expected(name, backbone), rel=1e-4)


@torch.no_grad()
def expected(name, backbone):
    """Sums of the absolute features of the same images."""
    import numpy as np

    import dinoforge

    if name == "huggingface":
        picture = np.arange(40 * 40 * 3).reshape(40, 40, 3).astype("uint8")
        images = dinoforge.prepared(backbone, [picture])
    else:
        images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 40, 24)).astype("float32"))
    found = load_backbone(backbone).module(images)
    return [float(found.image.abs().sum()), float(found.patches.abs().sum())]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXPORTS)
def test_every_kind_of_layer_goes_out(name, kind, tmp_path):
    skip_without(name)
    save_backbone(tmp_path / "b", perturbed(KINDS[kind]))
    status, facts = export(f"backbone={tmp_path / 'b'}", f"to={name}", f"out={tmp_path / 'x'}")
    assert status == 0, facts
    own = name in {"huggingface", "timm"} and kind == "mlp, offset"
    assert any("position_offset 0.1 -> 0.0" in line for line in facts["differs"]) == own
    assert any("by that rule alone features differ" in line for line in facts["differs"]) == own


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        VitConfig(position_offset=0.0, position_antialias=True, registers=4),
        VitConfig(width=768, heads=12, position_offset=0.0, position_antialias=True, registers=4),
        VitConfig(),
        VitConfig(patch=16, positions="rope", registers=4, norm_eps=1e-5),
    ],
    ids=["S with registers", "B with registers", "S", "S rope"],
)
@pytest.mark.parametrize("name", EXPORTS)
def test_at_full_size(name, config, tmp_path):
    """Sizes S and B at 224 pixels and others, square and not: 1e-5 of the greatest feature."""
    skip_without(name)
    save_backbone(tmp_path / "b", perturbed(config, spread=0.02))
    status, facts = export(f"backbone={tmp_path / 'b'}", f"to={name}", f"out={tmp_path / 'x'}")
    assert status == 0, facts
    full = [one for one in facts["sizes"] if one["precision"] == "fp32"]
    assert len(full) >= 3
    assert all(one["relative"] <= 1e-5 and one["cosine"] >= 0.9999 for one in full)
