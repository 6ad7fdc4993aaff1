"""The nearest patches against a loop over all of them; the index against the exact answer."""

import faiss
import numpy as np
import pytest

from dinoforge.explore import places
from dinoforge.explore.places import Places, made, open_places


def drawn(images, side=4, width=8, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, side, side, width)).astype(np.float16)


def slow(patches, query, without=None):
    """(similarity, row) of the best patch of every image, nearest first."""
    found = []
    for row, image in enumerate(patches.astype(np.float64)):
        best = max(
            float(patch @ query / np.linalg.norm(patch) / np.linalg.norm(query))
            for patch in image.reshape(-1, len(query))
        )
        if row != without:
            found.append((best, row))
    return sorted(found, key=lambda one: (-one[0], one[1]))


@pytest.mark.parametrize("without", [None, 0, 7])
def test_equals_its_definition(without):
    patches = drawn(70)
    query = np.random.default_rng(1).normal(size=8).astype(np.float32)
    found = Places(patches, None).nearest(query, count=9, without=without)
    want = slow(patches, query.astype(np.float64), without)[:9]
    assert found.rows.tolist() == [row for _, row in want]
    np.testing.assert_allclose(found.similarity.max(axis=(1, 2)), [best for best, _ in want], atol=1e-5)
    patch = patches[found.rows[2], 1, 3].astype(np.float32)
    assert found.similarity[2, 1, 3] == pytest.approx(
        patch @ query / np.linalg.norm(patch) / np.linalg.norm(query), abs=1e-5
    )


def test_fewer_images_than_asked_for_and_equal_ones():
    patches = np.repeat(drawn(1), 3, axis=0)
    found = Places(patches, None).nearest(patches[0, 0, 0].astype(np.float32), count=24, without=1)
    assert found.rows.tolist() == [0, 2]
    assert found.similarity[:, 0, 0] == pytest.approx([1, 1], abs=1e-3)
    empty = Places(patches[:1], None).nearest(patches[0, 0, 0].astype(np.float32), count=2, without=0)
    assert empty.similarity.shape == (0, 4, 4)


def clustered(images=200, side=4, width=16, *, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, width))
    member = rng.integers(40, size=(images, side, side))
    return (centres[member] + 0.3 * rng.normal(size=(images, side, side, width))).astype(np.float16)


@pytest.fixture(scope="module")
def indexed():
    """Patches, of every other image three times as long, of one image all the same, and their index."""
    patches = clustered()
    patches[::2] *= 3
    patches[5] = patches[5, 0, 0]
    return patches, made(patches)


def test_the_index_finds_what_is_there(indexed):
    exact, quick = Places(indexed[0], None), Places(*indexed)
    shares = []
    for row in range(0, 200, 10):
        query = indexed[0][row, 0, 0].astype(np.float32)
        want, got = (one.nearest(query, count=10, without=row) for one in (exact, quick))
        shares.append(len({*want.rows.tolist()} & {*got.rows.tolist()}) / 10)
        known = dict(zip(want.rows.tolist(), want.similarity, strict=True))
        for name, similarity in zip(got.rows.tolist(), got.similarity, strict=True):
            if name in known:
                np.testing.assert_allclose(similarity, known[name], atol=1e-6)
    assert np.mean(shares) > 0.9


def test_one_image_does_not_crowd_out_the_others(indexed, monkeypatch):
    """A query whose nearest patches all lie in one image still has as many answers as are asked for."""
    monkeypatch.setattr(places, "_NEAREST", 16)
    monkeypatch.setattr(places, "_LOOKED_INTO", 1)
    found = Places(*indexed).nearest(indexed[0][5, 0, 0].astype(np.float32), count=40)
    assert found.rows[0] == 5
    assert len({*found.rows.tolist()}) == 40


@pytest.mark.parametrize("width", [30, 80])
def test_an_index_of_any_width_is_stored_and_mapped(width, tmp_path):
    """Of no multiple of the channels of its codes, and of more than it keeps."""
    patches, told = clustered(width=width), []
    found = open_places(tmp_path, patches, "f", exact=0, tell=lambda *what: told.append(what))
    assert told[-1] == (200, 200, "index patches")
    assert (tmp_path / "places.faiss").stat().st_size > 200 * 16 * 8
    assert found.nearest(patches[7, 1, 2].astype(np.float32), count=1).rows.tolist() == [7]


def test_the_index_is_made_once_for_each_collection(tmp_path, monkeypatch):
    patches, made_of = clustered(), []

    def counted(given, *, tell):
        made_of.append(given)
        return faiss.IndexFlatL2(16)

    monkeypatch.setattr(places, "made", counted)
    for fingerprint in ("one", "one", "other"):
        assert open_places(tmp_path, patches, fingerprint, exact=0)._index is not None
    assert len(made_of) == 2
    assert open_places(tmp_path, patches, "f", exact=200 * 16)._index is None
