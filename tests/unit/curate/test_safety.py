"""Filters for safety: what is on a list goes, what a model says is done, what nobody could look at is not kept."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import shard_works as works
from dinoforge.base.config import Config
from dinoforge.base.errors import ConfigError, DataError, UserError
from dinoforge.curate.embeddings import LAYOUT, Embeddings
from dinoforge.curate.engine import Done, run_stages
from dinoforge.curate.examples import dropped_examples
from dinoforge.curate.executors.run import Lost, Shards, here
from dinoforge.curate.images import colours_of, read_images
from dinoforge.curate.safety import table
from dinoforge.curate.safety.filter import Asked, Filter, Judged, Kind
from dinoforge.curate.safety.lists import DOMAINS, HASHES, DomainsConfig, HashesConfig, listed, plain_address
from dinoforge.curate.safety.model import MODEL, ModelConfig
from dinoforge.curate.settings import settle
from dinoforge.curate.stages import safety
from dinoforge.curate.stages.filters import FILTERS
from dinoforge.curate.state import Result, State
from dinoforge.curate.why import Dropped
from dinoforge.data.decode import Broken
from dinoforge.data.picture import Picture
from dinoforge.data.sources.table import open_source
from dinoforge.data.toyworld.pollution import png


def test_domains_stand_for_their_subdomains_and_addresses_for_themselves():
    lines = ["Bad.example", "https://www.fine.example/private/", "fine.example:80/a?b=1", "[2001:db8::1]"]
    urls = {
        "https://bad.example/x.jpg": True,
        "http://user:pw@img.BAD.example:8080/y": True,
        "https://www.bad.example": True,
        "bad.example/z": True,
        "https://notbad.example/x": False,
        "https://bad.example.org/x": False,
        "https://elsewhere.example/bad.example": False,
        "https://fine.example/private": True,
        "https://fine.example/private?size=2": True,
        "https://fine.example/private/more": False,
        "https://fine.example/a?b=1": True,
        "https://fine.example/a?b=2": False,
        "http://[broken": False,
        "http://[2001:DB8::1]:80/a": True,
        "http://u:p@[2001:db8::1]/": True,
        "http://[2001:db8::2]/a": False,
        "http://2001/a": False,
        "": False,
    }
    blocked = {plain_address(line) for line in lines}
    assert listed(np.asarray(list(urls)), blocked).tolist() == list(urls.values())
    assert not listed(np.asarray(list(urls)), []).any()


def asked(urls, keys=None):
    urls = np.asarray(urls)
    return Asked(urls, np.asarray(keys if keys is not None else ["0" * 64] * len(urls)))


def test_lists_take_comments_and_what_sha256sum_prints(tmp_path):
    key = hashlib.sha256(b"x").hexdigest()
    (tmp_path / "d").write_text(
        "# mine\n\n*.bad.example  # seen in May\nhttps://a.example/#part\n[::1]\n", encoding="utf-8-sig"
    )
    (tmp_path / "h").write_text(f"{key.upper()}  some file.jpg\n#{'0' * 64}\n")
    domains = DOMAINS.make(DomainsConfig(file=str(tmp_path / "d")))
    urls = ["http://bad.example/1", "http://a.example", "http://b.example", "http://[::1]:8080/x"]
    assert domains.judge(asked(urls)).keep.tolist() == [False, False, True, False]
    hashes = HASHES.make(HashesConfig(file=str(tmp_path / "h")))
    assert hashes.judge(asked(["a", "b"], [key, "0" * 64])).keep.tolist() == [False, True]
    assert hashes.files[0].sha256 == hashlib.sha256((tmp_path / "h").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("kind", "config", "content", "message"),
    [
        (DOMAINS, DomainsConfig, b"bad.example\nnot a domain\n", "line 2 is 'not a domain'; a line holds a domain or an address"),
        (DOMAINS, DomainsConfig, b"nodots\n", "line 1 is 'nodots'"),
        (DOMAINS, DomainsConfig, b"0.0.0.0 bad.example\n", "line 1 is '0.0.0.0 bad.example'"),
        (DOMAINS, DomainsConfig, b"# nothing\n", "holds no entry"),
        (DOMAINS, DomainsConfig, b"\xff\xfe", "is no UTF-8 text: byte 0 fits none"),
        (HASHES, HashesConfig, b"0" * 64 + b"\n" + b"0" * 63 + b"\n", "line 2 is '00000"),
        (HASHES, HashesConfig, b"g" * 64, "a line holds a SHA-256 of 64 hexadecimal digits"),
        (HASHES, HashesConfig, None, "does not exist"),
    ],
)  # fmt: skip
def test_bad_lists_are_one_line(kind, config, content, message, tmp_path):
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError) as error:
        kind.make(config(file=str(tmp_path / "list")))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_domains_needs_addresses(tmp_path):
    (tmp_path / "d").write_text("bad.example")
    with pytest.raises(ConfigError, match="no image of the pool has an address"):
        DOMAINS.make(DomainsConfig(file=str(tmp_path / "d"))).judge(asked(["a.png", "b.png"]))


# Where an image comes from and what its owner says


def rows(count):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return [png(np.kron(one, np.ones((8, 8, 1), np.uint8))) for one in coarse]


def parquet(path, count=6, **columns):
    pq.write_table(pa.table({"image": rows(count), **columns}), path)
    return str(path)


def state_of(address, at, how=LAYOUT):
    pool = read_images(open_source(address), at / "read", name="pool", crew=here())
    return State(pool, pool.whole, [], None, {}, Embeddings(at / "e", how), at / "parts")


def test_marks_and_addresses_of_a_table_reach_the_filters(tmp_path):
    address = parquet(
        tmp_path / "p.parquet", id=list("abcdef"), url=["https://u:p@bad.example/1?token=x", *["https://a.example/2"] * 5],
        **{"X-Robots-Tag": ["", "noindex, noai", None, "", "", ""], "noai": [False, False, False, True, None, False]},
    )  # fmt: skip
    state = state_of(address, tmp_path)
    assert state.pool.source.columns["url"][0] == "https://bad.example/1"  # nothing that is secret
    result = FILTERS.run(state, FILTERS.config())
    assert result.dropped.row.tolist() == [1, 3]
    assert set(result.dropped.reason) == {"owner refuses (noai)"}
    assert not len(FILTERS.run(state, FILTERS.config(noai=False)).dropped)
    (tmp_path / "d").write_text("bad.example")
    found = safety._run(state, safety.SafetyConfig(domains=DomainsConfig(file=str(tmp_path / "d"))))
    assert found.dropped.row.tolist() == [0]
    # A scan does not repeat them; as a pool its manifest gives them all the same.
    from dinoforge.verbs.scan import scan

    scan(data=address, out=str(tmp_path / "m.parquet"))
    listed_ = open_source(str(tmp_path / "m.parquet")).columns
    assert [text.strip(",") for text in listed_["robots"].tolist()] == ["", "noindex, noai", "", "noai", "", ""]
    assert listed_["url"][5] == "https://a.example/2"


@pytest.mark.parametrize(
    "columns", [{"robots": ["noai", ""]}, {"url": ["https://bad.example/1", "https://a.example/2"]}]
)
def test_what_owners_and_addresses_say_now_is_heard(columns, tmp_path):
    """The images are the same, and so is the fingerprint of the pool."""
    (tmp_path / "d").write_text("bad.example")
    settings, _ = settle({"pool": "p", "safety.domains.file": str(tmp_path / "d"), "stages": ["filters", "safety"]})

    def go(**changed):
        first = {"url": ["https://a.example/1", "https://a.example/2"], "robots": ["", ""]}
        address = parquet(tmp_path / "p.parquet", 2, id=["a", "b"], **{**first, **changed})
        state, done = run_stages(state_of(address, tmp_path), settings, ["filters", "safety"], tmp_path / "stages")
        return state.alive.tolist(), [one.reused for one in done], state.pool.fingerprint

    before = go()
    assert go() == ([0, 1], [True, True], before[2])
    assert go(**columns) == ([1], ["url" in columns, False], before[2])


def test_stages_of_a_pool_that_says_nothing_depend_on_nothing_more(tmp_path):
    state = state_of(parquet(tmp_path / "p.parquet", 1, id=["a"]), tmp_path)
    assert FILTERS.depends(state, FILTERS.config()) is None
    assert safety._depends(state, safety.SafetyConfig()) is None


def test_marks_of_a_list(tmp_path):
    for number, encoded in enumerate(rows(3)):
        (tmp_path / f"{number}.png").write_bytes(encoded)
    (tmp_path / "l.csv").write_text("file,noai\n0.png,1\n1.png,0\n2.png,\n")
    source = open_source(str(tmp_path / "l.csv"))
    assert source.columns["robots"].tolist() == ["noai", "", ""]


# The stage


class BrightConfig(Config):
    most: float


@dataclass(frozen=True, kw_only=True)
class Bright(Filter):
    """Drops what is bright, and marks the upper half of the rest."""

    most: float
    calls: list
    blurs: bool = True

    def judge(self, asked):
        self.calls.append(len(asked))
        values = {"image": asked.images, "bytes": asked.files}.get(self.needs, asked.embeddings)
        bright = np.asarray(
            [np.frombuffer(one, np.uint8).mean() if isinstance(one, bytes) else one.mean() for one in values]
        )
        box = np.asarray([[0, 0, 1, 0.5]], np.float32)
        keep = bright <= self.most
        return Judged.of(keep, "too bright", bright.astype(np.float32), [box if good else box[:0] for good in keep])


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run the stage with the filter above on eight images in shards of three; what it found, and how often it was asked."""
    monkeypatch.setattr(safety, "SHARD", 3)
    calls = []
    state = state_of(parquet(tmp_path / "p.parquet", 8), tmp_path)

    def go(needs="image", most=110.0, state=state):
        calls.clear()
        kind = Kind("what is bright", BrightConfig, lambda config: Bright(most=config.most, calls=calls, needs=needs))
        monkeypatch.setitem(safety.SAFETY, "bright", kind)
        monkeypatch.setattr(safety, "_chosen", lambda config: {"bright": config})
        config = BrightConfig(most=most)
        monkeypatch.setattr(BrightConfig, "bright", config, raising=False)
        return safety._run(state, config)

    go.state, go.calls = state, calls
    return go


