"""`ablate`: what it writes down, does once, and says of what it saw; by hand and on a study of seconds."""

import json
import math
import re
import statistics
import types
from pathlib import Path

import numpy as np
import pytest

import dinoforge
from dinoforge.base.errors import ConfigError, Interrupted, RunError, SentinelStop
from dinoforge.base.lock import Busy
from dinoforge.recipes import table
from dinoforge.recipes.studies import STUDIES
from dinoforge.recipes.study import Arm, Column, Form, Sign, Stage, Study, filled
from dinoforge.verbs import ablate as verb
from dinoforge.verbs.ablate import Row, seen, written

WORLD = "toy://species?images={pictures}&size=32&seed={seed}"
TINY = {
    "recipe": "vit_micro.toy", "data": WORLD, "seed": "{seed}", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2,
    "objective.head.prototypes": 32, "objective.head.hidden": 16, "objective.head.bottleneck": 8, "objective.group": 4,
    "plan.batch": 4, "plan.images": 8, "plan.learning_rate.warmup": 0, "data.augment.local_views": 1, "precision": "fp32",
    "workers": 0,
}  # fmt: skip
HERE = "2026-01-02", "one core"
ROWS = [
    Row("old", 0, {"k-NN": 0.2, "loss": 4.0}, *HERE), Row("new", 0, {"k-NN": 0.5, "loss": 4.1}, *HERE),
    Row("old", 1, {"k-NN": 0.4, "loss": 5.0}, "2026-01-03", "two cores"), Row("new", 1, {"k-NN": 0.3, "loss": 5.0}, *HERE),
]  # fmt: skip


def study(**changed):
    first = Stage("first", "pretrain", TINY)
    facts = {
        "name": "tiny", "question": "Is more better?", "paper": "Table 0",
        "arms": (Arm("old", (first,), {"IN-1k linear": 70.5}),
                 Arm("new", (first, Stage("more", "distil", {**TINY, "teacher": "{folder}/first", "plan.images": 12})))),
        "columns": (Column("k-NN", "knn", "accuracy", {"data": WORLD, "knn.neighbours": 3}),
                    Column("loss", "run", "loss", higher_is_better=False)),
        "signs": (Sign("new", "old", "k-NN"), Sign("new", "old", "loss")),
        "forms": {"quick": Form((0,), {"pictures": 40}), "record": Form((0, 1), {"pictures": 40})},
    }  # fmt: skip
    return Study(**facts | changed)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(STUDIES, "tiny", study)


def test_from_settings_to_table_and_again(tiny, tmp_path, monkeypatch):
    """Shared stages are done once, the second time nothing is; what stands in the table is what the runs and evaluate say."""
    done, began = [], []
    for name in ("pretrain", "distil"):
        real = verb._VERBS[name]
        monkeypatch.setitem(
            verb._VERBS, name, lambda real=real, **words: began.append(words["out"]) or done.append(real(**words))
        )
    out = tmp_path / "out"
    found = dinoforge.ablate(study="tiny", form="record", out=str(out))
    assert [(row.arm, row.seed) for row in found.rows] == [("old", 0), ("new", 0), ("old", 1), ("new", 1)]
    for row in found.rows:
        run = out / f"seed{row.seed}" / {"old": "first", "new": "more"}[row.arm]
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        again = dinoforge.evaluate(backbone=str(run), data=filled({"d": WORLD}, {"pictures": 40, "seed": row.seed})["d"],
                                   features="none", precision="fp32", **{"knn.neighbours": 3})  # fmt: skip
        assert row.scores == {"k-NN": again.scores[0].value, "loss": last["losses"]["total"]}
    assert [one.resumed_from for one in done] == [0, 2, 0, 0, 2, 0]  # the second arm finds the first stage done
    text = (out / "table.md").read_text()
    assert text == found.text()
    losses = [row.scores["loss"] for row in found.rows if row.arm == "old"]
    assert (
        f"{statistics.mean(losses):.4g} ± {statistics.stdev(losses):.2g} ({losses[0]:.4g}, {losses[1]:.4g}) | 70.5 |"
        in text
    )
    assert (out / "plot.svg").read_text().count("<svg") == 1
    done.clear()
    assert dinoforge.ablate(study="tiny", form="record", out=str(out)).rows == found.rows
    assert not done  # nothing is trained or judged again
    assert [json.loads(line)["arm"] for line in (out / "rows.jsonl").read_text().splitlines()] == ["old", "new"] * 2


