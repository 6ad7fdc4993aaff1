"""What goes wrong, as one line: a page for people, JSON for programs."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from dinoforge.base.errors import RunError, UserError
from dinoforge.explore.web.desk import Absent
from dinoforge.explore.web.jobs import Computing, Job
from dinoforge.explore.web.pages import FRESH, Pages, as_json_response
from dinoforge.explore.web.views import Unasked


@dataclass(frozen=True, slots=True)
class Problem:
    """What was wrong with a request, in one line."""

    error: str


@dataclass(frozen=True, slots=True)
class Step:
    """Something that is computed."""

    what: str
    state: Literal["waiting", "running", "done", "failed"]
    done: int
    total: int
    """0 while it is not known."""
    now: str
    """What of it is being done."""
    seconds: float
    """Since it began, or that it took."""
    left: float | None
    """Seconds that the rest will take; null while nothing can be said."""
    error: str | None

    @classmethod
    def of(cls, job: Job) -> Step:
        """A job as it stands."""
        error = None if job.error is None else one_line(job.error)
        return cls(job.title, job.state, job.done, job.total, job.now, job.seconds, job.left, error)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    202: {"model": Step, "description": "It is being computed; ask again."},
    400: {"model": Problem, "description": "It cannot be answered."},
    404: {"model": Problem, "description": "It is not there."},
    413: {"model": Problem, "description": "It is too long."},
    422: {"model": Problem, "description": "It is not well asked."},
    503: {"model": Problem, "description": "Not now; ask again."},
}
HANDLED = (HTTPException, RequestValidationError, UserError, Computing, Unasked, Exception)


def one_line(error: Exception) -> str:
    """What an error says; of a bug of ours no more than that it is one."""
    if isinstance(error, RequestValidationError):
        return _first(error)
    if isinstance(error, HTTPException):
        return "there is no such page" if error.status_code == 404 else str(error.detail)
    if isinstance(error, UserError | Unasked):
        return " ".join(str(error).split())
    return "this is a bug in dinoforge, please report it; what happened stands in its terminal"


def _first(error: RequestValidationError) -> str:
    """The first complaint: which word, and what it says of it."""
    found = error.errors()[0]
    name = ".".join(str(part) for part in found["loc"][1:])
    told = str(found["msg"]).removeprefix("Value error, ")
    return f"{name}: {told}" if name else told


def _status(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, RequestValidationError | Unasked):
        return 422
    if isinstance(error, Absent | RunError):
        return 404 if isinstance(error, Absent) else 503
    return 400 if isinstance(error, UserError) else 500


def told(request: Request, error: Exception, *, pages: Pages) -> Response:
    """The answer to a request that could not be served, or not yet."""
    as_page = not request.url.path.startswith(("/api/", "/picture/"))
    if isinstance(error, Computing):
        step = Step.of(error.job)
        if as_page:
            return HTMLResponse(pages.rendered("computing.html", step=step), 202, FRESH)
        return as_json_response(step, 202)
    status, line = _status(error), one_line(error)
    if status == 500:
        traceback.print_exception(error)
    answer = (
        HTMLResponse(pages.rendered("problem.html", line=line, status=status), status, FRESH)
        if as_page else as_json_response(Problem(line), status)
    )  # fmt: skip
    if isinstance(error, HTTPException) and error.headers:
        answer.headers.update(error.headers)
    return answer
