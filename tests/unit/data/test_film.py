"""Frames of video files: which, exactly those that were written, and what is no whole video."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoforge.data import film
from dinoforge.data.decode import Broken
from dinoforge.data.film import evenly, frames_of
from films import cut, noise, plain, write


def test_evenly_by_hand():
    assert evenly(1, 9).tolist() == [4]
    assert evenly(2, 8).tolist() == [2, 6]
    assert evenly(4, 4).tolist() == [0, 1, 2, 3]
    assert evenly(8, 16).tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert evenly(3, 10).tolist() == [1, 5, 8]  # 1.67, 5, 8.33
    assert evenly(8, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]  # fewer frames than asked for: they repeat
    assert evenly(3, 1).tolist() == [0, 0, 0]


@given(st.integers(1, 40), st.integers(1, 500))
def test_evenly_is_its_definition(count, of):
    """Frame f covers the time from f / of to (f + 1) / of; the middle of each part lies in it."""
    found = evenly(count, of).tolist()
    for part, frame in enumerate(found):
        assert frame * 2 * count <= (2 * part + 1) * of < (frame + 1) * 2 * count
    mirrored = [(2 * count * of - (2 * part + 1) * of) / (2 * count) for part in range(count)]
    assert found == [int(time) for time in reversed(mirrored)]
    assert found == sorted(found)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "FFV1"), ("a.mkv", "FFV1"), ("a.avi", "HFYU")])
def test_frames_are_those_that_were_written(tmp_path, name, codec):
    frames = noise(20)
    path = str(write(tmp_path / name, frames, codec))
    for count in (1, 3, 8, 20, 33):
        found = frames_of(path, count)
        assert found.dtype == np.uint8
        assert np.array_equal(found, frames[evenly(count, 20)])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.webm", "VP80"), ("a.webm", "VP90")]
)
def test_of_lossy_codecs_they_are_nearly(tmp_path, name, codec):
    """Levels a dozen apart, of codecs that predict frames from others: seeking would find neighbours."""
    levels = list(range(5, 245, 12))
    path = str(write(tmp_path / name, plain(*levels, size=(64, 64)), codec))
    found = frames_of(path, 8)[..., 0].mean((1, 2))
    assert abs(found - np.asarray(levels)[evenly(8, 20)]).max() < 5


def test_a_clip_is_what_it_is_whatever_else_is_decoded(tmp_path):
    paths = [str(write(tmp_path / f"{seed}.mp4", noise(15, seed, (48, 48)), "mp4v")) for seed in range(4)]
    want, got = [frames_of(path, 5) for path in paths], {}

    def decode(number):
        got[number] = frames_of(paths[number], 5)

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(got[number], want[number]) for number in range(4))


def test_no_more_frames_are_held_than_are_asked_for(tmp_path, monkeypatch):
    path, taken = str(write(tmp_path / "a.avi", noise(50))), []
    convert = film.cv2.cvtColor
    monkeypatch.setattr(film.cv2, "cvtColor", lambda *given: taken.append(1) or convert(*given))
    frames_of(path, 4)
    assert len(taken) == 4


def said(path, count=4):
    with pytest.raises(Broken) as error:
        frames_of(str(path), count)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_video_that_ends_too_early(tmp_path):
    for share in (0.5, 0.8):
        assert "of its 20 frames" in said(cut(write(tmp_path / "a.avi", noise(20)), share))
        assert "of its 20 frames" in said(cut(write(tmp_path / "a.webm", noise(20), "VP80"), share))
    assert "damaged, or of a codec" in said(cut(write(tmp_path / "a.mp4", noise(20), "mp4v"), 0.9))
    assert "without a frame" in said(cut(write(tmp_path / "a.avi", noise(20)), 0.1))


def test_the_decoder_prints_nothing_of_its_own(tmp_path):
    paths = [cut(write(tmp_path / "a.avi", noise(20)), 0.5), cut(write(tmp_path / "a.mp4", noise(20), "mp4v"), 0.9)]
    program = (
        "import sys\nfrom dinoforge.data.film import Broken, frames_of\n"
        "for path in sys.argv[1:]:\n    try:\n        frames_of(path, 8)\n    except Broken:\n        print('broken')"
    )
    words = {name: value for name, value in os.environ.items() if name != "OPENCV_FFMPEG_LOGLEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], env=words, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("broken\nbroken\n", "")


def test_a_header_that_is_off_by_a_frame(tmp_path):
    """The last of 20 frames is lost: frames are even over the 19 that are there."""
    frames = noise(20)
    path = cut(write(tmp_path / "a.avi", frames), 0.97)
    assert np.array_equal(frames_of(str(path), 8), frames[evenly(8, 19)])
    assert evenly(8, 19).tolist() != evenly(8, 20).tolist()


def test_a_header_that_states_too_few_or_none(tmp_path):
    frames = noise(20)
    path = write(tmp_path / "a.avi", frames)
    content = bytearray(path.read_bytes())
    for place in (
        content.index(b"strh") + 8 + 32,
        content.index(b"avih") + 8 + 16,
    ):  # lengths of the stream and the file
        assert int.from_bytes(content[place : place + 4], "little") == 20
    for number in (7, 0):
        for place in (content.index(b"strh") + 8 + 32, content.index(b"avih") + 8 + 16):
            content[place : place + 4] = number.to_bytes(4, "little")
        path.write_bytes(content)
        assert np.array_equal(frames_of(str(path), 8), frames[evenly(8, 20)])


def test_what_is_no_video(tmp_path):
    assert "no such file" in said(tmp_path / "gone.mp4")
    assert "not a regular file" in said(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "not a regular file" in said(tmp_path / "pipe.mp4")
    (tmp_path / "a.mp4").write_bytes(b"")
    assert said(tmp_path / "a.mp4") == "the file is empty"
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(200))
    assert "damaged" in said(tmp_path / "a.mp4")


def test_a_list_that_would_be_followed_is_no_video(tmp_path):
    """The decoder takes a playlist for a video by its content and opens what it names."""
    write(tmp_path / "secret.avi", noise(5))
    (tmp_path / "a.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.avi\n#EXT-X-ENDLIST\n"
    )
    assert "no video of a known kind" in said(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.avi\n")
    assert "no video of a known kind" in said(tmp_path / "b.mp4")


def test_frames_that_fill_the_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "a.avi", noise(3))
    monkeypatch.setattr(film, "MAX_PIXELS", 24 * 32 * 5)
    assert len(frames_of(str(path), 5)) == 5
    assert said(path, 6) == "6 frames of 32x24 pixels are more than 3,840; take fewer"


def test_a_name_that_looks_like_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = noise(3)
    write(tmp_path / "plain.avi", frames)
    (tmp_path / "plain.avi").rename("concat:a %03d.avi")
    assert np.array_equal(frames_of("concat:a %03d.avi", 3), frames)


def test_a_header_that_states_too_many_is_not_believed_of_a_whole_file(tmp_path):
    """Numbers of frames are often guessed from the duration."""
    frames = noise(20)
    for name, codec, marks in (("a.avi", "FFV1", (b"strh", b"avih")), ("b.mp4", "mp4v", ())):
        path = write(tmp_path / name, frames, codec)
        content = bytearray(path.read_bytes())
        for mark in marks:
            place = content.index(mark) + 8 + (32 if mark == b"strh" else 16)
            content[place : place + 4] = (200).to_bytes(4, "little")
        path.write_bytes(content)
        if marks:
            assert np.array_equal(frames_of(str(path), 8), frames[evenly(8, 20)])
            assert "of its 200 frames" in said(cut(path, 0.95))
        assert not film._is_cut(write(tmp_path / name, frames, codec))
        assert film._is_cut(cut(tmp_path / name, 0.99))


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "VP80"), ("a.mkv", "FFV1")])
def test_whether_matroska_is_cut(tmp_path, name, codec):
    path = write(tmp_path / name, noise(20), codec)
    assert not film._is_cut(path)
    assert film._is_cut(cut(path, 0.99))
    content = path.read_bytes()
    at = content.index(film._SEGMENT) + 4
    path.write_bytes(content[:at] + b"\x01" + b"\xff" * 7 + content[at + 8 :])  # a stream: of unknown size
    assert not film._is_cut(path)


def test_a_rate_that_is_not_what_it_says(tmp_path):
    """A WebM whose stated rate is ten times that of its frames, whole."""
    frames = plain(*range(5, 245, 12), size=(64, 64))
    path = write(tmp_path / "a.webm", frames, "VP80", rate=12.0)
    content = path.read_bytes()
    at = content.index(b"\x23\xe3\x83")  # nanoseconds of a frame
    size = content[at + 3] & 0x7F
    path.write_bytes(content[: at + 4] + (4_000_000).to_bytes(size, "big") + content[at + 4 + size :])
    found = frames_of(str(path), 8)[..., 0].mean((1, 2))
    assert abs(found - frames[evenly(8, 20), 0, 0, 0]).max() < 5
    assert "of its" in said(cut(path, 0.8))


def test_a_path_that_is_no_text_is_no_crash(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.avi")
    write(tmp_path / "a.avi", noise(3)).rename(path)
    with pytest.raises(Broken, match=r"^the path is not valid UTF-8; rename it$"):
        frames_of(path, 2)