def test_signs_by_hand():
    """The mean over seeds decides; lower is better of a loss; two that are to be the same must be so in every seed."""
    better, cheaper = (seen(sign, study(), ROWS) for sign in study().signs)
    assert math.isclose(better.difference, 0.1)
    assert (better.seeds, better.holds) == (1, True)
    assert math.isclose(cheaper.difference, 0.05)
    assert (cheaper.seeds, cheaper.holds) == (0, False)
    for within, holds, seeds in ((0.03, True, 2), (0.02, False, 1)):
        same = seen(Sign("new", "old", "loss", within=within), study(), ROWS)
        assert math.isclose(same.difference, 0.1 / 4)
        assert (same.holds, same.seeds) == (holds, seeds)
    nothing = [Row(arm, 0, {"k-NN": 0.0, "loss": 0.0}, *HERE) for arm in ("old", "new")]
    assert seen(Sign("new", "old", "loss", within=0.1), study(), nothing).holds


def test_a_seed_without_a_score_does_not_count():
    """Of the mean; and two of which one is missing are not shown to be the same."""
    rows = [Row("old", 0, {"k-NN": math.nan, "loss": math.nan}, *HERE, stopped="Stopped at step 3."), *ROWS[1:]]
    better = seen(Sign("new", "old", "k-NN"), study(), rows)
    assert (better.seeds, better.holds) == (0, False)
    assert math.isclose(better.difference, 0.3 - 0.4)
    assert not seen(Sign("new", "old", "loss", within=0.5), study(), rows).holds
    nowhere = [Row(arm, 0, {"k-NN": math.nan, "loss": math.nan}, *HERE) for arm in ("old", "new")]
    assert not seen(Sign("new", "old", "k-NN"), study(), nowhere).holds
    text = written(study(), "study=tiny", rows, [better])
    assert "| old | 0.4 (none, 0.4) | 5 (none, 5) | 70.5 |" in text
    assert "| new | 0.4 ± 0.14 (0.5, 0.3) |" in text
    assert "- old, seed 0, has no score: Stopped at step 3." in text


def test_the_table_shows_every_seed_and_what_was_not_expected():
    text = written(study(), "study=tiny form=record", ROWS, [seen(sign, study(), ROWS) for sign in study().signs])
    assert "| arm | k-NN | loss | paper: IN-1k linear |" in text
    assert "| old | 0.3 ± 0.14 (0.2, 0.4) | 4.5 ± 0.71 (4, 5) | 70.5 |" in text
    assert "- new over old, k-NN: as expected, by +0.1 on average, in 1 of 2 seeds." in text
    assert "- new over old, loss: NOT as expected, by +0.05 on average, in 0 of 2 seeds." in text
    assert "(`tiny`, 2026-01-02, 2026-01-03)" in text
    assert "`dinoforge ablate study=tiny form=record out=DIR`; one core; two cores. Seeds 0, 1" in text


