"""Shapes and types in signatures are executed in the tests; see pyproject for the marks."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

sys.path[:0] = [str(Path(__file__).parent / "golden"), str(Path(__file__).parent)]

# An int may stand where a float is asked for (PEP 484's tower), as in every annotated call.
_hook = install_import_hook("dinoforge", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from servers import object_storage, web  # noqa: E402, F401 - fixtures of several folders of tests
