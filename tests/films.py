"""Tiny videos whose frames are known to the bit."""

import os

import cv2
import numpy as np

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first file is opened, here by a writer


def noise(count, seed=0, size=(24, 32)):
    """Frames [count Y X 3] that all differ."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def plain(*levels, size=(24, 32)):
    """Frames of one colour each, its red as given."""
    found = np.zeros((len(levels), *size, 3), np.uint8)
    found[..., 0] = np.asarray(levels)[:, None, None]
    return found


def write(path, frames, codec="FFV1", rate=12.0):
    """A video file, without loss by default; the path, so that calls chain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
    writer.release()
    return path


def cut(path, share):
    """A file of which only the beginning is left."""
    whole = path.read_bytes()
    path.write_bytes(whole[: round(len(whole) * share)])
    return path
