"""Every verb by its name. A new one is a file and a line here."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from dinoforge.base.errors import ConfigError
from dinoforge.base.given import as_text
from dinoforge.base.home import at_home
from dinoforge.runs import pretrain
from dinoforge.verbs.ablate import ablate
from dinoforge.verbs.attention import attention
from dinoforge.verbs.contains import contains
from dinoforge.verbs.convert import convert
from dinoforge.verbs.curate import SETTINGS as OF_CURATE
from dinoforge.verbs.curate import curate
from dinoforge.verbs.demo import demo
from dinoforge.verbs.distil import distil
from dinoforge.verbs.doctor import doctor
from dinoforge.verbs.embed import embed
from dinoforge.verbs.evaluate import SETTINGS as OF_EVALUATE
from dinoforge.verbs.evaluate import evaluate
from dinoforge.verbs.explore import SETTINGS as OF_EXPLORE
from dinoforge.verbs.explore import explore
from dinoforge.verbs.export import export
from dinoforge.verbs.match import match
from dinoforge.verbs.pca import pca
from dinoforge.verbs.plan import SETTINGS as OF_PLAN
from dinoforge.verbs.plan import plan
from dinoforge.verbs.predict import predict
from dinoforge.verbs.recipes import recipes, schema
from dinoforge.verbs.report import report
from dinoforge.verbs.scan import scan
from dinoforge.verbs.settings import Settings
from dinoforge.verbs.stats import stats

_VERBS = (
    doctor, scan, stats, curate, contains, plan, pretrain, distil, convert, evaluate, predict, embed, export, pca, attention,
    match, report, explore, recipes, schema, demo, ablate,
)  # fmt: skip
_HOME = re.compile(r"(?:^|(?<=,))~(?=/)")
_PLACES = frozenset({"out", "config"})
"""Settings of the verbs that take a recipe that are no setting of one."""


def _with_paths(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The same with paths as they are meant.

    ``~`` is the home folder: zsh and dash hand ``out=~/runs`` over as it is typed, and so does Python. An empty ``out`` is no
    place (a variable that is not set): it would be the working folder. Python's paths become text, as the command line has it.
    """
    kinds = {name: one.annotation for name, one in inspect.signature(verb).parameters.items()}

    @wraps(verb)
    def called(*words: Any, **settings: Any) -> Any:
        if settings.get("out") == "":
            raise ConfigError("out= is empty; give a name.")
        for name, value in settings.items():
            kind = kinds.get(name, "str | None" if name in _PLACES else None)
            if kind == "str" or (kind == "str | None" and value is not None):
                as_text(value, name.rstrip("_"))
        return verb(*words, **{name: _meant(value) for name, value in settings.items()})

    return called


def _meant(value: Any) -> Any:
    """A setting's value with paths as text and the home folder in them; of a list, each of its values."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_meant, value))
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return _HOME.sub(lambda _: str(at_home("~")), text) if isinstance(text, str) else value


VERBS: dict[str, Callable[..., Any]] = {function.__name__: _with_paths(function) for function in _VERBS}
VERBS_WITH_RECIPE = frozenset({"pretrain", "distil"})
"""Verbs that take any setting of a recipe besides their own keys."""
VERBS_ON_RANKS = frozenset({"pretrain", "distil"})
"""Verbs that several processes started together do as one."""
VERBS_WITH_SETTINGS: dict[str, Settings] = {
    "curate": OF_CURATE, "evaluate": OF_EVALUATE, "plan": OF_PLAN, "explore": OF_EXPLORE,
}  # fmt: skip
"""Verbs that take settings of their own besides their keys."""
