"""What bounds the explorer's page: how much a request may bring, and how much is kept."""

from __future__ import annotations

from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.explore.collection import MOST_PIXELS


class WebConfig(Config):
    """Limits of the page."""

    upload_bytes: int = Field(default=20 * 2**20, ge=1)
    """Bytes of the body of a request at most; a photograph of 24 megapixels has about 10 million."""
    upload_pixels: int = Field(default=MOST_PIXELS, ge=1, le=MOST_PIXELS)
    """Pixels of an uploaded image at most: it is decoded whole, at 3 bytes a pixel."""
    uploads_kept: int = Field(default=256 * 2**20, ge=1)
    """Bytes of uploaded files in memory at most."""
    patience: float = Field(default=20.0, gt=0)
    """Seconds that the head of a request may take, and between two parts of its body at most; one that stops half-way is
    answered 408."""
    upload_seconds: float = Field(default=120.0, gt=0)
    """Seconds that all of a body may take; 20 MiB then need 1.4 megabits a second."""
    connections: int = Field(default=256, ge=1)
    """Connections at a time; beyond them 503 is answered."""
    pictures_kept: int = Field(default=2048, ge=1)
    """Drawn pictures in memory at most, 5 to 50 kB each."""


class PageConfig(Config):
    """What may be set of the page besides where it is served."""

    web: WebConfig = WebConfig()
    """Its limits."""
