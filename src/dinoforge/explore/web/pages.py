"""From an answer to HTML: our templates, everything else escaped."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from dinoforge.base.log import clock
from dinoforge.explore.answers import as_json

FRESH = {"cache-control": "no-store"}
"""Headers of what is not to be kept."""


def environment() -> Environment:
    """The templates with what they use."""
    found = Environment(
        loader=PackageLoader("dinoforge.explore.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"whole": "{:,}".format, "clock": clock, "mosaic": mosaic}
    return found


def mosaic(colours: Sequence[Sequence[str]]) -> str:
    """Colours ``#rrggbb`` line by line as the address of a picture with a pixel each."""
    values = [[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for line in colours for colour in line]
    file = io.BytesIO()
    pixels = np.asarray(values, np.uint8).reshape(len(colours), -1, 3)
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def as_json_response(answer: Any, status: int = 200) -> Response:
    """An answer as JSON in ASCII: it also holds the lone surrogates that stand for names of files that are no text."""
    return Response(json.dumps(as_json(answer), allow_nan=False), status, dict(FRESH), media_type="application/json")


class Pages:
    """Renders templates.

    Args:
        facts: What every template knows.
    """

    def __init__(self, **facts: Any) -> None:
        self._environment, self._facts = environment(), facts

    def rendered(self, template: str, **values: Any) -> bytes:
        """A page of HTML."""
        html = self._environment.get_template(template).render(**self._facts, **values)
        return html.encode("utf-8", "replace")  # names of files that are no text have no UTF-8 form
