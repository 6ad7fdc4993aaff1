"""Any number of channels, 16 bits and floats: against hand calculation, NumPy and tifffile; and damage of every kind."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinoforge.data import bands
from dinoforge.data.decode import RGB, Broken, Picture, Reading, as_bytes, decode, open_picture

SOURCE = Path(__file__).parents[3] / "src"


def noise(*shape, kind=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    if np.issubdtype(kind, np.floating):
        return (rng.standard_normal(shape) * 1000).astype(kind)
    return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def tiff(array, **how):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **how)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def wide_png(array, *, interlaced=False):
    """A 16-bit PNG written from the specification, line after line with each of the five filters in turn."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]
    step = 2 * array.shape[2]
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [array[y::down, x::across] for y, x, down, across in starts] if interlaced else [array]
    lines = b"".join(filtered(part, step) for part in passes if part.size)
    size = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, kind, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def filtered(array, step):
    rows = np.frombuffer(array.astype(">u2").tobytes(), np.uint8).reshape(len(array), -1).astype(int)
    lines = b""
    for y, row in enumerate(rows):
        up = rows[y - 1] if y else np.zeros_like(row)
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, up))
        guess = left + up - corner
        a, b, c = abs(guess - left), abs(guess - up), abs(guess - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        predicted = [np.zeros_like(row), left, up, (left + up) // 2, paeth][y % 5]
        lines += bytes([y % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
    return lines


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_bits_of_a_wide_png(channels, interlaced):
    want = noise(13, 19, channels)
    found = open_picture(wide_png(want, interlaced=interlaced))
    assert (found.channels, found.alpha) == (channels, channels in {2, 4})
    assert found.pixels().dtype == np.uint16
    assert np.array_equal(found.pixels(), want)


@pytest.mark.parametrize(("mark", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("highest", [65535, 4095, 256])
def test_wide_portable_maps(mark, channels, highest):
    want = noise(5, 7, channels).astype(int) % (highest + 1)
    file = mark + b"\n# by hand\n7 5\n%d\n" % highest + want.astype(">u2").tobytes()
    assert np.array_equal(open_picture(file).pixels(), want * 65535 // highest)
    with pytest.raises(Broken, match="damaged"):
        open_picture(file[:-3]).pixels()


def test_what_would_lose_bits_is_refused():
    with pytest.raises(Broken, match="written as text"):
        open_picture(b"P3 1 1 65535 1 2 3")
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "JPEG2000")
    data = bytearray(file.getvalue())
    start = data.find(b"\xff\x4f\xff\x51") + 42
    data[start], data[start + 3], data[start + 6] = 15, 15, 15
    with pytest.raises(Broken, match="JPEG 2000 with more than 8 bits"):
        open_picture(bytes(data))


KINDS = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float16, np.float32, np.float64]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_tiff_of_any_channels_and_numbers(kind, channels, order):
    """Written by tifffile; together and apart, plain and deflated, in strips and in tiles."""
    want = noise(40, 37, channels, kind=kind)
    exact = want.astype(np.float32) if kind in {np.float16, np.float64} else want
    for apart in [False, True] if channels > 1 else [False]:
        for how in ({}, {"compression": "zlib"}, {"compression": "zlib", "tile": (16, 16)}):
            planes = {"planarconfig": "separate" if apart else "contig"} if channels > 1 else {}
            array = want[:, :, 0] if channels == 1 else np.moveaxis(want, -1, 0) if apart else want
            found = open_picture(tiff(array, photometric="minisblack", byteorder=order, **planes, **how))
            assert (found.height, found.width, found.channels, found.alpha) == (40, 37, channels, False)
            assert np.array_equal(found.pixels(), exact)
            assert found.pixels().dtype == exact.dtype


def test_signed_bytes_stay_signed():
    want = noise(5, 6, kind=np.int8)
    assert np.array_equal(open_picture(tiff(want)).pixels()[:, :, 0], want)


def test_transparency_in_tiff_is_what_the_file_calls_so():
    pixels = noise(8, 8, 4)
    assert open_picture(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])).alpha
    assert not open_picture(tiff(pixels, photometric="rgb", extrasamples=["unspecified"])).alpha
    infrared = open_picture(tiff(pixels.astype(np.uint8), photometric="rgb", extrasamples=["unspecified"]))
    assert (infrared.channels, infrared.alpha) == (4, False)
    assert np.array_equal(infrared.pixels(), pixels.astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_wide_tiff(orientation):
    """The same as the 8-bit file, which Pillow turns by itself."""
    pixels = noise(6, 9, 3)
    tag = (274, "H", 1, orientation, False)
    found = open_picture(tiff(pixels, photometric="rgb", extratags=[tag]))
    plain = open_picture(tiff((pixels >> 8).astype(np.uint8), photometric="rgb", extratags=[tag]))
    assert (found.height, found.width) == (plain.height, plain.width) == found.pixels().shape[:2]
    assert np.array_equal(found.pixels() >> 8, plain.pixels())


def test_pages_are_pictures_unless_the_file_says_channels():
    pages = noise(5, 9, 8)
    first = open_picture(tiff(pages, photometric="minisblack"))
    assert first.channels == 1
    assert np.array_equal(first.pixels()[:, :, 0], pages[0])
    for how in ({"imagej": True}, {"ome": True}):
        found = open_picture(tiff(pages, photometric="minisblack", metadata={"axes": "CYX"}, **how))
        assert found.channels == 5
        assert np.array_equal(found.pixels(), np.moveaxis(pages, 0, -1))
    film = tiff(noise(3, 5, 9, 8), photometric="minisblack", imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(Broken, match="is a stack with axes TCYX"):
        open_picture(film)


def test_missing_parts_of_a_tiff_are_no_zeros():
    whole = tiff(noise(64, 64, 5), photometric="minisblack", planarconfig="contig", rowsperstrip=8)
    assert open_picture(whole).channels == 5
    with pytest.raises(Broken, match=r"truncated|damaged"):
        open_picture(whole[: len(whole) * 3 // 4]).pixels()


@pytest.mark.parametrize("name", ["StripOffsets", "StripByteCounts"])
def test_parts_that_were_never_written_are_no_zeros(name):
    """tifffile takes a part that lies nowhere as zeros, which is right for maps with holes and wrong for a cut-off file."""
    whole = tiff(noise(64, 64, 5), photometric="minisblack", planarconfig="contig", rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        at = file.pages[0].tags[name].valueoffset
    holed = whole[: at + 8] + bytes(8) + whole[at + 16 :]
    with pytest.raises(Broken, match="is truncated, or parts of its picture were never written"):
        open_picture(holed).pixels()


def test_a_compression_that_needs_another_library_is_named():
    data = bytearray(tiff(noise(8, 8, 5), photometric="minisblack", planarconfig="contig", compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        at = file.pages[0].tags["Compression"].valueoffset
    data[at : at + 2] = (5).to_bytes(2, "little")
    with pytest.raises(Broken) as error:
        open_picture(bytes(data)).pixels()
    assert str(error.value) == (
        "is a TIFF file written with LZW, which needs imagecodecs: pip install it, or store the file with deflate or "
        "uncompressed"
    )


def test_without_tifffile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    bands._tifffile.cache_clear()
    with pytest.raises(Broken, match=r"need tifffile: pip install 'dinoforge\[bands\]'"):
        open_picture(tiff(noise(4, 4, 5), photometric="minisblack", planarconfig="contig"))
    bands._tifffile.cache_clear()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays(kind, order):
    want = noise(7, 5, 13, kind=kind)
    for array in (want, np.asfortranarray(want), want[:, :, 0]):
        found = open_picture(npy(array.astype(want.dtype.newbyteorder(order))))
        assert (found.height, found.width, found.channels) == (7, 5, 1 if array.ndim == 2 else 13)
        assert np.array_equal(
            found.pixels(), (array if array.ndim == 3 else array[:, :, None]).astype(found.pixels().dtype)
        )
    assert open_picture(npy(np.asarray([[True, False]]))).pixels().ravel().tolist() == [255, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.asarray([[{}]], dtype=object)), "holds Python objects"),
        (npy(np.zeros(5)), r"has shape \[5\]; an image is \[Y, X\] or \[Y, X, C\]"),
        (npy(np.zeros((2, 2, 2, 2))), "has shape"),
        (npy(np.zeros((4, 4)))[:-1], r"needs 128 bytes, 127 are there"),
        (npy(np.zeros((4, 4))) + b"x", r"needs 128 bytes, 129 are there"),
        (npy(np.zeros((4, 0, 3))), "no pixel"),
        (npy(np.zeros((0, 4, 3))).replace(b"4, 3), }" + b" " * 18, b"%d, 3), }" % 2**62), "is no array: .* too big"),
        (npy(np.zeros((4, 4))).replace(b"(4, 4), ", b"(-4,-4),"), r"shape \[-4, -4\]"),
        (npy(np.zeros((4, 4), complex)), "holds complex128"),
        (npy(np.asarray([["a"]])), "holds <U1"),
        (npy(np.zeros((4, 4), "V0")), "holds .*V0, not numbers"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "no NumPy array"),
        (b"\x93NUMPY", "no NumPy array"),
    ],
)
def test_arrays_that_are_no_picture(data, reason):
    with pytest.raises(Broken, match=reason):
        open_picture(data).pixels()


def test_channels_count_as_pixels_of_a_bomb():
    many = Picture.of(np.broadcast_to(np.uint8(1), (10, 10, 400)))
    with pytest.raises(Broken, match="10x10 pixels with 400 channels are more than 9,999"):
        Reading(channels=400, max_pixels=9_999).of(many).pixels()
    assert Reading(channels=400, max_pixels=10_000).of(many).pixels().shape == (10, 10, 400)


CHANNELS = [
    # channels of the file, whether the last is transparency, channels wanted, which of them come out
    (1, False, 3, [0, 0, 0]), (2, True, 3, [0, 0, 0]), (4, True, 3, [0, 1, 2]), (3, False, 3, [0, 1, 2]),
    (1, False, 1, [0]), (2, True, 1, [0]), (4, True, 4, [0, 1, 2, 3]), (2, True, 2, [0, 1]), (13, False, 13, range(13)),
]  # fmt: skip


@pytest.mark.parametrize(("have", "alpha", "want", "which"), CHANNELS)
def test_channels_that_fit(have, alpha, want, which):
    pixels = noise(3, 4, have, kind=np.uint8)
    picture = Picture(3, 4, have, decoded=lambda _: pixels, alpha=alpha)
    found = Reading(channels=want).of(picture)
    assert (found.channels, found.alpha) == (want, False)
    assert np.array_equal(found.pixels(), pixels[:, :, list(which)])


@pytest.mark.parametrize(
    ("have", "alpha", "want"),
    [
        (13, False, 3),
        (4, False, 3),
        (2, False, 3),
        (3, False, 4),
        (3, False, 13),
        (1, False, 2),
        (2, False, 1),
        (5, True, 3),
    ],
)
def test_channels_that_do_not_fit_are_not_decoded(have, alpha, want):
    picture = Picture(3, 4, have, decoded=lambda _: pytest.fail("decoded"), alpha=alpha)
    with pytest.raises(Broken, match=f"has {have} channels?, the backbone takes {want}$"):
        Reading(channels=want).of(picture).pixels()


def test_colours_become_grey_by_luma():
    """ITU-R 601, as Pillow's ``convert("L")``; 16 bits keep theirs."""
    pixels = noise(20, 20, 3, kind=np.uint8)
    grey = Reading(channels=1).of(Picture.of(pixels)).pixels()[:, :, 0].astype(int)
    assert np.abs(grey - np.asarray(Image.fromarray(pixels).convert("L"))).max() <= 1
    wide = Reading(channels=1).numbers(Picture.of(np.asarray([[[1000, 2000, 60000]]], np.uint16))).pixels()
    assert wide.tolist() == [[[299 + 1174 + 6840]]]


def test_numbers_become_bytes_by_hand():
    def of(values, kind, range=None):
        return as_bytes(np.asarray(values, kind).reshape(1, -1, 1), range)[0, :, 0].tolist()

    assert of([0, 1, 255], np.uint8) == [0, 1, 255]
    assert of([0, 128, 129, 257, 65535], np.uint16) == [0, 0, 1, 1, 255]
    assert of([0, 500, 5000, 10000, 60000], np.uint16, ((500, 10_000),)) == [0, 0, 121, 255, 255]
    assert of([10, 20, 30], np.uint8, ((10, 30),)) == [0, 128, 255]
    assert of([-5, 0, 0.5, 1, 9, np.nan, np.inf, -np.inf], np.float32, ((0, 1),)) == [0, 0, 128, 255, 255, 0, 255, 0]
    assert of([2**31 - 1, -(2**31)], np.int32, ((-(2**31), 2**31),)) == [255, 0]
    each = as_bytes(np.asarray([[[1.0, 1.0]]], np.float32), ((0, 2), (0, 4)))
    assert each.tolist() == [[[128, 64]]]


def test_numbers_without_a_range_are_told_what_to_do():
    for kind in (np.float32, np.int16, np.uint32):
        with pytest.raises(Broken, match=f"numbers of type {np.dtype(kind)}, which need data.range; `dinoforge stats`"):
            as_bytes(np.zeros((2, 2, 1), kind), None)
    with pytest.raises(Broken, match=r"has 3 channels, data.range is for 2"):
        as_bytes(np.zeros((2, 2, 3), np.uint8), ((0, 1), (0, 1)))


def test_sixteen_bits_become_eight_for_networks_of_colours():
    wide = Image.fromarray(np.asarray([[0, 256, 65535]], np.uint16))
    file = io.BytesIO()
    wide.save(file, "PNG")
    assert decode(file.getvalue())[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]
    assert RGB.of(open_picture(file.getvalue())).channels == 3


def files_of_every_kind():
    image = Image.fromarray(noise(48, 64, 3, kind=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = noise(24, 20, 13)

    def pillows(kind, mode="RGB", **how):
        file = io.BytesIO()
        image.convert(mode).save(file, kind, **how)
        return file.getvalue()

    return [
        pillows("JPEG"), pillows("JPEG", exif=exif), pillows("JPEG", progressive=True), pillows("JPEG", "CMYK"),
        pillows("PNG"), pillows("PNG", "P", exif=exif), wide_png(wide[:, :, :3]), wide_png(wide[:, :, :2]),
        pillows("PNG", save_all=True, append_images=[image]), pillows("WEBP", exif=exif), pillows("WEBP", lossless=True),
        pillows("GIF", save_all=True, append_images=[image]), pillows("BMP"), pillows("PPM"), pillows("JPEG2000"),
        pillows("AVIF"), pillows("TIFF"), pillows("TIFF", compression="tiff_lzw"), pillows("TIFF", compression="jpeg"),
        pillows("TIFF", "1", compression="group4"), pillows("TIFF", compression="tiff_adobe_deflate", exif=exif),
        tiff(wide, photometric="minisblack", planarconfig="contig"), tiff(wide[:, :, :3], photometric="rgb"),
        tiff(wide, photometric="minisblack", planarconfig="contig", compression="zlib", predictor=True),
        tiff(wide[:, :, 0].astype(np.float32)), tiff(np.moveaxis(wide, -1, 0), imagej=True, metadata={"axes": "CYX"}),
        b"P5 20 24 65535\n" + wide[:, :, 0].astype(">u2").tobytes(), npy(wide),
    ]  # fmt: skip


def damaged(data, case, rng):
    """Bits turned over, everywhere or in the header; cut off; a part overwritten."""
    found = bytearray(data)
    if case % 4 < 2:
        reach = len(found) if case % 4 else min(len(found), 300)
        for _ in range(int(rng.integers(1, 12))):
            found[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
    elif case % 4 == 2:
        found = found[: int(rng.integers(len(found)))]
    else:
        at, length = int(rng.integers(len(found))), int(rng.integers(1, 64))
        found[at : at + length] = rng.bytes(length)
    return bytes(found)


def test_damage_gives_pixels_or_a_reason_and_nothing_else():
    """1,120 damaged files; a process of its own, since libraries write to its standard error past Python."""
    script = "import sys; sys.path.insert(0, sys.argv[1])\nfrom test_decode_bands import check_damage\ncheck_damage()\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    usable, broken = map(int, done.stdout.split())
    assert usable + broken == 1120
    assert min(usable, broken) > 250


def check_damage():
    rng, usable, broken = np.random.default_rng(7), 0, 0
    for data in files_of_every_kind():
        open_picture(data).pixels()
        for case in range(40):
            try:
                picture = open_picture(damaged(data, case, rng))
                pixels = picture.pixels(case % 9 + 1)
                assert pixels.ndim == 3
                assert pixels.shape[2] == picture.channels
                assert pixels.size
                usable += 1
            except Broken as error:
                broken += len(str(error).splitlines()) == 1
    print(usable, broken)