def test_a_filter_sees_what_it_needs(stage, tmp_path):
    pool = stage.state.pool
    means = np.asarray([pool.source.pixels(row).mean() for row in range(8)])
    files = [np.frombuffer(pool.source.encoded(row), np.uint8).mean() for row in range(8)]
    for needs, values in (
        ("image", means),
        ("bytes", files),
        ("embedding", pool.descriptors.astype(np.float32).mean(axis=1)),
    ):
        middle = float(np.median(values))
        found = stage(needs=needs, most=middle)
        assert found.dropped.row.tolist() == np.flatnonzero(np.asarray(values, np.float64) > middle).tolist(), needs
        kept = np.setdiff1d(np.arange(8), found.dropped.row)
        assert found.arrays["box_row"].tolist() == kept.tolist()
        assert found.arrays["blurred"].all()
        facts = found.facts["filters"][0]
        assert (facts["needs"], facts["judged"], facts["dropped"], facts["boxes"]) == (needs, 8, 4, 4)
        assert found.arrays["detail"][0].startswith("bright, score ")


def test_shards_that_were_judged_are_not_judged_again(stage, tmp_path):
    first = stage()
    assert stage.calls == [3, 3, 2]
    files = sorted((tmp_path / "parts").glob("bright-*.npz"))
    files[1].unlink()
    again = stage()
    assert stage.calls == [3]
    np.testing.assert_array_equal(first.dropped.row, again.dropped.row)
    np.testing.assert_array_equal(first.arrays["boxes"], again.arrays["boxes"])
    stage(most=120.0)  # another setting is another answer
    assert stage.calls == [3, 3, 2]


