"""`predict` as a user runs it: the numbers next to slow definitions, what is written, going on, and what is refused."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dinoforge.cli import execute
from dinoforge.model.head_files import HeadFacts, read_any_head, save_head
from dinoforge.model.released_heads import DptDepth, LinearClassifier, LinearDepth, LinearSegmentation
from dinoforge.model.table import build
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone, Preprocessing, load_backbone, save_backbone

WIDTH, PATCH = 16, 4
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def backbone(folder, *, seed=0, channels=3, width=WIDTH):
    config = VitConfig(width=width, depth=4, heads=2, patch=PATCH, pixels=16, init_std=0.3, channels=channels)
    how = Preprocessing.usual(channels).model_copy(update={"short_side": 20, "side": 16})
    save_backbone(folder, Backbone(build(config, seed=seed), config, how))
    return folder


def drawn(module, seed=0):
    """Every number drawn; variances above 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 2 + (0.1 if name.endswith("var") else -1))
    return module.eval()


def released(path, module):
    """As the files of DINOv2 are: an mmcv checkpoint."""
    state = {f"decode_head.{name}": value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 1}, "optimizer": {}}, path)


def picture(path, height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 7, 1), max(width // 7, 1), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if channels == 3 else image.convert("L")).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, heads in the layouts of the released files and one of ours, and pictures of odd sizes."""
    folder = tmp_path_factory.mktemp("predict")
    found = load_backbone(backbone(folder / "b"))
    released(folder / "ade_linear.pth", drawn(LinearSegmentation(WIDTH, 1, 6)))
    released(folder / "ade_ms.pth", drawn(LinearSegmentation(WIDTH, 4, 6)))
    released(folder / "nyu_linear4.pth", drawn(LinearDepth(WIDTH, 4, 256)))
    torch.save(drawn(LinearClassifier(WIDTH, 1, 5)).state_dict(), folder / "lc.pth")
    facts = HeadFacts(
        kind="segmentation", width=WIDTH, blocks=(3,), classes=("sky", "дерево", "sea"), labels=(0, 3, 9),
        palette=((1, 2, 3), (200, 100, 0), (0, 0, 255)), short_side=24, window=16, backbone=found.fingerprint,
    )  # fmt: skip
    mine = drawn(LinearSegmentation(WIDTH, 1, 3))
    for one in (mine.conv_seg.bias, mine.bn.bias, mine.bn.running_mean):
        one.detach().zero_()  # else one class would be everywhere
    save_head(folder / "heads" / "mine", mine, facts)
    for number, (height, width) in enumerate([(24, 40), (37, 23), (16, 90)]):
        picture(folder / "photos" / "a" / f"{number}.png", height, width, seed=number)
    return folder


def words(place, head, out, *more):
    given = {"backbone": place / "b", "head": place / head, "images": place / "photos", "out": out, "precision": "fp32"}
    given |= dict(word.split("=", 1) for word in more)
    return ["predict", *(f"{name}={value}" for name, value in given.items()), "--json"]


def call(capsys, *given):
    capsys.readouterr()
    code = execute(list(given))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, json.loads(shown.out.splitlines()[-1]), shown.err


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def features(place, name, blocks, *, norm):
    """Of one picture whose sides are multiples of the patch, at its own size."""
    pixels = np.asarray(Image.open(place / "photos" / name)) / 255
    x = torch.from_numpy((pixels - MEAN) / STD).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        return load_backbone(place / "b").module.intermediate(x, blocks, norm=norm)


def bilinear(cells, height, width):
    """Every pixel by itself: between the middles of four cells, beyond the outer ones as they are."""
    _, tall, wide = cells.shape
    found = np.zeros((len(cells), height, width))
    for y in range(height):
        for x in range(width):
            v, u = max((y + 0.5) * tall / height - 0.5, 0), max((x + 0.5) * wide / width - 0.5, 0)
            top, left = min(int(v), tall - 1), min(int(u), wide - 1)
            below, right = min(top + 1, tall - 1), min(left + 1, wide - 1)
            v, u = v - top, u - left
            upper = cells[:, top, left] * (1 - u) + cells[:, top, right] * u
            lower = cells[:, below, left] * (1 - u) + cells[:, below, right] * u
            found[:, y, x] = upper * (1 - v) + lower * v
    return found


@pytest.mark.parametrize(("head", "blocks"), [("ade_linear.pth", [3]), ("ade_ms.pth", [0, 1, 2, 3])])
def test_segmentation_next_to_a_slow_definition(head, blocks, place, tmp_path, capsys):
    code, facts, err = call(capsys, *words(place, head, tmp_path / "o", "pixels=own", "window=whole", "scores=true"))
    assert code == 0, err
    assert facts == {"images": 3, "reused": 0, "quarantined": 0, "kind": "segmentation", "out": str(tmp_path / "o")}
    state = {
        name.removeprefix("decode_head."): value.double().numpy()
        for name, value in torch.load(place / head)["state_dict"].items()
    }
    patches = np.concatenate(
        [one.patches[0].double().numpy() for one in features(place, "a/0.png", blocks, norm=True)], -1
    )
    x = (patches - state["bn.running_mean"]) / np.sqrt(state["bn.running_var"] + 1e-5) * state["bn.weight"] + state[
        "bn.bias"
    ]
    cells = x @ state["conv_seg.weight"][:, :, 0, 0].T + state["conv_seg.bias"]
    scores = bilinear(cells.transpose(2, 0, 1), 24, 40)
    shares = np.exp(scores - scores.max(0))
    shares /= shares.sum(0)
    np.testing.assert_allclose(np.load(tmp_path / "o" / "scores" / "a" / "0.png.npy"), shares, atol=2e-3)
    got = np.asarray(Image.open(tmp_path / "o" / "maps" / "a" / "0.png.png"))
    best = np.sort(shares, 0)
    clear = best[-1] - best[-2] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got[clear], shares.argmax(0)[clear])
    row = lines(tmp_path / "o")[0]
    assert row["id"] == "a/0.png"
    assert sum(row["classes"].values()) == pytest.approx(1)
    for name, share in row["classes"].items():
        assert share == pytest.approx((got == int(name.removeprefix("class "))).mean())
    assert row["confidence"] == pytest.approx(shares.max(0).mean(), abs=1e-3)


