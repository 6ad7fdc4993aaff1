"""A box around a part finds the same part of the same species in other pictures: more often by trained features than by none."""

from itertools import product

import numpy as np
import pytest

from dinoforge.data.sources.table import open_source
from dinoforge.explore.collection import open_collection
from dinoforge.explore.search import by_region
from dinoforge.model.table import build
from dinoforge.model.weights import Backbone, load_backbone

BOX, ANSWERS, QUERIES = 16, 10, 200
SIZE = 64


def box_on(parts, part):
    """The place of ``BOX`` pixels with the most of a part, left and top; None where that is less than half of it."""
    inside = np.pad((parts == part).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    much = inside[BOX:, BOX:] - inside[:-BOX, BOX:] - inside[BOX:, :-BOX] + inside[:-BOX, :-BOX]
    if much.max() < BOX**2 / 2:
        return None
    top, left = np.unravel_index(much.argmax(), much.shape)
    return int(left), int(top)


def precision(collection, parts):
    """Share of the answers whose best patch has its middle on the part of the species that most of the box is of."""
    labels, hits, asked = collection.source.columns["label"], [], 0
    for row, part in product(np.random.default_rng(0).permutation(len(collection)).tolist(), (1, 2)):
        place = box_on(parts[row], part)
        if place is None or asked == QUERIES:
            continue
        asked += 1
        left, top = place
        box = (left / SIZE, top / SIZE, (left + BOX) / SIZE, (top + BOX) / SIZE)
        for hit in by_region(collection, row, box, count=ANSWERS):
            x, y = (int(share * SIZE) for share in hit.best)
            hits.append(parts[hit.image.row][y, x] == part and labels[hit.image.row] == labels[row])
    assert len(hits) == QUERIES * ANSWERS
    return float(np.mean(hits))


@pytest.mark.long
def test_a_box_finds_the_same_part_more_often_than_untrained(toy_run, tmp_path):
    """Pictures of individuals that were not trained on; 12 species of two parts each, and background.

    The goal is 0.7. The demo backbone is far from it, and so is any search in its patches: docs/log.md, 2026-11-29.
    """
    source = open_source("toy://species?images=4000&seed=0&split=test")
    parts = [source.extra(row, "parts") for row in range(len(source))]
    trained = load_backbone(toy_run(0) / "backbone")
    untrained = Backbone(build(trained.config, seed=5), trained.config, trained.preprocessing)
    found = {
        name: precision(open_collection(backbone, source, tmp_path / name), parts)
        for name, backbone in (("trained", trained), ("untrained", untrained))
    }
    print(found)
    assert found["untrained"] <= 0.3
    assert found["trained"] >= 1.5 * found["untrained"], found