def test_a_shard_whose_answer_was_lost_is_not_judged_again(stage, monkeypatch):
    works.twice(monkeypatch)
    stage()
    assert stage.calls == [3, 3, 2]


@pytest.mark.parametrize(("needs", "way"), [("image", "picture"), ("bytes", "encoded")])
def test_what_cannot_be_looked_at_goes_and_is_looked_at_by_the_next_start(needs, way, stage, monkeypatch):
    source = stage.state.pool.source
    whole = getattr(source, way)

    def read(row):
        if row == 4:
            raise Broken("the file is gone")
        return whole(row)

    with monkeypatch.context() as patch:
        patch.setattr(source, way, read, raising=False)
        found = stage(needs=needs, most=256.0)
    assert found.dropped.row.tolist() == [4]
    assert found.dropped.reason.tolist() == ["cannot be judged"]
    assert found.arrays["detail"].tolist() == ["bright, the file is gone"]
    assert not found.lasting
    again = stage(needs=needs, most=256.0)
    assert stage.calls == [3]
    assert again.lasting
    assert not len(again.dropped)


def test_the_report_does_not_spread_what_went_for_safety(stage):
    gone = Result(Dropped.alone(np.asarray([2]), np.asarray(["too bright"]), stage="safety"))

    def roughest(name):
        found = dropped_examples(stage.state, [Done(name, 8, gone, "", False)])[name][0]["picture"]
        return np.abs(np.diff(found.astype(int), axis=0)).max()

    assert roughest("exact") > 60
    assert roughest("safety") < 20