@pytest.mark.parametrize("farthest", [10, 80])
def test_depth_next_to_a_slow_definition(farthest, place, tmp_path, capsys):
    given = [f"range=0.001,{farthest}", "pixels=own", "format=npy"]
    code, facts, err = call(capsys, *words(place, "nyu_linear4.pth", tmp_path / "o", *given))
    assert code == 0, err
    assert facts["kind"] == "depth"
    state = {
        name.removeprefix("decode_head."): value.double().numpy()
        for name, value in torch.load(place / "nyu_linear4.pth")["state_dict"].items()
    }
    layers = features(place, "a/0.png", [0, 1, 2, 3], norm=False)
    tokens = []
    for one in layers:
        tokens += [one.patches[0].double().numpy(), np.broadcast_to(one.image[0].double().numpy(), (6, 10, WIDTH))]
    maps = bilinear(np.concatenate(tokens, -1).transpose(2, 0, 1), 24, 40)
    logits = (
        np.einsum("kd,dyx->kyx", state["conv_depth.weight"][:, :, 0, 0], maps) + state["conv_depth.bias"][:, None, None]
    )
    share = np.maximum(logits, 0) + 0.1
    want = np.einsum("kyx,k->yx", share / share.sum(0), np.linspace(0.001, farthest, 256))
    got = np.load(tmp_path / "o" / "maps" / "a" / "0.png.npy")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=2e-4)  # a patch is four cells wide here, so cells are pixels
    row = lines(tmp_path / "o")[0]
    assert [row[name] for name in ("least", "median", "largest")] == pytest.approx(
        [want.min(), np.median(want), want.max()], rel=1e-3
    )


def test_dpt_next_to_the_module(place, tmp_path, capsys):
    """The decoder itself is proved where it lives; here that its sixteen cells a patch land on the right pixels."""
    head = drawn(DptDepth(WIDTH))
    for tensor in head.parameters():
        tensor.requires_grad_(False).mul_(0.1)
    released(tmp_path / "dpt.pth", head)
    given = [f"head={tmp_path / 'dpt.pth'}", "range=0.001,10", "pixels=own", "format=npy"]
    assert execute(words(place, "", tmp_path / "o", *given)) == 0
    with torch.no_grad():
        cells = head(features(place, "a/0.png", [0, 1, 2, 3], norm=False), nearest=0.001, farthest=10.0)[0]
    assert cells.shape == (1, 6 * 16, 10 * 16)
    want = bilinear(cells.double().numpy(), 24, 40)[0]
    np.testing.assert_allclose(
        np.load(tmp_path / "o" / "maps" / "a" / "0.png.npy"), want, rtol=1e-3, atol=1e-4 * want.max()
    )
    capsys.readouterr()


