"""What every study promises: its settings are settings, its arms can be told apart, its signs speak of what is measured."""

import pytest

import dinoforge
from dinoforge.recipes.settle import settle
from dinoforge.recipes.studies import STUDIES
from dinoforge.recipes.study import FORMS, filled
from dinoforge.verbs.evaluate import EVALUATIONS
from dinoforge.verbs.table import VERBS


@pytest.mark.parametrize("name", STUDIES)
class TestEveryStudy:
    def test_its_names(self, name):
        study = STUDIES[name]()
        assert study.name == name
        assert tuple(study.forms) == FORMS
        arms, columns = [arm.name for arm in study.arms], [column.name for column in study.columns]
        assert len(set(arms)) == len(arms) > 1
        assert not any("," in arm for arm in arms)  # arms= names some of them
        assert len(set(columns)) == len(columns)
        assert all({sign.better, sign.worse} <= set(arms) and sign.column in columns for sign in study.signs)
        assert len({tuple(arm.paper) for arm in study.arms if arm.paper}) <= 1
        assert all(column.task in EVALUATIONS or column.task == "run" for column in study.columns)
        assert len({arm.stages[-1].name for arm in study.arms}) == len(arms)

    @pytest.mark.parametrize("form", FORMS)
    def test_its_settings(self, name, form):
        """Each training is a whole recipe, no two arms' trainings are the same, and what is shared means the same."""
        study, meant, trained = STUDIES[name](), {}, []
        for seed, arm in study.pairs(form):
            known = {**study.forms[form].words, "seed": seed, "folder": f"F{seed}"}
            for stage in arm.stages:
                words = filled(stage.words, known)
                assert stage.verb in VERBS
                assert meant.setdefault((seed, stage.name), (stage.verb, words)) == (stage.verb, words)
                if stage.verb != "curate":
                    settle(words)
            for column in study.columns:
                filled({**column.words, **arm.judged}, known)
            trained.append((arm.stages[-1].ranks, meant[seed, arm.stages[-1].name]))
        assert all(one not in trained[:place] for place, one in enumerate(trained))

    def test_its_scores_are_what_evaluate_gives(self, name):
        known = {"pictures": 40, "seed": 0}
        for column in STUDIES[name]().columns:
            if column.task != "run":
                words = filled(column.words, known) | {"data": filled(column.words, known)["data"].replace("600", "40")}
                maps = column.task == "segmentation"
                words |= {"segmentation.iterations": 2} if maps else {}
                baseline = "colours:8" if maps else "pixels:8"
                found = dinoforge.evaluate(backbone=baseline, tasks=column.task, features="none", **words)
                score = next(score for score in found.scores if score.name == column.score)
                assert score.higher_is_better == column.higher_is_better

    def test_its_records_rest_on_three_seeds(self, name):
        assert len(STUDIES[name]().forms["record"].seeds) >= 3
