"""The wheel holds the package, all of it and nothing else, and works where the source tree is not."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    "data=toy://species?images=32&size=48", "recipe=vit_micro.toy", "backbone.width=32", "backbone.depth=1",
    "backbone.heads=2", "objective.head.prototypes=64", "objective.head.hidden=32", "objective.head.bottleneck=16",
    "objective.group=8", "plan.batch=8", "plan.images=16", "data.augment.local_views=1", "workers=0", "precision=fp32",
]  # fmt: skip

pytestmark = [
    pytest.mark.long,
    pytest.mark.dist,
    pytest.mark.skipif(
        find_spec("setuptools") is None or find_spec("pip") is None,
        reason="no setuptools or pip here, which build the wheel without a download",
    ),
]


def run(*words, **options):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools writes beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build", "dist")
    shutil.copytree(ROOT / "src", source / "src", ignore=left_out)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder,
        cwd=source)  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


def test_it_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
        (metadata,) = [file.read(name).decode() for name in about if name.endswith("/METADATA")]
    package = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "dinoforge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - about == package
    assert {"dinoforge/py.typed", "dinoforge/report/page.html"} <= package
    assert {name.partition("/")[2] for name in about} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "License-Expression: Apache-2.0" in metadata


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The command, installed into an environment that sees this one's libraries and no source tree."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A folder named in a .pth file is searched, but its own .pth files are not read: no editable installation is seen.
    (own / "libraries.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"cwd": folder, "env": {**environment, "OMP_NUM_THREADS": "1"}}
    place = run(python, "-c", "import dinoforge; print(dinoforge.__file__)", **options).strip()
    assert Path(place).is_relative_to(folder / "venv"), place

    def call(*words):
        return json.loads(run(python.parent / "dinoforge", *words, "--json", **options).splitlines()[-1])

    return call, folder


def test_it_runs(installed):
    call, _ = installed
    assert call("doctor")["ok"] is True
    assert any("vit_small" in str(name) for name in call("recipes")["recipes"])


def test_it_renders_a_report(installed):
    """Of a run of its own: the page's template came with it."""
    call, folder = installed
    call("pretrain", "out=run", *TINY)
    path = folder / call("report", "run=run")["path"]
    assert path.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert call("embed", "backbone=run", TINY[0], "out=features")["rows"] == 32
