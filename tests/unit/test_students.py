"""What several students of one teacher settle among themselves before the first step."""

from types import SimpleNamespace

import pytest

from dinoforge.base import dist
from dinoforge.base.errors import ConfigError
from dinoforge.base.hardware import Choice
from dinoforge.base.teams import split
from dinoforge.runs import Run
from dinoforge.verbs import students
from dinoforge.verbs.students import agreed
from ranks import on_ranks

FULL, HALF = Choice("fp32", "no bf16 here"), Choice("bf16", "faster")


@pytest.mark.parametrize(
    ("wish", "told", "want"),
    [
        ("auto", {"a": (FULL, None), "b": (HALF, None)}, FULL),
        ("auto", {"a": (HALF, None), "b": (FULL, None)}, HALF),
        ("auto", {"a": (HALF, None), "b": (FULL, "fp32"), "c": (HALF, "fp32")}, Choice("fp32", "as b until now")),
        ("bf16", {"a": (HALF, "fp32"), "b": (HALF, "bf16")}, HALF),
    ],
)  # fmt: skip
def test_one_precision_of_all(wish, told, want):
    """The first one's choice; rather that of those that go on; a wish wins."""
    assert agreed(told, wish) == want


def test_who_was_trained_in_several_precisions_needs_a_wish():
    told = {"a": (FULL, None), "b": (FULL, "fp32"), "c": (HALF, "bf16")}
    message = (
        "students b and c were trained in fp32 and bf16 until now, .*; give precision=fp32 or precision=bf16 for all"
    )
    with pytest.raises(ConfigError, match=message):
        agreed(told, "auto")


@pytest.mark.dist
def test_a_plan_that_fails_on_one_rank_is_one_line_on_all(monkeypatch):
    def planned(*_):
        if dist.rank_of_all():
            raise ConfigError("does not divide")
        return SimpleNamespace(parts=[SimpleNamespace(micro_batch=4)])

    monkeypatch.setattr(students, "planned", planned)
    run = object.__new__(Run)
    run.recipe = run.source = run.device = run.precision = None

    def work():
        with pytest.raises(ConfigError, match="does not divide") as caught:
            students._fewest({"a": run}, split(2)[0])
        return caught.value.rank

    assert on_ranks(2, work) == [1, 1]
