"""Decoding against Pillow, and every way in which a file can be wrong."""

import io

import numpy as np
import pytest
from PIL import Image

from dinoforge.data.decode import Broken, Reading, decode, open_picture


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


MODES = {"PNG": ["RGB", "L", "P", "1", "RGBA", "LA"], "JPEG": ["RGB", "L", "CMYK"], "BMP": ["RGB", "L", "P", "1"],
         "WEBP": ["RGB", "RGBA"], "TIFF": ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"], "GIF": ["P", "L"]}  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_equals_pillow(kind, mode):
    data = encoded(picture(mode), kind)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    # Two JPEG decoders differ by a level or two of rounding.
    assert np.abs(decode(data).astype(int) - want).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    image = picture(size=(16, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert pixels.shape[:2] == ((8, 16) if orientation < 5 else (16, 8))
    first = np.asarray(image)[0, 0].astype(int)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert np.abs(pixels[corner].astype(int) - first).max() < 40


def test_sixteen_bits_become_eight():
    wide = Image.fromarray(np.asarray([[0, 256, 65535]], np.uint16))
    assert decode(encoded(wide, "PNG"))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_files_are_broken(kind, share):
    data = encoded(picture(size=(200, 150)), kind)
    with pytest.raises(Broken):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"hello, world", "no image"), (b"\xff\xd8\xff", "image")]
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
