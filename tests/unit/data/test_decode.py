"""Decoding against Pillow, and every way in which a file can be wrong."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from dinoforge.data.decode import Broken, Reading, decode, open_picture

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def picture(mode="RGB", size=(17, 11)):
    rng = np.random.default_rng(0)
    smooth = np.asarray(
        Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    )
    return Image.fromarray(smooth).convert(mode)


def encoded(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def pillows(data):
    """The picture as Pillow sees it, which is what released DINOv2 trains on: ``convert("RGB")``."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


MODES = {"PNG": ["RGB", "L", "P", "1", "RGBA", "LA"], "JPEG": ["RGB", "L", "CMYK"], "BMP": ["RGB", "L", "P", "1"],
         "WEBP": ["RGB", "RGBA"], "TIFF": ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "LAB"],
         "GIF": ["P", "L"], "PPM": ["RGB", "L", "1"], "JPEG2000": ["RGB", "L", "RGBA", "LA"]}  # fmt: skip
CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGBA": 4}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_equals_pillow(kind, mode):
    data = encoded(picture(mode), kind)
    # Two JPEG decoders differ by a level or two of rounding.
    assert np.abs(decode(data).astype(int) - pillows(data)).max() <= (3 if kind == "JPEG" else 0)
    found = open_picture(data)
    assert (found.height, found.width) == (11, 17)
    stored = Image.open(io.BytesIO(data)).mode  # WebP stores no transparency that hides nothing
    assert found.channels == CHANNELS.get(stored, 3)
    assert found.pixels().shape == (11, 17, found.channels)
    assert found.alpha == (stored in {"RGBA", "LA"})


@pytest.mark.parametrize("how", [{"progressive": True}, {"subsampling": 2}, {"subsampling": 1}, {"keep_rgb": True}])
def test_kinds_of_jpeg(how):
    data = encoded(picture(size=(60, 41)), "JPEG", quality=92, **how)
    assert np.abs(decode(data).astype(int) - pillows(data)).mean() < 1


