"""Pictures, uploads and progress: what pages are made of besides their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, File, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from dinoforge.explore.web.asks import Key, Row
from dinoforge.explore.web.desk import Desk
from dinoforge.explore.web.pages import as_json_response
from dinoforge.explore.web.problems import Step

SIZES = {"small": 192, "large": 768}
"""Pixels of the longer side."""

Size = Annotated[Literal["small", "large"], Query(description="Longer side: 192 or 768 pixels.")]
Image = Annotated[bytes, File(description="An image file.")]
_JPEG: dict[int | str, dict[str, object]] = {200: {"content": {"image/jpeg": {}}, "description": "JPEG"}}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An image was taken in."""

    upload: str
    """Its key, for ``upload=`` of every view."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything that was computed, is, or will be."""

    jobs: tuple[Step, ...]


def _desk(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


def _picture(request: Request, image: int | str, size: str) -> Response:
    """A picture, drawn anew from what was decoded: no byte of a file is passed on."""
    desk = _desk(request)
    stamp = f'"{desk.collection.fingerprint}-{image}-{size}"'
    headers = {"cache-control": "private, no-cache", "etag": stamp}
    if request.headers.get("if-none-match") == stamp:
        return Response(status_code=304, headers=headers)
    return Response(desk.picture(image, SIZES[size]), media_type="image/jpeg", headers=headers)


@router.get(
    "/picture/row/{row}", response_class=Response, responses=_JPEG, summary="Picture of a row", tags=["pictures"]
)
def picture_of_row(request: Request, row: Row, size: Size = "small") -> Response:
    """An image of the collection as a JPEG file."""
    return _picture(request, row, size)


@router.get(
    "/picture/upload/{key}", response_class=Response, responses=_JPEG, summary="Picture of an upload", tags=["pictures"]
)
def picture_of_upload(request: Request, key: Key, size: Size = "small") -> Response:
    """An uploaded image as a JPEG file."""
    return _picture(request, key, size)


@router.post("/api/upload", response_model=Uploaded, summary="Upload an image", tags=["pictures"])
def upload(request: Request, file: Image) -> Response:
    """Take an image in: it stays in memory for a while, and nowhere else."""
    return as_json_response(Uploaded(_desk(request).uploads.add(file)))


@router.post("/upload", include_in_schema=False)
def upload_and_go(
    request: Request, file: Image, to: Annotated[Literal["search", "region", "parts", "match", "contains"], Form()] = "search",
    other: Annotated[str, Form(pattern=r"^\d{0,9}$")] = "", rows: Annotated[str, Form(pattern=r"^[\d,]{0,200}$")] = "",
) -> Response:  # fmt: skip
    """Take an image in and show what a view says of it."""
    words = {"upload": _desk(request).uploads.add(file), "other": other, "rows": rows}
    return RedirectResponse(f"/{to}?{urlencode({name: word for name, word in words.items() if word})}", 303)


@router.get("/api/progress", response_model=Progress, summary="Progress", tags=["progress"])
def progress(request: Request) -> Response:
    """What is computed, and how long it will take."""
    steps = tuple(Step.of(job) for job in _desk(request).jobs.all())
    return as_json_response(Progress(steps))
