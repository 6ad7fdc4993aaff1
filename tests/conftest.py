"""Shapes and types in signatures are executed in the tests; see pyproject for the marks."""

import functools
import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import pytest

sys.path[:0] = [str(Path(__file__).parent / "golden"), str(Path(__file__).parent)]

# Every process that tests start would compile the product again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The tests marked gpu also run on machines that have no beartype, with shapes unchecked.
BEARTYPE = find_spec("beartype") is not None
if BEARTYPE:
    import shapes

    _hook = shapes.install()

from servers import object_storage, web  # noqa: E402, F401 - fixtures of several folders of tests


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Features that evaluations keep lie in no user's folder, in processes that tests start neither."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True, scope="session")
def _forecast_once():
    """Runs of the same settings are forecast once, which is a third of the time of a run of a few small steps."""
    from dinoforge.recipes import cost

    found = cost.forecast
    cost.forecast = functools.cache(found)
    yield
    cost.forecast = found


@pytest.fixture
def lasting(tmp_path, request):
    """A folder for runs that take an hour: of the same name in ``$DINOFORGE_FIGURES``, where an interrupted test goes on with
    the runs that it began; without that variable one of the usual kind."""
    place = os.environ.get("DINOFORGE_FIGURES")
    return Path(place) / request.node.name if place else tmp_path


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """Of a seed: a run of the demo's recipe on drawn species of that seed, trained once for all tests that ask for it."""
    import dinoforge

    place = os.environ.get("DINOFORGE_FIGURES")
    folder = Path(place) / "toy_run" if place else tmp_path_factory.mktemp("toy_run")

    def run(seed):
        data = f"toy://species?images=4000&seed={seed}"
        dinoforge.pretrain(data=data, out=str(folder / str(seed)), recipe="vit_micro.toy", seed=seed)
        return folder / str(seed)

    return run


@pytest.fixture
def unchecked():
    """Shapes in signatures are not executed: they cost time, and while a program is traced they are symbols, which no annotation
    knows."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def pytest_configure(config):
    if BEARTYPE:
        # The hook hands beartype annotations that PEP 585 renamed; not ours to change.
        ignored = "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
        config.addinivalue_line("filterwarnings", ignored)


def pytest_collection_finish():
    """What importing left is there to the end: no garbage collection need look through it, as every run of training asks for."""
    gc.collect()
    gc.freeze()