def test_one_seed_has_no_deviation():
    assert verb._cell(np.asarray([0.25])) == "0.25"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"study": "compnents"}, "Unknown study 'compnents'.*components"),
        ({"study": "tiny", "form": "fast"}, "Unknown form 'fast'"),
        ({"study": "tiny", "arms": "old,nwe"}, "Unknown arm of tiny 'nwe'.*new"),
        ({"study": "tiny", "arms": "old"}, "arms=old compares nothing; give two or more of old, new"),
        ({"study": "tiny", "arms": " , "}, "arms=' , ' names no arm; leave it out for all"),
        ({"study": "tiny", "longer": 0}, "longer=0 is no number of times"),
        ({"study": "tiny", "longer": "0"}, "longer=0 is no number of times"),
        ({"study": "tiny", "longer": "two"}, "longer takes a whole number; got 'two'"),
    ],
)
def test_unknown_words_are_one_line(tiny, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        dinoforge.ablate(**words, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_some_arms_once_more_with_more_images_seen(tiny, tmp_path, monkeypatch):
    """The pool stays, what is seen grows; signs of arms that are left out are not asked; the table says what was typed."""
    asked = []
    third = Arm("third one", (Stage("third", "pretrain", {**TINY, "plan.images": "{images}", "data": WORLD}),))
    forms = {"quick": Form((0,), {"pictures": 40, "images": 8})}
    signs = (*study().signs, Sign("third one", "new", "k-NN"))
    monkeypatch.setitem(STUDIES, "tiny", lambda: study(arms=(*study().arms, third), signs=signs, forms=forms))
    monkeypatch.setattr(verb, "_do", lambda stage, words: asked.append(words))
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    found = dinoforge.ablate(study="tiny", arms="third one, new", longer="3", out=str(tmp_path / "out"))
    assert [row.arm for row in found.rows] == ["new", "third one"]
    assert asked[-1]["plan.images"] == 24
    assert "images=40&" in asked[-1]["data"]
    assert [one.sign.better for one in found.signs] == ["third one"]
    assert '`dinoforge ablate study=tiny form=quick arms="third one, new" longer=3 out=DIR`' in found.text()
    with pytest.raises(ConfigError, match=r"another study \(arms new, third one -> old, new, third one\)"):
        dinoforge.ablate(study="tiny", longer="3", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="holds another study"):
        dinoforge.ablate(study="tiny", arms="third one,new", longer=2, out=str(tmp_path / "out"))


def test_what_was_written_down_stays(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(
        verb, "_row", lambda asked, form, arm, *, seed, **_: Row(arm.name, seed, {"k-NN": 0.5, "loss": 1.0}, *HERE)
    )
    dinoforge.ablate(study="tiny", out=str(out))
    with pytest.raises(ConfigError, match=r"out holds another study \(form +quick -> record.*\); give another out"):
        dinoforge.ablate(study="tiny", form="record", out=str(out))
    (out / "study.json").write_text("[]")
    with pytest.raises(RunError, match=r"study\.json is not what ablate writes there"):
        dinoforge.ablate(study="tiny", out=str(out))
    (out / "study.json").unlink()
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError, match=r"out holds other files and no study\.json; give another out"):
        dinoforge.ablate(study="tiny", out=str(out))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_recipe_that_changed_meanwhile_is_another_study(tiny, tmp_path, monkeypatch):
    """It is called the same, so its settings are written down with the study."""
    out, real = tmp_path / "out", table.RECIPES["vit_micro.toy"]

    def other():
        made = real()
        return made.model_copy(update={"objective": made.objective.model_copy(update={"koleo_weight": 0.5})})

    monkeypatch.setattr(verb, "_do", lambda *_: None)
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    dinoforge.ablate(study="tiny", out=str(out))
    monkeypatch.setitem(table.RECIPES, "vit_micro.toy", other)
    with pytest.raises(ConfigError, match=r"settings\.first\.objective\.koleo_weight  0\.06 -> 0\.5"):
        dinoforge.ablate(study="tiny", out=str(out))


def test_a_second_start_waits_for_its_turn(tiny, tmp_path, monkeypatch):
    out, asked = str(tmp_path / "out"), []

    def row(study, form, arm, *, seed, **_):
        with pytest.raises(Busy, match="in use by another dinoforge process"):
            dinoforge.ablate(study="tiny", out=out)
        asked.append(arm.name)
        return Row(arm.name, seed, {"k-NN": 0.5, "loss": 1.0}, *HERE)

    monkeypatch.setattr(verb, "_row", row)
    dinoforge.ablate(study="tiny", out=out)
    assert asked == ["old", "new"]


def test_the_source_is_what_runs(tiny, tmp_path, monkeypatch):
    """Not what somebody has saved by the time an arm is done."""
    marks = iter(["before", "after", "later"])
    monkeypatch.setattr(verb, "source_mark", lambda: next(marks))
    monkeypatch.setattr(verb, "_do", lambda *_: None)
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    rows = dinoforge.ablate(study="tiny", out=str(tmp_path / "out")).rows
    assert {row.machine.rpartition(" ")[2] for row in rows} == {"before"}


def test_an_arm_that_the_sentinel_stops_has_no_score_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    done = []

    def do(stage, words):
        done.append(stage.name)
        if stage.name == "more":
            raise SentinelStop("Stopped at step 3, collapse: as in the test.")

    monkeypatch.setattr(verb, "_do", do)
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    out = str(tmp_path / "out")
    first, again = (dinoforge.ablate(study="tiny", form="record", out=out) for _ in range(2))
    assert done == ["first", "first", "more"] * 2  # a row that is there is not done again
    assert first.text() == again.text()
    assert "| new | none, none | none, none |" in first.text()
    assert "- new, seed 1, has no score: Stopped at step 3, collapse: as in the test." in first.text()
    assert [row.scores["k-NN"] for row in again.rows if row.arm == "old"] == [1.0, 1.0]


def test_settings_of_an_arm_go_to_its_own_task_alone(tmp_path, monkeypatch):
    """``judged`` of an arm, beside the words of the column."""
    columns = (*study().columns, Column("rank", "health", "effective_rank", {"data": WORLD}))
    arms = (replace_judged(study().arms[0], {"knn.neighbours": 1}), study().arms[1])
    monkeypatch.setitem(STUDIES, "tiny", lambda: study(arms=arms, columns=columns))
    monkeypatch.setattr(verb, "_do", lambda *_: None)
    given = []

    def judged(run, tasks, words):
        given.append((run, tasks, words.get("knn.neighbours")))
        score = types.SimpleNamespace(name={"knn": "accuracy", "health": "effective_rank"}[tasks], value=0.5)
        return types.SimpleNamespace(scores=[score])

    monkeypatch.setattr(verb, "evaluate", lambda *, backbone, tasks, **words: judged(backbone, tasks, words))
    monkeypatch.setattr(verb, "_recorded", lambda *_: 1.0)
    dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))
    assert [(run.rpartition("/")[2], *rest) for run, *rest in given] == [
        ("first", "knn", 1), ("first", "health", None), ("more", "knn", 3), ("more", "health", None),
    ]  # fmt: skip


