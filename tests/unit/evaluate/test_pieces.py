"""Maps piece by piece: those of the whole picture, of which no pixel is left out, with no seam, in bounded memory."""

import numpy as np
import pytest
import torch

from dinoforge.base.errors import DataError
from dinoforge.data.picture import Broken
from dinoforge.evaluate.dense import infer
from dinoforge.evaluate.dense import pieces as module
from dinoforge.evaluate.dense.infer import ViewingConfig
from dinoforge.evaluate.dense.pieces import Pieces, Viewing, pieces
from dinoforge.evaluate.dense.pieces import joined as joined_map
from dinoforge.evaluate.dense.trunk import Trunk
from dinoforge.features.extract import Extraction
from dinoforge.model.features import Features
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Preprocessing
from slow_maps import predicted

VIT = VitConfig(width=16, depth=2, heads=2, patch=4, pixels=16, init_std=0.3)
CPU = Extraction(torch.device("cpu"), rows_at_once=3)


def vit_trunk(channels=3):
    config = VIT.model_copy(update={"channels": channels})
    return Trunk(build(config, seed=0).eval(), Preprocessing.usual(channels), CPU, 1, True)


class Mean(torch.nn.Module):
    """A backbone that sees nothing but the mean of each patch: what it says of a patch no other one changes."""

    width, patch = 3, 4

    def forward(self, images):
        patches = torch.nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1)
        return Features(patches.mean((1, 2)), patches[:, 0, :0], patches)


def local_trunk():
    return Trunk(Mean(), Preprocessing(mean=(0.0,), std=(1.0,)), CPU, 1, True)


def head(layers):
    """Scores of the patches, three a patch side, so that cells are no patches."""
    mix = torch.randn(5, layers[0].patches.shape[-1], generator=torch.Generator().manual_seed(3))
    cells = (layers[0].patches @ mix.T).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(cells, scale_factor=3, mode="nearest")


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def joined(found, height, width):
    """All pieces on one map, each pixel given once."""
    whole, times = None, np.zeros((height, width), int)
    for rows, columns, part in found:
        if whole is None:
            whole = torch.full((part.shape[0], height, width), torch.nan)
        whole[:, rows, columns] = part
        times[rows, columns] += 1
    assert (times == 1).all()
    return whole


CASES = [
    ((37, 53), {"short_side": 24, "window": 12}),
    ((53, 37), {"short_side": 40, "window": 16, "flip": True}),
    ((31, 64), {"short_side": 21, "window": 13, "scales": (1.0, 1.5), "flip": True}),
    ((40, 20), {"short_side": 30, "window": None}),
    ((5, 90), {"short_side": 12, "window": 8}),
    ((3, 2), {"short_side": 8, "window": 8}),
    ((1, 1), {"short_side": 3, "window": 16}),
]


@pytest.mark.parametrize(("size", "viewing"), CASES)
@pytest.mark.parametrize("answer", [lambda scores: scores, lambda scores: scores.softmax(0)], ids=["scores", "shares"])
def test_all_pieces_are_the_map_of_the_whole(size, viewing, answer, monkeypatch):
    """Next to ``predicted``, which adds windows up on every pixel and resizes the sum."""
    trunk, image = vit_trunk(), picture(*size)
    view = Viewing(**viewing)
    usual = {"scales": view.scales, "flip": view.flip, "inference": "slide" if view.window else "whole"}
    want = predicted(
        trunk, head, image, ViewingConfig(**usual), short_side=view.short_side, window=(view.window or 1,) * 2,
        answer=answer,
    )  # fmt: skip
    for side, numbers in ((512, 2**23), (20, 5 * 20 * 11)):
        monkeypatch.setattr(module, "_SIDE", side)
        monkeypatch.setattr(module, "_NUMBERS", numbers)
        got = joined(pieces(trunk, head, image, view, answer=answer), *size)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_stride_of_half_a_window(monkeypatch):
    """Next to ``predicted`` with that stride, and unlike two thirds."""
    trunk, image = vit_trunk(), picture(37, 53)
    monkeypatch.setattr(infer, "STRIDE", 0.5)
    want = predicted(trunk, head, image, ViewingConfig(), short_side=24, window=(12, 12))
    got = joined(pieces(trunk, head, image, Viewing(24, 12, 6)), 37, 53)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    usual = joined(pieces(trunk, head, image, Viewing(24, 12)), 37, 53)
    assert (usual - want).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(24, 36), (36, 24), (20, 64)])
