"""Pictures that are not red, green and blue, from training to features; and settings that do not fit them."""

import json
import shlex

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

TINY = [
    "recipe=vit_micro.toy", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "objective.head.prototypes=64",
    "objective.head.hidden=32", "objective.head.bottleneck=16", "objective.group=8", "plan.batch=8", "plan.images=32",
    "data.augment.local_views=2", "data.augment.colour.blur=[0.5,0.5,0.5]", "data.augment.colour.solarise=0.5",
    "precision=fp32", "workers=0", "--json",
]  # fmt: skip
NO_COLOUR = [f"data.augment.colour.{name}=0" for name in ("saturation", "hue", "grey")]


def bands(folder, count=12, channels=13):
    """Half of them arrays, half TIFF, in numbers from 500 to 5,500."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = (np.kron(rng.random((6, 6, channels)), np.ones((8, 8, 1))) * 5000 + 500).astype(np.uint16)
        if number % 2:
            np.save(folder / f"{number:02d}.npy", pixels)
        else:
            tifffile.imwrite(folder / f"{number:02d}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return folder


def greys(folder, count=12):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (50, 60), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def call(words, capsys):
    from dinoforge.cli import execute

    code = execute([str(word) for word in words])
    shown = capsys.readouterr()
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


@pytest.mark.parametrize(("make", "channels"), [(bands, 13), (greys, 1)])
def test_from_stats_to_features(make, channels, tmp_path, capsys):
    """Every picture is trained on and embedded, as the statistics say and no other way."""
    data, out = make(tmp_path / "data"), tmp_path / "run"
    code, facts, _ = call(["stats", f"data={data}", "--json"], capsys)
    assert (code, facts["channels"], facts["images"]) == (0, channels, 12)
    settings = shlex.split(facts["settings"])
    code, facts, _ = call(["pretrain", f"data={data}", f"out={out}", *TINY, *settings], capsys)
    assert (code, facts["steps"], facts["quarantined"]) == (0, 4, 0)
    assert all(np.isfinite(value) for value in facts["losses"].values())

    code, facts, _ = call(
        ["embed", f"backbone={out}", f"data={data}", f"out={tmp_path / 'f'}", "precision=fp32", "--json"], capsys
    )
    assert (code, facts["rows"], facts["quarantined"]) == (0, 12, 0)
    got = np.load(tmp_path / "f" / "features.npy")
    np.testing.assert_allclose(got, by_hand(out, data, channels), rtol=1e-4, atol=1e-5)

    code, facts, _ = call(
        ["pca", f"backbone={out}", f"images={data}", f"out={tmp_path / 'p.png'}", "count=3", "--json"], capsys
    )
    assert code == 0
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.mode == "RGB"
    code, _, _ = call(["report", f"run={out}", "--json"], capsys)
    assert code == 0
    assert f"{channels} channels" in (out / "backbone" / "README.md").read_text().replace("Input: grey", "1 channels")


def _grey(path):
    with Image.open(path) as opened:
        return np.asarray(opened)[:, :, None]


def by_hand(run, data, channels):
    """The features with nothing of the product but the network."""
    import dinoforge
    from dinoforge.data.augment import resize

    facts = json.loads((run / "backbone" / "backbone.json").read_text())["preprocessing"]
    assert facts["channels"] == channels
    assert (facts["range"] is None) == (channels == 1)
    images = []
    for path in sorted(data.iterdir()):
        read = {".npy": np.load, ".tif": tifffile.imread, ".png": _grey}
        pixels = read[path.suffix](path).astype(np.float64)
        low, high = np.asarray(facts["range"] or [[0, 255]], dtype=float).T
        levels = np.round(((pixels - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        image = torch.from_numpy(levels).permute(2, 0, 1)
        factor = 48 / min(image.shape[1:])
        image = resize(image, round(image.shape[1] * factor), round(image.shape[2] * factor))
        left = (image.shape[2] - 48) // 2
        images.append(image[:, :48, left : left + 48])
    x = torch.stack(images).float() / 255
    x = (x - torch.tensor(facts["mean"]).view(-1, 1, 1)) / torch.tensor(facts["std"]).view(-1, 1, 1)
    with torch.no_grad():
        return dinoforge.load(run)(x).image.numpy()


def test_pictures_of_other_channels_are_set_aside_not_converted(tmp_path, capsys):
    data = bands(tmp_path / "data")
    for number in range(4):
        np.save(data / f"x{number}.npy", np.zeros((48, 48, 12), np.uint16))
    words = [
        "backbone.channels=13",
        "data.range=[500,5500]",
        "data.augment.colour.mean=[0.5]",
        "data.augment.colour.std=[0.3]",
    ]
    code, facts, _ = call(["pretrain", f"data={data}", f"out={tmp_path / 'r'}", *TINY, *NO_COLOUR, *words], capsys)
    assert (code, facts["quarantined"]) == (0, 4)
    rows = [json.loads(line) for line in (tmp_path / "r" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {"has 12 channels, the backbone takes 13"}
    code, facts, err = call(
        ["embed", f"backbone={tmp_path / 'r'}", f"data={greys(tmp_path / 'g', 3)}", f"out={tmp_path / 'f'}", "--json"],
        capsys,
    )
    assert (code, facts["error"]) == (
        2, f"No image of {tmp_path / 'g'} could be used; the last is 02.png: has 1 channel, the backbone takes 13."
    )  # fmt: skip
    assert err.count("Set aside") == 3


def test_floats_without_a_range_are_one_line(tmp_path, capsys):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.zeros((48, 48, 3), np.float32))
    out = tmp_path.parent / f"{tmp_path.name}-run"
    code, facts, err = call(["pretrain", f"data={tmp_path}", f"out={out}", *TINY], capsys)
    assert code == 2
    assert "numbers of type float32, which need data.range; `dinoforge stats` prints it" in facts["error"]
    assert "Traceback" not in err


FOUR = ["backbone.channels=4", "data.augment.colour.mean=[0.5]", "data.augment.colour.std=[0.2]"]
CASES = [
    (["backbone.channels=4"], "data.augment.colour.mean is for 3 channels, backbone.channels=4; `dinoforge stats` prints one"),
    ([*FOUR, "data.augment.colour.std=[1,2]"], "data.augment.colour.std is given twice"),
    ([*FOUR[:2], "data.augment.colour.std=[1,2]"], "data.augment.colour.std is for 2 channels, backbone.channels=4"),
    (FOUR, "data.augment.colour has saturation=0.6, hue=0.15, grey=0.1, which only RGB has; with backbone.channels=4 set them to 0"),
    ([*FOUR, *NO_COLOUR[:2], "data.augment.colour.grey=0.1"], "data.augment.colour has grey=0.1, which only RGB has"),
    (["data.range=[[0,1],[0,2]]"], "data.range is for 2 channels, backbone.channels=3"),
    (["data.range=[5,1]"], "data.range: a range takes low < high, such as [0, 10000], or one such pair a channel; got [5.0, 1.0]"),
    (["data.range=[]"], "data.range: a range takes low < high"),
    (["data.range=wide"], "data.range takes a list; got 'wide'"),
    (["data.max_pixels=0"], "data.max_pixels must be above 0; got 0"),
    (["data.augment.colour.std=[1,0,1]"], "data.augment.colour: std must be above 0; got [1.0, 0.0, 1.0]"),
    (["data.augment.colour.mean=[]"], "data.augment.colour.mean"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_settings_that_do_not_fit_are_one_line(words, message, tmp_path, capsys):
    code, facts, err = call(
        ["pretrain", f"data={greys(tmp_path / 'g', 2)}", f"out={tmp_path / 'r'}", *TINY, *words], capsys
    )
    assert code == 2
    assert message in facts["error"]
    assert "Traceback" not in err
    assert not (tmp_path / "r").exists()


def test_one_number_serves_all_channels(tmp_path, capsys):
    words = ["data.augment.colour.mean=[0.5]", "data.augment.colour.std=[0.25]", "data.range=[0,255]"]
    code, facts, _ = call(
        ["pretrain", "data=toy://species?images=20&size=48", f"out={tmp_path / 'r'}", *TINY, *words], capsys
    )
    assert (code, facts["quarantined"]) == (0, 0)


def test_the_limit_on_pixels_can_be_moved(tmp_path, capsys):
    data = greys(tmp_path / "g")
    code, facts, _ = call(["pretrain", f"data={data}", f"out={tmp_path / 'r'}", *TINY, "data.max_pixels=2999"], capsys)
    assert code == 2
    assert "could be used" in facts["error"]
    code, facts, _ = call(["pretrain", f"data={data}", f"out={tmp_path / 's'}", *TINY, "data.max_pixels=3k"], capsys)
    assert (code, facts["quarantined"]) == (0, 0)
    code, facts, _ = call(["stats", f"data={data}", "max_pixels=2999", "--json"], capsys)
    assert code == 2