def test_classes_of_images(place, tmp_path, capsys):
    code, facts, err = call(capsys, *words(place, "lc.pth", tmp_path / "o"))
    assert code == 0, err
    assert facts["kind"] == "classification"
    import dinoforge

    source = dinoforge.open_source(str(place / "photos"))
    state = torch.load(place / "lc.pth")
    for row, number in zip(lines(tmp_path / "o"), range(3), strict=True):
        seen = dinoforge.load(place / "b")(dinoforge.prepared(place / "b", [source.pixels(number)]))
        x = torch.cat([seen.image[0], seen.patches[0].mean((0, 1))])
        want = (state["weight"] @ x + state["bias"]).softmax(0)
        assert row["probability"] == pytest.approx(want.max().item(), rel=1e-4)
        assert (row["label"], row["name"]) == (int(want.argmax()), f"class {int(want.argmax())}")
    assert not (tmp_path / "o" / "maps").exists()


def test_what_is_written_of_a_head_of_ours(place, tmp_path, capsys):
    """Numbers and colours are the head's; maps have the picture's own size, whatever size was seen."""
    code, _, err = call(capsys, *words(place, "heads/mine", tmp_path / "o", "flip=true", "scales=1,1.5"))
    assert code == 0, err
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        ".lock", "index.html", "maps", "pictures", "predict.json", "predictions.jsonl", "quarantine.jsonl"
    }  # fmt: skip
    for number, size in enumerate([(40, 24), (23, 37), (90, 16)]):
        found = Image.open(tmp_path / "o" / "maps" / "a" / f"{number}.png.png")
        assert found.size == size
        assert {*np.unique(np.asarray(found))} <= {0, 3, 9}
        palette = np.asarray(found.getpalette()).reshape(-1, 3)
        assert palette[[0, 3, 9]].tolist() == [[1, 2, 3], [200, 100, 0], [0, 0, 255]]
        assert np.asarray(Image.open(tmp_path / "o" / "pictures" / "a" / f"{number}.png.png")).shape[2] == 3
    legend = json.loads((tmp_path / "o" / "predict.json").read_text())["classes"]
    assert legend[1] == {"label": 3, "name": "дерево", "colour": [200, 100, 0]}


def test_depth_in_millimetres(place, tmp_path):
    assert execute(words(place, "nyu_linear4.pth", tmp_path / "p", "range=0.001,10", "pixels=24")) == 0
    assert execute(words(place, "nyu_linear4.pth", tmp_path / "n", "range=0.001,10", "pixels=24", "format=npy")) == 0
    image = Image.open(tmp_path / "p" / "maps" / "a" / "1.png.png")
    assert image.mode in {"I;16", "I"}
    metres = np.load(tmp_path / "n" / "maps" / "a" / "1.png.npy")
    assert metres.shape == (37, 23)
    np.testing.assert_allclose(np.asarray(image) / 1000, metres, atol=5.1e-4)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_goes_on(place, tmp_path, capsys, monkeypatch):
    """Stopped after the first picture, the same command makes the rest alone, and the end is that of one run."""
    from dinoforge.verbs import maps

    assert execute(words(place, "heads/mine", tmp_path / "whole")) == 0
    made, draw = [], maps.classes_picture

    def drawn_or_stopped(*given, **more):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return draw(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(maps, "classes_picture", drawn_or_stopped)
        assert execute(words(place, "heads/mine", tmp_path / "o")) == 130
    code, facts, err = call(capsys, *words(place, "heads/mine", tmp_path / "o"))
    assert (code, facts["images"], facts["reused"]) == (0, 3, 1)
    assert "1 of 3 images are there from an earlier start." in err
    assert content(tmp_path / "o") == content(tmp_path / "whole")
    (tmp_path / "o" / "maps" / "a" / "1.png.png").unlink()
    assert call(capsys, *words(place, "heads/mine", tmp_path / "o"))[1]["reused"] == 2
    assert content(tmp_path / "o") == content(tmp_path / "whole")


def test_changed_and_broken_and_vanished_pictures(place, tmp_path, capsys):
    """A changed file is predicted anew; a broken one is set aside with its reason; of one that is gone nothing stays."""
    for number in range(4):
        picture(tmp_path / "photos" / f"{number}.png", 20, 30, seed=number)
    given = words(place, "heads/mine", tmp_path / "o", f"images={tmp_path / 'photos'}")
    assert call(capsys, *given)[1]["images"] == 4
    before = content(tmp_path / "o")
    picture(tmp_path / "photos" / "0.png", 20, 30, seed=9)
    whole = (tmp_path / "photos" / "1.png").read_bytes()
    (tmp_path / "photos" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos" / "2.png").unlink()
    code, facts, err = call(capsys, *given)
    assert (code, facts["images"], facts["reused"], facts["quarantined"]) == (0, 2, 1, 1)
    assert "Set aside 1.png: " in err
    after = content(tmp_path / "o")
    assert [row["id"] for row in lines(tmp_path / "o")] == ["0.png", "3.png"]
    assert json.loads(after["quarantine.jsonl"])["id"] == "1.png"
    assert after["maps/0.png.png"] != before["maps/0.png.png"]
    assert not {name for name in after if name.endswith(("/1.png.png", "/2.png.png"))}


def test_what_a_library_raises_costs_one_picture(place, tmp_path, capsys, monkeypatch):
    for number in range(2):
        picture(tmp_path / "photos" / f"{number}.png", 20, 30, seed=number)
    from dinoforge.data.sources import files

    for kind in [one for one in vars(files).values() if isinstance(one, type) and "encoded" in vars(one)]:
        encoded = kind.encoded
        monkeypatch.setattr(kind, "encoded", lambda self, row, read=encoded: read(self, row) if row else 1 / 0)
    code, facts, err = call(capsys, *words(place, "heads/mine", tmp_path / "o", f"images={tmp_path / 'photos'}"))
    assert (code, facts["images"], facts["quarantined"]) == (0, 1, 1)
    assert "Set aside 0.png: cannot be read: ZeroDivisionError" in err


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 60), (60, 1)])
def test_pictures_smaller_than_a_patch(size, place, tmp_path, capsys):
    picture(tmp_path / "p" / "x.png", *size)
    for number, more in enumerate(([], ["pixels=own"], ["pixels=own", "window=whole", "scales=1,0.5"])):
        out = tmp_path / str(number)
        assert call(capsys, *words(place, "heads/mine", out, f"images={tmp_path / 'p'}", *more))[0] == 0
        assert np.asarray(Image.open(out / "maps" / "x.png.png")).shape == size


