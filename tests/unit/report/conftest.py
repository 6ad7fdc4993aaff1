"""A run folder as training leaves it, made in milliseconds."""

import json

import numpy as np
import pytest

CONFIG = """recipe: vit_micro.toy
seed: 0
init: null
backbone: {kind: vit, width: 32}
data: {source: 'toy://species?images=60'}
plan: {images: 640, passes: null, batch: 16}
probe: {source: 'toy://species?images=40'}
"""


def metrics(steps=40, every=20, knn=(0.2, 0.4, 0.6), rank=(8.0, 9.0, 10.0)):
    rows = []
    for step in range(steps + 1):
        row = {"step": step, "images": 16 * step, "losses": {}}
        if step:
            row |= {
                "losses": {"ibot": 4 - step / 40, "total": 12 - step / 20},
                "gradient_norms": {"backbone": 1 + 1 / step}, "learning_rate": 1e-3, "weight_decay": 0.04,
                "teacher_momentum": 0.99, "teacher_temperature": 0.04, "images_per_second": 32.0,
            }  # fmt: skip
        if step % every == 0:
            row |= {"knn": knn[step // every], "rank": rank[step // every]}
        rows.append(row)
    return rows


def film(folder, steps=(0, 20, 40), images=12, queries=8, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    labels = np.asarray([f"class {number % 4}" for number in range(images)])
    np.savez(
        folder / "images.npz", thumbnails=rng.integers(0, 255, (images, 16, 16, 3), dtype=np.uint8),
        ids=np.asarray([f"photos/{number}.png" for number in range(images)]), labels=labels, queries=queries,
    )  # fmt: skip
    for step in steps:
        near = np.stack([rng.permutation(np.delete(np.arange(images), query))[:5] for query in range(queries)])
        np.savez(
            folder / f"step_{step:09d}.npz", patches=rng.normal(size=(queries, 4, 4, 8)).astype(np.float16),
            attention=rng.random((queries, 4, 4)).astype(np.float32), nearest=near,
        )  # fmt: skip


@pytest.fixture
def made_run(tmp_path):
    """Make a run: ``made_run(rows=..., finished=False, film=False)``; the folder."""

    def make(*, rows=None, finished=True, with_film=True, name="run"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(CONFIG)
        (folder / "run.json").write_text(
            json.dumps({"fingerprint": "f" * 16, "data": "d" * 16, "images": 48, "versions": {"torch": "2.13.0"}})
        )
        rows = metrics() if rows is None else rows
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if finished:
            (folder / "summary.json").write_text(json.dumps({"steps": 40, "images": 640, "events": []}))
        if with_film:
            film(folder / "film")
        return folder

    make.metrics, make.film = metrics, film
    return make
