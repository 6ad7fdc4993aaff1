"""06_masking: the same masks from the same random numbers, and the same statistics from other ones.

A frequency f over n draws is known to sqrt(f (1 - f) / n); two samples are compared at five of their joint standard errors.
"""

import functools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from recorded import Case, config, files, items, names, needs_recordings, reading

from dinoforge.data.batch import masked_positions
from dinoforge.data.masks import MaskConfig, block_mask, draw_masks

pytestmark = needs_recordings
DRAWS = 1500


@pytest.mark.parametrize(
    ("path", "prefix"),
    items("06_masking/seeded_masks*.safetensors", lambda cases, _names: [f"case{n}/" for n in range(len(cases))]),
)
def test_seeded_masks(path, prefix):
    with reading(path, prefix) as case:
        about = case.config[int(prefix[4:-1])]
        rng = random.Random(about["python_random_seed"])
        rows, columns = about["grid"]
        assert rows // 2 * columns == about["max_num_patches"]  # what training takes as the largest block
        for want in case["masks"]:
            mine = block_mask(rng, grid=(rows, columns), target=about["target"],
                              largest=int(about["max_num_patches"]), config=MaskConfig(exact=False))  # fmt: skip
            assert np.array_equal(mine, want.numpy())


@pytest.mark.parametrize(
    ("path", "prefix"),
    items("06_masking/collate_examples*.safetensors", lambda cases, _names: [f"{name}/" for name in cases]),
)
def test_collation(path, prefix):
    with reading(path, prefix) as case:
        about = case.config[prefix[:-1]]
        settings = MaskConfig(probability=about["mask_probability"], ratio=tuple(about["mask_ratio"]), exact=False)
        masks = draw_masks(random.Random(about["python_random_seed"]), views=about["n_images"],
                           grid=(about["grid"],) * 2, config=settings)  # fmt: skip
        assert torch.equal(masks, case["collated_masks"])
        assert masks.sum(1).tolist() == about["per_image_counts"]
        index, weight = masked_positions(masks.unsqueeze(0))
        assert torch.equal(index, case["mask_indices_list"])
        torch.testing.assert_close(weight, case["masks_weight"], rtol=1e-6, atol=0)
        assert len(index) == case["n_masked_patches"].item() == about["n_masked"]
        assert len(index) <= case["upperbound"].item() == about["upperbound"] == sum(about["bin_max_count"])

        # View-major, like our batches: row v * B + i is view v of image i.
        images, local = about["batch"], about["n_local"]
        for name, views, offset in (("global", about["n_images"] // images, 0), ("local", local, 50)):
            rows = case[f"collated_{name}_crops"].flatten(1)[:, 0].unflatten(0, (views, images))
            want = 100 * torch.arange(images) + offset + torch.arange(views).unsqueeze(1)
            assert torch.equal(rows, want.float())


def collations():
    return [
        pytest.param(path, name, id=name)
        for path in files("06_masking/collate_stats*.json")
        for name in json.loads(path.read_text())
    ]


@pytest.mark.parametrize(("path", "name"), collations())
def test_collation_statistics(path, name):
    want = json.loads(path.read_text())[name]
    example = next(config(p)[name] for p in files("06_masking/collate_examples*.safetensors") if name in config(p))
    settings = MaskConfig(probability=example["mask_probability"], ratio=tuple(example["mask_ratio"]), exact=False)
    rng, draws = random.Random(0), 400
    counts = np.stack(
        [
            draw_masks(rng, views=example["n_images"], grid=(example["grid"],) * 2, config=settings).sum(1).numpy()
            for _ in range(draws)
        ]
    )
    totals = counts.sum(1)
    known = 5 * want["n_masked_std"] * (1 / draws + 1 / want["collates"]) ** 0.5
    assert totals.mean() == pytest.approx(want["n_masked_mean"], abs=known)
    assert totals.std() == pytest.approx(want["n_masked_std"], rel=5 * (0.5 / draws + 0.5 / want["collates"]) ** 0.5)
    assert totals.max() <= want["upperbound"]
    assert want["n_masked_min"] <= want["n_masked_mean"] <= want["n_masked_max"] <= want["upperbound"]
    recorded = {int(count): number for count, number in want["per_image_count_hist"].items()}
    # A count that was never recorded in so many draws is rare here too.
    unseen = sum(number for count, number in Counter(counts.flatten().tolist()).items() if count not in recorded)
    assert unseen <= 5 + 5 * draws * example["n_images"] / sum(recorded.values())
    compare_histograms(Counter(counts.flatten().tolist()), recorded)
    for share, mine in zip(want["frac_batches_position_masked"], (counts > 0).mean(0), strict=True):
        error = (max(share * (1 - share), 1e-3) * (1 / draws + 1 / want["collates"])) ** 0.5
        assert mine == pytest.approx(share, abs=5 * error)


def statistics():
    return [
        pytest.param(path, grid, target, id=f"{grid}:{target}")
        for path in files("06_masking/mask_stats*.json")
        for grid, about in json.loads(path.read_text()).items()
        for target in about["targets"]
    ]


@functools.cache
def drawn(rows, columns, target, largest, settings):
    """Many masks of ours for one target."""
    rng = random.Random(target)
    return np.stack(
        [block_mask(rng, grid=(rows, columns), target=target, largest=largest, config=settings) for _ in range(DRAWS)]
    )


def settings_of(about):
    assert about["max_aspect"] == pytest.approx(1 / about["min_aspect"])
    return MaskConfig(smallest_block=about["min_num_patches"], aspect=about["min_aspect"])


@pytest.mark.parametrize(("path", "grid", "target"), statistics())
def test_block_statistics(path, grid, target):
    about = json.loads(path.read_text())[grid]
    want, (rows, columns) = about["targets"][target], about["grid"]
    assert rows // 2 * columns == about["max_num_patches"]
    masks = drawn(rows, columns, int(target), int(about["max_num_patches"]), settings_of(about))
    counts = masks.sum((1, 2))
    assert counts.max(initial=0) <= int(target)
    joint = (1 / DRAWS + 1 / want["draws"]) ** 0.5
    assert counts.mean() == pytest.approx(want["count_mean"], abs=5 * joint * max(want["count_std"], 0.05))
    exact = (counts == int(target)).mean()
    share = want["frac_exact"]
    assert exact == pytest.approx(share, abs=5 * joint * max(share * (1 - share), 1e-3) ** 0.5)
    compare_histograms(Counter(counts.tolist()), {int(k): v for k, v in want["count_hist"].items()})
    assert want["count_min"] <= want["count_mean"] <= want["count_max"] <= int(target)


def compare_histograms(mine, want):
    """Every bin's share within sampling error, five of its standard errors."""
    total, recorded = sum(mine.values()), sum(want.values())
    for value in {*mine, *want}:
        share = (mine.get(value, 0) + want.get(value, 0)) / (total + recorded)
        error = (share * (1 - share) * (1 / total + 1 / recorded)) ** 0.5
        assert mine.get(value, 0) / total == pytest.approx(want.get(value, 0) / recorded, abs=5 * error + 1e-9), value


@pytest.mark.parametrize(
    ("path", "prefix"),
    items("06_masking/mask_cell_frequency*.safetensors", lambda grids, _names: [f"{name}/" for name in grids]),
)
def test_cell_frequencies(path, prefix):
    name = prefix[:-1]
    beside = next(
        json.loads(p.read_text())[name]
        for p in files("06_masking/mask_stats*.json")
        if name in json.loads(p.read_text())
    )
    with reading(path, prefix) as case:
        about = case.config[name]
        rows, columns = about["grid"]
        for target, want in zip(about["targets"], case["cell_frequency"].double().numpy(), strict=True):
            masks = drawn(rows, columns, int(target), int(beside["max_num_patches"]), settings_of(beside))
            mine = masks.mean(0)
            pooled = (mine * DRAWS + want * about["draws"]) / (DRAWS + about["draws"])
            # Cells of one mask hang together; five errors a cell over thousands of cells leaves room for the largest.
            error = np.sqrt(np.maximum(pooled * (1 - pooled), 1e-4) * (1 / DRAWS + 1 / about["draws"]))
            assert (np.abs(mine - want) <= 5 * error).all(), (target, (np.abs(mine - want) / error).max())


def test_every_grid_has_its_statistics():
    grids = {name for p in files("06_masking/mask_cell_frequency*.safetensors") for name in config(p)}
    for path in files("06_masking/mask_stats*.json"):
        assert set(json.loads(path.read_text())) == grids
    for path in files("06_masking/collate_examples*.safetensors"):
        assert {name.split("/")[0] for name in names(path)} == set(Case(path).config)