def replace_judged(arm, words):
    return Arm(arm.name, arm.stages, arm.paper, words)


def test_the_plot_shows_the_mean_of_each_arm_in_its_row(tiny, tmp_path, monkeypatch):
    """The mean is the one in colour; the arm of the larger one stands to the right of the other, below it."""
    monkeypatch.setattr(
        verb,
        "_row",
        lambda asked, form, arm, *, seed, **_: Row(
            arm.name, seed, {"k-NN": {"old": 0.2, "new": 0.6}[arm.name] + seed / 10, "loss": math.nan}, *HERE
        ),
    )
    plot = dinoforge.ablate(study="tiny", form="record", out=str(tmp_path / "out")).plot
    uses = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+)', Path(plot).read_text())
    means = [(float(x), float(y)) for x, y, colour in uses if colour == "#1f5fa8"]
    dots = [(float(x), float(y)) for x, y, colour in uses if colour == "#9a9a94"]
    assert (len(means), len(dots)) == (2, 4)  # nothing of the column without a score
    for mean, pair in zip(means, (dots[:2], dots[2:]), strict=True):
        assert mean == pytest.approx((statistics.mean(x for x, _ in pair), pair[0][1]), abs=1e-3)
    assert means[0][0] < means[1][0]
    assert means[0][1] < means[1][1]


def test_all_arms_are_trained_in_one_precision(tiny, tmp_path, monkeypatch):
    """Whatever a measurement says later; a stage that names one keeps it."""
    plain = {key: value for key, value in TINY.items() if key != "precision"}
    arms = (Arm("old", (Stage("first", "pretrain", plain),)), Arm("new", (Stage("more", "pretrain", plain),)),
            Arm("own", (Stage("own", "pretrain", TINY), Stage("last", "pretrain", plain))))  # fmt: skip
    monkeypatch.setitem(STUDIES, "tiny", lambda: study(arms=arms, signs=()))
    asked, answers = [], iter(["bf16", "fp32"])
    monkeypatch.setattr(verb, "choose_precision", lambda *_: types.SimpleNamespace(precision=next(answers)))
    monkeypatch.setattr(verb, "_do", lambda stage, words: asked.append(words["precision"]))
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    rows = dinoforge.ablate(study="tiny", out=str(tmp_path / "out")).rows
    assert asked == ["bf16", "bf16", "fp32", "bf16"]  # and what comes after it is as the others
    assert [row.machine.split(", ")[-2] for row in rows] == ["bf16"] * 3
    (tmp_path / "out" / "seed0" / "rows" / "more.json").unlink()
    dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))
    assert asked[4:] == ["bf16"]
    (tmp_path / "out" / "precision.json").write_text("{}")
    with pytest.raises(RunError, match=r"precision\.json is not what ablate writes there; give another"):
        dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))
    (tmp_path / "out" / "precision.json").unlink()
    with pytest.raises(RunError, match=r"precision\.json is not there, so it is not known what the runs beside it"):
        dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))


