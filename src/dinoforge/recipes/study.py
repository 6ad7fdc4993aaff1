"""What a study consists of: arms that differ in stated settings, what each is judged by, and what is expected of it.

A study is data. ``ablate`` writes it down before the first run and goes on with no other in the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dinoforge.base.errors import ConfigError, unknown

FORMS = ("quick", "record", "gpu")
"""Minutes, to see it run; hours on two cores, for the records; larger, for one graphics card."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of an arm. Arms that name the same stage share it, and must mean the same by it."""

    name: str
    """Its folder, below that of the seed."""
    verb: Literal["curate", "pretrain", "distil"]
    words: Mapping[str, Any]
    """Settings; ``{name}`` in them is a word of the form, ``{seed}`` the seed, ``{folder}`` where the seed's stages lie."""
    ranks: int = 1
    """Processes on this machine that do it as one."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared: the backbone of the last stage."""

    name: str
    stages: tuple[Stage, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper reports for its like, by the paper's own measure, in its units."""
    judged: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``evaluate`` of this arm alone."""


@dataclass(frozen=True, slots=True)
class Column:
    """One score of every arm."""

    name: str
    task: str
    """Of ``evaluate``; or ``run``, and the score is what the last stage wrote down: ``loss`` of its last step, or ``flops``."""
    score: str
    words: Mapping[str, Any] = field(default_factory=dict)
    """Settings of ``evaluate``."""
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Sign:
    """That one arm is better than another in a column, or, with ``within``, that they are the same."""

    better: str
    worse: str
    column: str
    within: float | None = None
    """Largest difference, as a share of the score, at which two arms are the same."""


@dataclass(frozen=True, slots=True)
class Form:
    """How long a study takes."""

    seeds: tuple[int, ...]
    words: Mapping[str, int]
    """What stands for ``{name}`` in settings: how many ``pictures`` there are, and numbers of images seen."""


@dataclass(frozen=True, slots=True)
class Study:
    """A question, and how it is asked."""

    name: str
    question: str
    paper: str
    """Where the paper asks it, and what its columns are."""
    arms: tuple[Arm, ...]
    columns: tuple[Column, ...]
    signs: tuple[Sign, ...]
    forms: Mapping[str, Form]

    def rerun(self, *, arms: Sequence[str], longer: int) -> Study:
        """The same question of some arms, with so many times as many images seen; the pool stays as large.

        Raises:
            ConfigError: It has no such arm, or fewer than two are left.
        """
        known = [arm.name for arm in self.arms]
        for name in arms:
            if name not in known:
                raise unknown(f"arm of {self.name}", name, known)
        if len(set(arms)) == 1:
            raise ConfigError(f"arms={arms[0]} compares nothing; give two or more of {', '.join(known)}.")
        if longer < 1:
            raise ConfigError(
                f"longer={longer} is no number of times; 1 is as long as the form says, 3 three times that."
            )
        kept = set(arms or known)
        forms = {
            name: replace(form, words={key: n if key == "pictures" else n * longer for key, n in form.words.items()})
            for name, form in self.forms.items()
        }
        return replace(
            self,
            arms=tuple(arm for arm in self.arms if arm.name in kept),
            signs=tuple(sign for sign in self.signs if {sign.better, sign.worse} <= kept),
            forms=forms,
        )

    def pairs(self, form: str) -> Iterator[tuple[int, Arm]]:
        """Every arm of every seed, seed by seed, so that an interrupted study has whole seeds."""
        for seed in self.forms[form].seeds:
            for arm in self.arms:
                yield seed, arm


def filled(words: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every ``{name}`` replaced; a setting that is nothing but one keeps the type of what replaces it."""
    return {key: _filled(value, known) for key, value in words.items()}


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(value, str):
        return value
    whole = value[1:-1] if value.startswith("{") and value.endswith("}") else None
    return known[whole] if whole is not None and whole in known else value.format_map(known)