def test_a_backbone_of_one_channel(tmp_path, capsys):
    backbone(tmp_path / "b", channels=1)
    released(tmp_path / "s.pth", drawn(LinearSegmentation(WIDTH, 1, 4)))
    picture(tmp_path / "photos" / "grey.png", 20, 30, channels=1)
    picture(tmp_path / "photos" / "rgb.png", 20, 30)
    code, facts, _ = call(capsys, *words(tmp_path, "s.pth", tmp_path / "o", "pixels=20", "window=16"))
    assert (code, facts["images"]) == (0, 2)


def test_names_that_are_no_names_of_files(place, tmp_path):
    """Ids of any kind stay inside the folder, and no two share a file."""
    from dinoforge.verbs.predicted import Folder

    names = [
        "../../x",
        "/etc/x",
        "a//b",
        ".hidden",
        "a/../b",
        "http://h/i?q=1",
        "b" * 300,
        "a\nb",
        "",
        "a/b",
        "a_b",
        "..",
        "a\udc80b",
        "\ud800",
    ]
    with Folder(tmp_path / "o", {}, {}) as folder:
        places = [folder.place("maps", name, ".png") for name in names]
    assert len({*places}) == len(names)
    assert all(path.resolve().is_relative_to((tmp_path / "o" / "maps").resolve()) for path in places)


