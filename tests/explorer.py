"""A page of the explorer on a small hostile collection, and what asks it."""

import socket
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from dinoforge.model.table import build
from dinoforge.model.weights import Backbone, Preprocessing, save_backbone
from tiny import VIT

HOSTILE = '"><img src=x onerror=alert(1)>'
LONG = "y" * 180
ROWS = 36


def write_images(folder: Path) -> None:
    """Images of three classes, in folders whose names are their labels; one is there twice, one is a strip."""
    for row in range(ROWS):
        label = (HOSTILE, "moth", LONG)[row % 3]
        (folder / label).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0 if row == 3 else row)
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(
            (48, 12) if row == 5 else (32, 24), Image.Resampling.BICUBIC
        )
        coarse.save(folder / label / f"{HOSTILE if row == 0 else row}.png")


def write_backbone(folder: Path) -> None:
    how = Preprocessing(side=32, short_side=32)
    save_backbone(folder, Backbone(build(VIT, seed=0), VIT, how, {"from": "a test"}))


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with images, a backbone and a manifest of the images."""
    import dinoforge

    folder = tmp_path_factory.mktemp("explorer")
    write_images(folder / "images")
    write_backbone(folder / "backbone")
    dinoforge.scan(data=str(folder / "images"), out=str(folder / "manifest.parquet"), workers=1)
    return folder


def start(place, **settings):
    import dinoforge

    return dinoforge.explore(
        **{"backbone": str(place / "backbone"), "data": str(place / "images"), "out": str(place / "features"), "port": 0, **settings},
    )  # fmt: skip


@pytest.fixture(scope="session")
def page(place):
    """A page that is served: ``url`` without a slash at its end, ``port``, ``ask``."""
    explored = start(place, manifest=str(place / "manifest.parquet"))
    url = explored.url.rstrip("/")
    with httpx.Client(base_url=url, timeout=60) as client:
        for path in ("/api/copies", "/api/outliers", "/api/map"):
            while client.get(path).status_code == 202:
                pass
        yield SimpleNamespace(url=url, port=int(url.rpartition(":")[2]), ask=client)
    explored.close()


def sent(port: int, text: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to bytes on a connection of their own."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def dropped(port: int, text: bytes) -> None:
    """Send bytes and go."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text)
