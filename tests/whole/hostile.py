"""A folder of files that mean harm, or met with it: what a crawl of a million files holds a few of."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def hostile(folder: Path) -> tuple[set[str], set[str]]:
    """Make them; the ids of those that are images all the same, and of those that must be set aside, each with a reason.

    Archives count for what is in them.
    """
    folder.mkdir()
    good, bad = _images(folder)
    for more in (_names(folder), _not_files(folder), _archives(folder), _tables(folder)):
        good, bad = good | more[0], bad | more[1]
    return good, bad


def _encoded(kind: str, size: tuple[int, int] = (24, 18), seed: int = 0, **how) -> bytes:
    rng = np.random.default_rng(seed + 17)
    file = io.BytesIO()
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).save(file, kind, **how)
    return file.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, data: bytes, *, bits: int = 8, colours: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _images(folder: Path) -> tuple[set[str], set[str]]:
    jpeg, png = _encoded("JPEG", (64, 48)), _encoded("PNG", (64, 48))
    middle = len(png) // 2
    blank = zlib.compress(b"\x00" * 10_000_000, 9)
    good = {
        "png named.jpg": png,
        "jpeg named.png": jpeg,
        "gif named.webp": _encoded("GIF"),
        "one pixel.png": _encoded("PNG", (1, 1)),
        "long strip.png": _encoded("PNG", (20_000, 1)),
        "tall strip.png": _encoded("PNG", (1, 20_000)),
        "garbage behind.jpg": jpeg + os.urandom(500),
        "broken exif.jpg": jpeg[:2] + b"\xff\xe1\x00\x10Exif\x00\x00MM\x00*\xff\xff\xff\xff" + jpeg[2:],
        "UPPER.JPG": jpeg,
    }
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"this is no image\n" * 50,
        "page.png": b"<!DOCTYPE html><html><body>404</body></html>",
        "head only.jpg": jpeg[:20],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[:middle],
        "half.webp": _encoded("WEBP", (64, 48))[:60],
        "half.tif": _encoded("TIFF", (64, 48))[:1000],
        "half.gif": _encoded("GIF", (64, 48))[:40],
        "flipped.png": png[:middle] + bytes(255 - byte for byte in png[middle : middle + 40]) + png[middle + 40 :],
        "bomb.png": _png(60_000, 60_000, blank),
        "short rows.png": _png(500, 500, zlib.compress(b"\x00" * 100)),
        "no pixel.png": _png(0, 5, zlib.compress(b"")),
        "bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6) + b",;",
        "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "bad length.jpg": jpeg[:4] + b"\xff\xff" + jpeg[6:40],
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "no suffix": jpeg,
    }
    for name, content in (good | bad).items():
        (folder / name).write_bytes(content)
    np.save(folder / "objects.npy", np.asarray([_Harm(folder)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(folder / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../zeros", b"\x00" * 1_000_000)
    return set(good), set(bad) | {"objects.npy", "zeros.zip"}


class _Harm:
    """Leaves a file beside the folder if anybody unpickles it."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder.parent / "unpickled"

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def _names(folder: Path) -> tuple[set[str], set[str]]:
    jpeg = _encoded("JPEG")
    good = {"new\nline.jpg", "space and ünïcode 🦕.jpg", "x" * 240 + ".jpg", "-rf.jpg", "quote'\".jpg", "a%20b#c?d.jpg"}
    for name in good:
        (folder / name).write_bytes(jpeg)
    return good, set()


def _not_files(folder: Path) -> tuple[set[str], set[str]]:
    good, bad = set(), {"pipe.jpg", "loop.jpg", "dangling.jpg"}
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "deep").mkdir()
    (folder / "deep" / "again").symlink_to("..")
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.jpg").write_bytes(_encoded("JPEG", seed=1))
    good.add("folder.jpg/inside.jpg")
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as server:  # paths of sockets may not be long
        here = Path.cwd()
        os.chdir(folder)
        try:
            server.bind("socket.jpg")
            bad.add("socket.jpg")
        finally:
            os.chdir(here)
    with contextlib.suppress(OSError):  # only root may make one
        os.mknod(folder / "zero.jpg", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        bad.add("zero.jpg")
    if os.geteuid():
        (folder / "locked.jpg").write_bytes(_encoded("JPEG"))
        (folder / "locked.jpg").chmod(0)
        bad.add("locked.jpg")
    return good, bad


def _archives(folder: Path) -> tuple[set[str], set[str]]:
    """Tars that want out of their folder, or end too early. Ids of members depend on the source: see the test."""
    jpeg = _encoded("JPEG", seed=2)

    def tar(name: str, *members: tuple[str, bytes]) -> Path:
        with tarfile.open(folder / name, "w") as file:
            for member, content in members:
                about = tarfile.TarInfo(member)
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
        return folder / name

    tar("upwards.tar", ("../escaped.jpg", jpeg), ("fine.jpg", jpeg))
    tar("absolute.tar", ("/tmp/escaped.jpg", jpeg), ("fine.jpg", jpeg))
    cut = tar("cut.tar", ("whole.jpg", jpeg), ("part.jpg", os.urandom(40_000)))
    cut.write_bytes(cut.read_bytes()[:9_000])
    with tarfile.open(folder / "links.tar", "w") as file:
        about = tarfile.TarInfo("passwd.jpg")
        about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(about)
        about = tarfile.TarInfo("fine.jpg")
        about.size = len(jpeg)
        file.addfile(about, io.BytesIO(jpeg))
    tar("nothing.tar")
    (folder / "noise.tar").write_bytes(os.urandom(5_000))
    return set(), {"nothing.tar", "noise.tar"}


def _tables(folder: Path) -> tuple[set[str], set[str]]:
    (folder / "noise.parquet").write_bytes(b"PAR1" + os.urandom(500) + b"PAR1")
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "no images.parquet")
    images = [_encoded("JPEG", seed=3), None, b"", b"no image"]
    pq.write_table(pa.table({"id": ["fine", "null", "empty", "words"], "image": images}), folder / "rows.parquet")
    return {"fine"}, {"noise.parquet", "no images.parquet", "null", "empty", "words"}
