"""The application: every view as a page and as JSON."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, Response
from starlette.formparsers import MultiPartParser

from dinoforge.explore.web.asks import AsksImage
from dinoforge.explore.web.desk import Desk
from dinoforge.explore.web.pages import FRESH, Pages, as_json_response
from dinoforge.explore.web.problems import HANDLED, PROBLEMS, told
from dinoforge.explore.web.routes import SIZES, router
from dinoforge.explore.web.views import VIEWS, Unasked, View

_STATIC = {
    "style.css": ("text/css", ("base/look.css", "explore/web/style.css")),
    "page.js": ("text/javascript", ("explore/web/page.js",)),
}
"""The only files that are sent, read when the server starts: no part of an address becomes a path."""

_UNTOLD: Any = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
"""Nobody is told of requests, whatever the environment says."""


def application(desk: Desk) -> FastAPI:
    """What answers requests; see ``Guard`` for what stands before it."""
    app = FastAPI(
        title="dinoforge explore", version="1", docs_url=None, redoc_url=None, responses=PROBLEMS, telemetry=_UNTOLD
    )
    app.state.desk = desk
    # A file that is sent stays in memory: no disk is filled with it, and none that is full refuses it.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, desk.limits.upload_bytes)
    pages = Pages(views=VIEWS, facts=desk.facts, has_training=desk.training is not None, limits=desk.limits)
    for view in VIEWS:
        app.add_api_route(
            view.api, _asking(view, partial(_as_json, desk, view)), response_model=view.gives, name=view.api,
            summary=view.title, description=inspect.getdoc(view.answer), tags=["views"],
        )  # fmt: skip
        app.add_api_route(
            view.path, _asking(view, partial(_as_page, desk, view, pages)), name=view.path, include_in_schema=False,
            response_class=HTMLResponse,
        )  # fmt: skip
    app.include_router(router)
    for name, (kind, parts) in _STATIC.items():
        app.add_api_route(f"/{name}", _file(kind, parts), include_in_schema=False, name=name)
    for error in HANDLED:
        app.add_exception_handler(error, partial(told, pages=pages))
    return app


def _asking(view: View, answer: Callable[[Any], Response]) -> Callable[..., Response]:
    """An endpoint that takes what the view is asked as the words behind the question mark."""

    def endpoint(asks: Any) -> Response:
        return answer(asks)

    asked = inspect.Parameter("asks", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[view.asks, Query()])
    endpoint.__signature__ = inspect.Signature([asked])  # type: ignore[attr-defined]
    return endpoint


def _as_json(desk: Desk, view: View, asks: Any) -> Response:
    return as_json_response(view.answer(desk, asks))


def _as_page(desk: Desk, view: View, pages: Pages, asks: Any) -> Response:
    """The answer as a page; where too little was asked for one, the page that asks for the rest."""
    try:
        answer = view.answer(desk, asks)
    except Unasked:
        answer = None
    image = desk.asked(asks) if isinstance(asks, AsksImage) else None
    html = pages.rendered(
        view.template, view=view, asks=asks, answer=answer, image=None if image is None else desk.collection.about(image),
        total=len(desk.collection), shape=lambda image: desk.shape(image, SIZES["large"]),
    )  # fmt: skip
    return HTMLResponse(html, headers=FRESH)


def _file(kind: str, parts: tuple[str, ...]) -> Callable[[], Response]:
    """An endpoint for files of ours, one after the other."""
    package = resources.files("dinoforge")
    text = "\n".join(package.joinpath(part).read_text("utf-8") for part in parts)

    def endpoint() -> Response:
        return Response(text, media_type=kind, headers={"cache-control": "no-cache"})

    return endpoint