def test_a_full_disk_leaves_nothing_that_is_taken_for_done(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_do", lambda *_: None)
    monkeypatch.setattr(verb, "_score", lambda *_, **__: 1.0)
    whole, out = verb.write_json, tmp_path / "out"

    def full(name):
        def write(path, value):
            if path.name == name:
                raise RunError("no space left")
            whole(path, value)

        monkeypatch.setattr(verb, "write_json", write)
        with pytest.raises(RunError, match="no space left"):
            dinoforge.ablate(study="tiny", out=str(out))

    full("study.json")
    full("more.json")
    monkeypatch.setattr(verb, "write_json", whole)
    (out / "seed0" / "rows" / "first.json").write_text("")  # a row that was cut off is judged again
    assert [row.arm for row in dinoforge.ablate(study="tiny", out=str(out)).rows] == ["old", "new"]


def test_a_score_that_evaluate_does_not_give(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_do", lambda stage, words: None)
    monkeypatch.setattr(verb, "evaluate", lambda **words: dinoforge.verbs.evaluate.Evaluated([], []))
    with pytest.raises(RunError, match=r"knn of .* has no accuracy"):
        dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))


def test_what_a_stage_raises_is_said(monkeypatch, tmp_path):
    wrong = Arm("old", (Stage("first", "pretrain", {**TINY, "data": "toy://nothing"}),))
    monkeypatch.setitem(STUDIES, "tiny", lambda: study(arms=(wrong,), signs=()))
    with pytest.raises(ConfigError, match="Unknown toy world"):
        dinoforge.ablate(study="tiny", out=str(tmp_path / "out"))


def test_ranks_that_fail_are_said(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(verb.sys, "executable", "/bin/false")
    monkeypatch.setattr(verb, "say", commands.append)
    with pytest.raises(RunError, match="pretrain on 2 ranks ended with 1"):
        verb._do(Stage("a", "pretrain", {}, ranks=2), {"out": str(tmp_path / "a"), "plan.images": 8})
    assert commands[0].endswith(f"-m dinoforge pretrain out={tmp_path / 'a'} plan.images=8")
    assert "--nproc-per-node 2" in commands[0]


def test_ranks_see_for_themselves_whether_all_is_done(tmp_path, monkeypatch):
    """A summary may be another run's."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text("{}")
    monkeypatch.setattr(verb.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="ended with 1"):
        verb._do(Stage("a", "pretrain", {}, ranks=2), {"out": str(tmp_path / "a")})


def test_more_signals_do_not_leave_the_ranks_behind(tmp_path, monkeypatch):
    """Their checkpoint takes a while; the study ends after them."""
    told, program = tmp_path / "told", tmp_path / "ranks.sh"
    program.write_text(
        f"#!/bin/bash\nat_end() {{ for i in 1 2 3; do kill -TERM $PPID; sleep 0.3; done; echo yes > {told}; exit 1; }}\n"
        "trap at_end TERM\nsleep 0.5\nkill -TERM $PPID\nsleep 30 &\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(verb.sys, "executable", str(program))
    with pytest.raises(Interrupted, match="SIGTERM received"):
        verb._do(Stage("a", "pretrain", {}, ranks=2), {"out": str(tmp_path / "a")})
    assert told.read_text() == "yes\n"


def test_interrupted_ranks_are_told(tmp_path, monkeypatch):
    """SIGTERM to the study reaches its ranks, and the study ends as interrupted when they have ended."""
    told, program = tmp_path / "told", tmp_path / "ranks.sh"
    program.write_text(
        f"#!/bin/bash\ntrap 'echo yes > {told}; exit 1' TERM\nsleep 0.5\nkill -TERM $PPID\nsleep 30 &\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(verb.sys, "executable", str(program))
    with pytest.raises(Interrupted, match="SIGTERM received"):
        verb._do(Stage("a", "pretrain", {}, ranks=2), {"out": str(tmp_path / "a")})
    assert told.read_text() == "yes\n"


def test_an_arm_on_the_processor_does_not_name_the_gpu(monkeypatch):
    monkeypatch.setattr(verb.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(verb.torch.cuda, "get_device_name", lambda: "H200")
    assert "H200" not in verb._machine("cpu")
    assert all("H200" in verb._machine(device) for device in (None, "cuda"))