def test_inverted_print_colours():
    """Adobe's CMYK is stored inverted: a red without black must come out red."""
    ink = Image.fromarray(np.broadcast_to(np.asarray([0, 255, 255, 0], np.uint8), (8, 8, 4)).copy(), "CMYK")
    assert np.abs(decode(encoded(ink, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF deflate", "PNG late", "JPEG CMYK", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind, orientation):
    """Against the definition: where the first row and the first column of what is stored belong (TIFF 6.0, p. 36)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"JPEG": {"quality": 95, "subsampling": 0}, "JPEG CMYK": {"quality": 95}, "WEBP": {"lossless": True},
           "AVIF": {"quality": 95, "subsampling": "4:4:4"}, "TIFF deflate": {"compression": "tiff_adobe_deflate"}}.get(kind, {})  # fmt: skip
    image = picture(size=(16, 8)).convert("CMYK" if "CMYK" in kind else "RGB")
    data = encoded(image, kind.split()[0], exif=exif, **how)
    if kind == "PNG late":
        at = data.find(b"eXIf") - 4
        length = int.from_bytes(data[at : at + 4], "big") + 12
        data = data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:]
    stored = np.asarray(image.convert("RGB")).astype(int)
    rows = ["top", "bottom", "left", "right"]
    first_row, first_column = {1: (0, 2), 2: (0, 3), 3: (1, 3), 4: (1, 2), 5: (2, 0), 6: (3, 0), 7: (3, 1), 8: (2, 1)}[
        orientation
    ]
    found = open_picture(data)
    pixels = decode(data).astype(int)
    edges = {"top": pixels[0], "bottom": pixels[-1], "left": pixels[:, 0], "right": pixels[:, -1]}
    assert pixels.shape[:2] == (found.height, found.width) == ((8, 16) if orientation < 5 else (16, 8))
    along_row, along_column = edges[rows[first_row]], edges[rows[first_column]]
    along_row = along_row[::-1] if first_column in {1, 3} else along_row
    along_column = along_column[::-1] if first_row in {1, 3} else along_column
    rough = 12 if kind in {"JPEG", "JPEG CMYK", "AVIF"} else 0
    assert np.abs(along_row - stored[0]).mean() <= rough
    assert np.abs(along_column - stored[:, 0]).mean() <= rough


def test_orientation_is_found_behind_long_notes():
    """A colour profile of 200 kB before EXIF, fill bytes between the segments, and XMP alone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(size=(16, 8))
    data = encoded(image, "JPEG", exif=exif)
    at = data.find(b"Exif\0\0") - 4
    length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    profile = b"".join(b"\xff\xe2" + (60_002).to_bytes(2, "big") + bytes(60_000) for _ in range(4))
    late = data[:at] + profile + b"\xff\xff" + data[at : at + length] + data[at + length :]
    assert (open_picture(late).height, open_picture(late).width) == decode(late).shape[:2] == (16, 8)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="8"/></x:xmpmeta>'
    noted = encoded(image, "JPEG", xmp=xmp)
    assert (open_picture(noted).height, open_picture(noted).width) == pillows(noted).shape[:2] == (16, 8)


def test_damaged_notes_do_not_cost_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "WEBP", "JPEG"):
        data = encoded(picture(), kind, exif=exif)
        at = data.find(b"MM\0*") if b"MM\0*" in data else data.find(b"II*\0")
        damaged = data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :]
        if kind == "PNG":  # its checksum must hold
            import zlib

            start = damaged.find(b"eXIf")
            end = start + 4 + int.from_bytes(damaged[start - 4 : start], "big")
            damaged = damaged[:end] + zlib.crc32(damaged[start:end]).to_bytes(4, "big") + damaged[end + 4 :]
        assert decode(damaged).shape == (11, 17, 3)


def test_transparency_is_dropped_not_mixed_with_a_background():
    image = Image.fromarray(np.broadcast_to(np.asarray([200, 30, 5, 0], np.uint8), (4, 4, 4)).copy(), "RGBA")
    assert (decode(encoded(image, "PNG")) == [200, 30, 5]).all()
    palette = image.convert("RGB").quantize(2)
    palette.info["transparency"] = 0
    found = open_picture(encoded(palette, "PNG", transparency=0))
    assert found.channels == 3
    assert np.abs(found.pixels().astype(int) - [200, 30, 5]).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_those_that_move_the_first(kind):
    frames = [picture(), ImageOps.invert(picture())]
    how = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(decode(data).astype(int) - pillows(encoded(frames[0], kind, **how))).max() == 0


@pytest.mark.parametrize(("width", "height"), [(60_000, 1), (1, 60_000), (1, 1), (2, 3000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_absurd_shapes(kind, width, height):
    image = Image.fromarray(np.full((height, width, 3), 77, np.uint8))
    found = open_picture(encoded(image, kind))
    assert found.pixels().shape == (height, width, 3)
    assert (found.pixels(8) == 77).all()


def area_averaged(pixels, factor):
    """The slow definition: means of squares, the last row and column repeated to fill them."""
    height, width = pixels.shape[:2]
    tall, wide = -(-height // factor), -(-width // factor)
    filled = np.pad(
        pixels.astype(float), ((0, tall * factor - height), (0, wide * factor - width), (0, 0)), mode="edge"
    )
    return filled.reshape(tall, factor, wide, factor, -1).mean((1, 3))


def photos():
    for path in sorted((SHARED / "photos").iterdir()):
        data = path.read_bytes()
        yield data if path.suffix == ".jpg" else encoded(Image.open(path).convert("RGB"), "JPEG", quality=90)
    table = pq.read_table(SHARED / "caltech101" / "train.parquet", columns=["image"])["image"]
    yield from (table[row].as_py() for row in range(0, 300, 15))


@pytest.mark.skipif(not SHARED.exists(), reason="the real pictures are not here")
@pytest.mark.parametrize(("asked", "factor"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (50, 8)])
def test_a_reduced_photo_is_the_whole_one_averaged(asked, factor):
    for data in photos():
        found = open_picture(data)
        small, want = found.pixels(asked), area_averaged(found.pixels(), factor)
        assert small.shape == want.shape
        noise = ((small - want) ** 2).mean()
        assert noise == 0 or 10 * np.log10(255**2 / noise) >= 38  # the worst of these has 40.8 dB


def test_print_colours_and_turned_photos_are_reduced_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "CMYK", "L"):
        found = open_picture(encoded(picture(mode, size=(67, 35)), "JPEG", quality=95, exif=exif))
        assert (found.height, found.width) == (67, 35)
        small = found.pixels(4)
        assert small.shape == (17, 9, found.channels)
        assert np.abs(small - area_averaged(found.pixels(), 4)).mean() < 12  # turned wrongly: 60


def test_other_formats_give_whole_pixels():
    assert open_picture(encoded(picture(), "PNG")).pixels(8).shape == (11, 17, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "JPEG2000", "GIF"])
def test_only_the_header_is_read_at_first(kind, monkeypatch):
    data = encoded(picture(size=(600, 400)), kind)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _self: pytest.fail("decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_a, **_k: pytest.fail("decoded"))
    found = open_picture(data)
    assert (found.height, found.width) == (400, 600)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_files_are_broken(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(Broken):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "this is no image that can be read"),
        (b"\xff\xd8\xff", "image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "this is no image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is no image that can be read"),
        (b"II*\0\x08\0\0\0", "TIFF"),
    ],
)
def test_what_is_no_image(data, reason):
    with pytest.raises(Broken, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_bombs_are_refused_and_the_limit_can_be_raised(kind):
    found = open_picture(encoded(picture("P" if kind == "GIF" else "RGB"), kind))
    with pytest.raises(Broken, match=r"17x11 pixels are more than 186; a decompression bomb\? data.max_pixels raises"):
        Reading(max_pixels=186).of(found).pixels()
    assert Reading(max_pixels=187).of(found).pixels().shape == (11, 17, 3)


def test_a_large_picture_is_refused_by_its_header_alone():
    """A kilobyte that says 30,000 x 30,000."""
    data = bytearray(encoded(picture("1"), "PNG"))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(Broken, match="30000x30000 pixels are more than 178,956,970"):
        open_picture(bytes(data)).pixels()