def test_a_shard_that_is_given_up_is_told_and_judged_by_the_next_start(stage, monkeypatch):
    whole = stage()
    for part in stage.state.parts.glob("*.npz"):
        part.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "each", lambda _self, work, shards, **_words: iter(
            [(place, Lost("its process died") if shard.job.rows[0] == 3 else work(shard.job, 1))
             for place, shard in enumerate(shards)]
        ))  # fmt: skip
        lost = stage()
    assert not lost.lasting
    gone = np.isin(lost.dropped.row, [3, 4, 5])
    assert gone.sum() == 3
    assert set(lost.dropped.reason[gone]) == {safety.UNJUDGED}
    assert set(lost.arrays["detail"][gone]) == {"bright, its shard failed twice: its process died"}
    again = stage()
    assert stage.calls == [3]
    assert again.lasting
    assert again.dropped.row.tolist() == whole.dropped.row.tolist()


def test_a_filter_that_answers_too_little_is_told(stage, monkeypatch):
    monkeypatch.setattr(Bright, "judge", lambda self, asked: Judged.of(np.ones(1, bool), "x"))
    with pytest.raises(DataError, match=r"\(Bright\) was asked about 3 images and answered of {1, 3}"):
        stage()


def test_large_and_strange_pictures_are_shown_in_three_channels():
    wide = np.tile(np.arange(3000, dtype=np.uint16)[None, :, None] * 20, (10, 1, 1))
    assert colours_of(Picture.of(wide), longest=100).shape == (1, 100, 3)
    assert colours_of(Picture.of(np.zeros((7, 5, 12), np.float32)), longest=100).shape == (7, 5, 3)


def test_filters_of_other_packages(monkeypatch, capsys):
    class Point:
        def __init__(self, name, value, thing):
            self.name, self.value, self.thing = name, value, thing

        def load(self):
            if isinstance(self.thing, Exception):
                raise self.thing
            return self.thing

    theirs = Kind("what is bright", BrightConfig, lambda config: None)
    points = [
        Point("bright", "them:BRIGHT", theirs), Point("hashes", "them:H", theirs), Point("broken", "them:B", ImportError("no x")),
        Point("odd", "them:O", 3),
    ]  # fmt: skip
    monkeypatch.setattr(table, "entry_points", lambda group: points if group == "dinoforge.safety" else [])
    found = table._with_others()
    assert found["bright"] is theirs
    assert found["hashes"] is HASHES
    assert {"broken", "odd"}.isdisjoint(found)
    said = capsys.readouterr().err
    assert "broken (them:B) is left out: ImportError: no x" in said
    assert "hashes (them:H) is left out: the name is taken" in said


# Models