@pytest.mark.parametrize("stride", [4, 8, 12])
def test_windows_of_what_is_local_are_the_whole(size, stride):
    """Where a patch's answer depends on that patch alone, windows on the grid change nothing away from their rims; there the
    bilinear enlargement of cells ends, so cells are kept as wide as pixels here."""

    def flat(layers):
        cells = layers[0].patches.permute(0, 3, 1, 2)
        return torch.nn.functional.interpolate(cells, scale_factor=4, mode="nearest")

    trunk, image = local_trunk(), picture(*size)
    whole = joined(pieces(trunk, flat, image, Viewing(None, None)), *size)
    tiled = joined(pieces(trunk, flat, image, Viewing(None, 12, stride)), *size)
    torch.testing.assert_close(tiled, whole)
    means = torch.from_numpy(image / 255.0).float().permute(2, 0, 1)
    torch.testing.assert_close(whole[:, 5, 10], means[:, 4:8, 8:12].mean((1, 2)))


@pytest.mark.parametrize("size", [(17, 90), (33, 31), (64, 50)])
@pytest.mark.parametrize(
    "viewing", [Viewing(None, 8), Viewing(11, 8, 3), Viewing(40, 16, scales=(0.5, 2.0), flip=True)]
)
def test_constant_in_constant_out(size, viewing):
    """No seam at windows, no rim at the borders: padding is of zeros, so the constant is zero once normalised."""
    trunk = vit_trunk()
    blank = Trunk(trunk.module, Preprocessing(mean=(0.0,), std=(1.0,)), CPU, 1, True)

    def ones(layers):
        return torch.ones(len(layers[0].patches), 2, *layers[0].patches.shape[1:3]) * torch.tensor([3.0, -2.0]).view(
            2, 1, 1
        )

    got = joined(pieces(blank, ones, np.zeros((*size, 3), np.uint8), viewing), *size)
    torch.testing.assert_close(got, torch.tensor([3.0, -2.0]).view(2, 1, 1).expand_as(got))


def test_a_mirrored_picture_is_seen_mirrored():
    """With ``flip`` a picture and its mirror image have mirrored maps."""
    trunk, image, view = vit_trunk(), picture(30, 44), Viewing(24, 12, flip=True)
    one = joined(pieces(trunk, head, image, view), 30, 44)
    other = joined(pieces(trunk, head, image[:, ::-1], view), 30, 44)
    torch.testing.assert_close(other.flip(-1), one, rtol=1e-4, atol=1e-5)


def test_memory_goes_by_the_window(monkeypatch):
    """Of 400 rows of windows no more are kept than overlap in the rectangle that is asked for."""
    most = 0
    scores = Pieces.scores

    def watched(self, rows, columns):
        nonlocal most
        found = scores(self, rows, columns)
        most = max(most, len(self._rows))
        return found

    monkeypatch.setattr(Pieces, "scores", watched)
    monkeypatch.setattr(module, "_SIDE", 32)
    seen = [part.shape for *_, part in pieces(local_trunk(), head, picture(1608, 20), Viewing(None, 8, 4))]
    assert sum(rows * columns for _, rows, columns in seen) == 1608 * 20
    assert most <= 32 // 4 + 2


def test_too_much_at_once():
    with pytest.raises(Broken, match="patches at once are more than 65,536; make pixels or window smaller"):
        list(pieces(local_trunk(), head, picture(1100, 1000), Viewing(None, None)))


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels):
    assert joined(pieces(vit_trunk(channels), head, picture(20, 33, channels), Viewing(16, 8)), 20, 33).isfinite().all()


def test_what_is_made_of_a_map_is_joined_and_the_map_never_whole(monkeypatch):
    trunk, image, config = vit_trunk(), picture(37, 53), ViewingConfig(scales=(1.0, 1.5), flip=True)
    monkeypatch.setattr(module, "_SIDE", 20)
    monkeypatch.setattr(module, "_NUMBERS", 5 * 20 * 11)
    want = predicted(trunk, head, image, config, short_side=24, window=(12, 12))
    seen = []

    def largest(scores):
        seen.append(scores.numel())
        return scores.amax(0)

    found = joined_map(trunk, head, image, Viewing.of(config, short_side=24, window=12), made=largest)
    np.testing.assert_allclose(found, want.amax(0), rtol=1e-4, atol=1e-5)
    assert max(seen) <= 5 * 20 * 11
    whole = ViewingConfig(inference="whole")
    want = predicted(trunk, head, image, whole, short_side=24, window=(12, 12))
    found = joined_map(trunk, head, image, Viewing.of(whole, short_side=24, window=12), made=lambda one: one[0])
    np.testing.assert_allclose(found, want[0], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "_MOST_PATCHES", 8)
    with pytest.raises(DataError, match="a test picture of 53x37: 9 patches at once are more than 8; make pixels or"):
        joined_map(trunk, head, image, Viewing(24, 12), made=largest)
