"""What is handed out: the image's recipe, the pins and the extras agree with one another and with the tree."""

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(found.name): found
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for found in [Requirement(line)]
}
_JOINED = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
STEPS = [tuple(line.split(maxsplit=1)) for line in _JOINED.splitlines() if line and not line.startswith("#")]


def steps(word):
    """The arguments of every instruction of that name."""
    return [rest for name, rest in STEPS if name == word]


def given(name):
    """The value that an argument of the build has by itself."""
    (found,) = [rest for rest in steps("ARG") if rest.startswith(f"{name}=")]
    return found.partition("=")[2]


def ignored(path):
    """Whether the image's builder does not see a file: the last pattern that fits decides."""
    found = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        names = path.parts if line.startswith("**/") else [path.parts[0]]
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            found = not line.startswith("!")
    return found


def test_what_is_copied_into_the_image_is_there_and_seen():
    copied = []
    for words in map(shlex.split, steps("COPY")):
        if not words[0].startswith("--from"):
            copied += words[:-1]
    assert {"src", "pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]} <= {*copied}
    assert {*PROJECT["project"]["license-files"]} <= {*copied}
    for name in copied:
        assert (ROOT / name).exists(), name
        assert not ignored(Path(name)), name
    for name in ("src/dinoforge/py.typed", "src/dinoforge/report/page.html"):
        assert not ignored(Path(name)), name
    for name in ("tests/conftest.py", ".git/config", "runs/a/config.yaml", "photos", "src/dinoforge/__pycache__/a.pyc"):
        assert ignored(Path(name)), name


def test_the_image_runs_the_command_and_not_as_root():
    (entry,) = steps("ENTRYPOINT")
    assert json.loads(entry) == ["dinoforge"]
    assert "dinoforge" in PROJECT["project"]["scripts"]
    assert steps("USER")[-1] not in {"root", "0"}
    assert [name for name, _ in STEPS].index("USER") > max(at for at, (name, _) in enumerate(STEPS) if name == "RUN")


def test_the_image_installs_what_was_tested():
    """Every stage begins with the one base, whose Python will do; what is installed is held to the pins."""
    assert [rest.split()[0] for rest in steps("FROM")] == ["${BASE}", "${BASE}"]
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", given("BASE"))[1]
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])
    (install,) = [rest for rest in steps("RUN") if "pip install" in rest]
    assert "-c /opt/constraints.txt" in install
    assert '--extra-index-url "${TORCH_INDEX}"' in install
    assert given("TORCH_INDEX").endswith("/cpu")


@pytest.mark.parametrize("line", PROJECT["project"]["dependencies"])
def test_every_requirement_has_a_pin_that_it_allows(line):
    """What is not pinned is not what was tested."""
    wanted = Requirement(line)
    pin = PINS[canonicalize_name(wanted.name)]
    (one,) = pin.specifier
    assert one.operator == "=="
    assert one.version in wanted.specifier


EXTRAS = PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_pins_fit_the_extras(extra):
    for wanted in map(Requirement, EXTRAS[extra]):
        pin = PINS.get(canonicalize_name(wanted.name))
        assert pin is None or next(iter(pin.specifier)).version in wanted.specifier


def test_extras_that_messages_name_exist():
    named = {
        name
        for path in (ROOT / "src").rglob("*.py")
        for listed in re.findall(r"dinoforge\[([a-z,]+)\]", path.read_text())
        for name in listed.split(",")
    }
    assert named
    assert named <= EXTRAS.keys()


def test_dev_brings_every_extra_that_the_tests_use():
    """All but those that cannot be had beside the pinned torch, object storages that no test reaches, what builds the pages, and
    Ray, for its size."""
    (whole,) = [found for found in map(Requirement, EXTRAS["dev"]) if found.name == "dinoforge"]
    assert whole.extras == EXTRAS.keys() - {"dev", "azure", "docs", "gcs", "ray", "timm"}