WRONG = [
    ("heads/none", [], "head {0}/heads/none does not exist; give a folder with head.safetensors"),
    ("heads", [], "{0}/heads holds no head; of those in it give one: mine."),
    ("b", [], "{0}/b holds no head; give a folder"),
    ("b/backbone.safetensors", [], "is no released head"),
    ("photos/a/0.png", [], "is no readable weights file"),
    ("nyu_linear4.pth", [], "range= is required: {0}/nyu_linear4.pth does not say its range"),
    ("nyu_linear4.pth", ["range=10"], "range takes two numbers of metres, the smaller first, such as 0.001,10; got '10'."),
    ("nyu_linear4.pth", ["range=10,1"], "range takes two numbers"),
    ("nyu_linear4.pth", ["range=0.001,80", "format=png"], "format=png holds depth up to 65.535 metres"),
    ("nyu_linear4.pth", ["range=0.001,10", "scores=true"], "scores=true has no effect"),
    ("ade_linear.pth", ["range=0,1"], "range=0,1 has no effect: {0}/ade_linear.pth is no head for depth."),
    ("heads/mine", ["range=0,1"], "range=0,1 has no effect"),
    ("heads/mine", ["stride=17"], "stride=17 leaves gaps between windows of 16 pixels; give 16 or less."),
    ("heads/mine", ["window=whole", "stride=8"], "stride=8 has no effect: pictures are seen whole; give window=."),
    ("heads/mine", ["pixels=big"], "pixels takes a whole number; got 'big'."),
    ("heads/mine", ["window=99999"], "window must be at most 16384; got 99999."),
    ("heads/mine", ["scales=1,x"], "scales"),
    ("heads/mine", ["format=jpg"], "format must be one of 'png' or 'npy'; got 'jpg'."),
    ("heads/mine", ["flop=true"], "Unknown setting 'flop'. Did you mean 'flip'?"),
    ("lc.pth", ["window=64"], "window=64 has no effect: {0}/lc.pth is a head for classification."),
    ("heads/mine", ["out={0}/lc.pth"], "out={0}/lc.pth is a file; give a folder."),
    ("heads/mine", ["out={0}/photos"], "out={0}/photos lies within images={0}/photos; give a folder beside it."),
    ("heads/mine", ["images={0}/empty"], "{0}/empty"),
    ("heads/mine", ["backbone={0}/nowhere"], "backbone {0}/nowhere does not exist"),
    ("heads/mine", ["backbone={1}/other"], "was trained on backbone "),
    ("heads/mine", ["backbone={1}/wide"], "is a head for backbones of width 16; this one has 32."),
    ("ade_linear.pth", ["backbone={1}/wide"], "takes 16 channels; a backbone of width 32 gives 32 or 128."),
]  # fmt: skip


@pytest.mark.parametrize(("head", "more", "told"), WRONG)
def test_bad_input_is_one_line(head, more, told, place, tmp_path, capsys):
    backbone(tmp_path / "other", seed=1)
    backbone(tmp_path / "wide", width=32)
    more = [word.format(place, tmp_path) for word in more]
    before = content(place)
    code, facts, err = call(capsys, *words(place, head, tmp_path / "o", *more))
    assert code == 2, err
    line = [line for line in err.splitlines() if line.startswith("dinoforge: ")]
    assert line == [f"dinoforge: {facts['error']}"]
    assert told.format(place, tmp_path) in facts["error"]
    assert content(place) == before


def test_nothing_is_written_where_pictures_are_read(place, tmp_path, capsys):
    """Else the same command, given again, would predict its own pictures."""
    picture(tmp_path / "photos" / "x.png", 20, 30)
    given = [f"images={tmp_path / 'photos'}"]
    code, facts, _ = call(capsys, *words(place, "heads/mine", tmp_path / "photos" / "deep" / "o", *given))
    assert code == 2
    assert "lies within images=" in facts["error"]
    assert call(capsys, *words(place, "heads/mine", tmp_path / "photos2", *given))[0] == 0


def test_other_predictions_are_not_mixed(place, tmp_path, capsys):
    assert execute(words(place, "heads/mine", tmp_path / "o")) == 0
    before = content(tmp_path / "o")
    code, facts, _ = call(capsys, *words(place, "heads/mine", tmp_path / "o", "window=12"))
    assert code == 2
    assert "holds other predictions. They differ in: window 16 -> 12. Give a new folder" in facts["error"]
    assert content(tmp_path / "o") == before


def test_too_many_patches_set_a_picture_aside(place, tmp_path, capsys):
    picture(tmp_path / "p" / "large.png", 1040, 1040)
    given = [f"images={tmp_path / 'p'}", "pixels=own", "window=whole"]
    code, facts, err = call(capsys, *words(place, "heads/mine", tmp_path / "o", *given))
    assert code == 2
    assert "large.png: 67,600 patches at once are more than 65,536; make pixels or window smaller" in err
    assert "No image of" in facts["error"]


def test_numbers_that_are_not_finite(place, tmp_path, capsys):
    head = read_any_head(place / "heads" / "mine", load_backbone(place / "b"))
    head.module.conv_seg.bias[1] = torch.nan
    save_head(tmp_path / "h", head.module, head.facts)
    code, facts, _ = call(capsys, *words(place, "", tmp_path / "o", f"head={tmp_path / 'h'}"))
    assert code == 2
    assert "the predictions of a/0.png are not finite" in facts["error"]


def test_scores_that_the_disk_has_no_room_for_are_one_line(place, tmp_path, capsys, monkeypatch):
    """Room is asked for before: a page of a mapped file that cannot be written would end the process without a word."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    code, _, err = call(capsys, *words(place, "ade_linear.pth", tmp_path / "o", "scores=true"))
    assert code == 2
    assert "0.png.npy: no space left. Free some and run again." in err
    assert "Traceback" not in err
    assert not [*(tmp_path / "o").rglob("*.npy*")]
