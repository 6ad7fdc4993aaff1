"""Settings: unknown keys, wrong types and values out of range are one line that says what would be right."""

from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from dinoforge.base.config import Config, Count, differences, fingerprint, paths, read_value, science, with_settings
from dinoforge.base.errors import ConfigError, unknown


class Round(Config):
    kind: Literal["round"] = "round"
    """kind"""
    radius: float = Field(default=1.0, gt=0)
    """radius"""


class Square(Config):
    kind: Literal["square"] = "square"
    """kind"""
    side: int = 2
    """side"""


class Plan(Config):
    not_science: ClassVar[frozenset[str]] = frozenset({"save_images"})
    exclusive: ClassVar[frozenset[str]] = frozenset({"images", "passes"})
    images: Count | None = 10
    """images"""
    passes: float | None = None
    """passes"""
    save_images: Count = 5
    """save"""
    share: float = Field(default=0.5, ge=0, le=1)
    """share"""
    scales: tuple[float, float] = (0.1, 0.9)
    """scales"""
    name: str = "a"
    """name"""


class Run(Config):
    plan: Plan = Plan()
    """plan"""
    second: Plan | None = None
    """a group that may be left out"""
    shape: Annotated[Round | Square, Field(discriminator="kind")] = Round()
    """shape"""
    shuffle: bool = True
    """shuffle"""


def test_strings_are_read_as_the_command_line_means_them():
    run = with_settings(
        Run(),
        {"plan.images": "5M", "plan.share": "1e-3", "plan.scales": "[0.2, 0.8]", "plan.name": "7", "shuffle": "false"},
    )
    assert (run.plan.images, run.plan.share, run.plan.scales, run.plan.name) == (5_000_000, 1e-3, (0.2, 0.8), "7")
    assert run.shuffle is False


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("plan.image", "5", "Unknown setting 'plan.image'. Did you mean 'plan.images'?"),
        ("images", "5", "Did you mean 'plan.images'?"),
        ("plan.images", "many", "plan.images takes a whole number; got 'many'."),
        ("plan.images", "1.5", "plan.images takes a whole number; got '1.5'."),
        ("plan.share", "2", "plan.share must be at most 1; got 2."),
        ("plan.share", "nan", "plan.share"),
        ("shape.radius", "0", "shape.round.radius must be above 0; got 0."),
        ("shuffle", "perhaps", "shuffle takes true or false; got 'perhaps'."),
        ("plan", "5", "plan is a group of settings, not a value; got '5'."),
        ("shape.kind", "oval", "shape.kind must be one of 'round', 'square'; got 'oval'."),
        ("shape.side", "3", "Unknown setting 'shape.side'"),
        ("plan.scales", "[1, 2, 3]", "plan.scales"),
    ],
)
def test_mistakes_are_one_line(path, value, says):
    with pytest.raises(ConfigError) as error:
        with_settings(Run(), {path: value})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_kind_brings_its_own_settings():
    run = with_settings(Run(), {"shape.side": "3", "shape.kind": "square"})
    assert run.shape == Square(side=3)


def test_setting_one_of_two_exclusive_fields_clears_the_other():
    assert with_settings(Run(), {"plan.passes": "2.5"}).plan.images is None
    both = with_settings(Run(), {"plan.passes": "2", "plan.images": "3"}).plan
    assert (both.passes, both.images) == (2.0, 3)


def test_fingerprint_covers_science_alone():
    base = Run()
    faster = with_settings(base, {"plan.save_images": "1"})
    other = with_settings(base, {"plan.share": "0.4"})
    assert fingerprint(science(base)) == fingerprint(science(faster)) != fingerprint(science(other))
    assert differences(science(base), science(other)) == ["plan.share  0.5 -> 0.4"]


def test_paths_and_round_trip():
    run = Run()
    assert dict(paths(run))["plan.share"] == 0.5
    assert Run.build(run.model_dump(mode="json")) == run
    assert fingerprint(science(Run.build(run.model_dump(mode="json")))) == fingerprint(science(run))


@given(st.integers(min_value=0, max_value=10**12))
def test_counts_read_back(number):
    assert with_settings(Run(), {"plan.images": str(number)}).plan.images == number


@pytest.mark.parametrize(("text", "value"), [("null", None), ("[1, 2]", [1, 2]), ("a:b", "a:b"), ("[1", "[1")])
def test_read_value(text, value):
    assert read_value(text) == value


def test_unknown_offers_the_nearest():
    assert str(unknown("recipe", "vit_smal", ["vit_small", "vit_giant"])) == (
        "Unknown recipe 'vit_smal'. Did you mean 'vit_small'? Known: vit_giant, vit_small."
    )


def test_a_group_that_may_be_left_out_is_given_and_taken_back_whole():
    run = with_settings(Run(), {"second": "{images: 3}"})
    assert run.second == Plan(images=3)
    assert with_settings(run, {"second": "{images: 4}"}).second == Plan(images=4)
    assert with_settings(run, {"second": "null"}).second is None
    with pytest.raises(ConfigError, match="plan is a group of settings, not a value; got 'null'"):
        with_settings(run, {"plan": "null"})
