"""What trackers write is read back by the libraries' own readers; a resumed run has every step once."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dinoforge.base.errors import ConfigError
from dinoforge.train.trackers.table import TRACKERS, known_trackers, tracking
from dinoforge.train.trackers.tracker import Opening, Tracker, library, numbers

HERE = {name: importlib.util.find_spec(name) is not None for name in TRACKERS}


def needs(name):
    return pytest.mark.skipif(not HERE[name], reason=f"the extra {name} is not installed")


def opening(folder, *, first=0, written=0):
    return Opening(folder=folder, run="0123456789abcdef", name=folder.name, first=first, written=written)


def twice(name, folder):
    """A start that is killed after step 5 with a checkpoint at step 3, and the start that goes on from there."""
    with tracking([name], opening(folder)) as (tracker,):
        assert isinstance(tracker, Tracker)
        for step in range(1, 6):
            tracker(step, {"losses/total": step / 2, "learning_rate": 0.1})
    with tracking([name], opening(folder, first=3, written=5)) as (tracker,):
        for step in range(4, 8):
            tracker(step, {"losses/total": step / 2, "learning_rate": 0.1})


WANT = [(step, step / 2) for step in range(1, 8)]


@needs("tensorboard")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    twice("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"losses/total", "learning_rate"}
    assert [(event.step, event.value) for event in events.Scalars("losses/total")] == WANT


@needs("mlflow")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_mlflow(tmp_path):
    import mlflow

    twice("mlflow", tmp_path)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("dinoforge").experiment_id])
    history = client.get_metric_history(run.info.run_id, "losses/total")
    assert [(metric.step, metric.value) for metric in history] == WANT
    assert run.info.status == "FINISHED"


WANDB = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {source!r}]
from test_trackers import twice
twice("wandb", Path({folder!r}))
"""


def in_its_own_process(code, folder, monkeypatch):
    """Run it, where W&B has not been asked to be online; it says nothing."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    here = Path(__file__)
    code = code.format(tests=str(here.parent), source=str(here.parents[3] / "src"), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@needs("wandb")
def test_wandb_is_offline_and_has_every_step_once(tmp_path, monkeypatch):
    """Its files are its own; they are read by its reader, in the order of the starts."""
    in_its_own_process(WANDB, tmp_path, monkeypatch)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert [row for file in files for row in wandb_rows(file)] == WANT


TWO = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {source!r}]
from dinoforge.train.trackers.table import tracking
from dinoforge.train.trackers.tracker import Opening
folder = Path({folder!r})
opened = [Opening(folder=folder / name, run=name * 16, name=name, first=0, written=0) for name in "ab"]
for one in opened:
    one.folder.mkdir()
with tracking(["wandb"], opened[0]) as (a,):
    with tracking(["wandb"], opened[1]) as (b,):
        a(1, {{"losses/total": 1.0}})
        b(1, {{"losses/total": 2.0}})
    a(2, {{"losses/total": 3.0}})
"""


@needs("wandb")
def test_runs_of_wandb_beside_one_another_are_two(tmp_path, monkeypatch):
    """As of several students; one ends before the other."""
    in_its_own_process(TWO, tmp_path, monkeypatch)
    found = {
        name: [row for file in (tmp_path / name / "wandb").glob("offline-run-*/*.wandb") for row in wandb_rows(file)]
        for name in "ab"
    }
    assert found == {"a": [(1, 1.0), (2, 3.0)], "b": [(1, 2.0)]}


def wandb_rows(path):
    """Step and loss of every row in a file of W&B: records of protobuf in the log format of LevelDB, seven bytes of head."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if 32_768 - place % 32_768 < 7:  # what is left of a block has no room for a head
            place += 32_768 - place % 32_768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                yield record.history.step.num, row["losses/total"]


def test_rows_become_flat_numbers():
    row = {
        "step": 3,
        "images": 24,
        "losses": {"total": 1.5, "koleo": math.inf},
        "note": "x",
        "gradient_norms": {"backbone": 2},
    }
    assert numbers(row) == {
        "images": 24.0, "losses/total": 1.5, "losses/koleo": math.inf, "gradient_norms/backbone": 2.0,
    }  # fmt: skip


def test_names_are_checked():
    assert known_trackers("tensorboard, wandb,wandb") == ("tensorboard", "wandb")
    assert known_trackers("") == ()
    with pytest.raises(ConfigError, match=r"Unknown tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        known_trackers("tensorbord")


@pytest.mark.parametrize("name", TRACKERS)
def test_absence_names_the_extra(name, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    real = importlib.import_module

    def absent(module, *rest):
        if module.partition(".")[0] == name:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=rf"trackers={name} needs an extra: pip install 'dinoforge\[{name}\]'\."):
        library(name)
