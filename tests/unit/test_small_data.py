"""The table of the small-data recipes: every seed, the curve, what learns nothing, nothing trained twice."""

import importlib.util
import sys
from pathlib import Path

import pytest

import dinoforge
from dinoforge.base.errors import Interrupted
from dinoforge.recipes.settle import settle

BENCH = Path(__file__).parents[2] / "bench"
SPEC = importlib.util.spec_from_file_location("bench_small_data", BENCH / "small_data.py")
SMALL = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = SMALL
SPEC.loader.exec_module(SMALL)
WORLD = "toy://species?images=120&size=32"
TINY = [
    "backbone.width=32", "backbone.depth=1", "backbone.heads=2", "objective.head.prototypes=32", "objective.head.hidden=16",
    "objective.head.bottleneck=8", "objective.group=4", "plan.batch=4", "plan.images=32", "plan.probe_images=16",
    "data.augment.local_views=1", "precision=fp32", "workers=0",
]  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(SMALL, "TASKS", {"tiny": SMALL.Task("vit_micro.toy", WORLD, WORLD, 80, 20)})


def test_every_seed_and_what_learns_nothing(tmp_path, tiny, capsys):
    assert SMALL.main([str(tmp_path), "tiny", "seeds=0,1", *TINY]) == 0
    table = (tmp_path / "tiny" / "table.md").read_text()
    assert capsys.readouterr().out == table + "\n"
    assert "| images seen | 0 | 16 | 32 |" in table
    rows = {line.split(" | ")[0]: line.strip("|").split("|")[1:] for line in table.splitlines() if "seed" in line}
    assert rows.keys() == {"| seed 0", "| seed 1"}
    ends = []
    for seed, row in enumerate(rows.values()):
        wanted = {"seed": seed, "out": str(tmp_path / "tiny" / f"seed{seed}")}
        words = dict(word.split("=", 1) for word in TINY) | SMALL.TASKS["tiny"].words() | wanted
        ends.append(dinoforge.pretrain(**words).knn["last"])  # the same settings, so it is read, not trained
        assert float(row[-1]) == pytest.approx(ends[-1], abs=5e-4)
    assert f"ends at {sum(ends) / 2:.4f} ± {abs(ends[0] - ends[1]) / 2**0.5:.4f}" in table
    scores = dinoforge.evaluate(
        backbone="pixels:16", tasks="knn", data=WORLD, train_rows=80, test_rows=20, **{"knn.neighbours": 10}
    ).scores
    assert f"thumbnails {scores[0].value:.3f}" in table


def test_seeds_of_an_earlier_start_stay_in_the_table(tmp_path, tiny, capsys):
    for seed in (1, 0):
        assert SMALL.main([str(tmp_path), "tiny", f"seeds={seed}", *TINY]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith((tmp_path / "tiny" / "table.md").read_text() + "\n")
    assert shown.count("| seed 1 ") == 2
    assert shown.count("| seed 0 ") == 1
    assert "`vit_micro.toy` with `backbone.width=32 backbone.depth=1" in shown


def test_a_run_of_other_settings_is_not_taken_over(tmp_path, tiny, capsys):
    assert SMALL.main([str(tmp_path), "tiny", "seeds=0", *TINY]) == 0
    assert SMALL.main([str(tmp_path), "tiny", "seeds=0", *TINY, "plan.learning_rate.peak=0.1"]) == 1
    assert "plan.learning_rate.peak" in capsys.readouterr().err


def test_interrupted_it_is_to_go_on(tmp_path, tiny, monkeypatch, capsys):
    def stopped(**_):
        raise Interrupted("SIGTERM received.")

    monkeypatch.setattr(SMALL.dinoforge, "pretrain", stopped, raising=False)
    assert SMALL.main([str(tmp_path), "tiny", *TINY]) == 75
    assert capsys.readouterr().err == "small-data: SIGTERM received.\n"


def test_a_second_start_trains_nothing(tmp_path, tiny, monkeypatch):
    words = [str(tmp_path), "seeds=0", *TINY]
    assert SMALL.main(words) == 0
    before = (tmp_path / "tiny" / "seed0" / "metrics.jsonl").read_bytes()
    assert SMALL.main(words) == 0
    assert (tmp_path / "tiny" / "seed0" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "OUT [SIZE"),
        (["OUT", "3k"], "'3k'"),
        (["OUT", "seeds=a"], "seeds="),
        (["OUT", "seeds=0,0"], "seeds="),
        (["OUT", "probe.neighbours=1"], "The task fixes probe.neighbours"),
        (["OUT", "seed=1"], "The task fixes seed"),
        (["OUT", "out=B"], "The task fixes out"),
        (["OUT", "1k", "plan.imags=3"], "plan.imags"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert SMALL.main(words) == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert said in shown[0]


@pytest.mark.parametrize("name", SMALL.TASKS)
def test_what_is_asked_for_are_settings(name):
    words = {key: value for key, value in SMALL.TASKS[name].words().items() if not key.startswith("probe")}
    assert settle(words).recipe.probe.neighbours == SMALL.NEIGHBOURS
