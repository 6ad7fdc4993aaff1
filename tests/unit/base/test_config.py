"""Settings: unknown keys, wrong types and values out of range are one line that says what would be right."""

from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from dinoforge.base.config import (
    Config,
    Count,
    differences,
    fingerprint,
    merged,
    paths,
    read_value,
    science,
    value_at,
    with_settings,
)
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


class Needs(Config):
    length: int
    """required"""
    share: float = 0.5
    """not required"""


class Half(Config):
    later: ClassVar[frozenset[str]] = frozenset({"extra"})
    plan: Plan = Plan(images=7, share=0.25)
    """a default that is not its class's"""
    extra: Needs | None = None
    """may be left out, and came later"""


def test_a_group_that_is_left_out_is_made_of_what_is_given_inside_it():
    made = with_settings(Half(), {"extra.share": "0.75", "extra.length": "3"}).extra
    assert made == Needs(length=3, share=0.75)
    assert with_settings(Half(extra=made), {"extra.share": "0.5"}).extra == Needs(length=3)
    whole = with_settings(Half(), {"extra.share": "0.75", "extra": "{length: 4}"}).extra
    assert whole == Needs(length=4, share=0.75)
    for settings, says in (
        ({"extra.share": "1"}, "extra.length is required and was not given."),
        ({"extra.lenght": "1"}, "Unknown setting 'extra.lenght'. Did you mean 'extra.length'?"),
        ({"extra.length": "many"}, "extra.length takes a whole number; got 'many'."),
        ({"extra.length.x": "1"}, "Unknown setting 'extra.length.x'"),
        ({"extra": "null", "extra.length": "1"}, "extra=null and extra.length exclude each other"),
        ({"extra": "5"}, "extra is a group of settings, not a value; got '5'. Set one of: extra.length, extra.share."),
    ):
        with pytest.raises(ConfigError) as error:
            with_settings(Half(), settings)
        assert str(error.value).startswith(says)


def test_values_of_a_file_are_completed_before_they_are_judged():
    assert merged(Half, {}, {"plan.share": "1"}).plan == Plan(images=7, share=1)
    assert merged(Half, {"extra": {"share": 0.1}}, {"extra.length": "2"}).extra == Needs(length=2, share=0.1)
    assert merged(Half, {"plan": {"share": 0.1}}, {"plan.passes": "2"}).plan == Plan(images=None, passes=2, share=0.1)
    assert merged(Run, {"shape": {"kind": "square"}}, {"shape.side": "5"}).shape == Square(side=5)
    assert merged(Run, {"shape": {"kind": "square", "side": 9}}, {"shape.kind": "round"}).shape == Round()
    with pytest.raises(ConfigError, match=r"shape\.kind must be one of"):
        merged(Run, {"shape": {"kind": "oval"}}, {"shape.side": "5"})
    with pytest.raises(ConfigError, match=r"^plan"):
        merged(Run, {"plan": 5}, {"plan.share": "1"})


def test_values_by_their_path():
    values = {"plan": {"share": 0.1}, "extra": None}
    paths_and_values = {
        "plan.share": 0.1,
        "plan.images": 10,
        "extra.share": 0.5,
        "extra.length": None,
        "no.where": None,
    }
    assert {path: value_at(Half, values, path) for path in paths_and_values} == paths_and_values
    assert value_at(Half, {}, "plan.images") == 7


def test_what_came_later_leaves_the_fingerprint_alone_until_it_is_used():
    assert science(Half()) == {"plan": science(Plan(images=7, share=0.25))}
    assert science(Half(extra=Needs(length=1)))["extra"] == {"length": 1, "share": 0.5}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4.1M", 4_100_000),
        ("8.2M", 8_200_000),
        ("2.01M", 2_010_000),
        ("16.4M", 16_400_000),
        ("1.5k", 1_500),
        ("1.2B", 1_200_000_000),
    ],
)
def test_decimals_of_a_count_are_decimals(text, count):
    """4.1 is no sum of powers of two."""
    assert TypeAdapter(Count).validate_python(text) == count


@pytest.mark.parametrize("text", ["infM", "nanM", "1e400M", "1.00001k", "M", "4,1M"])
def test_what_is_no_count_is_no_traceback(text):
    with pytest.raises(ValidationError):
        TypeAdapter(Count).validate_python(text)