def onnx_file(path, *, shape=("n", 3, 4, 4), outputs=2):
    """Gives the mean of the channels as logits: column 0 of red, column 1 of green."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=axes, keepdims=0),
        helper.make_node("Gather", ["m", "which"], ["y"], axis=1),
    ]
    which = helper.make_tensor("which", TensorProto.INT64, [outputs], list(range(outputs)))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], outputs])], [which],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


RAW = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def coloured(*colours):
    return [np.full((9, 7, 3), colour, np.uint8) for colour in colours]


@pytest.mark.parametrize("shape", [("n", 3, 4, 4), (1, 3, 4, 4), ("n", "h", "w", 3)])
def test_a_model_of_onnx_by_hand(shape, tmp_path):
    pytest.importorskip("onnxruntime")
    red, green = (255, 0, 51), (51, 255, 0)
    file = onnx_file(tmp_path / "m.onnx", shape=shape)
    config = ModelConfig(file=file, threshold=0.5, column=0, licence="MIT", **RAW)
    model = MODEL.make(config)
    assert model.side == (4 if 4 in shape else 224)
    assert (model.files[0].licence, model.files[0].name) == ("MIT", "m.onnx")
    pictures = replace(asked(["a", "b"]), images=coloured(red, green))
    found = model.judge(pictures)
    assert found.keep.tolist() == [False, True]
    np.testing.assert_allclose(found.scores, [1, 0.2], atol=1e-4)  # means of 224 x 224 are rounded
    soft = MODEL.make(config.model_copy(update={"scores": "softmax", "column": 1}))
    np.testing.assert_allclose(
        soft.judge(pictures).scores, [np.e**0 / (np.e**0 + np.e), np.e / (np.e + np.e**0.2)], atol=1e-4
    )
    sigmoid = MODEL.make(config.model_copy(update={"scores": "sigmoid"}))
    np.testing.assert_allclose(sigmoid.judge(pictures).scores, 1 / (1 + np.exp([-1, -0.2])), atol=1e-4)
    usual = MODEL.make(ModelConfig(file=file, threshold=0, column=0))
    np.testing.assert_allclose(usual.judge(pictures).scores[0], (1 - 0.485) / 0.229, rtol=1e-3)


def test_a_score_that_is_no_number_drops_the_image(tmp_path):
    pytest.importorskip("onnxruntime")
    words = {"mean": (0, 0, 0), "std": (1e-45, 1, 1), "scores": "softmax"}  # infinity minus infinity
    model = MODEL.make(ModelConfig(file=onnx_file(tmp_path / "m.onnx"), threshold=0.5, column=0, **words))
    found = model.judge(replace(asked(["a", "b"]), images=coloured((255, 0, 0), (0, 0, 0))))
    assert np.isnan(found.scores).tolist() == [True, False]
    assert not found.keep[0]


class Green(torch.nn.Module):
    def forward(self, x):
        return x[:, 1].mean(dim=(1, 2))


@pytest.fixture
def script(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Green()).save(str(tmp_path / "m.pt"))
    return str(tmp_path / "m.pt")


def test_torchscript_runs_only_with_its_hash(script):
    key = hashlib.sha256(Path(script).read_bytes()).hexdigest()
    model = MODEL.make(ModelConfig(file=script, threshold=0.5, trust_sha256=key.upper(), side=8, **RAW))
    assert model.judge(replace(asked(["a", "b"]), images=coloured((255, 0, 0), (0, 255, 0)))).keep.tolist() == [
        True,
        False,
    ]
    with pytest.raises(ConfigError, match=f"where you trust it, say safety.model.trust_sha256={key}"):
        MODEL.make(ModelConfig(file=script, threshold=0.5))
    with pytest.raises(ConfigError, match="is not the SHA-256 of"):
        MODEL.make(ModelConfig(file=script, threshold=0.5, trust_sha256="0" * 64))


def test_a_share_of_one_number_is_no_score(script):
    key = hashlib.sha256(Path(script).read_bytes()).hexdigest()
    with pytest.raises(
        ConfigError, match=r"scores=softmax makes 1 of every image: .* gives one number; give sigmoid or as_is\.$"
    ):
        MODEL.make(ModelConfig(file=script, threshold=0.5, trust_sha256=key, scores="softmax"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"file": "nowhere.onnx"}, "safety.model.file=nowhere.onnx does not exist"),
        ({}, "safety.model.column= is required: {file} gives 2 numbers an image, 0 to 1"),
        ({"column": 2}, "safety.model.column=2 is not there: {file} gives 2 numbers"),
        ({"column": 0, "side": 5}, "safety.model.side=5 does not fit: {file} takes 4"),
        ({"column": 0, "std": (1, 0, 1)}, "safety.model.std=[1.0, 0.0, 1.0] divides by 0"),
        ({"column": 0, "trust_sha256": "a"}, "safety.model.trust_sha256= has no effect"),
        ({"file": "text.onnx"}, "safety.model.file=text.onnx cannot be opened by ONNX Runtime"),
        ({"file": "grey.onnx"}, "a filter takes one input [n, 3, side, side]"),
    ],
)
def test_bad_models_are_one_line(words, message, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    file = onnx_file(tmp_path / "m.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    onnx_file(tmp_path / "grey.onnx", shape=("n", 1, 4, 4))
    with pytest.raises(UserError) as error:
        MODEL.make(ModelConfig(**{"file": file, "threshold": 0.5, **words}))
    assert message.format(file=file) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_onnx_runtime_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    file = onnx_file(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'dinoforge\[onnx\]'"):
        MODEL.make(ModelConfig(file=file, threshold=0.5))
