import numpy as np

from dinoforge.curate.leaks import leaks
from scenes import pairs


def told(found):
    return {
        row: (reason.split()[0], against, None if np.isnan(near) else round(near, 2))
        for row, reason, against, near in zip(
            found.row.tolist(), found.reason.tolist(), found.against.tolist(), found.similarity.tolist(), strict=True
        )
    }


POOL, EVALUATION = 6, 3
GRAPH = pairs((0, 6, 0.5), (0, 7, 0.9), (0, 1, 0.6), (1, 2, 0.6), (3, 4, 0.99), (7, 8, 0.9))
"""Rows 0 to 5 are the pool's. 0 is like evaluation images 0 and 1; 1 and 2 hang on 0; 3 and 4 are copies of each other alone."""


def test_the_whole_component_goes():
    assert told(leaks(GRAPH, pool=POOL, evaluation=EVALUATION)) == {
        0: ("copy", 1, 0.9),  # against the most similar of them
        1: ("linked", 0, None),
        2: ("linked", 0, None),
    }


def test_or_only_what_is_like_an_evaluation_image_itself():
    assert told(leaks(GRAPH, pool=POOL, evaluation=EVALUATION, direct_only=True)) == {0: ("copy", 1, 0.9)}


def test_evaluation_images_link_a_component_too():
    """5 is like evaluation image 2, which is like 1, which is like 0: one component."""
    graph = pairs((0, 7, 0.9), (7, 8, 0.9), (5, 8, 0.5), (4, 5, 0.5))
    assert told(leaks(graph, pool=POOL, evaluation=EVALUATION)) == {
        0: ("copy", 1, 0.9),
        4: ("linked", 1, None),
        5: ("copy", 2, 0.5),
    }


def test_nothing_leaks_without_pairs_or_evaluation_images():
    assert len(leaks(pairs(), pool=POOL, evaluation=EVALUATION)) == 0
    assert len(leaks(pairs((0, 1)), pool=POOL, evaluation=0)) == 0


def test_against_a_walk_over_random_graphs():
    rng = np.random.default_rng(0)
    for _ in range(30):
        edges = [tuple(edge) for edge in rng.integers(0, 40, (30, 2)).tolist()]
        reached = set(range(30, 40))
        while new := {a for e in edges for a, b in (e, e[::-1]) if b in reached} - reached:
            reached |= new
        found = leaks(pairs(*edges), pool=30, evaluation=10)
        assert set(found.row.tolist()) == {row for row in reached if row < 30}
        assert (found.against >= 0).all()
        assert (found.against < 10).all()
