"""Matching against a slow definition and against planted partners."""

import pytest
import torch

from dinoforge.features.matching import MatchConfig, match
from dinoforge.features.parts import foreground


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_match(first, second, config):
    """The definition, pair by pair."""
    front = foreground(torch.stack([first, second]))
    cells = [(y, x) for y in range(first.shape[0]) for x in range(first.shape[1])]

    def cosine(a, b):
        return torch.nn.functional.cosine_similarity(first[a], second[b], dim=0).item()

    def near(a, b):
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 <= config.radius**2

    found = []
    for a in cells:
        b = max(cells, key=lambda c: cosine(a, c))
        if max(cells, key=lambda c: cosine(c, b)) != a or not (front[0][a] and front[1][b]):
            continue
        rivals = [cosine(a, c) for c in cells if not near(c, b)] + [cosine(c, b) for c in cells if not near(c, a)]
        found.append((cosine(a, b) - max(rivals), a, b))
    kept = []
    for salience, a, b in sorted(found, reverse=True):
        if len(kept) < config.matches and not any(near(a, c) or near(b, d) for _, c, d in kept):
            kept.append((salience, a, b))
    return kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("config", [MatchConfig(), MatchConfig(matches=3, radius=1.0), MatchConfig(radius=0)])
def test_equals_its_definition(seed, config):
    first = made(5, 5, 6, seed=seed)
    second = first.roll(1, 0) + 0.7 * made(5, 5, 6, seed=seed + 100)
    got, want = match(first, second, config=config), slow_match(first, second, config)
    assert len(want) > 0
    assert [tuple(place) for place in got.first.tolist()] == [a for _, a, _ in want]
    assert [tuple(place) for place in got.second.tolist()] == [b for _, _, b in want]
    assert got.salience.tolist() == pytest.approx([salience for salience, _, _ in want], abs=1e-5)


def test_an_object_that_moved_is_found_where_it_went():
    """An object of distinct patches, moved by (2, 3): every match is that move, whatever the background."""
    ground, thing = made(16), 3 * made(4, 4, 16, seed=1)
    first, second = (0.01 * made(12, 12, 16, seed=s) + ground for s in (2, 3))
    first[2:6, 3:7], second[4:8, 6:10] = thing, thing
    found = match(first, second)
    assert len(found.first) >= 3
    assert (found.second - found.first).tolist() == [[2, 3]] * len(found.first)
    assert (found.similarity > 0.99).all()
    assert (found.salience[:-1] >= found.salience[1:]).all()


def test_images_of_other_sizes_and_without_any_difference():
    assert len(match(made(4, 6, 8), made(3, 5, 8, seed=1)).first) > 0
    alike = match(torch.ones(4, 4, 8), torch.ones(4, 4, 8))
    assert alike.salience.isfinite().all()
    assert len(match(torch.ones(1, 1, 8), torch.ones(1, 1, 8)).first) == 1
