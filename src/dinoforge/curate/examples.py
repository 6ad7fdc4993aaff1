"""Pictures for the report: what went and what stayed for it, what was retrieved for which seed, clusters before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dinoforge.curate.engine import Done
from dinoforge.curate.images import Images
from dinoforge.curate.output import BROKEN
from dinoforge.curate.stages.safety import boxes_of
from dinoforge.curate.state import State
from dinoforge.curate.table import CURATIONS
from dinoforge.data.augment import centre
from dinoforge.data.blur import blurred, blurred_pixels
from dinoforge.data.decode import RGB, Broken
from dinoforge.features.search import SearchConfig, search

EACH = 6
"""Examples of each reason."""
SEEDS, NEAR = 4, 6
"""Seeds of a set that are shown, and the images near each."""
CLUSTERS, MEMBERS = 10, 5
_SIDE = 96
_ALWAYS = 2**62
_ALL = np.asarray([[0, 0, 1, 1]], np.float32)


_NONE = np.zeros((0, 4), np.float32)


def picture(
    images: Images, row: int, blur: Float32[np.ndarray, "b 4"] = _NONE
) -> UInt8[np.ndarray, "Y X 3"] | None:  # fmt: skip
    """A small square of an image without what is in the boxes; its thumbnail where it has no red, green and blue; None where
    it is broken."""
    if images.broken[row]:
        return None
    try:
        pixels = RGB.of(blurred(images.source.picture(row), blur)).pixels()
        return centre(pixels, short_side=_SIDE, side=_SIDE).permute(1, 2, 0).numpy()
    except Broken:
        return blurred_pixels(images.thumbnails[row], blur)


def _shown(images: Images, row: int, blur: Blur | None = None, **more: Any) -> dict[str, Any]:
    small = picture(images, row, (blur or {}).get(row, _NONE))
    return {"id": str(images.source.columns["id"][row]), "picture": small, **more}


Blur = dict[int, np.ndarray]
"""By row of the pool that has some: boxes that whoever reads the manifest gets blurred, and whoever reads the report too."""


def _blur(state: State) -> Blur:
    return {row: boxes for row, (boxes, blur) in boxes_of(state).items() if blur}


def dropped_examples(state: State, done: Sequence[Done]) -> dict[str, list[dict[str, Any]]]:
    """By stage: some of what went, each with what it is a copy of."""
    pool, blur = state.pool, _blur(state)
    broken = np.setdiff1d(np.arange(len(pool)), pool.whole)[:EACH]
    found = {"read": [_shown(pool, row, reason=f"{BROKEN}: {pool.broken[row]}", other=None) for row in broken.tolist()]}
    for one in done:
        gone, lines = one.result.dropped, []
        other = state.keep_out if one.name == "leaks" else pool
        hidden = CURATIONS[one.name].safety
        for reason in dict.fromkeys(gone.reason.tolist()):
            for place in np.flatnonzero(gone.reason == reason)[:EACH].tolist():
                against, near = int(gone.against[place]), float(gone.similarity[place])
                theirs = blur if other is pool else None
                by = _shown(other, against, theirs) if against >= 0 and other is not None else None
                shown = _shown(pool, int(gone.row[place]), blur, reason=str(reason), other=by, similarity=near)
                lines.append(_hidden(shown) if hidden else shown)
        found[one.name] = lines
    return found


def _hidden(example: dict[str, Any]) -> dict[str, Any]:
    """The same unrecognisable: what went for safety shall not be spread by a report."""
    pixels = example["picture"]
    return example if pixels is None else {**example, "picture": blurred_pixels(pixels, _ALL)}


def seed_examples(state: State) -> list[dict[str, Any]]:
    """By seed set: some seeds, and what of the images that are in is nearest to them."""
    if "retrieval" not in state.results:
        return []
    rows, vectors = state.embeddings.of(state.pool, state.alive)
    found, blur = [], _blur(state)
    for images, about in zip(state.seeds, state.results["retrieval"].facts["sets"], strict=True):
        usable, asked = state.embeddings.of(images, images.whole)
        some = np.unique(np.linspace(0, len(usable) - 1, SEEDS).round().astype(np.int64))
        near = search(asked[some], vectors, count=NEAR, config=SearchConfig(exact_below=_ALWAYS))
        lines = [
            {
                "seed": _shown(images, int(usable[place])),
                "near": [
                    _shown(state.pool, int(rows[row]), blur, similarity=float(cosine))
                    for row, cosine in zip(near.index[at].tolist(), near.similarity[at].tolist(), strict=True)
                    if row >= 0
                ],
            }
            for at, place in enumerate(some.tolist())
        ]
        found.append({**about, "rows": lines})
    return found


def cluster_examples(state: State) -> list[dict[str, Any]]:
    """The largest and the smallest clusters of the top level: images before and after, and some of them."""
    if "balance" not in state.results:
        return []
    arrays, blur = state.results["balance"].arrays, _blur(state)
    top, drawn = arrays["top"], arrays["times"] > 0
    before = np.bincount(top)
    after = np.bincount(top[drawn], minlength=len(before))
    order = np.argsort(-before, kind="stable")
    order = order[before[order] > 0]
    chosen = order if len(order) <= CLUSTERS else np.concatenate([order[: CLUSTERS // 2], order[-CLUSTERS // 2 :]])
    return [
        {
            "cluster": cluster, "before": int(before[cluster]), "after": int(after[cluster]),
            "images": [_shown(state.pool, int(row), blur) for row in arrays["row"][drawn & (top == cluster)][:MEMBERS]],
        }
        for cluster in chosen.tolist()
    ]  # fmt: skip
